"""Resources: jobs, their logs, and agents by address, for clients that let a person pick what a model reads."""

import json
import re
from typing import Any
from uuid import UUID

from agents import services as agents
from agents.models import Agent
from agents.serializers import AgentSerializer
from apikeys.callers import Caller
from apikeys.errors import ScopeMissing
from apikeys.scopes import Scope
from engine.errors import NotFound
from jobs import services
from jobs.mcp.outcomes import cut, plain
from jobs.models import Job
from jobs.serializers import JobSerializer, event_line
from jobs.views import event_page

MOST_LISTED = 20
MOST_LINES = 1_000

TEMPLATES = [
    (
        "job",
        "engine://jobs/{job_id}",
        "A job with its questions, attempts, files and result.",
        "application/json",
    ),
    ("log", "engine://jobs/{job_id}/logs", "The end of a job's log, at most 1,000 lines.", "text/plain"),
    ("agent", "engine://agents/{slug}", "An agent's card.", "application/json"),
]
_URI = re.compile(
    r"engine://(?:jobs/(?P<job>[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})(?P<logs>/logs)?"
    r"|agents/(?P<agent>[a-z0-9-]{1,100}))"
)


def templates() -> list[dict[str, Any]]:
    """As resources/templates/list tells them."""
    return [
        {"name": name, "uriTemplate": uri, "description": what, "mimeType": media_type}
        for name, uri, what, media_type in TEMPLATES
    ]


def listed(by: Caller) -> list[dict[str, Any]]:
    """The newest jobs and agents that this caller may see."""
    items: list[dict[str, Any]] = []
    if by.may(Scope.JOBS_READ):
        jobs = Job.objects.visible_to(by).only("id", "task", "status").order_by("-id")[:MOST_LISTED]
        for job in jobs:
            title = f"{job.status}: {cut(' '.join(job.task.split()), 80)}"
            items.append(_item(f"engine://jobs/{job.id}", f"job {job.id}", title))
    if by.may(Scope.AGENTS_READ):
        for agent in agents.agents(by).filter(status=Agent.Status.ACTIVE).order_by("slug")[:MOST_LISTED]:
            items.append(_item(f"engine://agents/{agent.slug}", f"agent {agent.slug}", agent.slug))
    return items


def _item(uri: str, name: str, title: str) -> dict[str, Any]:
    return {"uri": uri, "name": name, "title": title, "mimeType": "application/json"}


def read(by: Caller, uri: str) -> dict[str, Any]:
    """One resource's contents. Raises NotFound or one of its kinds, and ScopeMissing."""
    found = _URI.fullmatch(uri)
    if found is None:
        raise NotFound("There is no such resource: see resources/templates/list")
    if found["agent"]:
        _need(by, Scope.AGENTS_READ)
        version = agents.current(agents.get(by, found["agent"]))
        return _json(uri, AgentSerializer(version).data)
    _need(by, Scope.JOBS_READ)
    job = services.get(UUID(found["job"]), by=by)
    if not found["logs"]:
        return _json(uri, JobSerializer(job).data)
    page = event_page(job, {"limit": MOST_LINES}, max(0, job.last_seq - MOST_LINES))
    lines = "\n".join(event_line(event) for event in page["items"])
    return {"uri": uri, "mimeType": "text/plain", "text": lines}


def _need(by: Caller, scope: Scope) -> None:
    if not by.may(scope):
        raise ScopeMissing(f"This needs the scope {scope}", missing_scope=scope)


def _json(uri: str, data: Any) -> dict[str, Any]:
    text = json.dumps(plain(data), indent=1, ensure_ascii=False)
    return {"uri": uri, "mimeType": "application/json", "text": text}
