"""A python agent's program at work: its output becomes the log, its records the journal, its end an outcome."""

import asyncio
from collections import deque
from contextlib import suppress
from typing import Any

from jobs import storage
from jobs.execution import protocol
from jobs.execution.endings import reported, unreported
from jobs.execution.fields import BadRecord
from jobs.execution.layout import COMMAND
from jobs.execution.logs import LogLines
from jobs.execution.outcomes import (
    Cancelled,
    Completed,
    Failed,
    HandedBack,
    LeaseLost,
    Outcome,
    StepBegin,
    StepEnd,
    StoredFile,
    Suspended,
)
from jobs.execution.outputs import REMEDY, ArtifactRefused, Artifacts
from jobs.execution.ports import AttemptControl, ClaimedJob, Recorder
from jobs.execution.waiting import first, stop
from jobs.sandboxes.base import (
    Ended,
    EndReason,
    Limits,
    Record,
    Sandbox,
    SandboxError,
    SandboxFileError,
    SandboxOutput,
    Stderr,
    Stdout,
)

# From a cancel request to SIGTERM, and from there to the end of the sandbox.
CANCEL_GRACE_SECONDS = 5.0
TERMINATE_GRACE_SECONDS = 1.0
# A program whose last word is said may take this long to leave.
LEAVE_GRACE_SECONDS = 10.0
# Output that was written before a record comes by another pipe, and so perhaps some turns of the loop after it.
STRAGGLER_TURNS = 5
# Of one job, over all its attempts.
MOST_STEPS = 10_000
MOST_JOURNAL_BYTES = 64 * 1024 * 1024
MOST_ARCHIVE_BYTES = 4 * 1024 * 1024 * 1024
# Of one attempt: after that many the program is taken for hostile.
MOST_BAD_RECORDS = 100
MOST_PROGRESS_EVENTS = 2_000


class Refusal(Exception):
    """A well-formed record that this job may not have; the program hears why."""

    def __init__(self, message: str, *, remedy: str = "", code: str = "refused") -> None:
        super().__init__(message)
        self.remedy = remedy
        self.code = code


class Program:
    """One program in one sandbox. `run` is called once."""

    def __init__(
        self, job: ClaimedJob, recorder: Recorder, sandbox: Sandbox, control: AttemptControl, limits: Limits
    ) -> None:
        self._recorder = recorder
        self._sandbox = sandbox
        self._control = control
        self._limits = limits
        self._folder = storage.job_folder(job.project_id, job.id)
        self._log = LogLines(recorder, lines=job.logged_lines, bytes=job.logged_bytes)
        self.artifacts = Artifacts(sandbox, recorder, limits, self._folder, dict(job.artifacts))
        self._inbox: asyncio.Queue[SandboxOutput | SandboxError] = asyncio.Queue(maxsize=8)
        self._held: deque[SandboxOutput | SandboxError] = deque()  # read ahead while waiting for stragglers
        # The journal, as far as it is needed to judge what comes.
        self._ended = {step.key for step in job.journal.steps if step.ended}
        self._begun = {
            step.key: StepBegin(step.key, step.kind, step.signature, step.once) for step in job.journal.steps
        }
        self._answers = job.journal.answers
        self._known = {step.key for step in job.journal.steps}
        self._journal_bytes = sum(_weight(step.result) for step in job.journal.steps)
        files = [file for step in job.journal.steps for file in step.files]
        self._archived = {(file.sha256, file.size): file.storage_key for file in files}
        self._archived_bytes = sum(file.size for file in files)
        self._progressed = False
        self._bad_records = 0
        self._progress_events = 0
        self._progress_shown: tuple[float, str] = (-1.0, "")
        # Its last word: one of these.
        self._result: protocol.Result | None = None
        self._error: protocol.ErrorReport | None = None
        self._questions: protocol.Ask | None = None

    async def run(self) -> Outcome:
        """From start to end. `Completed` carries a result that was not checked yet; outputs are not collected yet.

        Raises LeaseLostError, SandboxError, StorageFailed.
        """
        await self._sandbox.start(COMMAND)
        following = asyncio.create_task(self._follow())
        try:
            await first(following, self._control.cancel, self._control.lease_lost)
            if self._control.cancel.is_set() and not following.done():
                await self._stop_politely(following)
            if self._control.lease_lost.is_set():
                return LeaseLost()
            if self._control.cancel.is_set() and not self._returned(following):
                return Cancelled()
            return following.result()
        finally:
            await stop(following)

    @staticmethod
    def _returned(following: asyncio.Task[Outcome]) -> bool:
        """Whether the agent returned a result, cancelled or not."""
        return (
            following.done() and following.exception() is None and isinstance(following.result(), Completed)
        )

    async def _stop_politely(self, following: asyncio.Task[Outcome]) -> None:
        """Tell the agent, then its program; closing the sandbox does the rest."""
        await self._sandbox.send(protocol.CANCEL)
        await first(following, self._control.lease_lost, seconds=CANCEL_GRACE_SECONDS)
        if not following.done():
            await self._sandbox.terminate()
            await first(following, self._control.lease_lost, seconds=TERMINATE_GRACE_SECONDS)

    # --- what comes out ---

    async def _follow(self) -> Outcome:
        """Take everything in its order until the end, or until a record decides the attempt."""
        pump = asyncio.create_task(self._pump())
        try:
            while True:
                item = self._held.popleft() if self._held else await self._next()
                match item:
                    case Stdout(data=data):
                        self._log.feed("stdout", data)
                    case Stderr(data=data):
                        self._log.feed("stderr", data)
                    case Record(line=line):
                        decided = await self._record(line)
                        if decided is not None:
                            return decided
                    case Ended():
                        self._log.close()
                        return self._outcome(item)
                    case SandboxError():
                        raise item
                await self._recorder.ready()
        finally:
            await stop(pump)

    async def _pump(self) -> None:
        try:
            async for item in self._sandbox.outputs():
                await self._inbox.put(item)
        except SandboxError as error:
            await self._inbox.put(error)

    async def _next(self) -> SandboxOutput | SandboxError:
        """The next output; a program that has said its last word and stays is taken as ended."""
        last_word = self._result or self._error or self._questions
        try:
            async with asyncio.timeout(LEAVE_GRACE_SECONDS if last_word else None):
                return await self._inbox.get()
        except TimeoutError:
            await self._sandbox.terminate()
            return Ended(EndReason.KILLED, None, "it did not leave after its last word")

    async def _stragglers(self) -> None:
        """Before a record becomes durable: the output that the program wrote before it."""
        for _ in range(STRAGGLER_TURNS):
            await asyncio.sleep(0)
        while not self._inbox.empty():
            item = self._inbox.get_nowait()
            if isinstance(item, Stdout | Stderr):
                self._log.feed("stdout" if isinstance(item, Stdout) else "stderr", item.data)
            else:
                self._held.append(item)
            await self._recorder.ready()

    def _outcome(self, ended: Ended) -> Outcome:
        """What the program's end means, its last word first."""
        if self._result is not None:
            if ended.exit_code != 0:
                message = f"The program returned its result, then ended with exit code {ended.exit_code}."
                self._recorder.event("log", message=message, level="warning")
            return Completed(self._result.value)
        if self._error is not None:
            return reported(self._error, self._limits)
        if self._questions is not None:
            return Suspended(self._questions.questions)
        return unreported(ended, self._limits, errors=self._log.last_errors, progressed=self._progressed)

    # --- records ---

    async def _record(self, line: bytes) -> Outcome | None:
        """Take one record; an outcome if it decides the attempt."""
        try:
            record = protocol.parse(line)
        except BadRecord as bad:
            return await self._bad(str(bad), bad.ticket)
        ticket = getattr(record, "ticket", None)
        if self._result or self._error or self._questions:
            return await self._bad("a record came after the last one", ticket)
        try:
            await self._take(record)
        except BadRecord as bad:
            return await self._bad(str(bad), ticket)
        except Refusal as no:
            if ticket is not None:
                await self._sandbox.send(protocol.refusal(ticket, str(no), remedy=no.remedy, code=no.code))
            return None
        if isinstance(record, protocol.End) and self._control.hand_back.is_set():
            return HandedBack("the worker is stopping; the job goes on from its last step")
        if ticket is not None:
            await self._sandbox.send(protocol.ack(ticket))
        return None

    async def _bad(self, message: str, ticket: int | None) -> Outcome | None:
        """A record that the SDK does not write: say so, and stop a program that goes on with it."""
        self._bad_records += 1
        if self._bad_records <= 10:
            self._recorder.event(
                "log", message=f"A record of the program was not taken: {message}.", level="warning"
            )
        if ticket is not None:
            await self._sandbox.send(protocol.refusal(ticket, message))
        if self._bad_records < MOST_BAD_RECORDS:
            return None
        return Failed(
            "bad_records",
            "The agent's program wrote to the channel of the SDK, which is not its to write to.",
            "Use the functions of engine_agent; print goes to the log.",
            retryable=False,
        )

    async def _take(self, record: protocol.Parsed) -> None:
        match record:
            case protocol.LogLine():
                self._log.say(record.level, record.message, record.data)
            case protocol.Progress():
                self._show_progress(record)
            case protocol.Begin():
                await self._begin(record.step)
            case protocol.End():
                await self._end(record)
            case protocol.StepFailed():
                self._note_failure(record)
            case protocol.Value():
                await self._keep(record)
            case protocol.Answered():
                await self._answered(record.step)
            case protocol.ArtifactReady():
                await self._hand_back_file(record)
            case protocol.Ask():
                await self._ask(record)
            case protocol.Result():
                self._result = record
            case protocol.ErrorReport():
                self._error = record

    def _show_progress(self, progress: protocol.Progress) -> None:
        """The latest always counts; as an event only where a watcher would see a difference."""
        self._recorder.progress(progress.fraction, progress.message)
        shown = (-1.0 if progress.fraction is None else round(progress.fraction, 2), progress.message)
        if shown != self._progress_shown and self._progress_events < MOST_PROGRESS_EVENTS:
            self._progress_shown = shown
            self._progress_events += 1
            data = {"fraction": progress.fraction}
            self._recorder.event("job.progress", message=progress.message, source="agent", data=data)

    # --- the journal ---

    async def _begin(self, step: StepBegin) -> None:
        self._expect_new(step)
        await self._stragglers()
        await self._recorder.begin_step(step)

    def _expect_new(self, *steps: StepBegin) -> None:
        """Note entries that begin. Raises BadRecord, Refusal."""
        for step in steps:
            if step.key in self._ended:
                raise BadRecord("a step began that had ended")
            self._known.add(step.key)
        self._check_room()
        self._begun.update((step.key, step) for step in steps)

    def _check_room(self) -> None:
        if len(self._known) > MOST_STEPS:
            message = f"The job has more than {MOST_STEPS:,} steps."
            raise Refusal(message, remedy="Do more in each step.", code="journal_full")

    async def _end(self, record: protocol.End) -> None:
        step = self._begun.get(record.key)
        if step is None or record.key in self._ended:
            self._check_room()  # nobody waited to hear that its begin was refused
            raise BadRecord("a step ended that had not begun")
        self._weigh(record.value)
        await self._stragglers()
        files = await self._archive(record.files)
        if record.result_file and not any(sha256 == record.result_file for sha256, _ in self._archived):
            raise BadRecord("a step's result was said to be in a file that is not there")
        end = StepEnd(step, record.value, record.error, files, record.deleted, record.result_file)
        await self._recorder.end_step(end)
        self._ended.add(record.key)
        self._progressed = True

    async def _keep(self, record: protocol.Value) -> None:
        """A value begins and ends at once."""
        self._expect_new(record.step)
        self._weigh(record.value)
        end = StepEnd(record.step, value=record.value)
        # Together, for one commit instead of two; the calls are made in this order.
        await asyncio.gather(self._recorder.begin_step(record.step), self._recorder.end_step(end))
        self._ended.add(record.step.key)

    async def _answered(self, step: StepBegin) -> None:
        """An ask ends when the agent has its answer: from here on the journal holds it."""
        if step.key not in self._answers or step.key in self._ended:
            raise BadRecord("an answer was taken that nobody had given")
        end = StepEnd(self._begun.get(step.key, step), value=self._answers[step.key])
        if step.key in self._begun:
            await self._recorder.end_step(end)
        else:  # answered before it was asked: the job continues another from there, with another answer
            self._expect_new(step)
            await asyncio.gather(self._recorder.begin_step(step), self._recorder.end_step(end))
        self._ended.add(step.key)

    def _weigh(self, value: Any) -> None:
        self._journal_bytes += _weight(value)
        if self._journal_bytes > MOST_JOURNAL_BYTES:
            raise Refusal(
                f"The results of this job's steps are larger than {MOST_JOURNAL_BYTES >> 20} MiB together.",
                remedy="Write large results to files in the workspace and return their names.",
                code="journal_full",
            )

    async def _archive(self, claims: tuple[protocol.ClaimedFile, ...]) -> tuple[StoredFile, ...]:
        """Store the files that a step changed. What is stored is what is there, not what the program says of it."""
        stored = []
        for claim in claims:
            known = self._archived.get((claim.sha256, claim.size))
            if known is not None:
                stored.append(StoredFile(claim.path, claim.size, claim.sha256, known))
                continue
            with suppress(SandboxFileError):  # gone again: another thread of the agent is at work there
                stored.append(await self._archive_one(claim.path))
        return tuple(stored)

    async def _archive_one(self, path: str) -> StoredFile:
        most = min(self._limits.disk_mb << 20, MOST_ARCHIVE_BYTES - self._archived_bytes)
        try:
            blob = await storage.store(
                self._sandbox.read_file(path, most_bytes=self._limits.disk_mb << 20),
                folder=self._folder,
                most_bytes=most,
            )
        except storage.TooLarge:
            raise Refusal(
                f"The files that this job's steps changed are larger than {MOST_ARCHIVE_BYTES >> 30} GB together.",
                remedy="Change large files less often, or put passing ones into the folder of the tempfile module.",
                code="checkpoint_too_large",
            ) from None
        self._archived[blob.sha256, blob.size] = blob.key
        self._archived_bytes += blob.size
        return StoredFile(path, blob.size, blob.sha256, blob.key)

    def _note_failure(self, record: protocol.StepFailed) -> None:
        """A step raised. It is no entry of the journal until the agent has survived it."""
        kind = record.type.rpartition(":")[2]
        message = f"{record.key}: {kind}: {record.message}"[:2000]
        self._recorder.event(
            "step.failed", message=message, level="warning", data={"key": record.key, "type": kind}
        )

    async def _ask(self, record: protocol.Ask) -> None:
        self._expect_new(*record.steps)
        await self._stragglers()
        for question in record.questions:
            if "step" in question.details and question.kind == "choice":
                data = {"key": str(question.details["step"])}
                self._recorder.event("step.uncertain", message=data["key"], level="warning", data=data)
        await asyncio.gather(*(self._recorder.begin_step(step) for step in record.steps))
        self._questions = record

    async def _hand_back_file(self, record: protocol.ArtifactReady) -> None:
        await self._stragglers()
        try:
            await self.artifacts.add(record.path)
        except ArtifactRefused as refused:
            raise Refusal(str(refused), remedy=REMEDY, code="artifact_limit") from None


def _weight(value: Any) -> int:
    """About how many bytes a value takes as JSON."""
    if isinstance(value, dict):
        return 2 + sum(4 + len(key) + _weight(item) for key, item in value.items())
    if isinstance(value, list):
        return 2 + sum(1 + _weight(item) for item in value)
    return len(value) if isinstance(value, str) else 8
