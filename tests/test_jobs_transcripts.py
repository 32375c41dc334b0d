"""The conversation of an llm agent's job over the API, and what the job has used."""

from typing import Any

import pytest
from django.urls import reverse
from django.utils import timezone
from rest_framework.test import APIClient

from apikeys import services as keys
from apikeys.models import Project
from jobs.execution.llm.replies import Reply, ToolCall
from jobs.models import Job, Step, Usage
from jobs.transcripts import transcript
from tests.dashboard import make_person, signed_in
from tests.jobs import make_caller, make_job, make_project, make_version

pytestmark = pytest.mark.django_db


@pytest.fixture
def talked() -> Job:
    """A job whose model called a tool, was asked for a repair, and calls again."""
    version = make_version("mind", kind="llm", instructions="Think.", output_schema={"type": "object"})
    job = make_job(agent="echo")
    Job.objects.filter(id=job.id).update(agent_version=version, task="do it", attempt=1)
    replies = [
        Reply("Looking.", (ToolCall("c1", "list_files", "{}"),), "tool_calls", 10, 5, cost_usd=0.25),
        Reply("no object", (), "stop", 20, 5, cost_usd=0.25),
        Reply("", (ToolCall("c2", "run_python", '{"code": "1"}'), ToolCall("c3", "ask_human", "{}"))),
    ]
    for number, reply in enumerate(replies, start=1):
        entry(job, f"model#{number}", reply.as_json(), kind="value")
    entry(job, "model#1/list_files#1", {"content": "There are no input files."})
    entry(job, "model#3/run_python#1", None)
    return Job.objects.select_related("agent_version__agent").get(id=job.id)


def entry(job: Job, key: str, value: Any, kind: str = "step") -> None:
    now = timezone.now()
    ended: dict[str, Any] = {} if value is None else {"ended_at": now, "result": {"value": value}}
    Step.objects.create(
        job=job, key=key, ordinal=Step.objects.count() + 1, kind=kind, attempt=1, begun_at=now, **ended
    )


def client_of(project: Project) -> APIClient:
    _, secret = keys.create_key(make_caller(project), name="t", scopes=["jobs:read"])
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {secret}")
    return client


def test_the_whole_conversation_is_told_in_its_order(talked: Job) -> None:
    answer = client_of(talked.project).get(f"/api/v1/jobs/{talked.id}/transcript").json()

    assert answer["next_after"] is None
    shown = [(item["role"], item.get("name"), item.get("state")) for item in answer["items"]]
    assert shown == [
        ("system", None, None),
        ("user", None, None),
        ("assistant", None, None),
        ("tool", "list_files", "ended"),
        ("assistant", None, None),
        ("user", None, None),
        ("assistant", None, None),
        ("tool", "run_python", "begun"),
        ("tool", "ask_human", "waiting"),
    ]
    assert answer["items"][0]["content"].startswith("Think.")
    assert answer["items"][2]["usage"]["input_tokens"] == 10
    assert answer["items"][3]["content"] == "There are no input files."
    assert "does not meet the JSON Schema" in answer["items"][5]["content"]


def test_it_comes_in_pages(talked: Job) -> None:
    first, after = transcript(talked, limit=1)
    second, end = transcript(talked, after=1, limit=2)

    assert after == 1
    assert end is None
    assert len(first) + len(second) == 9


def test_other_agents_have_none_and_other_projects_see_none(talked: Job) -> None:
    plain = make_job()
    own, stranger = client_of(plain.project), client_of(make_project("elsewhere"))

    assert own.get(f"/api/v1/jobs/{plain.id}/transcript").json() == {"items": [], "next_after": None}
    refused = stranger.get(f"/api/v1/jobs/{talked.id}/transcript")
    assert refused.status_code == 404
    assert refused.json()["code"] == "job_not_found"
    assert own.get(f"/api/v1/jobs/{talked.id}/transcript?limit=0").status_code in (400, 422)


@pytest.mark.parametrize(("cost", "shown"), [(0.5, 0.75), (None, None)])
def test_usage_is_what_the_ledger_says(talked: Job, cost: float | None, shown: float | None) -> None:
    for key, amount in (("model#1", 0.25), ("model#2", cost)):
        Usage.objects.create(
            job_id=talked.id,
            key=key,
            project=talked.project,
            agent_version_id=make_version("mind").id,
            model="m",
            input_tokens=10,
            output_tokens=5,
            cost_usd=amount,
            sandbox_seconds=1.5,
            at=timezone.now(),
        )

    used = client_of(talked.project).get(f"/api/v1/jobs/{talked.id}").json()["usage"]

    assert (used["tokens"], used["sandbox_seconds"], used["cost_usd"]) == (30, 3.0, shown)


def test_a_keys_budget_is_set_over_the_api() -> None:
    _, secret = keys.create_key(make_caller(make_project()), name="boss", scopes=["admin:keys", "jobs:read"])
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {secret}")
    body = {"name": "small", "scopes": ["jobs:read"], "budget": {"cost_usd": 5}}
    made = client.post("/api/v1/admin/keys", body, format="json")
    address = f"/api/v1/admin/keys/{made.json()['id']}"

    assert made.json()["budget"] == {"cost_usd": 5.0}
    assert client.patch(address, {"budget": {}}, format="json").status_code in (400, 422)
    assert client.patch(address, {"budget": None}, format="json").json()["budget"] is None


def test_the_jobs_page_shows_conversation_and_usage_as_text(talked: Job) -> None:
    hostile = Reply("<script>alert(1)</script>", (), "stop", 10, 5)
    entry(talked, "model#3/ask_human#2", {"content": "<b>yes</b>"})
    Step.objects.filter(job=talked, key="model#2").delete()
    entry(talked, "model#2", hostile.as_json(), kind="value")
    Usage.objects.create(
        job_id=talked.id,
        key="model#1",
        project=talked.project,
        agent_version_id=make_version("mind").id,
        input_tokens=1234,
        cost_usd=0.5,
        at=timezone.now(),
    )

    page = signed_in(make_person()).get(reverse("admin:jobs_job_change", args=[talked.id])).content.decode()

    assert "Conversation" in page
    assert "There are no input files." in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<b>yes</b>" not in page
    assert "1234 in" in page
