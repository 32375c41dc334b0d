"""The Tasks extension (SEP-2663): a wait as a handle that is asked again later. A task is a job, and has its id."""

from typing import Any
from uuid import UUID

from apikeys.callers import Caller
from apikeys.errors import ScopeMissing
from apikeys.scopes import Scope
from engine.errors import Conflict, EngineError
from jobs import services
from jobs.errors import JobNotFound
from jobs.mcp import asking
from jobs.mcp.frames import INVALID_PARAMS, MISSING_CAPABILITY, TASKS_EXTENSION, Frame, Refusal
from jobs.mcp.outcomes import failed, job_outcome
from jobs.models import Job
from jobs.streams import is_settled
from jobs.texts import instant

POLL_MILLISECONDS = 2_000


def created(job: Job) -> dict[str, Any]:
    """The handle, in place of the result of a call that would wait. The job is stored, so the task is."""
    return {"resultType": "task", **_task(job, "working")}


def get(frame: Frame, by: Caller) -> dict[str, Any]:
    """A task as it is now, with its result or with what it asks."""
    job = _job(frame, by, Scope.JOBS_READ)
    if job.status == Job.Status.CANCELLED:
        return _task(job, "cancelled")
    if not is_settled(job):
        return _task(job, "working")
    asked = asking.requests(job) if not job.is_final and asking.may_ask(frame, by) else {}
    if asked:
        return {**_task(job, "input_required"), "inputRequests": asked}
    # Nobody there can be asked: the wait is over, and its result says how the question is answered.
    result = {"resultType": "complete", **job_outcome(job, is_answer=True).as_result()}
    return {**_task(job, "completed"), "result": result}


def update(frame: Frame, by: Caller) -> dict[str, Any]:
    """Store what people answered. What was declined stays open, and what somebody else answered first stays so."""
    job = _job(frame, by, Scope.JOBS_RESPOND)
    try:
        asking.take(frame, job, by)
    except Conflict:
        pass  # as the extension wants: what is no longer asked is passed over
    except EngineError as error:
        raise Refusal(INVALID_PARAMS, error.detail, failed(error).structured) from error
    return {}


def cancel(frame: Frame, by: Caller) -> dict[str, Any]:
    """Tell the job to end. One that has ended already is left as it is."""
    job = _job(frame, by, Scope.JOBS_WRITE)
    if not job.is_final:
        services.cancel(job.id, by=by)
    return {}


def _job(frame: Frame, by: Caller, scope: Scope) -> Job:
    if not frame.has_tasks:
        needed: dict[str, Any] = {"requiredCapabilities": {"extensions": {TASKS_EXTENSION: {}}}}
        raise Refusal(MISSING_CAPABILITY, "Missing required client capability", needed)
    if not by.may(scope):
        raise ScopeMissing(f"This needs the scope {scope}", missing_scope=scope)
    try:
        return services.get(UUID(str(frame.params.get("taskId"))), by=by)
    except (ValueError, JobNotFound) as error:
        raise Refusal(INVALID_PARAMS, "There is no such task") from error


def _task(job: Job, status: str) -> dict[str, Any]:
    updated = job.finished_at or job.started_at or job.created_at
    message = f"The job is {job.status}. {job.progress_message}"[:300].rstrip()
    return {
        "taskId": str(job.id),
        "status": status,
        "statusMessage": message,
        "createdAt": instant(job.created_at),
        "lastUpdatedAt": instant(updated),
        "ttlMs": None,
        "pollIntervalMs": POLL_MILLISECONDS,
    }
