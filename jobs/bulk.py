"""Many jobs in one transaction: each gets its own result, and what is wrong with one does not stop the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from apikeys.callers import Caller
from apikeys.models import Project
from engine.errors import EngineError
from jobs import failpoints, inserting, room, services, wakeups
from jobs.models import Job
from jobs.services import Birth, JobRequest

MOST_JOBS = 1_000


@dataclass(frozen=True)
class Submitted:
    """What became of one request: the job's id and status, or why there is none."""

    id: UUID | None = None
    status: str = ""
    error: EngineError | None = None


@failpoints.commit("bulk")
def submit(requests: Sequence[JobRequest], *, by: Caller, project: Project) -> list[Submitted]:
    """Store these jobs, in one transaction. A named agent or a repeated task is looked up once.

    The whole is refused when the project or the key has no room for all of them (see `room.claim`).
    """
    room.claim(project, key=by.key, jobs=len(requests))
    births: dict[tuple[str, str], Birth | EngineError] = {}
    results: list[Submitted] = []
    rows: list[tuple[JobRequest, Birth]] = []
    for request in requests:
        try:
            birth = _birth(births, request, by=by, project=project)
            services.check_input(request, birth.version)
        except EngineError as error:
            results.append(Submitted(error=error))
        else:
            results.append(Submitted(id=request.id, status=birth.status.value))
            rows.append((request, birth))
    inserting.insert_all([row for row in rows if not row[1].candidates], by=by, project=project)
    for request, birth in rows:
        if birth.candidates:
            services.insert(request, birth, by=by, project=project)
    wakeups.queues_filled(*{request.queue for request, birth in rows if birth.status == Job.Status.QUEUED})
    wakeups.jobs_changed(*(request.id for request, _ in rows))
    return results


def _birth(
    births: dict[tuple[str, str], Birth | EngineError], request: JobRequest, *, by: Caller, project: Project
) -> Birth:
    """How this job begins; the lookup is shared by all that name the same agent, or set the same task."""
    key = (request.agent or "", "" if request.agent else request.task)
    if key not in births:
        try:
            births[key] = services.birth_of(request, by=by, project=project)
        except EngineError as error:
            births[key] = error
    found = births[key]
    if isinstance(found, EngineError):
        raise found
    return services.scheduled_or_queued(found, request)
