"""Runs agents for real, in processes with pipes, against a recorder that keeps everything in lists.

`PipeProvider` isolates nothing; it speaks the sandbox interface so that execution can be tested alone and at any point
of failure. `Story` is a job over several attempts: what was durable in one is the past of the next.
"""

import asyncio
import json
import os
import random
import shutil
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from jobs.execution import outcomes
from jobs.execution.attempt import run_attempt
from jobs.execution.outcomes import ChildSpec, Outcome, StepBegin, StepEnd, StoredArtifact, Used
from jobs.execution.ports import (
    AgentSpec,
    AttemptControl,
    ChildRefused,
    ChildRequest,
    ClaimedJob,
    InputFile,
    Journal,
    JournalStep,
    KeySpending,
)
from jobs.sandboxes.base import (
    CodeResult,
    Ended,
    EndReason,
    FileEntry,
    Provider,
    ProviderHealth,
    Record,
    Sandbox,
    SandboxFileError,
    SandboxOutput,
    SandboxSpec,
    Stderr,
    Stdout,
)

DEADLINE_SECONDS = 60.0


class PipeSandbox(Sandbox):
    """A program in a folder of its own. `channel` says how records travel: by pipes, or by files as on E2B."""

    def __init__(self, folder: Path, spec: SandboxSpec, channel: str) -> None:
        self.ref = folder.name
        self.folder = folder
        self.spec = spec
        self.channel = channel
        self.process: asyncio.subprocess.Process | None = None
        self.sent: list[bytes] = []
        self._queue: asyncio.Queue[SandboxOutput] = asyncio.Queue(maxsize=100)
        self._tasks: list[asyncio.Task[None]] = []
        self._replies = -1
        for name in ("agent", "sdk", "inputs", "workspace", "outputs"):
            (folder / name).mkdir(parents=True)
        for file in spec.files:
            target = folder / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.source if isinstance(file.source, bytes) else file.source.read_bytes())

    async def start(self, argv: Sequence[str]) -> None:
        program = [sys.executable if argv[0] == "python" else argv[0], *argv[1:]]
        env = {"PATH": os.environ["PATH"], "HOME": str(self.folder), **self.spec.env}
        pass_fds: tuple[int, ...] = ()
        if self.channel == "fd":
            records, records_writer = os.pipe()
            replies_reader, self._replies = os.pipe()
            pass_fds = (records_writer, replies_reader)
            env |= {"ENGINE_RECORDS": f"fd:{records_writer}", "ENGINE_REPLIES": f"fd:{replies_reader}"}
        else:
            (self.folder / "records").touch()
            env |= {
                "ENGINE_RECORDS": f"file:{self.folder / 'records'}",
                "ENGINE_REPLIES": f"file:{self.folder / 'replies'}",
            }
        self.process = await asyncio.create_subprocess_exec(
            *program,
            cwd=self.folder / "workspace",
            env=env,
            pass_fds=pass_fds,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        for descriptor in pass_fds:
            os.close(descriptor)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        reading = [self._output(self.process.stdout, Stdout), self._output(self.process.stderr, Stderr)]
        reading.append(self._records(records) if self.channel == "fd" else self._tail())
        self._tasks = [asyncio.create_task(work) for work in reading]
        self._tasks.append(asyncio.create_task(self._conclude(self._tasks[:])))

    async def _output(self, stream: asyncio.StreamReader, kind: type[Stdout] | type[Stderr]) -> None:
        while data := await stream.read(65536):
            await self._queue.put(kind(data))

    async def _records(self, descriptor: int) -> None:
        reader = asyncio.StreamReader(limit=4 * 1024 * 1024)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb")
        )
        try:
            while line := await reader.readline():
                await self._queue.put(Record(line.rstrip(b"\n")))
        finally:
            transport.close()

    async def _tail(self) -> None:
        offset = 0
        while True:
            over = self.process is not None and self.process.returncode is not None
            data = (self.folder / "records").read_bytes()[offset:]
            whole = data[: data.rfind(b"\n") + 1]
            offset += len(whole)
            for line in whole.splitlines():
                await self._queue.put(Record(line))
            if over:
                return
            await asyncio.sleep(0.005)

    async def _conclude(self, readers: list[asyncio.Task[None]]) -> None:
        assert self.process is not None
        code = await self.process.wait()
        await asyncio.gather(*readers, return_exceptions=True)
        await self._queue.put(Ended(EndReason.EXITED, code))

    async def outputs(self) -> AsyncIterator[SandboxOutput]:
        while True:
            item = await self._queue.get()
            yield item
            if isinstance(item, Ended):
                return

    async def send(self, line: bytes) -> None:
        self.sent.append(line)
        if self.channel == "fd":
            try:
                os.write(self._replies, line + b"\n")
            except BrokenPipeError:
                return
        else:  # as on E2B: the whole file again, under another name, then renamed
            part = self.folder / "replies.part"
            part.write_bytes(b"".join(item + b"\n" for item in self.sent))
            part.rename(self.folder / "replies")

    async def list_files(self, folder: str, *, most: int = 1000) -> list[FileEntry]:
        root = self.folder / folder
        found = []
        for path in sorted(root.rglob("*")):
            if path.is_file() and not path.is_symlink():
                found.append(FileEntry(path.relative_to(root).as_posix(), path.stat().st_size))
        if len(found) > most:
            raise SandboxFileError("too many")
        return found

    async def read_file(self, path: str, *, most_bytes: int) -> AsyncIterator[bytes]:
        full = self.folder / path
        if not full.is_file() or full.is_symlink() or full.stat().st_size > most_bytes:
            raise SandboxFileError(f"{path} cannot be read")
        with full.open("rb") as file:
            while block := file.read(65536):
                yield block

    async def run_code(self, code: str, *, timeout_seconds: float) -> CodeResult:
        raise NotImplementedError

    async def terminate(self) -> None:
        self.signal(15)

    async def close(self) -> None:
        self.signal(9)
        if self.process is not None:
            await self.process.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._replies >= 0:
            os.close(self._replies)
            self._replies = -1
        shutil.rmtree(self.folder, ignore_errors=True)

    def signal(self, number: int) -> None:
        if self.process is not None and self.process.returncode is None:
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                return


class PipeProvider(Provider):
    """Opens folders. `opening` runs before each; `opened` keeps every sandbox."""

    name = "pipe"

    def __init__(self, folder: Path, channel: str = "fd") -> None:
        self.folder = folder
        self.channel = channel
        self.opening: Callable[[SandboxSpec], Awaitable[None]] | None = None
        self.opened: list[PipeSandbox] = []

    async def start(self) -> ProviderHealth:
        return ProviderHealth(True, self.name, "no isolation")

    async def open(self, spec: SandboxSpec) -> PipeSandbox:
        if self.opening is not None:
            await self.opening(spec)
        sandbox = PipeSandbox(self.folder / f"sandbox-{len(self.opened)}", spec, self.channel)
        self.opened.append(sandbox)
        return sandbox

    def tick(self, seconds: float) -> None:
        return

    async def kill(self, ref: str) -> None:
        return

    async def close(self) -> None:
        return


class ScriptedSandbox(Sandbox):
    """Brings forth what a test wrote down, then ends. `files` are what it holds; `sent` what it was told."""

    def __init__(self, script: Sequence[SandboxOutput | Exception], files: dict[str, bytes]) -> None:
        self.ref = "scripted"
        self.script = script
        self.files = files
        self.sent: list[dict[str, Any]] = []
        self.calls: list[str] = []

    async def start(self, argv: Sequence[str]) -> None:
        self.calls.append("start")

    async def outputs(self) -> AsyncIterator[SandboxOutput]:
        for item in self.script:
            if isinstance(item, Exception):
                raise item
            await asyncio.sleep(0)  # each comes with a turn of the loop of its own, as from a pipe
            yield item
        if not self.script or not isinstance(self.script[-1], Ended):
            await asyncio.Event().wait()  # it lives on and says nothing

    async def send(self, line: bytes) -> None:
        self.sent.append(json.loads(line))

    async def list_files(self, folder: str, *, most: int = 1000) -> list[FileEntry]:
        found = [
            FileEntry(path.removeprefix(f"{folder}/"), len(data))
            for path, data in self.files.items()
            if path.startswith(f"{folder}/")
        ]
        if len(found) > most:
            raise SandboxFileError("too many")
        return found

    async def read_file(self, path: str, *, most_bytes: int) -> AsyncIterator[bytes]:
        if path not in self.files:
            raise SandboxFileError(f"{path} is no file")
        if len(self.files[path]) > most_bytes:
            raise SandboxFileError(f"{path} is too large")
        for start in range(0, len(self.files[path]), 50_000):
            yield self.files[path][start : start + 50_000]

    async def run_code(self, code: str, *, timeout_seconds: float) -> CodeResult:
        raise NotImplementedError

    async def terminate(self) -> None:
        self.calls.append("terminate")

    async def close(self) -> None:
        self.calls.append("close")


class ScriptedProvider(PipeProvider):
    """Opens one scripted sandbox."""

    def __init__(
        self,
        script: Sequence[SandboxOutput | Exception | dict[str, Any] | bytes],
        files: dict[str, bytes] | None = None,
    ) -> None:
        super().__init__(Path("/nowhere"))
        self.name = "scripted"
        self.sandbox = ScriptedSandbox([_output(item) for item in script], files or {})

    async def open(self, spec: SandboxSpec) -> ScriptedSandbox:  # type: ignore[override]  # another sandbox, as promised
        if self.opening is not None:
            await self.opening(spec)
        return self.sandbox


def _output(item: SandboxOutput | Exception | dict[str, Any] | bytes) -> SandboxOutput | Exception:
    """A dict is a record of the SDK, bytes are a forged one."""
    if isinstance(item, dict):
        return Record(json.dumps(item).encode())
    return Record(item) if isinstance(item, bytes) else item


ENDED = Ended(EndReason.EXITED, 0)


@dataclass(frozen=True)
class Said:
    """An event as a watcher sees it."""

    attempt: int
    type: str
    message: str
    level: str
    source: str
    data: dict[str, Any] | None


@dataclass
class Durable:
    """What a job's database rows would hold."""

    events: list[Said] = field(default_factory=list)
    steps: dict[str, JournalStep] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, StoredArtifact] = field(default_factory=dict)
    progress: tuple[float | None, str] | None = None
    ends: dict[str, int] = field(default_factory=dict)  # how often each key got a durable end
    used: Used = field(default_factory=Used)


class MemoryRecorder:
    """Satisfies `execution.ports.Recorder`. `on_durable(count)` runs before each durable write is kept."""

    def __init__(self, durable: Durable, attempt: int) -> None:
        self.durable = durable
        self.attempt = attempt
        self.sandbox = ""
        self.writes = 0
        self.before: Callable[[int], None] = lambda count: None
        self.after: Callable[[int], None] = lambda count: None
        self._pending: list[Said] = []

    def event(
        self,
        type: str,
        *,
        message: str = "",
        level: str = "info",
        source: str = "system",
        data: dict[str, Any] | None = None,
    ) -> None:
        assert "\x00" not in message
        self._pending.append(Said(self.attempt, type, message, level, source, data))

    def progress(self, fraction: float | None, message: str) -> None:
        self.durable.progress = (fraction, message)

    def opened(self, sandbox: str) -> None:
        self.sandbox = sandbox

    async def ready(self) -> None:
        return

    async def begin_step(self, step: StepBegin) -> None:
        if step.kind == "step":
            self.event("step.started", message=step.key)
        if step.key not in self.durable.steps:
            self._write()
            self.durable.steps[step.key] = JournalStep(step.key, step.kind, step.signature, step.once)
        else:
            self._write()
        await self._written()

    async def end_step(self, step: StepEnd) -> None:
        begin = step.begin
        if begin.kind == "step":
            self.event("step.completed", message=begin.key)
        self._write()
        self.durable.ends[begin.key] = self.durable.ends.get(begin.key, 0) + 1
        self.durable.steps[begin.key] = JournalStep(
            begin.key, begin.kind, begin.signature, begin.once, True, step.result, step.files, step.deleted
        )
        await self._written()

    async def record(self, step: StepEnd, *, used: Used | None = None, model: str = "") -> None:
        await self.end_step(step)
        if used is not None:
            self.durable.used += used

    async def add_artifact(self, artifact: StoredArtifact) -> None:
        self.event("artifact.created", message=artifact.name)
        self._write()
        self.durable.artifacts[artifact.name] = artifact
        await self._written()

    def settle(self) -> None:
        """What the worker's last transaction does with events that were not flushed yet."""
        self.durable.events += self._pending
        self._pending = []

    def _write(self) -> None:
        self.writes += 1
        self.before(self.writes)
        self.settle()

    async def _written(self) -> None:
        self.after(self.writes)
        await asyncio.sleep(0)


@dataclass
class MemoryPlatform:
    """Satisfies `execution.ports.Platform` with what a test writes down."""

    spending: KeySpending | None = None
    found: list[dict[str, Any]] = field(default_factory=list)
    prepared: list[ChildRequest] = field(default_factory=list)
    endings: dict[str, dict[str, Any]] = field(default_factory=dict)  # by the child's task
    refuses: str = ""

    async def key_spending(self) -> KeySpending | None:
        return self.spending

    async def find_agents(self, task: str) -> list[dict[str, Any]]:
        return self.found

    async def prepare_child(self, request: ChildRequest) -> ChildSpec:
        if self.refuses:
            raise ChildRefused(self.refuses)
        self.prepared.append(request)
        return ChildSpec(
            request.id, request.key, uuid4(), request.task, request.input, request.files, request.budget, {}
        )

    async def child_ending(self, child_id: UUID) -> dict[str, Any] | None:
        task = next((one.task for one in self.prepared if one.id == child_id), "")
        return self.endings.get(task)


class WorkerDied(Exception):
    """The attempt was cut off where a test wanted it."""


@dataclass
class Story:
    """A job: its agent, and what is durable of it."""

    provider: Provider
    source: str
    task: str = "do it"
    input: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)
    output_schema: dict[str, Any] | None = None
    files: tuple[InputFile, ...] = ()
    more_source: dict[str, str] = field(default_factory=dict)
    kind: str = "python"
    seed: str = ""
    agent: dict[str, Any] = field(default_factory=dict)  # more of AgentSpec
    budget: dict[str, Any] | None = None
    platform: MemoryPlatform = field(default_factory=MemoryPlatform)
    durable: Durable = field(default_factory=Durable)
    attempts: int = 0
    run: Callable[[Coroutine[Any, Any, Outcome]], Outcome] = (
        asyncio.run
    )  # a provider may be bound to one event loop

    def __post_init__(self) -> None:
        self.id = uuid4()
        self.project_id = uuid4()
        self.control = AttemptControl()

    def claimed(self) -> ClaimedJob:
        agent = AgentSpec(
            agent_id=uuid4(),
            slug="agent",
            number=1,
            kind=self.kind,
            source={"agent.py": textwrap.dedent(self.source), **self.more_source},
            limits=self.limits,
            output_schema=self.output_schema,
            **self.agent,
        )
        journal = Journal(steps=tuple(self.durable.steps.values()), answers=dict(self.durable.answers))
        return ClaimedJob(
            id=self.id,
            project_id=self.project_id,
            attempt=self.attempts,
            task=self.task,
            input=self.input,
            agent=agent,
            files=self.files,
            journal=journal,
            seed=self.seed,
            artifacts={name: artifact.sha256 for name, artifact in self.durable.artifacts.items()},
            budget=self.budget,
            used=self.durable.used,
        )

    def attempt(
        self,
        *,
        die_before: int | None = None,
        die_after: int | None = None,
        kill_after: int | None = None,
        meanwhile: Callable[["Story", MemoryRecorder], Coroutine[Any, Any, None]] | None = None,
    ) -> Outcome:
        """Run once. `die_before=3`: the worker dies as it is about to make its third write durable.

        `kill_after=3`: the program gets SIGKILL when its third write is durable.
        """
        return self.run(self._attempt(die_before, die_after, kill_after, meanwhile))

    async def _attempt(
        self,
        die_before: int | None,
        die_after: int | None,
        kill_after: int | None,
        meanwhile: Callable[["Story", MemoryRecorder], Coroutine[Any, Any, None]] | None,
    ) -> Outcome:
        self.attempts += 1
        self.control = AttemptControl()
        recorder = MemoryRecorder(self.durable, self.attempts)

        def die_at(wanted: int | None) -> Callable[[int], None]:
            def check(count: int) -> None:
                if count == wanted:
                    raise WorkerDied

            return check

        recorder.before, recorder.after = die_at(die_before), die_at(die_after)
        if kill_after is not None:
            assert isinstance(self.provider, PipeProvider)
            provider, wanted = self.provider, kill_after
            recorder.after = lambda count: provider.opened[-1].signal(9) if count == wanted else None
        attempt = run_attempt(self.claimed(), recorder, self.provider, self.control, self.platform)
        running = asyncio.create_task(attempt)
        self.running = running
        beside = asyncio.create_task(meanwhile(self, recorder)) if meanwhile else None
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                outcome = await running
                if beside is not None:
                    await beside
        finally:
            if beside is not None:
                beside.cancel()
        recorder.settle()
        return outcome

    def dies(self, *, die_before: int | None = None, die_after: int | None = None) -> None:
        """Run once, to a death of the worker at this point. Fails the test if the attempt got past it."""
        try:
            outcome = self.attempt(die_before=die_before, die_after=die_after)
        except WorkerDied:
            return
        raise AssertionError(f"the attempt got past its end: {outcome}")

    def to_end(
        self, answer: Callable[[outcomes.QuestionSpec], Any] | None = None, *, most: int = 200
    ) -> Outcome:
        """Attempt after attempt, answering all that is asked, in random order."""
        for _ in range(most):
            outcome = self.attempt()
            if not isinstance(outcome, outcomes.Suspended) or answer is None:
                return outcome
            questions = list(outcome.questions)
            random.shuffle(questions)
            self.durable.answers |= {question.key: answer(question) for question in questions}
        raise AssertionError("the job does not end")

    # --- what a watcher sees ---

    def lines(self, source: str | None = None) -> list[str]:
        """Log lines in their order."""
        return [e.message for e in self.durable.events if e.type == "log" and source in (None, e.source)]

    def types(self) -> list[str]:
        """Types of all events in their order."""
        return [event.type for event in self.durable.events]


def result_of(outcome: Outcome) -> Any:
    """The result of a completed attempt."""
    assert isinstance(outcome, outcomes.Completed), outcome
    return outcome.result


def failure_of(outcome: Outcome) -> outcomes.Failed:
    """The failure of a failed attempt."""
    assert isinstance(outcome, outcomes.Failed), outcome
    return outcome


class MakeStory:
    """Makes jobs whose files lie below one temporary folder. `channel="file"` runs them as E2B would."""

    def __init__(self, folder: Path, settings: Any) -> None:
        settings.ENGINE_HOME = folder / "home"
        settings.STORAGES = {
            **settings.STORAGES,
            "artifacts": {
                "BACKEND": "django.core.files.storage.FileSystemStorage",
                "OPTIONS": {"location": folder / "home" / "artifacts"},
            },
        }
        self.folder = folder

    def __call__(self, source: str, *, channel: str = "fd", **job: Any) -> Story:
        provider = PipeProvider(self.folder / f"sandboxes-{channel}-{uuid4()}", channel)
        return Story(provider, source, **job)

    def scripted(
        self,
        *script: SandboxOutput | Exception | dict[str, Any] | bytes,
        files: dict[str, bytes] | None = None,
        **job: Any,
    ) -> tuple[Story, ScriptedSandbox]:
        """A job whose program is a list of what it brings forth."""
        provider = ScriptedProvider(script, files)
        return Story(provider, "", **job), provider.sandbox


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, at most the harness's deadline."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():
            await asyncio.sleep(0.005)
