"""What may be asked of Engine, once for both clients."""

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from engine_client.core import WAIT_SECONDS, Call, FileLike, Steps, exchange, given
from engine_client.errors import JobAlreadyEnded
from engine_client.models import Agent, Artifact, Discovery, Event, Job, Key

API = "/api/v1"
# Beyond what the server waits by itself, so that it answers first.
SLACK_SECONDS = 15.0
EVENTS_A_PAGE = 1_000


def submit(
    task: str, *, files: Iterable[FileLike] = (), idempotency_key: str | None = None, **members: Any
) -> Steps[Job]:
    """Post a job. It has an idempotency key of its own unless the caller gives one: a retry makes no second job."""
    body: dict[str, Any] = {"task": task, **_without_none(members)}
    files = tuple(files)
    fields = {name: value if isinstance(value, str) else json.dumps(value) for name, value in body.items()}
    headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
    call = Call("POST", f"{API}/jobs", body=body, fields=fields, files=files, headers=headers, timeout=120.0)
    return Job.of((yield from exchange(call)).json())


def job(job_id: str, *, wait_seconds: int = 0) -> Steps[Job]:
    """The job now, or when it has ended or asks."""
    headers = {"Prefer": f"wait={wait_seconds}"} if wait_seconds else {}
    call = Call("GET", f"{API}/jobs/{job_id}", headers=headers, timeout=wait_seconds + SLACK_SECONDS)
    return Job.of((yield from exchange(call)).json())


def stored_events(job_id: str, after: int, filters: Mapping[str, Any]) -> Steps[list[Event]]:
    """One page of the events that are stored now; an empty one is the end."""
    params = {**given(filters), "after": after, "limit": EVENTS_A_PAGE}
    response = yield from exchange(Call("GET", f"{API}/jobs/{job_id}/logs", params))
    return [Event.of(one) for one in response.json()["items"]]


def wait_for(seconds: float) -> int:
    """How long the next look may take."""
    return max(1, min(WAIT_SECONDS, round(seconds)))


def respond(job_id: str, members: Mapping[str, Any]) -> Steps[Job]:
    """Answer a job's open question, or several. The first valid answer wins: a later one raises."""
    response = yield from exchange(Call("POST", f"{API}/jobs/{job_id}/respond", body=dict(members)))
    return Job.of(response.json())


def cancel(job_id: str) -> Steps[Job]:
    """Stop a job. A running one ends within seconds; one that has ended stays as it is, which is no error."""
    try:
        response = yield from exchange(Call("DELETE", f"{API}/jobs/{job_id}"))
    except JobAlreadyEnded:
        return (yield from job(job_id))
    return Job.of(response.json())


def retry(job_id: str, *, idempotency_key: str | None = None) -> Steps[Job]:
    """A new job that continues a failed or cancelled one from its last step."""
    headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
    return Job.of((yield from exchange(Call("POST", f"{API}/jobs/{job_id}/retry", headers=headers))).json())


def download(artifact: Artifact) -> Steps[bytes]:
    """An artifact's bytes."""
    return (yield from exchange(Call("GET", artifact.url, timeout=300.0))).content


def discover(
    task: str, *, limit: int | None = None, filters: Mapping[str, Any] | None = None
) -> Steps[Discovery]:
    """Who can do a task, best first."""
    body = _without_none({"task": task, "limit": limit, "filters": filters or None})
    return Discovery.of((yield from exchange(Call("POST", f"{API}/agents/discover", body=body))).json())


def agent(slug: str) -> Steps[Agent]:
    """One agent with everything that was registered."""
    return Agent.of((yield from exchange(Call("GET", f"{API}/agents/{quote(slug, safe='')}"))).json())


def register(card: Mapping[str, Any]) -> Steps[Agent]:
    """Register an agent, or a new version of one. Equal content changes nothing."""
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    response = yield from exchange(Call("POST", f"{API}/agents", body=dict(card), headers=headers))
    return Agent.of(response.json())


def create_key(name: str, scopes: Sequence[str], members: Mapping[str, Any]) -> Steps[Key]:
    """Make a key; this answer alone shows its secret. Never sent twice by itself."""
    body = {"name": name, "scopes": list(scopes), **_without_none(members)}
    return Key.of((yield from exchange(Call("POST", f"{API}/admin/keys", body=body))).json())


def revoke_key(key_id: str) -> Steps[Key]:
    """Refuse a key for good."""
    return Key.of((yield from exchange(Call("DELETE", f"{API}/admin/keys/{key_id}"))).json())


def _without_none(members: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


LISTS: Mapping[str, str] = {
    "jobs": f"{API}/jobs",
    "agents": f"{API}/agents",
    "questions": f"{API}/questions",
    "keys": f"{API}/admin/keys",
}


def answer_members(answer: Any, question_id: str | None, answers: Mapping[str, Any] | None) -> dict[str, Any]:
    """The body of an answer, in one of its three forms."""
    if answers is not None:
        return {"answers": dict(answers)}
    return {"answer": answer} | ({"question_id": question_id} if question_id else {})
