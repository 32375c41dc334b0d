"""What it means for a job that its program ended this way, in words for the job's user."""

import signal
from collections.abc import Sequence
from typing import Any

from jobs.execution.outcomes import Failed, Lost
from jobs.execution.protocol import ErrorReport
from jobs.sandboxes.base import Ended, EndReason, Limits

# What the program reports under these codes comes out the same each time, so it is not tried again.
FINAL_CODES = frozenset(
    (
        "artifact_limit",
        "checkpoint_too_large",
        "journal_full",
        "non_determinism",
        "result_too_large",
        "step_in_doubt",
        "user_error",
    )
)
_NO_SPACE = ("[Errno 28]", "[Errno 27]")  # no space left; over the largest size of one file


def reported(error: ErrorReport, limits: Limits) -> Failed:
    """The program said itself why it has no result."""
    data = {"type": error.type, "traceback": error.traceback} if error.traceback else {}
    kind = "" if error.type == "UserError" else error.type
    whole = ": ".join(filter(None, (kind, error.message)))
    if error.code == "invalid_agent":
        remedy = "Correct its source and register a new version."
        return Failed(
            "invalid_agent", f"The agent cannot be loaded: {whole}", remedy, retryable=False, data=data
        )
    if error.code in FINAL_CODES:
        return Failed(error.code, error.message, error.remedy, retryable=False)
    if error.type == "MemoryError":
        return _out_of_memory(limits, progressed=False, data=data)
    if error.type == "OSError" and error.message.startswith(_NO_SPACE):
        return _disk_full(limits, data)
    if error.code == "cancelled":
        return Failed(
            "agent_error", "The agent stopped as if its job were cancelled, which it is not.", data=data
        )
    return Failed(
        "agent_error",
        whole,
        "The traceback is in the log: correct the agent, or retry if the cause has passed.",
        data=data,
    )


def unreported(ended: Ended, limits: Limits, *, errors: Sequence[str], progressed: bool) -> Failed | Lost:
    """The program ended without a word. `progressed`: this attempt made a step durable, so another gets further."""
    data: dict[str, Any] = {"exit_code": ended.exit_code, "stderr": list(errors)}
    if ended.detail:
        data["detail"] = ended.detail
    match ended.reason:
        case EndReason.LOST | EndReason.KILLED:  # our own kills do not come here
            return Lost(ended.detail or "The sandbox was killed or vanished.")
        case EndReason.TIMEOUT:
            return Failed(
                "timeout",
                f"The agent was stopped: an attempt may take {limits.wall_seconds:,.0f} seconds"
                f" and {limits.cpu_seconds:,} of the processor's.",
                "Submit the job with a larger timeout_s, raise the agent's limits, or split its work into steps:"
                " a step that ended is not run again.",
                retryable=progressed,
                data=data,
            )
        case EndReason.MEMORY:
            return _out_of_memory(limits, progressed=progressed, data=data)
        case EndReason.OUTPUT:
            return Failed(
                "output_limit",
                f"The agent was stopped: it printed more than {limits.output_bytes >> 20} MB, or wrote a record over"
                f" {limits.record_bytes >> 20} MB.",
                "Print less; large results belong into files in the outputs.",
                retryable=False,
                data=data,
            )
        case EndReason.DISK:
            return _disk_full(limits, data)
        case _:
            return Failed("agent_crashed", _crash(ended.exit_code), _CRASH_REMEDY, data=data)


_CRASH_REMEDY = (
    "The last lines it printed are in the log: correct the agent, or retry if the cause has passed."
)


def _crash(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"The agent's program was ended by {name} before it returned a result."
    return f"The agent's program ended with exit code {code} before it returned a result."


def _out_of_memory(limits: Limits, *, progressed: bool, data: dict[str, Any]) -> Failed:
    return Failed(
        "out_of_memory",
        f"The agent used more than its {limits.memory_mb:,} MB of memory.",
        "Give it less data at once, or raise the agent's limit memory_mb.",
        retryable=progressed,
        data=data,
    )


def _disk_full(limits: Limits, data: dict[str, Any]) -> Failed:
    return Failed(
        "disk_full",
        f"The agent's workspace and outputs grew over {limits.disk_mb:,} MB.",
        "Delete files that are not needed any more, or raise the agent's limit disk_mb.",
        retryable=False,
        data=data,
    )
