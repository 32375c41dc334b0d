"""The records of an agent's program, and the replies to it. A record may be forged: nothing in one is believed unseen.

One record is one JSON object on one line. `n`, where there is one, is the ticket under which the program waits for a
reply: `{"t": "ack", "n": 7}`, or `{"t": "refuse", "n": 7, "message", "remedy", "code"}`. `{"t": "cancel"}` asks it to
stop. The program's side is `jobs/sdk/engine_agent.py`; its limits repeat those here.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jobs.execution.fields import BadRecord, Fields, safe_path
from jobs.execution.outcomes import QuestionSpec, StepBegin
from jobs.execution.questions import question

MOST_FILES = 1000  # in one record
LOG_CHARACTERS = 17 * 1024  # the program's own cut is at 16 KiB, with a mark behind it
DEEPEST = 80
MOST_QUESTIONS = 100

LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class LogLine:
    """A line of the job's log."""

    level: str
    message: str
    data: dict[str, Any] | None


@dataclass(frozen=True)
class Progress:
    """How far the agent says it is."""

    fraction: float | None
    message: str


@dataclass(frozen=True)
class Begin:
    """A step begins; with a ticket, it waits until that is durable."""

    step: StepBegin
    ticket: int | None


@dataclass(frozen=True)
class ClaimedFile:
    """A file that the program says it changed. What it is in truth shows when it is read."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class End:
    """A step has ended."""

    key: str
    value: Any
    error: dict[str, Any] | None
    files: tuple[ClaimedFile, ...]
    deleted: tuple[str, ...]
    ticket: int
    result_file: str = ""  # the sha256 of the file that holds the value, if it is large


@dataclass(frozen=True)
class StepFailed:
    """A step raised; whether the agent survives it is not known yet."""

    key: str
    type: str
    message: str


@dataclass(frozen=True)
class Value:
    """A value that the journal keeps, such as the time."""

    step: StepBegin
    value: Any
    ticket: int


@dataclass(frozen=True)
class Answered:
    """The agent has taken the answer to a question, which the job's own books hold."""

    step: StepBegin


@dataclass(frozen=True)
class ArtifactReady:
    """A file in the outputs is complete and may be shown."""

    path: str
    ticket: int


@dataclass(frozen=True)
class Ask:
    """The agent asks, and its program ends when the questions are taken."""

    steps: tuple[StepBegin, ...]
    questions: tuple[QuestionSpec, ...]
    ticket: int


@dataclass(frozen=True)
class Result:
    """What main returned."""

    value: Any


@dataclass(frozen=True)
class ErrorReport:
    """Why main did not return."""

    code: str
    message: str
    remedy: str
    type: str
    traceback: str


Parsed = (
    LogLine
    | Progress
    | Begin
    | End
    | StepFailed
    | Value
    | Answered
    | ArtifactReady
    | Ask
    | Result
    | ErrorReport
)


def ack(ticket: int) -> bytes:
    """The record is kept."""
    return json.dumps({"t": "ack", "n": ticket}).encode("ascii")


def refusal(ticket: int, message: str, *, remedy: str = "", code: str = "refused") -> bytes:
    """The record is not kept, for this reason."""
    return json.dumps(
        {"t": "refuse", "n": ticket, "message": message, "remedy": remedy, "code": code}
    ).encode("ascii")


CANCEL = b'{"t": "cancel"}'


def parse(line: bytes) -> Parsed:
    """The record on this line. Raises BadRecord for anything that is not exactly one of ours."""
    try:
        data = json.loads(line, parse_constant=_not_json, parse_float=_finite)
    except (ValueError, RecursionError):
        raise BadRecord("a record was not JSON") from None
    if not isinstance(data, dict):
        raise BadRecord("a record was not an object")
    if line.count(b"[") + line.count(b"{") > DEEPEST and _depth(data, DEEPEST) < 0:
        raise BadRecord("a record was nested too deep")
    if b"\\u0000" in line or b"\\ud" in line.lower() or not line.isascii():
        data = _storable(data)
    ticket = data.pop("n", None)
    if ticket is not None and (type(ticket) is not int or not 0 <= ticket < 2**53):
        raise BadRecord("a record's ticket was not a number")
    kind = data.pop("t", None)
    reader = _READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise BadRecord("a record was of no known type", ticket=ticket)
    fields = Fields(data, ticket)
    try:
        record = reader(fields)
    except BadRecord as bad:
        raise BadRecord(str(bad), ticket=ticket) from None
    if fields.data:
        raise BadRecord(f"a {kind} record had unknown fields", ticket=ticket)
    return record


def _not_json(_: str) -> Any:
    raise ValueError


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


def _depth(value: Any, left: int) -> int:
    """What is left of the allowed depth below `value`; negative when it is nested deeper."""
    if left < 0 or not isinstance(value, dict | list):
        return left
    return min(
        (_depth(item, left - 1) for item in (value.values() if isinstance(value, dict) else value)),
        default=left,
    )


_SHA256 = re.compile(r"[0-9a-f]{64}")
_WORD = re.compile(r"[a-z][a-z_]{0,63}")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def _storable(value: Any) -> Any:
    """PostgreSQL takes neither NUL nor half a surrogate pair: they become U+FFFD."""
    if isinstance(value, str):
        return _UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_storable(item) for item in value]
    if isinstance(value, dict):
        return {_UNSTORABLE.sub("\ufffd", key): _storable(item) for key, item in value.items()}
    return value


# --- records ---


def _log(fields: Fields) -> LogLine:
    return LogLine(
        level=fields.one_of("level", LEVELS),
        message=fields.text("message", most=LOG_CHARACTERS),
        data=fields.object("data"),
    )


def _progress(fields: Fields) -> Progress:
    return Progress(fields.number("fraction", least=0, most=1), fields.text("message", most=500, default=""))


def _begin(fields: Fields) -> Begin:
    key, signature = fields.key(), fields.text("signature", most=100)
    return Begin(StepBegin(key, "step", signature, fields.flag("once")), fields.maybe_ticket())


def _end(fields: Fields) -> End:
    return End(
        key=fields.key(),
        value=fields.value("result"),
        error=fields.object("error"),
        files=tuple(_file(item) for item in fields.items("files", most=MOST_FILES)),
        deleted=tuple(safe_path(item) for item in fields.items("deleted", most=MOST_FILES)),
        ticket=fields.ticket(),
        result_file=fields.text("result_file", most=64, default=""),
    )


def _file(value: Any) -> ClaimedFile:
    if not isinstance(value, dict) or value.keys() != {"path", "size", "sha256"}:
        raise BadRecord("a file was not described by path, size and sha256")
    size, sha256 = value["size"], value["sha256"]
    if type(size) is not int or size < 0 or not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise BadRecord("a file's size or sha256 was none")
    return ClaimedFile(safe_path(value["path"]), size, sha256)


def _failed(fields: Fields) -> StepFailed:
    key, error = fields.key(), Fields(fields.object("error") or {}, None)
    return StepFailed(key, error.text("type", most=500), error.text("message", most=8000))


def _value(fields: Fields) -> Value:
    step = StepBegin(fields.key(), "value", fields.text("signature", most=100))
    return Value(step, fields.value("result"), fields.ticket())


def _answered(fields: Fields) -> Answered:
    return Answered(StepBegin(fields.key(), "ask", fields.text("signature", most=100)))


def _artifact(fields: Fields) -> ArtifactReady:
    path = safe_path(fields.data.pop("path", None))
    if not path.startswith("outputs/"):
        raise BadRecord("an artifact lay outside the outputs")
    return ArtifactReady(path, fields.ticket())


def _ask(fields: Fields) -> Ask:
    asked = fields.items("questions", most=MOST_QUESTIONS)
    if not asked or not all(isinstance(item, dict) for item in asked):
        raise BadRecord("an ask carried no questions")
    parsed = [question(Fields(dict(item), None)) for item in asked]
    if len({step.key for step, _ in parsed}) < len(parsed):
        raise BadRecord("two questions had one key")
    return Ask(tuple(step for step, _ in parsed), tuple(spec for _, spec in parsed), fields.ticket())


def _result(fields: Fields) -> Result:
    return Result(fields.value("result"))


def _error(fields: Fields) -> ErrorReport:
    code = fields.text("code", most=64)
    if not _WORD.fullmatch(code):
        raise BadRecord("an error's code was none")
    return ErrorReport(
        code=code,
        message=fields.text("message", most=8000),
        remedy=fields.text("remedy", most=2000, default=""),
        type=fields.text("type", most=500, default=""),
        traceback=fields.text("traceback", most=40_000, default=""),
    )


_READERS: dict[str, Callable[[Fields], Parsed]] = {
    "log": _log,
    "progress": _progress,
    "begin": _begin,
    "end": _end,
    "failed": _failed,
    "value": _value,
    "answered": _answered,
    "artifact": _artifact,
    "ask": _ask,
    "result": _result,
    "error": _error,
}
