"""Many jobs in one transaction, and how much a project may have queued."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from agents.errors import AgentNotFound
from apikeys.models import Project
from jobs import bulk, services
from jobs.errors import InvalidInput, QueueFull
from jobs.models import Job
from jobs.services import JobRequest
from tests.jobs import claim_one, make_caller, make_job, make_project, make_version, make_worker, seqs

pytestmark = pytest.mark.django_db(transaction=True)


def submit(*requests: JobRequest, project: Project | None = None) -> list[bulk.Submitted]:
    project = project or make_project()
    return bulk.submit(requests, by=make_caller(project), project=project)


def request(**fields: Any) -> JobRequest:
    return JobRequest(**{"task": "do it", "agent": "echo", **fields})


def test_jobs_submitted_together_are_as_if_submitted_one_by_one() -> None:
    make_version("echo")
    later = timezone.now() + timedelta(hours=1)
    fields: dict[str, Any] = {
        "priority": "high",
        "tags": ["a", "b"],
        "metadata": {"n": 1},
        "input": {"rows": 2},
    }

    together = submit(request(**fields), request(run_at=later))
    alone = services.submit(request(**fields), by=make_caller(), project=make_project())

    first, second = (Job.objects.get(id=str(item.id)) for item in together)
    for name in (
        "status",
        "priority",
        "tags",
        "metadata",
        "input",
        "max_attempts",
        "agent_version_id",
        "last_seq",
    ):
        assert getattr(first, name) == getattr(alone, name), name
    assert alone.sort_at - first.sort_at < timedelta(seconds=10)
    assert (second.status, second.run_at) == ("scheduled", later)
    assert seqs(first.id) == [1]
    assert claim_one(make_worker()).id == first.id


def test_what_is_wrong_with_one_does_not_stop_the_others() -> None:
    make_version("echo", input_schema={"type": "object", "properties": {"rows": {"type": "integer"}}})

    good, missing, bad = submit(request(), request(agent="nobody"), request(input={"rows": "two"}))

    assert good.status == "queued"
    assert isinstance(missing.error, AgentNotFound)
    assert isinstance(bad.error, InvalidInput)
    assert bad.error.errors[0]["pointer"] == "/input/rows"
    assert Job.objects.count() == 1


def test_a_full_queue_refuses_one_and_many() -> None:
    project = make_project(max_queued=2)
    make_job(project)

    with pytest.raises(QueueFull) as full:
        submit(request(), request(), project=project)
    assert full.value.headers["Retry-After"]
    make_job(project)
    with pytest.raises(QueueFull):
        make_job(project)

    claim_one(make_worker())
    make_job(project)
