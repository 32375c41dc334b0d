"""Where a job goes when one of its attempts has ended."""

from datetime import timedelta
from typing import Any

from jobs.claiming import Claimed
from jobs.execution import outcomes
from jobs.execution.outcomes import Outcome
from jobs.execution.ports import AgentSpec
from jobs.models import Attempt, Job
from jobs.queries import MOST_LOSSES
from jobs.recorder import AttemptRecorder, Clock, to_json
from jobs.retries import RetryPolicy
from jobs.settlements import Settlement


def settlement(
    outcome: Outcome, job: Claimed, agent: AgentSpec, *, recorder: AttemptRecorder, clock: Clock
) -> Settlement:
    """The row changes that this outcome means. Cancel requests are looked at when it is written (`settlements.py`)."""
    to: dict[str, Any]
    match outcome:
        case outcomes.Completed(result=result):
            to = _to(Attempt.Outcome.COMPLETED, Job.Status.COMPLETED, result=to_json(result))
        case outcomes.Failed():
            to = _failed(outcome, job, RetryPolicy.of(agent.limits))
        case outcomes.Suspended(questions=questions, children=children):
            reason = "question" if questions else "child_job"
            waits = {"questions": questions, "children": children}
            to = _to(Attempt.Outcome.SUSPENDED, Job.Status.WAITING_FOR_INPUT, reason, **waits)
        case outcomes.Cancelled():
            to = _to(Attempt.Outcome.CANCELLED, Job.Status.CANCELLED, "cancelled")
        case outcomes.Lost(reason=reason):
            to = _lost(reason, job, recorder)
        case outcomes.HandedBack(reason=reason) | outcomes.Unavailable(reason=reason):
            error = {"code": "handed_back", "message": reason} if reason else None
            to = _to(
                Attempt.Outcome.HANDED_BACK,
                Job.Status.QUEUED,
                "handed_back",
                error=error,
                losses=job.lost_count,
            )
        case _:
            raise TypeError(f"{outcome!r} cannot be settled")
    return Settlement(
        job_id=job.id,
        attempt=job.attempt,
        project_id=job.project_id,
        parent_id=job.parent_id,
        agent_id=agent.agent_id,
        queue=job.queue,
        next_seq=recorder.next_seq,
        due_at=job.due_at,
        started_at=job.started_at,
        ended_at=clock.seconds(),
        sandbox=recorder.sandbox,
        **to,
    )


def _to(outcome: Attempt.Outcome, status: Job.Status, reason: str = "", **changes: Any) -> dict[str, Any]:
    return {"outcome": outcome, "status": status, "reason": reason, **changes}


def _failed(outcome: outcomes.Failed, job: Claimed, policy: RetryPolicy) -> dict[str, Any]:
    error = outcome.as_json()
    failures = job.failed_count + 1
    changes = {"error": error, "counts_as_failure": True}
    if not outcome.retryable:
        return _to(Attempt.Outcome.FAILED, Job.Status.FAILED, outcome.code, **changes)
    if failures >= job.max_attempts:
        return _to(Attempt.Outcome.FAILED, Job.Status.FAILED, "attempts_exhausted", **changes)
    delay = max(policy.backoff(failures), outcome.retry_after or timedelta())
    return _to(Attempt.Outcome.FAILED, Job.Status.SCHEDULED, "retry_backoff", retry_after=delay, **changes)


def _lost(reason: str, job: Claimed, recorder: AttemptRecorder) -> dict[str, Any]:
    """The sandbox is gone: a platform loss, counted like a lost worker."""
    losses = (0 if recorder.has_durable_step else job.lost_count) + 1
    error = {
        "code": "sandbox_lost",
        "message": reason or "The sandbox vanished.",
        "remedy": "See the attempts for how each ended, then retry.",
    }
    if losses >= MOST_LOSSES:
        return _to(Attempt.Outcome.LOST, Job.Status.FAILED, "worker_lost", error=error, losses=losses)
    return _to(Attempt.Outcome.LOST, Job.Status.QUEUED, "worker_lost", error=error, losses=losses)
