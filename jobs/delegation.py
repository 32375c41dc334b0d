"""What a model may have other agents do: found and checked with the rights of its job's own caller."""

from typing import Any
from uuid import UUID

from django.conf import settings

from agents import discovery
from agents import services as agents
from agents.errors import AgentArchived, AgentNotFound
from agents.health import health
from agents.models import AgentVersion
from apikeys.callers import Caller
from apikeys.models import ApiKey
from apikeys.scopes import Scope
from apikeys.services import has_expired
from engine.errors import EngineError
from jobs import room
from jobs.execution.outcomes import ChildSpec
from jobs.execution.ports import ChildRefused, ChildRequest
from jobs.models import Job
from jobs.schemas import faults

MOST_FOUND = 5
MOST_ARTIFACTS = 50


def caller_of(job: Job) -> Caller:
    """Whoever submitted the job, with the rights that they have now. Raises ChildRefused where they have none left."""
    if job.created_by_key is None:  # a member of staff, who may run every agent that the project sees
        return Caller(
            project=job.project, scopes=frozenset({Scope.JOBS_WRITE, Scope.AGENTS_READ}), via="agent"
        )
    key = ApiKey.objects.select_related("project").filter(id=job.created_by_key).first()
    if key is None or key.revoked_at or key.disabled_at or key.project.archived_at or has_expired(key):
        raise ChildRefused(
            "The key that submitted this job is not valid any more: no other agent can be used."
        )
    return Caller(project=key.project, scopes=frozenset(key.scopes), key=key, via="agent")


def find(job_id: UUID, task: str) -> list[dict[str, Any]]:
    """The agents that the job's caller may run and that fit the task. Raises ChildRefused."""
    job = Job.objects.select_related("project").get(id=job_id)
    by = caller_of(job)
    filters = discovery.Filters(slugs=by.runs_only(), available_only=True)
    found = discovery.discover(by, task, limit=MOST_FOUND, filters=filters)
    return [_told(result) for result in found.results if result.version.id != job.agent_version_id]


def _told(result: discovery.Result) -> dict[str, Any]:
    version = result.version
    return {
        "agent": version.agent.slug,
        "name": version.name,
        "description": version.description[:1000],
        "input_schema": version.input_schema,
        "confidence": round(result.confidence, 3),
    }


def prepare(parent_id: UUID, request: ChildRequest) -> ChildSpec:
    """The job that a model asked for. Raises ChildRefused with the reason for the model."""
    parent = Job.objects.select_related("project").get(id=parent_id)
    _check_caps(parent, request.before)
    by = caller_of(parent)
    try:
        room.claim(parent.project)
        version, explanation = _agent(by, request)
    except EngineError as error:
        raise ChildRefused(f"{error.title}. {error.detail}") from error
    state = health(version, None)
    if state.status == "unavailable":
        raise ChildRefused(f"The agent {version.agent.slug} cannot run now: {state.reason}.")
    if not by.may(Scope.JOBS_WRITE, agent_slug=version.agent.slug):
        raise ChildRefused(f"This job may not run the agent {version.agent.slug}.")
    wrong = faults(request.input, version.input_schema, at="/input")
    if wrong:
        told = "; ".join(f"{fault['pointer']}: {fault['detail']}" for fault in wrong)
        raise ChildRefused(f"The input does not fit the agent {version.agent.slug}: {told}")
    known = set(parent.input_files.values_list("name", flat=True))
    if unknown := [name for name in request.files if name not in known]:
        raise ChildRefused(f"There are no input files named {', '.join(unknown)[:500]}.")
    return ChildSpec(
        id=request.id,
        key=request.key,
        agent_version_id=version.id,
        task=request.task,
        input=request.input,
        files=request.files,
        budget=request.budget,
        explanation=explanation,
    )


def _check_caps(parent: Job, before: int) -> None:
    if parent.children.count() + before >= settings.ENGINE_MAX_CHILDREN:
        raise ChildRefused(
            f"A job may start {settings.ENGINE_MAX_CHILDREN} others at most. Do the rest yourself."
        )
    depth, above = 1, parent.parent_id
    while above is not None and depth <= settings.ENGINE_MAX_CHILD_DEPTH:
        depth += 1
        above = Job.objects.values_list("parent_id", flat=True).get(id=above)
    if depth > settings.ENGINE_MAX_CHILD_DEPTH:
        raise ChildRefused(
            f"Jobs may start each other {settings.ENGINE_MAX_CHILD_DEPTH} deep at most. Do it yourself."
        )


def _agent(by: Caller, request: ChildRequest) -> tuple[AgentVersion, dict[str, Any]]:
    if request.agent:
        try:
            return agents.resolve(by, request.agent), {"decision": "named", "agent": request.agent}
        except (AgentNotFound, AgentArchived) as error:
            raise ChildRefused(f"{error.detail}. Use find_agents.") from error
    filters = discovery.Filters(slugs=by.runs_only(), available_only=True)
    found = discovery.discover(by, request.task, filters=filters)
    if found.unavailable:
        state = found.unavailable.health
        raise ChildRefused(
            f"The agent {found.unavailable.version.agent.slug} cannot run now: {state.reason}."
        )
    if not found.results:
        nearest = ", ".join(result.version.agent.slug for result in found.nearest)
        raise ChildRefused(f"No agent fits this task. The nearest are: {nearest or 'none'}.")
    return found.results[0].version, found.as_json()


def ending(parent_id: UUID, child_id: UUID) -> dict[str, Any] | None:
    """How a child has ended, for the model; None while it has not, or does not exist."""
    child = Job.objects.filter(id=child_id, parent_id=parent_id, finished_at__isnull=False).first()
    if child is None:
        return None
    files = child.artifacts.order_by("id").values_list("name", flat=True)[:MOST_ARTIFACTS]
    told: dict[str, Any] = {"job_id": str(child.id), "status": child.status, "files": list(files)}
    if child.status == Job.Status.COMPLETED:
        return {**told, "result": child.result}
    return {**told, "reason": child.status_reason, "error": (child.error or {}).get("message", "")}
