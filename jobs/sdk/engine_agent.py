"""The SDK of Engine's Python agents. One file, no dependencies, Python 3.9 or later.

    from engine_agent import artifact, ask, log, outputs_dir, progress, step

    def main(task, inputs):
        rows = step("load", load, "reviews.csv")       # runs once per job, whatever crashes or pauses
        tone = ask("Which tone?", choices=["formal", "warm"])
        artifact(write_report(rows, tone))
        return {"rows": len(rows)}                     # the job's result

How it lives through crashes and waits: `step` and `ask` are written to a journal. When the agent starts again, on any
machine, `main` runs from its top; a step that ended gives its stored result at once, a question that was answered gives
its answer, and until the end of the journal is reached nothing is printed or logged a second time. So code outside
steps must do the same each time it runs: put what takes long, changes the world or depends on chance into a step.

Try an agent without Engine: `python engine_agent.py run agent.py --task "…" --file reviews.csv`.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import hashlib
import json
import os
import re
import select
import shutil
import stat
import sys
import threading
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, NoReturn, TypeVar  # noqa: UP035 (Python 3.9)

if TYPE_CHECKING:
    import random as _random
    import uuid as _uuid
    from collections.abc import Iterator, Mapping, Sequence

__all__ = [
    "Approval",
    "Cancelled",
    "UserError",
    "approve",
    "artifact",
    "ask",
    "ask_many",
    "idempotency_key",
    "inputs_dir",
    "job",
    "log",
    "now",
    "outputs_dir",
    "progress",
    "random",
    "step",
    "uuid",
]

T = TypeVar("T")

# Sizes are those of the worker (jobs/execution/protocol.py), checked here so that the author's own line is blamed.
RESULT_BYTES = 1024 * 1024
STEP_RESULT_BYTES = 64 * 1024 * 1024  # of a step; what is over RESULT_BYTES is kept as a file
RECORD_BYTES = 2 * 1024 * 1024 - 1024
LOG_CHARACTERS = 16 * 1024
MOST_FILES = 1000
NAME_CHARACTERS = 200
KEY_CHARACTERS = 500
PATH_CHARACTERS = 400
DEEPEST = 64

EXIT_SUSPENDED = 75  # EX_TEMPFAIL: run me again when the question is answered
EXIT_ABANDONED = 74  # EX_IOERR: the worker is gone, nobody would hear the result

_UNSET: Any = object()


# --- what agents use ---------------------------------------------------------------------------------------------

_home = Path(os.environ.get("ENGINE_AGENT_HOME") or Path.cwd())  # set for processes that an agent starts
# Where the job's input files are (read only), and where files to hand back are written.
inputs_dir: Path = _home / "inputs"
outputs_dir: Path = _home / "outputs"


class UserError(Exception):
    """Ends the job with words for its user: what is wrong, and in `remedy` what to do about it. Never retried."""

    code = "user_error"

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


def _failure(code: str, message: str, remedy: str = "") -> UserError:
    error = UserError(message, remedy)
    error.code = code
    return error


class Cancelled(BaseException):
    """Somebody cancelled the job. Raised by the next SDK call; clean up and let it pass."""


@dataclasses.dataclass(frozen=True)
class Approval:
    """What a person decided: `approve`, `edit` (see `arguments`), `reject`, or `respond` (see `message`)."""

    decision: str
    arguments: Any
    message: str = ""

    @property
    def approved(self) -> bool:
        """Whether the action may be carried out, with `arguments`."""
        return self.decision in ("approve", "edit")


def step(name: str, fn: Callable[..., T], /, *args: Any, once: bool = False, **kwargs: Any) -> T:
    """Run `fn(*args, **kwargs)` once per job and return its result, as JSON gives it back (tuples become lists).

    After a crash or a wait a step that ended is not run again: its result, and the files it changed in the workspace
    and the outputs, come from the journal. A step that was cut in the middle runs again, with the same
    `idempotency_key()`; with `once=True` it does not, but a person is asked whether it had happened.
    Raises TypeError for a result that JSON cannot hold, UserError for one over 64 MiB (write a file instead).
    """
    return _session.step(name, fn, args, kwargs, once=once)  # type: ignore[no-any-return]  # fn's, through JSON


def ask(
    prompt: str,
    *,
    choices: Sequence[Any] | None = None,
    multi: bool = False,
    kind: str | None = None,
    schema: Mapping[str, Any] | None = None,
    default: Any = _UNSET,
    timeout: str | float | timedelta | None = None,
    on_timeout: str | None = None,
    remind: Sequence[str | float | timedelta] = (),
    key: str | None = None,
    assignees: Sequence[str] = (),
) -> Any:
    """Ask a person and return the answer. Until it is there the job waits and holds nothing.

    The answer: a text; one of `choices` (a list of them with `multi=True`); True or False with `kind="confirm"`;
    a dict with `schema` (a flat JSON Schema, shown as a form). `prompt` may be Markdown.
    When `timeout` ("30m", "2d", seconds) is over: `on_timeout="wait"` goes on waiting, "default" takes `default`,
    "fail" fails the job. Without `on_timeout`, a given default is taken and otherwise the job waits.
    """
    question = _question(
        prompt,
        choices=choices,
        multi=multi,
        kind=kind,
        schema=schema,
        default=default,
        timeout=timeout,
        on_timeout=on_timeout,
        remind=remind,
        key=key,
        assignees=assignees,
    )
    return _session.ask([question])[0]


def ask_many(questions: Sequence[str | Mapping[str, Any]]) -> list[Any]:
    """Ask several questions at once, answered in any order; returns the answers in the order of the questions.

    Each is a prompt, or a dict of the arguments of `ask`: `{"prompt": "Which tone?", "choices": ["formal", "warm"]}`.
    """
    return _session.ask([_question(q) if isinstance(q, str) else _question(**q) for q in questions])


def approve(
    action: str,
    arguments: Mapping[str, Any],
    *,
    allowed: Sequence[str] = ("approve", "edit", "reject", "respond"),
    risk: str = "high",
    schema: Mapping[str, Any] | None = None,
    prompt: str = "",
    timeout: str | float | timedelta | None = None,
    on_timeout: str = "wait",
    remind: Sequence[str | float | timedelta] = (),
    key: str | None = None,
    assignees: Sequence[str] = (),
) -> Approval:
    """Ask a person to allow an action with these arguments. Time passing never approves: "default" means reject.

    With "edit" the person may change the arguments: each keeps its type, or all meet `schema` (a flat JSON Schema).
    """
    unknown = set(allowed) - {"approve", "edit", "reject", "respond"}
    if unknown or not allowed:
        raise ValueError("allowed= takes approve, edit, reject and respond")
    if risk not in ("low", "medium", "high"):
        raise ValueError('risk= is "low", "medium" or "high"')
    question = _question(
        prompt or f"May the agent do this: {action}?",
        kind="approval",
        default={"decision": "reject"} if on_timeout == "default" else _UNSET,
        timeout=timeout,
        on_timeout=on_timeout,
        remind=remind,
        key=key,
        assignees=assignees,
    )
    question.details = {
        "action": action,
        "arguments": _plain(dict(arguments), "approve(): arguments"),
        "allowed": list(allowed),
        "risk": risk,
    }
    if schema is not None:
        question.details["schema"] = _plain(dict(schema), "approve(): schema")
    answer = _session.ask([question])[0]
    return Approval(
        decision=str(answer["decision"]),
        arguments=answer.get("arguments", question.details["arguments"]),
        message=str(answer.get("message", "")),
    )


def log(message: object, level: str = "info", **data: Any) -> None:
    """Add a line to the job's log. `level` is debug, info, warning or error; `data` are values to keep with it."""
    _session.log(str(message), level, data)


def progress(fraction: float | None, message: str = "") -> None:
    """Say how far the job is, 0 to 1 (None: unknown), and what it is doing."""
    _session.progress(fraction, message)


def artifact(source: str | os.PathLike[str] | bytes, name: str | None = None) -> str:
    """Hand a file (or bytes) back now, visible before the job ends; returns its name among the artifacts.

    Whatever lies in `outputs_dir` when the agent returns is handed back too.
    """
    return _session.artifact(source, name)


def now() -> datetime:
    """The time (UTC) at which the job first came here: the same again after a crash or a wait."""
    return _session.now()


def random() -> float:
    """A number in [0, 1): the same again after a crash or a wait."""
    return _session.generator("random").random()


def uuid() -> _uuid.UUID:
    """A random UUID: the same again after a crash or a wait."""
    import uuid as module

    return module.UUID(int=_session.generator("uuid").getrandbits(128), version=4)


def idempotency_key() -> str:
    """Inside a step: a key for calls to the outside, the same each time this step of this job runs."""
    return _session.idempotency_key()


class _Job:
    """`job.now()` and the like, for those who prefer to see whose time it is."""

    now = staticmethod(now)
    random = staticmethod(random)
    uuid = staticmethod(uuid)


job = _Job()


# --- questions ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Question:
    """A question as the agent put it. `options` gives the agent its own objects back, not their texts."""

    kind: str
    prompt: str
    name: str
    choices: list[str] | None
    schema: Any
    default: Any
    timeout: float | None
    on_timeout: str
    remind: list[float]
    assignees: list[str]
    details: dict[str, Any]
    options: dict[str, Any]

    def sketch(self) -> list[Any]:
        """What must be the same each time for the answer to be an answer to this question."""
        return [self.kind, self.prompt, self.choices, self.schema, self.details]

    def record(self, key: str, signature: str) -> dict[str, Any]:
        record = dataclasses.asdict(self)
        del record["options"], record["name"]
        record.update(key=key, signature=signature)
        if self.default is _UNSET:
            del record["default"]
        return record

    def take(self, answer: Any) -> Any:
        """The stored answer as the agent gets it."""
        if isinstance(answer, list):
            return [self.options.get(item, item) for item in answer]
        return self.options.get(answer, answer) if isinstance(answer, str) else answer


def _question(
    prompt: str,
    *,
    choices: Sequence[Any] | None = None,
    multi: bool = False,
    kind: str | None = None,
    schema: Mapping[str, Any] | None = None,
    default: Any = _UNSET,
    timeout: str | float | timedelta | None = None,
    on_timeout: str | None = None,
    remind: Sequence[str | float | timedelta] = (),
    key: str | None = None,
    assignees: Sequence[str] = (),
) -> _Question:
    if multi and choices is None:
        raise ValueError("ask(): multi= goes with choices=")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError("ask(): the prompt is a text that is not empty")
    guess = "form" if schema is not None else "text"
    if choices is not None:
        guess = "multi_choice" if multi else "choice"
    kind = kind or guess
    if kind not in ("text", "choice", "multi_choice", "confirm", "form", "approval"):
        raise ValueError(f"ask(): there is no kind {kind!r}")
    if (kind in ("choice", "multi_choice")) != (choices is not None):
        raise ValueError("ask(): choices= goes with the kinds choice and multi_choice")
    if (kind == "form") != (schema is not None):
        raise ValueError("ask(): schema= goes with the kind form")
    options = {str(choice): choice for choice in choices or ()}
    if choices is not None and not 0 < len(options) == len(choices):
        raise ValueError("ask(): choices= needs at least one choice, and none twice")
    if on_timeout is None:
        on_timeout = "default" if default is not _UNSET and timeout is not None else "wait"
    if on_timeout not in ("wait", "default", "fail"):
        raise ValueError('ask(): on_timeout= is "wait", "default" or "fail"')
    if on_timeout != "wait" and timeout is None:
        raise ValueError("ask(): on_timeout= needs a timeout=")
    if on_timeout == "default" and default is _UNSET:
        raise ValueError('ask(): on_timeout="default" needs a default=')
    if default is not _UNSET:
        default = _plain(default, "ask(): default")
        if kind in ("choice", "multi_choice"):
            default = [str(item) for item in default] if isinstance(default, list) else str(default)
    return _Question(
        kind=kind,
        prompt=_clean(prompt),
        name=key or "ask",
        choices=None if choices is None else list(options),
        schema=None if schema is None else _plain(dict(schema), "ask(): schema"),
        default=default,
        timeout=None if timeout is None else _seconds(timeout),
        on_timeout=on_timeout,
        remind=[_seconds(after) for after in remind],
        assignees=[str(who) for who in assignees],
        details={},
        options=options,
    )


def _seconds(span: str | float | timedelta) -> float:
    """90, "90", "90s", "30m", "12h", "2d", "1w" or a timedelta, in seconds."""
    if isinstance(span, timedelta):
        seconds = span.total_seconds()
    else:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw]?)", str(span).strip())
        if match is None:
            raise ValueError(f'a time is a number of seconds, or a text such as "30m" or "2d", not {span!r}')
        seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}[match[2]]
    if not 0 < seconds <= 366 * 86400:
        raise ValueError("a time lies between 0 seconds and one year")
    return seconds


# --- values that JSON and PostgreSQL can hold --------------------------------------------------------------------

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def _clean(text: str) -> str:
    """NUL and halves of surrogate pairs cannot be stored as text: they become U+FFFD."""
    return _UNSTORABLE.sub("\ufffd", text)


def _too_large(what: str, most: int) -> UserError:
    return _failure(
        "result_too_large",
        f"{what} is larger than {most >> 20} MiB as JSON.",
        "Write it to a file in the workspace or the outputs, and return the file's name.",
    )


def _plain(value: Any, what: str, most: int = RESULT_BYTES) -> Any:
    """`value` as plain JSON data. NaN and infinity become null, as in JavaScript and pandas.

    Takes numpy scalars and arrays, dates, paths, sets, enums, dataclasses too. Raises TypeError that names the place.
    """
    try:
        return _Plainer(what, most).plain(value, 0)
    except _Misfit as misfit:
        place = "".join(f"/{part}" for part in reversed(misfit.path)) or "/"
        raise TypeError(f"{what} {misfit.problem} at {place}{misfit.advice}") from None


class _Misfit(Exception):
    """A value that JSON cannot hold; its place is put together on the way out."""

    def __init__(self, problem: str, advice: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.advice = advice
        self.path: list[Any] = []


class _Plainer:
    def __init__(self, what: str, most: int) -> None:
        self.what = what
        self.most = self.left = most  # a value costs a byte at least

    def plain(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if value is None or kind is bool or kind is int:
            return value
        if kind is float:
            return value if value - value == 0 else None
        if isinstance(value, str):
            return _clean(str.__str__(value))
        if depth > DEEPEST:
            raise _Misfit(f"is nested deeper than {DEEPEST} levels")
        if isinstance(value, dict):
            return self.mapping(value, depth + 1)
        if isinstance(value, (list, tuple)):
            return self.sequence(value, depth + 1)
        if isinstance(value, (set, frozenset)):
            return sorted(self.sequence(value, depth + 1), key=json.dumps)
        return self.plain(self.unwrapped(value), depth + 1)

    def sequence(self, values: Any, depth: int) -> list[Any]:
        self.weigh(len(values))
        plain: list[Any] = []
        try:
            for value in values:
                plain.append(self.plain(value, depth))  # one by one: its length tells the place of a misfit
        except _Misfit as misfit:
            misfit.path.append(len(plain))
            raise
        return plain

    def mapping(self, values: dict[Any, Any], depth: int) -> dict[str, Any]:
        self.weigh(len(values))
        plain = {}
        for key, value in values.items():
            try:
                plain[key if type(key) is str else self.name(key)] = self.plain(value, depth)
            except _Misfit as misfit:
                misfit.path.append(key)
                raise
        return {_clean(key): value for key, value in plain.items()}

    def name(self, key: Any) -> str:
        plain = self.plain(key, 0)
        if isinstance(plain, (dict, list)):
            raise _Misfit(f"has a key that is a {type(key).__name__}")
        return plain if isinstance(plain, str) else json.dumps(plain)

    def weigh(self, values: int) -> None:
        self.left -= values
        if self.left < 0:
            raise _too_large(self.what, self.most)

    def unwrapped(self, value: Any) -> Any:
        """What a value of another type stands for."""
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return float(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        if isinstance(value, os.PathLike):
            return os.fsdecode(value)
        for method in ("tolist", "isoformat"):  # numpy and pandas; dates and times
            if callable(getattr(type(value), method, None)):
                return getattr(value, method)()
        if type(value).__module__ == "uuid":
            return str(value)
        if hasattr(type(value), "__members__"):  # an Enum
            return value.value
        advice = ", which JSON cannot hold: return plain values, or write a file"
        raise _Misfit(f"holds a {type(value).__name__}", advice)


def _encode(value: Any, what: str, most: int = RESULT_BYTES) -> tuple[Any, str]:
    """`value` as plain JSON data, and that as text of at most so many bytes."""
    plain = _plain(value, what, most)
    text = json.dumps(plain, separators=(",", ":"))
    if len(text) > most:
        raise _too_large(what, most)
    return plain, text


def _sketch(value: Any, home: Path, budget: list[int]) -> Iterator[str]:
    """What tells this value from others, as far as it must be the same in each run: no addresses, no places."""
    budget[0] -= 1
    kind = type(value)
    if value is None or kind in (bool, int, float):
        yield repr(value)
    elif isinstance(value, (str, os.PathLike)):
        text = os.fsdecode(value) if isinstance(value, os.PathLike) else value
        yield _portable(text[:10_000], home) + str(len(text) if len(text) > 10_000 else "")
    elif isinstance(value, (list, tuple)):
        yield f"[{len(value)}"
        for item in value:
            if budget[0] <= 0:
                break
            yield from _sketch(item, home, budget)
    elif isinstance(value, dict):
        yield f"{{{len(value)}"
        for key, item in value.items():
            if budget[0] <= 0:
                break
            yield from _sketch(key, home, budget)
            yield from _sketch(item, home, budget)
    else:
        shape = getattr(value, "shape", "")
        yield f"{kind.__module__}.{kind.__qualname__} {shape if isinstance(shape, tuple) else ''}"


def _portable(text: str, home: Path) -> str:
    """A text that may be a path, without the place where this sandbox happens to be."""
    if text.startswith(str(home)):
        return "~" + text[len(str(home)) :]
    return "<temp>" if text.startswith(os.environ.get("TMPDIR", "/tmp")) else text  # noqa: S108


# --- the workspace -----------------------------------------------------------------------------------------------

_BAD_NAME = re.compile("[\x00-\x1f\x7f\ud800-\udfff\\\\]")


class _Files:
    """Which files of the workspace and the outputs the journal already carries."""

    FOLDERS = ("workspace", "outputs")

    def __init__(self, home: Path, blobs: Path) -> None:
        self.home = home
        self.blobs = blobs
        self.skipped: list[str] = []  # names that cannot be kept, to be told once
        self._told: set[str] = set()
        self._known: dict[str, tuple[tuple[int, ...] | None, str]] = {}  # path -> (stat, sha256)

    def changes(self) -> tuple[list[dict[str, Any]], list[str]]:
        """Files that are new or other than last time, and paths that are gone."""
        seen: dict[str, os.stat_result] = {}
        for folder in self.FOLDERS:
            seen.update(self._regular(folder))
        changed = []
        for path, status in seen.items():
            known = self._known.get(path)
            if known and known[0] is not None and known[0] == self._mark(status):
                continue
            sha256 = _sha256(self.home / path)
            if sha256 is None:
                continue  # gone while we looked
            if known is None or known[1] != sha256:
                changed.append({"path": path, "size": status.st_size, "sha256": sha256})
            self._known[path] = (self._mark(status), sha256)
        deleted = [path for path in self._known if path not in seen]
        for path in deleted:
            del self._known[path]
        return changed, deleted

    def restore(self, files: Sequence[Mapping[str, Any]], deleted: Sequence[str]) -> None:
        """Put the workspace into the state in which a step left it."""
        for path in deleted:
            with contextlib.suppress(OSError):
                (self.home / path).unlink()
            self._known.pop(path, None)
        for file in files:
            source = self.blobs / file["sha256"]
            if not source.exists():
                continue  # an early state of a file that a later step brings
            target = self.home / file["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            self._known[file["path"]] = (self._mark(target.stat()), file["sha256"])

    def _regular(self, folder: str) -> Iterator[tuple[str, os.stat_result]]:
        root = self.home / folder
        for parent, folders, names in os.walk(root):
            folders[:] = sorted(name for name in folders if name != "__pycache__")
            for name in sorted(names):
                full = os.path.join(parent, name)  # noqa: PTH118 (called for each file of each step)
                path = folder + full[len(str(root)) :]
                if len(path) > PATH_CHARACTERS or _BAD_NAME.search(path):
                    self._skip(path)
                    continue
                with contextlib.suppress(OSError):
                    status = os.lstat(full)
                    if stat.S_ISREG(status.st_mode):
                        yield path, status

    def _skip(self, path: str) -> None:
        if path not in self._told:
            self._told.add(path)
            self.skipped.append(path)

    @staticmethod
    def _mark(status: os.stat_result) -> tuple[int, ...] | None:
        # File times tick in steps of some milliseconds: of a file changed just now, the same mark proves nothing.
        fresh = time.time_ns() - status.st_mtime_ns < 50_000_000
        return None if fresh else (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def _sha256(path: Path) -> str | None:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            for block in iter(lambda: file.read(1024 * 1024), b""):
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()


# --- standard output while the journal is replayed ---------------------------------------------------------------


class _Mute:
    """Sends descriptors 1 and 2 nowhere, so that what subprocesses and C code print is silent too."""

    def __init__(self) -> None:
        self._saved: tuple[int, int] | None = None

    @property
    def on(self) -> bool:
        return self._saved is not None

    def start(self) -> None:
        import faulthandler

        _flush()
        self._saved = (os.dup(1), os.dup(2))
        faulthandler.enable(self._saved[1])  # a crash in C code is told, muted or not
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        os.close(nowhere)

    def stop(self) -> None:
        if self._saved is None:
            return
        import faulthandler

        _flush()
        saved, self._saved = self._saved, None
        os.dup2(saved[0], 1)
        os.dup2(saved[1], 2)
        faulthandler.enable(2)
        for descriptor in saved:
            os.close(descriptor)


def _flush() -> None:
    for stream in (
        sys.stdout,
        sys.stderr,
        sys.__stdout__,
        sys.__stderr__,
    ):  # agents may have redirected theirs
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or not there at all
            stream.flush()  # type: ignore[union-attr]  # that is what is suppressed


def _complain(text: str) -> None:
    """To standard error, whatever the agent did to `sys.stderr`."""
    _flush()
    with contextlib.suppress(OSError):
        os.write(2, text.encode("utf-8", "backslashreplace"))


# --- the journal and what happens at each call -------------------------------------------------------------------


@dataclasses.dataclass
class _Entry:
    """What an earlier attempt wrote under one key."""

    key: str
    signature: str
    once: bool = False
    ended: bool = False
    result: Any = None
    result_file: str | None = None  # the sha256 of the file that holds it
    error: dict[str, Any] | None = None
    files: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    deleted: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class _Scope:
    """The step that is running: keys of steps inside begin with its key."""

    key: str = ""
    once: bool = False


_TOP = _Scope()
_AROUND = re.compile(r"#\d+/")  # ends the key of a step inside the key of one that it contains
_scope: contextvars.ContextVar[_Scope] = contextvars.ContextVar("engine_agent_scope", default=_TOP)


class _Refused(Exception):
    """The worker did not take a record; the message is for the agent's author."""

    def __init__(self, message: str, remedy: str, code: str) -> None:
        super().__init__(message)
        self.remedy = remedy
        self.code = code


class _Session:
    """One run of `main`: decides for each call whether the journal has it already."""

    def __init__(self, link: _Link, home: Path, seed: str, blobs: Path | None = None) -> None:
        self.link = link
        self.home = home
        self.seed = seed
        self.files = _Files(home, blobs or home / "sdk" / "blobs")
        self.mute = _Mute()
        self.entries: dict[str, _Entry] = {}
        self.answers: dict[str, Any] = {}
        self.pending: dict[str, _Entry] = {}  # not reached again yet, in order of their beginning
        self._inside: dict[str, list[_Entry]] = {}  # steps by the key of the step around them
        self._counts: dict[tuple[str, str], int] = {}
        self._lock = threading.RLock()
        self._local = threading.local()  # .failures: steps that failed and were not survived yet
        self._progress: dict[str, Any] | None = None
        self._progress_at = 0.0

    # -- loading and ending --

    def load(self, lines: Iterator[str]) -> None:
        """Read a journal; output is muted from here on until its end is reached."""
        for line in lines:
            row = json.loads(line)
            if "answer" in row:
                self.answers[row["key"]] = row["answer"]
            else:
                self.entries[row["key"]] = _Entry(**row)
        for key, entry in self.entries.items():
            around = [key[: match.end() - 1] for match in _AROUND.finditer(key)]
            self._inside.setdefault(around[-1] if around else "", []).append(entry)
            if not any(outer in self.entries and self.entries[outer].ended for outer in around):
                self.pending[key] = entry
        if self.pending:
            self.mute.start()

    def finish(self, result: Any) -> None:
        """Hand over what main returned."""
        self._expect(None)
        plain, _ = _encode(result, "The result of main()")
        self._awake()
        self._tell({"t": "result", "result": plain})

    def fail(self, error: BaseException) -> None:
        """Tell the log and the worker why there is no result."""
        self._awake()
        trace = _traceback(error)
        code, remedy = "agent_error", ""
        if isinstance(error, UserError):
            code, remedy = error.code, error.remedy
        elif isinstance(error, Cancelled):
            code = "cancelled"
        elif getattr(error, "_engine_code", None):
            code = error._engine_code  # type: ignore[attr-defined]  # set by _load
        if not isinstance(error, (UserError, Cancelled)):
            _complain(trace)
        _flush()
        self._tell(
            {
                "t": "error",
                "code": code,
                "message": _clean(str(error))[:8000],
                "remedy": _clean(remedy)[:2000],
                "type": type(error).__qualname__,
                "traceback": trace[-32_000:],
            }
        )

    def _die(self, code: str, message: str, remedy: str) -> NoReturn:
        """End the program at once: what cannot go on must not be caught by the agent's own `except`."""
        self.fail(_failure(code, message, remedy))
        _complain(f"{message} {remedy}\n")
        os._exit(1)

    def _awake(self) -> None:
        with self._lock:
            self.pending.clear()
            self.mute.stop()

    # -- keys --

    def next_key(self, name: str) -> str:
        if not isinstance(name, str) or not name.strip() or len(name) > NAME_CHARACTERS:
            raise ValueError(f"a name is a text of 1 to {NAME_CHARACTERS} characters")
        if "#" in name or _UNSTORABLE.search(name) or not name.isprintable():
            raise ValueError(f"the name {name!r} holds '#' or a character that cannot be printed")
        scope = _scope.get().key
        with self._lock:
            count = self._counts[scope, name] = self._counts.get((scope, name), 0) + 1
        key = f"{scope}/{name}#{count}" if scope else f"{name}#{count}"
        if len(key) > KEY_CHARACTERS:
            raise ValueError(
                f"steps are nested too deep: the key {key[:80]}… is over {KEY_CHARACTERS} characters"
            )
        return key

    def _signature(self, label: str, value: Any) -> str:
        """A short name for a call and its arguments, the same wherever it runs. Salted: arguments may be secrets."""
        digest = hashlib.sha256(self.seed.encode())
        for piece in _sketch(value, self.home, [4000]):
            digest.update(piece.encode("utf-8", "backslashreplace") + b"\x00")
        where = "" if threading.current_thread() is threading.main_thread() else "thread "
        return f"{where}{label} {digest.hexdigest()[:16]}"

    def _expect(self, key: str | None) -> None:
        """The main thread comes by the journal's entries in their order, or the agent is not deterministic."""
        first = next((e.key for e in self.pending.values() if not e.signature.startswith("thread ")), None)
        if first is not None and first != key and not first.startswith(f"{key}/"):
            came = f"now comes to {key!r}" if key else "now returned from main()"
            self._die(
                "non_determinism",
                f"The agent {came}, where an earlier attempt of this job came to the step {first!r}.",
                "Code outside steps must do the same each time it runs: move chance, time and outside data into steps.",
            )

    def _reach(self, key: str, signature: str) -> _Entry | None:
        """The journal's entry for this call, if an earlier attempt wrote one."""
        with self._lock:
            entry = self.entries.get(key)
            if self.pending and not signature.startswith("thread "):
                self._expect(key)
            if entry is None:
                if not any(waiting.startswith(f"{key}/") for waiting in self.pending):
                    self._awake()  # nobody was here before: from here on everything is news
                return None
            if entry.signature != signature:
                self._die(
                    "non_determinism",
                    f"The step {key!r} was called with other arguments, or as another kind of call, than in an earlier"
                    " attempt of this job.",
                    "Pass it the same arguments each time: take the time from now(), and chance or outside data from"
                    " a step.",
                )
            self.pending.pop(key, None)
            if not self.pending and not (entry.ended or key in self.answers):
                self._awake()
            return entry

    def _reached(self) -> None:
        """After an entry was replayed: the last one ends the silence."""
        with self._lock:
            if not self.pending:
                self.mute.stop()

    # -- steps --

    def step(
        self, name: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, once: bool
    ) -> Any:
        self._enter()
        key = self.next_key(name)
        title = getattr(fn, "__qualname__", type(fn).__qualname__)
        signature = self._signature("once" if once else "step", [title, args, kwargs])
        entry = self._reach(key, signature)
        if entry is not None and entry.ended:
            return self._replay(entry)
        if entry is not None and once:
            return self._in_doubt(key, signature, fn, args, kwargs)
        return self._run(_Scope(key, once), signature, fn, args, kwargs)

    def _run(
        self,
        scope: _Scope,
        signature: str,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        outer: str | None = None,
    ) -> Any:
        """Run a step's body between its begin and its end. `outer`: a step in doubt, which ends with this one."""
        begin = {"t": "begin", "key": scope.key, "signature": signature, "once": scope.once}
        if scope.once:
            self._call(begin)
        else:
            self._tell(begin)
        token = _scope.set(_Scope(outer, once=True) if outer else scope)
        try:
            result, text = _encode(
                fn(*args, **kwargs), f"The result of step {scope.key!r}", STEP_RESULT_BYTES
            )
        except Exception as error:
            self._failed(scope.key, error)
            raise
        finally:
            _scope.reset(token)
        for key in filter(None, (scope.key, outer)):
            self._end(key, **self._kept(result, text))
        return result

    def _kept(self, result: Any, text: str) -> dict[str, Any]:
        """How the journal holds a result: itself, or if it is large a file of the workspace."""
        if len(text) <= RESULT_BYTES or not self.link.keeps_journal:
            return {"result": result}
        sha256 = hashlib.sha256(text.encode("ascii")).hexdigest()
        path = self.home / "workspace" / ".engine" / f"result-{sha256}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
        return {"result": None, "result_file": sha256}

    def _end(self, key: str, **how: Any) -> None:
        with self._lock:  # whoever reports a changed file must be the first to be heard
            changed, deleted = self.files.changes()
            if len(changed) + len(deleted) > MOST_FILES:
                raise _failure(
                    "checkpoint_too_large",
                    f"The step {key!r} changed {len(changed) + len(deleted):,} files; {MOST_FILES:,} is the most"
                    " that can be kept.",
                    "Pack them into one archive, or write passing files to the folder of the tempfile module.",
                )
            ticket = self._send({"t": "end", "key": key, "files": changed, "deleted": deleted, **how})
        for path in self.files.skipped:
            message = f"The file {path!a} is not kept: its name is too long or holds odd characters."
            self._tell({"t": "log", "level": "warning", "message": message})
        self.files.skipped.clear()
        self._await(ticket)

    def _failed(self, key: str, error: Exception) -> None:
        """Remember a failure until it is known whether the agent lives on: only then is it this step's result."""
        summary = {
            "type": f"{type(error).__module__}:{type(error).__qualname__}",
            "message": _clean(str(error))[:8000],
            "args": _arguments(error),
        }
        if not hasattr(self._local, "failures"):
            self._local.failures = []
        self._local.failures.append((key, summary))
        self._tell({"t": "failed", "key": key, "error": {k: v for k, v in summary.items() if k != "args"}})

    def _survive(self) -> None:
        """The agent caught what its steps raised and went on: their failures are part of the journal."""
        failures, self._local.failures = getattr(self._local, "failures", []), []
        for key, summary in failures:
            self._end(key, error=summary)

    def _replay(self, entry: _Entry) -> Any:
        with self._lock:
            self._restore(entry)
        self._reached()
        if entry.error is not None:
            raise _exception(entry.error)
        if entry.result_file is not None:
            return json.loads((self.files.blobs / entry.result_file).read_text(encoding="ascii"))
        return entry.result

    def _restore(self, entry: _Entry) -> None:
        """Bring back the files of a step and, before it, of the steps inside: each keeps what it changed itself."""
        for inner in self._inside.get(entry.key, ()):
            self._restore(inner)
        self.files.restore(entry.files, entry.deleted)

    def _in_doubt(
        self, key: str, signature: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A `once` step that began and did not end: a person says whether it happened."""
        ran, again, stop = "It happened: go on", "It did not happen: run it now", "Fail the job"
        token = _scope.set(_Scope(key))
        try:
            while True:
                question = _question(
                    f"The step **{key}** must not happen twice. It had begun when the job was interrupted, and nobody"
                    " knows whether it happened. Please look, then choose.",
                    choices=[ran, again, stop],
                    key="in doubt",
                )
                question.details = {"step": key}
                answer = self.ask([question])[0]
                if answer == ran:
                    self._end(key, result=None)
                    return None
                if answer != again:
                    raise _failure(
                        "step_in_doubt",
                        f"The step {key!r} had begun when the job was interrupted, and a person chose to fail the job.",
                    )
                inner = self.next_key("again")
                entry = self._reach(inner, signature)
                if entry is None:
                    return self._run(_Scope(inner, once=True), signature, fn, args, kwargs, outer=key)
                if entry.ended:  # cut between its own end and that of the step around it
                    result = self._replay(entry)
                    self._end(key, **self._kept(result, json.dumps(result, separators=(",", ":"))))
                    return result
        finally:
            _scope.reset(token)

    def idempotency_key(self) -> str:
        scope = _scope.get().key
        if not scope:
            raise RuntimeError("idempotency_key() is for the inside of a step")
        return hashlib.sha256(f"{self.seed}/{scope}".encode()).hexdigest()[:32]

    # -- questions --

    def ask(self, questions: list[_Question]) -> list[Any]:
        if _scope.get().once:
            raise RuntimeError("a once=True step cannot ask: ask before it, then pass it the answer")
        self._enter()
        keys = [self.next_key(question.name) for question in questions]
        unanswered = []
        for key, question in zip(keys, questions):  # noqa: B905 (Python 3.9)
            signature = self._signature("ask", question.sketch())
            entry = self._reach(key, signature)
            if entry is not None and entry.ended:
                self.answers.setdefault(key, entry.result)
            elif key in self.answers:
                self._tell({"t": "answered", "key": key, "signature": signature})
            else:
                unanswered.append(question.record(key, signature))
        if unanswered:
            self._awake()
            _flush()
            self.answers.update(self.link.ask(unanswered))
        self._reached()
        return [question.take(self.answers[key]) for key, question in zip(keys, questions)]  # noqa: B905

    # -- values --

    def now(self) -> datetime:
        self._enter()
        key = self.next_key("now")
        signature = self._signature("now", None)
        entry = self._reach(key, signature)
        if entry is not None and entry.ended:
            self._reached()
            return datetime.fromisoformat(entry.result)
        moment = datetime.now(timezone.utc)  # noqa: UP017 (Python 3.9)
        self._call({"t": "value", "key": key, "signature": signature, "result": moment.isoformat()})
        return moment

    def generator(self, name: str) -> _random.Random:
        """Chance that is drawn from the job's seed and the place in the agent, so it needs no journal."""
        import random as module

        return module.Random(f"{self.seed}/{self.next_key(name)}")  # noqa: S311 (repeatable on purpose)

    # -- what is told --

    def log(self, message: str, level: str, data: dict[str, Any]) -> None:
        if level not in ("debug", "info", "warning", "error"):
            raise ValueError("log(): level is debug, info, warning or error")
        self._enter(survived=False)
        if self.mute.on:
            return
        message = _clean(message)
        if len(message) > LOG_CHARACTERS:
            message = f"{message[:LOG_CHARACTERS]} … [cut: {len(message):,} characters]"
        record: dict[str, Any] = {"t": "log", "level": level, "message": message}
        if data:
            record["data"] = _plain(data, "log(): data")
            if len(json.dumps(record["data"])) > 4 * LOG_CHARACTERS:
                record["data"] = {"cut": "the values were larger than 64 KiB"}
        self._tell(record)

    def progress(self, fraction: float | None, message: str) -> None:
        self._enter(survived=False)
        if self.mute.on:
            return
        if fraction is not None:
            fraction = float(fraction)
            if fraction - fraction != 0:
                raise ValueError("progress(): the fraction is a number between 0 and 1, or None")
            fraction = min(max(fraction, 0.0), 1.0)
        record = {"t": "progress", "fraction": fraction, "message": _clean(str(message))[:500]}
        with self._lock:
            self._progress = record
            if time.monotonic() - self._progress_at >= 0.1:  # a loop may call this a million times
                self._tell_progress()

    def _tell_progress(self) -> None:
        if self._progress is not None:
            record, self._progress = self._progress, None
            self._progress_at = time.monotonic()
            self.link.tell(record)

    def artifact(self, source: str | os.PathLike[str] | bytes, name: str | None) -> str:
        self._enter()
        outputs = self.home / "outputs"
        if isinstance(source, bytes):
            if not name:
                raise ValueError("artifact(): bytes need a name")
        else:
            path = Path(source).absolute()
            inside = outputs in path.parents
            name = name or (path.relative_to(outputs).as_posix() if inside else path.name)
        parts = Path(name).parts
        if _BAD_NAME.search(name) or name.startswith("/") or ".." in parts or len(name) > PATH_CHARACTERS - 8:
            raise ValueError(f"artifact(): {name!r} is no name for a file")
        if self.mute.on:
            return name
        target = outputs / name
        if isinstance(source, bytes):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source)
        elif Path(source).absolute() != target:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        elif not target.is_file():
            raise FileNotFoundError(f"artifact(): there is no file {target}")
        self._call({"t": "artifact", "path": f"outputs/{name}"})
        return name

    # -- the link --

    def _enter(self, *, survived: bool = True) -> None:
        """At the head of each call: stop a cancelled job; a failure that the agent lived through is now final."""
        if self.link.cancelled() and (survived or not getattr(self._local, "cancelled", False)):
            self._local.cancelled = True  # so that clean-up code may still log
            raise Cancelled("the job was cancelled")
        if survived:
            self._survive()

    def _tell(self, record: dict[str, Any]) -> None:
        with self._lock:
            self._tell_progress()
            self.link.tell(record)

    def _send(self, record: dict[str, Any]) -> int:
        with self._lock:
            self._tell_progress()
            _flush()
            return self.link.send(record)

    def _await(self, ticket: int) -> None:
        try:
            self.link.wait(ticket)
        except _Refused as refusal:
            raise _failure(refusal.code, str(refusal), refusal.remedy) from None

    def _call(self, record: dict[str, Any]) -> None:
        self._await(self._send(record))


def _arguments(error: Exception) -> Any:
    try:
        arguments = _plain(list(error.args), "")
    except (TypeError, UserError):
        return None
    return arguments if len(json.dumps(arguments)) < 16_000 else None


def _exception(error: Mapping[str, Any]) -> BaseException:
    """The exception that a step raised in an earlier attempt, of the same class for the same `except`."""
    import importlib

    module, _, name = error["type"].partition(":")
    arguments = error["args"] if error.get("args") is not None else [error["message"]]
    try:
        kind: Any = importlib.import_module(module)
        for part in name.split("."):
            kind = getattr(kind, part)
        if not issubclass(kind, Exception):
            raise TypeError
        try:
            return kind(*arguments)  # type: ignore[no-any-return]  # a subclass of Exception
        except (
            Exception
        ):  # an agent's own __init__ may want other arguments than it passed on, and raise anything
            return kind.__new__(kind, *arguments)  # type: ignore[no-any-return]
    except (ImportError, AttributeError, TypeError):
        return RuntimeError(f"{name}: {error['message']}")


def _traceback(error: BaseException) -> str:
    """The traceback without this file's frames."""
    import traceback

    whole = traceback.TracebackException.from_exception(error)
    queue, seen = [whole], set()
    while queue:
        part = queue.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        part.stack = traceback.StackSummary.from_list([f for f in part.stack if f.filename != __file__])
        queue.extend(other for other in (part.__cause__, part.__context__) if other is not None)
    return _clean("".join(whole.format()))


# --- the link to whoever runs the agent --------------------------------------------------------------------------


class _Link:
    """Where records go. This one is for agents that are imported without a runner, as in their own tests."""

    keeps_journal = False

    def cancelled(self) -> bool:
        """Whether the job is to stop."""
        return False

    def tell(self, record: dict[str, Any]) -> None:
        """Pass a record on; nobody waits for it."""
        if record["t"] == "log":
            print(f"[{record['level']}] {record['message']}")

    def send(self, record: dict[str, Any]) -> int:
        """Pass a record on that must be kept; returns what to wait for."""
        return 0

    def wait(self, ticket: int) -> None:
        """Return when the record is kept. Raises _Refused."""

    def ask(self, questions: list[dict[str, Any]]) -> dict[str, Any]:
        """The answers by key; most links never return."""
        raise RuntimeError("ask() needs Engine, or: python engine_agent.py run agent.py --task …")


class _ChildLink(_Link):
    """In a process that the agent forked or spawned: it may log, the rest belongs to the agent's own process."""

    def send(self, record: dict[str, Any]) -> int:
        raise RuntimeError("step, ask and artifact work in the process that runs main(), not in its children")

    def tell(self, record: dict[str, Any]) -> None:
        if record["t"] == "begin":
            self.send(record)
        if record["t"] == "log":
            sys.stderr.write(f"[{record['level']}] {record['message']}\n")

    def ask(self, questions: list[dict[str, Any]]) -> dict[str, Any]:
        raise RuntimeError("ask works in the process that runs main(), not in its children")


class _WorkerLink(_Link):
    """Records as JSON lines to the worker, replies as JSON lines from it. No thread: forking stays safe."""

    keeps_journal = True

    def __init__(self, records: str, replies: str) -> None:
        scheme, _, where = records.partition(":")
        self._records = (
            int(where) if scheme == "fd" else os.open(where, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        )
        scheme, _, where = replies.partition(":")
        self._replies: _Pipe | _Tail = _Pipe(int(where)) if scheme == "fd" else _Tail(where)
        os.set_inheritable(self._records, False)  # subprocesses of the agent have no business here
        self._writing = threading.Lock()
        self._state = threading.Condition()
        self._reading = False
        self._tickets = 0
        self._answered: dict[int, dict[str, Any]] = {}
        self._cancelled = False

    def cancelled(self) -> bool:
        with self._state:
            if not self._reading and not self._cancelled:
                self._take(self._replies.lines(wait=False))
            return self._cancelled

    def tell(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, separators=(",", ":")).encode("ascii") + b"\n"
        if len(line) > RECORD_BYTES:
            raise ValueError(f"this call carries {len(line):,} bytes; {RECORD_BYTES:,} is the most")
        with self._writing:
            try:
                while line:
                    line = line[os.write(self._records, line) :]
            except OSError:
                os._exit(EXIT_ABANDONED)

    def send(self, record: dict[str, Any]) -> int:
        with self._state:
            self._tickets += 1
            ticket = self._tickets
        self.tell({**record, "n": ticket})
        return ticket

    def wait(self, ticket: int) -> None:
        with self._state:
            while ticket not in self._answered:
                if self._reading:  # another thread reads for all
                    self._state.wait()
                    continue
                self._reading = True
                self._state.release()
                try:
                    lines = self._replies.lines(wait=True)
                finally:
                    self._state.acquire()
                    self._reading = False
                    self._state.notify_all()
                self._take(lines)
            reply = self._answered.pop(ticket)
        if reply["t"] == "refuse":
            raise _Refused(reply["message"], reply.get("remedy", ""), reply.get("code", "refused"))

    def ask(self, questions: list[dict[str, Any]]) -> dict[str, Any]:
        ticket = self.send({"t": "ask", "questions": questions})
        try:
            self.wait(ticket)
        except _Refused as refusal:
            raise ValueError(f"ask(): {refusal}") from None
        # Not by an exception: neither `except:` nor `finally:` of the agent may take a pause for an end.
        _flush()
        os._exit(EXIT_SUSPENDED)

    def detach(self) -> None:
        """In a forked child: let go of the channel."""
        with contextlib.suppress(OSError):
            os.close(self._records)
        with contextlib.suppress(OSError):
            self._replies.close()

    def _take(self, lines: list[bytes]) -> None:
        for line in lines:
            reply = json.loads(line)
            if reply["t"] == "cancel":
                self._cancelled = True
            else:
                self._answered[reply["n"]] = reply


class _Pipe:
    """Reply lines from an inherited pipe."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._descriptor = descriptor
        self._rest = b""
        self._ready = select.poll()
        self._ready.register(descriptor, select.POLLIN)

    def lines(self, *, wait: bool) -> list[bytes]:
        if not self._ready.poll(None if wait else 0):
            return []
        data = os.read(self._descriptor, 65536)
        if not data:
            if wait:
                os._exit(EXIT_ABANDONED)
            self._ready.unregister(self._descriptor)
            self._ready.register(self._descriptor, 0)
            return []
        *lines, self._rest = (self._rest + data).split(b"\n")
        return lines

    def close(self) -> None:
        os.close(self._descriptor)


class _Tail:
    """Reply lines from a file that grows, by appending or by being replaced with a longer one."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._offset = 0

    def lines(self, *, wait: bool) -> list[bytes]:
        pause = 0.005
        while True:
            data = b""
            with contextlib.suppress(FileNotFoundError), open(self._path, "rb") as file:  # noqa: PTH123
                file.seek(self._offset)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            if whole or not wait:
                self._offset += len(whole)
                return whole.splitlines()
            time.sleep(pause)
            pause = min(pause * 1.5, 0.1)

    def close(self) -> None:
        """Nothing is held between two looks."""


def _threads_inherit_scope() -> None:
    """A thread, or a task of a thread pool, belongs to the step that started it; Python would let it forget."""
    start = threading.Thread.start

    def started(thread: threading.Thread) -> None:
        context, run = contextvars.copy_context(), thread.run
        thread.run = lambda: context.run(run)  # type: ignore[method-assign]  # of this one thread
        start(thread)
        pools = sys.modules.get(
            "concurrent.futures.thread"
        )  # not imported for the sake of agents without pools
        if pools is not None and not hasattr(pools.ThreadPoolExecutor.submit, "inherits"):
            submit = pools.ThreadPoolExecutor.submit

            def submitted(pool: Any, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
                return submit(pool, contextvars.copy_context().run, fn, *args, **kwargs)

            submitted.inherits = True  # type: ignore[attr-defined]
            pools.ThreadPoolExecutor.submit = submitted

    threading.Thread.start = started  # type: ignore[method-assign,assignment]


# --- running an agent --------------------------------------------------------------------------------------------


def _load(source: Path) -> Callable[..., Any]:
    """`main` of the agent's file; its folder can be imported from."""
    import importlib.util

    sys.path.insert(0, str(source.parent))
    spec = importlib.util.spec_from_file_location("agent", source)
    if spec is None or spec.loader is None or not source.is_file():
        raise _failure("invalid_agent", f"there is no file {source.name}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["agent"] = module
    try:
        spec.loader.exec_module(module)  # type: ignore[no-untyped-call,unused-ignore]
    except (SyntaxError, ImportError) as error:
        error._engine_code = "invalid_agent"  # type: ignore[union-attr]  # read by _Session.fail
        raise
    main = getattr(module, "main", None)
    if not callable(main):
        raise _failure("invalid_agent", f"{source.name} defines no main(task, inputs)")
    return main  # type: ignore[no-any-return]  # callable, checked above


def _perform(session: _Session, source: Path, task: str, inputs: Any) -> int:
    """Run the agent to its result or its error; returns the exit code."""
    global _session, inputs_dir, outputs_dir
    _session = session
    inputs_dir, outputs_dir = session.home / "inputs", session.home / "outputs"
    os.environ["ENGINE_AGENT_HOME"] = str(session.home)  # for processes that the agent starts
    _threads_inherit_scope()
    try:
        result = _load(source)(task, inputs)
        if hasattr(result, "__await__"):
            import asyncio

            result = asyncio.run(result)
        session.finish(result)
    except SystemExit as error:
        session.fail(
            RuntimeError(f"The agent called sys.exit({error.code!r}) instead of returning from main().")
        )
        return 1
    except BaseException as error:  # whatever an agent raises is the job's error, KeyboardInterrupt included
        session.fail(error)
        return 1
    _flush()
    return 0


def _run_in_sandbox(home: Path) -> int:
    """What a sandbox starts: the job is described in sdk/job.json, its past in sdk/journal.ndjson."""
    link = _WorkerLink(os.environ.pop("ENGINE_RECORDS"), os.environ.pop("ENGINE_REPLIES"))
    import faulthandler

    faulthandler.enable()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(  # type: ignore[union-attr]
            encoding="utf-8", errors="backslashreplace", line_buffering=True, write_through=False
        )
    description = json.loads((home / "sdk" / "job.json").read_text(encoding="utf-8"))
    session = _Session(link, home, description["seed"])

    def forked() -> None:
        global _session
        link.detach()
        _session = _Session(_ChildLink(), home, description["seed"])

    os.register_at_fork(after_in_child=forked)
    with (home / "sdk" / "journal.ndjson").open(encoding="utf-8") as journal:
        session.load(journal)
    code = _perform(session, home / "agent" / "agent.py", description["task"], description["inputs"])
    _leave(code, home / "agent")
    return code


def _leave(code: int, agent: Path) -> None:
    """Leave without taking the interpreter apart: with pandas loaded that is most of a short job's time.

    What matters of it is done here: exit handlers, and closing the files that the agent's globals still hold open.
    """
    if any(thread is not threading.main_thread() and not thread.daemon for thread in threading.enumerate()):
        return  # the usual way out waits for them
    import atexit

    atexit._run_exitfuncs()
    for module in list(sys.modules.values()):
        if str(getattr(module, "__file__", None) or "").startswith(f"{agent}{os.sep}"):
            module.__dict__.clear()
    if "ctypes" in sys.modules:
        sys.modules["ctypes"].CDLL(None).fflush(None)  # what C code printed and kept back
    _flush()
    os._exit(code)


_session = _Session(
    _ChildLink() if "ENGINE_AGENT_HOME" in os.environ else _Link(), _home, os.urandom(8).hex()
)


# --- on a laptop, without Engine ---------------------------------------------------------------------------------


class _LaptopLink(_Link):
    """Keeps the journal in a folder and asks on the terminal."""

    keeps_journal = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: dict[str, dict[str, Any]] = {}
        (folder / "blobs").mkdir(parents=True, exist_ok=True)
        self.result: Any = None
        self.error: dict[str, Any] | None = None
        self.artifacts: list[str] = []

    def tell(self, record: dict[str, Any]) -> None:
        kind = record["t"]
        if kind == "log":
            print(
                f"[{record['level']}] {record['message']}", *([record["data"]] if record.get("data") else [])
            )
        elif kind == "progress":
            share = "" if record["fraction"] is None else f"{record['fraction']:4.0%} "
            print(f"[progress] {share}{record['message']}")
        elif kind == "begin":
            self._write(key=record["key"], signature=record["signature"], once=record["once"])
        elif kind == "result":
            self.result = record["result"]
        elif kind == "error":
            self.error = record

    def send(self, record: dict[str, Any]) -> int:
        if record["t"] == "artifact":
            self.artifacts.append(record["path"])
            print(f"[artifact] {record['path']}")
        elif record["t"] == "value":
            self._write(key=record["key"], signature=record["signature"], ended=True, result=record["result"])
        elif record["t"] == "end":
            for file in record["files"]:
                shutil.copyfile(self._folder / file["path"], self._folder / "blobs" / file["sha256"])
            how = {
                name: record[name]
                for name in ("result", "result_file", "error", "files", "deleted")
                if name in record
            }
            self._write(key=record["key"], ended=True, **how)
        else:
            self.tell(record)
        return 0

    def _write(self, **row: Any) -> None:
        if "answer" not in row:
            row = self._rows[row["key"]] = {**self._rows.get(row["key"], {}), **row}
        with (self._folder / "journal.ndjson").open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(row) + "\n")

    def ask(self, questions: list[dict[str, Any]]) -> dict[str, Any]:
        answers = {}
        for question in questions:
            self._write(key=question["key"], signature=question["signature"])
            try:
                answers[question["key"]] = _answer_from_terminal(question)
            except EOFError:
                print("\nNobody is here to answer. Run it again with --resume to go on from this question.")
                _flush()
                os._exit(EXIT_SUSPENDED)
            self._write(key=question["key"], answer=answers[question["key"]])
        return answers


_JSON_TYPES: dict[str, Any] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
}


def _answer_from_terminal(question: Mapping[str, Any]) -> Any:
    print(f"\n? {question['prompt']}")
    for number, choice in enumerate(question["choices"] or (), 1):
        print(f"  {number}. {choice}")
    details = question["details"]
    if question["kind"] == "approval":
        print(json.dumps(details["arguments"], indent=2))
        print(f"  {' / '.join(details['allowed'])}")
    if question["kind"] == "form":
        print(f"  as JSON, with: {', '.join(question['schema'].get('properties', {}))}")
    while True:
        text = input("> ").strip()
        try:
            return _answer(question, text)
        except ValueError as error:
            print(f"  {error}")


def _answer(question: Mapping[str, Any], text: str) -> Any:
    if not text and "default" in question:
        return question["default"]
    kind, choices = question["kind"], question["choices"] or []
    if kind == "choice":
        return _choice(text, choices)
    if kind == "multi_choice":
        return [_choice(part.strip(), choices) for part in text.split(",") if part.strip()]
    if kind == "confirm":
        if text.lower() in ("y", "yes", "n", "no"):
            return text.lower().startswith("y")
        raise ValueError("yes or no")
    if kind == "form":
        return _form(text, question["schema"])
    if kind == "approval":
        decision, _, rest = text.partition(" ")
        if decision not in question["details"]["allowed"]:
            raise ValueError(f"one of: {', '.join(question['details']['allowed'])}")
        if decision == "edit":
            return {"decision": "edit", "arguments": _object(rest)}
        return {"decision": decision, "message": rest}
    return text


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError('a JSON object, such as {"name": "Ann"}')
    return value


def _form(text: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The object that was typed. Names and types are checked here; Engine checks all that the schema says."""
    value, fields = _object(text), schema.get("properties", {})
    for name in schema.get("required", []):
        if name not in value:
            raise ValueError(f"{name} is missing")
    for name, given in value.items():
        if name not in fields:
            raise ValueError(f"there is no field {name}")
        kind = fields[name].get("type", "any")
        is_wrong_flag = isinstance(given, bool) and kind in ("integer", "number")
        if is_wrong_flag or not isinstance(given, _JSON_TYPES.get(kind, object)):
            raise ValueError(f"{name} must be of type {kind}")
    return value


def _choice(text: str, choices: Sequence[str]) -> str:
    if text in choices:
        return text
    if text.isdigit() and 1 <= int(text) <= len(choices):
        return choices[int(text) - 1]
    raise ValueError(f"a number from 1 to {len(choices)}, or the choice itself")


def _run_on_laptop(arguments: Any) -> int:
    folder: Path = arguments.folder.absolute()
    source: Path = arguments.agent.absolute()
    marker = folder / "job.json"
    if arguments.resume and not marker.exists():
        print(f"There is no earlier run in {folder} to resume.", file=sys.stderr)
        return 2
    if not arguments.resume:
        if folder.exists() and any(folder.iterdir()) and not marker.exists():
            print(f"{folder} holds other files: name another folder with --folder.", file=sys.stderr)
            return 2
        for old in ("inputs", "workspace", "outputs", "blobs"):
            shutil.rmtree(folder / old, ignore_errors=True)
        (folder / "journal.ndjson").unlink(missing_ok=True)
        description = {
            "task": arguments.task,
            "inputs": arguments.input,
            "seed": os.urandom(8).hex(),
        }
        folder.mkdir(parents=True, exist_ok=True)
        marker.write_text(json.dumps(description), encoding="utf-8")
    for name in ("inputs", "workspace", "outputs"):
        if name != "inputs":  # as in a fresh sandbox: only the journal brings files back
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(exist_ok=True)
    for file in arguments.file:
        shutil.copy(file, folder / "inputs")
    description = json.loads(marker.read_text(encoding="utf-8"))
    link = _LaptopLink(folder)
    session = _Session(link, folder, description["seed"], folder / "blobs")
    journal = folder / "journal.ndjson"
    if journal.exists():
        with journal.open(encoding="utf-8") as lines:
            session.load(lines)
        link._rows = {key: dataclasses.asdict(entry) for key, entry in session.entries.items()}
    os.chdir(folder / "workspace")
    code = _perform(session, source, description["task"], description["inputs"])
    ended = {"result": link.result} if link.error is None else {"error": link.error}
    (folder / "result.json").write_text(json.dumps(ended), encoding="utf-8")
    if link.error is not None:
        remedy = f" {link.error['remedy']}" if link.error["remedy"] else ""
        print(f"\nFailed ({link.error['code']}): {link.error['message']}{remedy}", file=sys.stderr)
        return code
    print(f"\nResult: {json.dumps(link.result, indent=2)}")
    files = sorted(path for path in (folder / "outputs").rglob("*") if path.is_file())
    print("\n".join(["Artifacts:", *(f"  {path}" for path in files)]) if files else "No artifacts.")
    return code


def _main(argv: list[str]) -> int:
    if argv == ["_run"]:
        return _run_in_sandbox(Path(__file__).resolve().parent.parent)
    import argparse

    parser = argparse.ArgumentParser(prog="engine_agent", description="Run an agent here, without Engine.")
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="run an agent; questions come on the terminal")
    run.add_argument("agent", type=Path, help="the file that defines main(task, inputs)")
    run.add_argument("--task", default="", help="the task in plain words")
    run.add_argument("--file", action="append", default=[], type=Path, help="an input file; may be repeated")
    run.add_argument("--input", default={}, type=json.loads, help="the job's input as JSON")
    run.add_argument(
        "--folder", default=Path("engine-run"), type=Path, help="for inputs, workspace, outputs and journal"
    )
    run.add_argument("--resume", action="store_true", help="go on with the last run in that folder")
    return _run_on_laptop(parser.parse_args(argv))


if __name__ == "__main__":
    sys.modules["engine_agent"] = sys.modules["__main__"]  # agents import this very module, not a second copy
    sys.exit(_main(sys.argv[1:]))
