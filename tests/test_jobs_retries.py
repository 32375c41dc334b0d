"""How failures are tried again: by the agent's own policy, or the usual one."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from jobs import services
from jobs.claiming import Claimed
from jobs.execution.outcomes import Failed
from jobs.execution.ports import AgentSpec
from jobs.models import Job
from jobs.recorder import AttemptRecorder, Clock, Writer
from jobs.retries import RetryPolicy
from jobs.services import JobRequest
from jobs.settlements import Settlement
from jobs.settling import settlement
from tests.jobs import claim_one, make_caller, make_project, make_version, make_worker

SLOW = {"retry": {"max_attempts": 5, "backoff_s": 30, "backoff_factor": 3, "max_backoff_s": 100}}


def seconds(policy: RetryPolicy) -> list[float]:
    return [policy.backoff(failures).total_seconds() for failures in (1, 2, 3, 40)]


@pytest.mark.parametrize(
    ("limits", "expected"), [({}, [2, 4, 8, 1024]), (SLOW, [30, 90, 100, 100])], ids=["usual", "the agent's"]
)
def test_each_wait_is_longer_up_to_a_bound_with_a_tenth_of_chance(limits: Any, expected: list[float]) -> None:
    policy = RetryPolicy.of(limits)

    for waited, least in zip(seconds(policy), expected, strict=True):
        assert least <= waited <= least * 1.1
    assert len({policy.backoff(1) for _ in range(20)}) > 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("asked", "given"), [(None, 5), (2, 2)], ids=["the agent's word", "the caller's"])
def test_the_caller_goes_before_the_agent(asked: int | None, given: int) -> None:
    make_version("slow", limits=SLOW)
    project = make_project()
    order = JobRequest(task="do it", agent="slow", max_attempts=asked)

    job = services.submit(order, by=make_caller(project), project=project)

    assert job.max_attempts == given
    assert Job.objects.get().max_attempts == given


def fail(job: Claimed, limits: dict[str, Any]) -> Settlement:
    async def unused(*_: object) -> None: ...

    agent = AgentSpec(
        agent_id=uuid4(), slug="slow", number=1, kind="python", source={}, requirements=(), limits=limits,
        output_schema=None,
    )  # fmt: skip
    clock = Clock(services.database_time())
    writer = Writer(uuid4(), in_database=unused, on_worker_lost=lambda: None)
    return settlement(
        Failed("agent_error", "It broke."),
        job,
        agent,
        recorder=AttemptRecorder(writer, job, clock),
        clock=clock,
    )


@pytest.mark.django_db(transaction=True)
def test_a_failed_attempt_waits_as_its_agent_says() -> None:
    make_version("slow", limits=SLOW)
    project = make_project()
    services.submit(JobRequest(task="do it", agent="slow"), by=make_caller(project), project=project)
    job = claim_one(make_worker())

    first = fail(job, SLOW)
    last = fail(job._replace(failed_count=4), SLOW)

    assert first.status == Job.Status.SCHEDULED
    assert first.retry_after is not None
    assert timedelta(seconds=30) <= first.retry_after <= timedelta(seconds=33)
    assert (last.status, last.reason) == (Job.Status.FAILED, "attempts_exhausted")
