"""One attempt of one job, from its claim to its outcome."""

import asyncio
import random
from contextlib import ExitStack

from jobs import failpoints
from jobs.execution import layout
from jobs.execution.llm import agent as llm_agent
from jobs.execution.outcomes import (
    Cancelled,
    Completed,
    Failed,
    HandedBack,
    LeaseLost,
    Lost,
    Outcome,
    Suspended,
    Unavailable,
)
from jobs.execution.ports import AttemptControl, ClaimedJob, LeaseLostError, Platform, Recorder
from jobs.execution.python_agent import Program
from jobs.execution.waiting import first, stop
from jobs.sandboxes.base import (
    Provider,
    RequirementsFailed,
    Sandbox,
    SandboxBusy,
    SandboxError,
    SandboxLost,
    SandboxRefused,
    SandboxSpec,
    SandboxUnavailable,
    kill_quietly,
)
from jobs.sandboxes.opening import open_sandbox
from jobs.schemas import faults
from jobs.storage import BlobMissing, StorageFailed

# A job that goes back because its surroundings are not ready keeps its slot so long: else it would come round at once.
PAUSE_SECONDS = (1.0, 3.0)
MOST_PAUSES = 8
MOST_INSTALLER_LINES = 200


async def run_attempt(
    job: ClaimedJob, recorder: Recorder, provider: Provider, control: AttemptControl, platform: Platform
) -> Outcome:
    """Run the job once. Whatever agents, sandboxes and storages can do is an outcome; only our own faults raise.

    When the calling task is cancelled the sandbox is killed first. Events that were not flushed yet are left to the
    caller, who settles the job with them.
    """
    try:
        match job.agent.kind:
            case "python":
                outcome = await _python(job, recorder, provider, control)
            case "llm":
                outcome = await llm_agent.run(job, recorder, provider, control, platform)
            case kind:
                outcome = Failed(
                    "unknown_kind", f"This worker runs no agents of kind {kind}.", retryable=False
                )
    except LeaseLostError:
        return LeaseLost()
    except (SandboxError, StorageFailed) as error:
        outcome = await _trouble(error, recorder, control, attempt=job.attempt)
    if control.lease_lost.is_set():
        return LeaseLost()
    if control.cancel.is_set() and not isinstance(outcome, Completed):
        return Cancelled()
    return outcome


async def _python(
    job: ClaimedJob, recorder: Recorder, provider: Provider, control: AttemptControl
) -> Outcome:
    sandbox: Sandbox | None = None
    outcome: Outcome | None = None
    with ExitStack() as files:
        try:
            spec = await asyncio.to_thread(layout.spec_of, job, files, provider.name)
            sandbox = await _open(provider, spec, control)
            if sandbox is None:
                return HandedBack("the worker is stopping")
            failpoints.hit("sandbox.after_open")
            recorder.opened(f"{provider.name}:{sandbox.ref}")
            program = Program(job, recorder, sandbox, control, spec.limits)
            outcome = await program.run()
            if isinstance(outcome, Completed):
                outcome = await _checked(job, outcome)
            if isinstance(outcome, Completed):
                outcome = await program.artifacts.collect() or outcome
            return outcome
        finally:
            if isinstance(outcome, Suspended) and sandbox is not None and not control.lease_lost.is_set():
                await sandbox.park()
            await kill_quietly(sandbox)
            failpoints.hit("sandbox.after_close")


async def _open(provider: Provider, spec: SandboxSpec, control: AttemptControl) -> Sandbox | None:
    """A sandbox, or None when the attempt is over before it began: installing requirements may take minutes."""
    failpoints.hit("sandbox.before_open")
    opening = asyncio.create_task(open_sandbox(provider, spec))
    wanted = False
    try:
        await first(opening, control.cancel, control.hand_back, control.lease_lost)
        wanted = not (control.cancel.is_set() or control.hand_back.is_set() or control.lease_lost.is_set())
        return opening.result() if wanted else None
    finally:
        if not wanted:
            await _abandon(opening)


async def _abandon(opening: asyncio.Task[Sandbox]) -> None:
    """Stop opening; a sandbox that comes of it nonetheless is nobody's."""
    await stop(opening)
    if not opening.cancelled() and opening.exception() is None:
        await kill_quietly(opening.result())


async def _checked(job: ClaimedJob, completed: Completed) -> Outcome:
    """A result that does not meet the agent's output schema is no result."""
    if not job.agent.output_schema:
        return completed
    wrong = await asyncio.to_thread(faults, completed.result, dict(job.agent.output_schema))
    if not wrong:
        return completed
    where = wrong[0]["pointer"] or "the result as a whole"
    return Failed(
        "invalid_result",
        f"The agent's result does not meet its output schema: {where}: {wrong[0]['detail']}",
        "Correct the agent or its output_schema; the result is wrong, not the job.",
        retryable=False,
        data={"errors": wrong},
    )


async def _trouble(
    error: SandboxError | StorageFailed, recorder: Recorder, control: AttemptControl, *, attempt: int
) -> Outcome:
    """What an outside service's failure means for the job."""
    match error:
        case SandboxUnavailable():
            return Unavailable(str(error), error.remedy)
        case SandboxLost():
            return Lost(str(error))
        case SandboxRefused():
            return Failed(
                "sandbox_refused",
                f"This worker's sandbox cannot run the agent: {error}",
                "Change what the agent's card asks for, or run it on another sandbox provider.",
                retryable=False,
            )
        case RequirementsFailed():
            for line in error.output.splitlines()[-MOST_INSTALLER_LINES:]:
                recorder.event("log", message=line[:2000])
            return Failed(
                "requirements_failed",
                f"The agent's requirements could not be installed: {error}",
                "The installer's output is in the log: correct the agent's requirements.",
                retryable=False,
            )
        case BlobMissing():
            return Failed(
                "file_missing",
                f"A file that the job needs is gone: {error}",
                "Submit it again.",
                retryable=False,
            )
        case SandboxBusy() | StorageFailed():
            recorder.event("log", message=f"The job goes back to the queue: {error}", level="warning")
            pause = random.uniform(*PAUSE_SECONDS)  # noqa: S311  (spread, not secrecy)
            if isinstance(
                error, StorageFailed
            ):  # it may be away for an hour, and each attempt is kept for ever
                pause *= min(attempt, MOST_PAUSES)
            await first(control.cancel, control.hand_back, control.lease_lost, seconds=pause)
            return HandedBack(str(error))
        case _:
            return Failed("sandbox_error", f"The sandbox could not be used: {error}", "Retry the job.")
