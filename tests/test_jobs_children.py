"""Jobs that jobs start: begun with their parent's wait, ended with its wake-up, with its rights and within its caps."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import connection
from django.utils import timezone
from uuid_utils.compat import uuid7

from apikeys.models import ApiKey
from jobs import delegation, queries, services
from jobs.batch import Batch
from jobs.batch import write as write_batch
from jobs.execution.outcomes import ChildSpec, Used
from jobs.execution.ports import ChildRefused, ChildRequest
from jobs.models import Attempt, InputFile, Job, Usage
from jobs.usage import UsageRow, key_spending, of_family, of_job
from tests.agents import member, register_all
from tests.jobs import (
    ask,
    claim_one,
    end_lease,
    make_caller,
    make_job,
    make_project,
    make_version,
    make_worker,
    question,
    seqs,
    settlement,
    sweep,
    types,
    write,
)

pytestmark = pytest.mark.django_db(transaction=True)


def child_of(key: str = "model#1/run_agent#1", **fields: Any) -> ChildSpec:
    return ChildSpec(
        **{
            "id": uuid7(),
            "key": key,
            "agent_version_id": make_version("echo").id,
            "task": "a part of it",
            "input": {"n": 1},
            "files": (),
            "budget": None,
            "explanation": {"decision": "named"},
            **fields,
        }
    )


def suspend(worker_id: UUID, claimed: Any, *children: ChildSpec, questions: Any = ()) -> None:
    row = settlement(
        claimed,
        Job.Status.WAITING_FOR_INPUT,
        Attempt.Outcome.SUSPENDED,
        reason="question" if questions else "child_job",
        questions=tuple(questions),
        children=children,
    )
    write(worker_id, settlements=[row])


def parent_with(*children: ChildSpec, questions: Any = ()) -> tuple[UUID, Job]:
    """A worker, and a job that it suspended with these children."""
    worker_id, job = make_worker(), make_job()
    suspend(worker_id, claim_one(worker_id), *children, questions=questions)
    return worker_id, Job.objects.get(id=job.id)


def complete_one(worker_id: UUID) -> UUID:
    claimed = claim_one(worker_id)
    write(worker_id, settlements=[settlement(claimed, parent_id=claimed.parent_id, result="{}")])
    return claimed.id


def test_children_begin_in_the_transaction_that_suspends_their_parent() -> None:
    worker_id, job = make_worker(), make_job(tags=["nightly"], priority="high")
    InputFile.objects.create(
        job=job, name="a.csv", media_type="text/csv", size=1, sha256="0" * 64, storage_key="k"
    )
    spec = child_of(files=("a.csv", "b.csv"), budget={"tokens": 5, "on_exceeded": "fail"})

    suspend(worker_id, claim_one(worker_id), spec)

    parent, child = Job.objects.get(id=job.id), Job.objects.get(id=spec.id)
    assert (parent.status, parent.status_reason, parent.worker_id) == ("waiting_for_input", "child_job", None)
    assert types(job.id)[-2:] == ["job.child_started", "job.waiting"]
    assert (child.status, child.parent_id, child.priority, child.tags) == (
        "queued",
        job.id,
        "high",
        ["nightly"],
    )
    assert (child.project_id, child.created_by) == (parent.project_id, parent.created_by)
    assert child.budget == {"tokens": 5, "on_exceeded": "fail"}
    assert list(child.input_files.values_list("name", flat=True)) == ["a.csv"]
    for one in (parent, child):
        assert seqs(one.id) == list(range(1, one.last_seq + 1))


def test_the_last_child_to_end_wakes_its_parent_at_its_old_place() -> None:
    worker_id, parent = parent_with(child_of(), child_of("model#1/run_agent#2"))

    complete_one(worker_id)
    assert Job.objects.get(id=parent.id).status == "waiting_for_input"
    complete_one(worker_id)

    woken = Job.objects.get(id=parent.id)
    assert (woken.status, woken.status_reason, woken.sort_at) == ("queued", "child_ended", parent.sort_at)
    assert seqs(parent.id) == list(range(1, woken.last_seq + 1))


def test_a_parent_waits_for_its_question_and_its_child_both() -> None:
    worker_id, parent = parent_with(child_of(), questions=[question()])

    complete_one(worker_id)
    assert Job.objects.get(id=parent.id).status == "waiting_for_input"
    services.respond(parent.id, by=make_caller(parent.project), answer="yes")
    assert Job.objects.get(id=parent.id).status == "queued"


def test_an_answer_alone_does_not_wake_it_either() -> None:
    worker_id, parent = parent_with(child_of(), questions=[question()])

    services.respond(parent.id, by=make_caller(parent.project), answer="yes")
    waiting = Job.objects.get(id=parent.id)
    assert (waiting.status, waiting.status_reason) == ("waiting_for_input", "child_job")
    complete_one(worker_id)
    assert Job.objects.get(id=parent.id).status == "queued"


def cancelled(child: Job) -> None:
    services.cancel(child.id, by=make_caller(child.project))


def overdue(child: Job) -> None:
    Job.objects.filter(id=child.id).update(deadline_at=timezone.now() - timedelta(seconds=1))
    queries.fail_overdue()


def lost_for_good(child: Job) -> None:
    Job.objects.filter(id=child.id).update(lost_count=1)
    dying = make_worker()
    claim_one(dying)
    Job.objects.filter(id=child.id).update(lost_count=2)
    end_lease(dying)
    sweep()


@pytest.mark.parametrize("end", [cancelled, overdue, lost_for_good])
def test_however_a_child_ends_its_parent_wakes(end: Callable[[Job], None]) -> None:
    spec = child_of()
    _, parent = parent_with(spec)

    end(Job.objects.get(id=spec.id))

    assert Job.objects.get(id=spec.id).is_final
    assert Job.objects.get(id=parent.id).status == "queued"


def test_two_children_that_end_at_once_wake_their_parent_once() -> None:
    """Each transaction sees only its own end; the parent's lock makes the second wait for the first."""
    for _ in range(8):
        _, parent = parent_with(child_of(), child_of("model#1/run_agent#2"))
        workers = [make_worker(), make_worker()]
        claims = [(worker_id, claim_one(worker_id)) for worker_id in workers]
        barrier = threading.Barrier(2)

        def end(worker_id: UUID, claimed: Any, barrier: threading.Barrier = barrier) -> None:
            try:
                barrier.wait(10)
                write(worker_id, settlements=[settlement(claimed, parent_id=claimed.parent_id, result="{}")])
            finally:
                connection.close()

        threads = [threading.Thread(target=end, args=claim) for claim in claims]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)

        woken = Job.objects.get(id=parent.id)
        assert woken.status == "queued"
        assert types(parent.id).count("job.queued") == 2  # its birth, and this
        Job.objects.filter(id=parent.id).update(
            agent_version=None, status="cancelled", finished_at=timezone.now()
        )


def test_cancelling_the_parent_cancels_children_and_theirs() -> None:
    spec, running = child_of(), child_of("model#1/run_agent#2")
    worker_id, parent = parent_with(spec)
    suspend(worker_id, claim_one(worker_id), running, child_of("model#1/run_agent#3"))
    grandchild = claim_one(worker_id)

    services.cancel(parent.id, by=make_caller(parent.project))

    family = {job.id: job for job in Job.objects.all()}
    assert family[parent.id].status == family[spec.id].status == "cancelled"
    assert family[grandchild.id].status == "running"
    assert family[grandchild.id].cancel_requested_at is not None
    others = [job for job in family.values() if job.parent_id == spec.id and job.id != grandchild.id]
    assert [job.status for job in others] == ["cancelled"]


def test_a_parent_that_was_cancelled_meanwhile_starts_nothing() -> None:
    worker_id, job = make_worker(), make_job()
    claimed = claim_one(worker_id)
    services.cancel(job.id, by=make_caller(job.project))

    suspend(worker_id, claimed, child_of())

    assert Job.objects.count() == 1
    assert Job.objects.get(id=job.id).status == "cancelled"


# --- what may be started ---


POET = {
    "slug": "poet",
    "name": "Poet",
    "description": "Writes poems about rain",
    "instructions": "Write poems.",
}


def request(**fields: Any) -> ChildRequest:
    return ChildRequest(
        **{
            "id": uuid7(),
            "key": "model#1/run_agent#1",
            "task": "it",
            "agent": "echo",
            "input": {},
            "files": (),
            "budget": None,
            **fields,
        }
    )


def make_key(**fields: Any) -> ApiKey:
    return ApiKey.objects.create(
        **{
            "project": make_project(),
            "name": "k",
            "prefix": "p",
            "secret_hash": uuid4().bytes + uuid4().bytes,
            "scopes": ["jobs:write", "jobs:read"],
            "created_by": "test",
            **fields,
        }
    )


def job_of(key: ApiKey) -> Job:
    job = make_job()
    Job.objects.filter(id=job.id).update(created_by_key=key.id)
    return job


def test_a_child_has_the_rights_of_the_parents_key_as_they_are_now() -> None:
    key = make_key()
    job = job_of(key)
    assert delegation.prepare(job.id, request()).agent_version_id == make_version("echo").id

    ApiKey.objects.filter(id=key.id).update(scopes=["agents:other:run"])
    with pytest.raises(ChildRefused, match="may not run the agent echo"):
        delegation.prepare(job.id, request())

    ApiKey.objects.filter(id=key.id).update(scopes=["jobs:write"], revoked_at=timezone.now())
    with pytest.raises(ChildRefused, match="not valid any more"):
        delegation.prepare(job.id, request())


def test_another_projects_agent_is_not_there() -> None:
    job = job_of(make_key())
    version = make_version("secret")
    version.agent.project = make_project("elsewhere")
    version.agent.save(update_fields=["project"])

    with pytest.raises(ChildRefused, match="There is no agent 'secret'"):
        delegation.prepare(job.id, request(agent="secret"))


def test_depth_and_number_have_caps(settings: Any) -> None:
    settings.ENGINE_MAX_CHILD_DEPTH, settings.ENGINE_MAX_CHILDREN = 2, 2
    first, second, third = make_job(), make_job(), make_job()
    Job.objects.filter(id=second.id).update(parent=first)
    Job.objects.filter(id=third.id).update(parent=second)

    delegation.prepare(second.id, request())
    with pytest.raises(ChildRefused, match="2 deep"):
        delegation.prepare(third.id, request())
    delegation.prepare(first.id, request())
    with pytest.raises(ChildRefused, match="2 others"):
        delegation.prepare(first.id, request(before=1))


def test_files_and_input_are_checked() -> None:
    job = make_job()
    with pytest.raises(ChildRefused, match="no input files named x"):
        delegation.prepare(job.id, request(files=("x",)))

    make_version("picky", input_schema={"type": "object", "required": ["n"]})
    with pytest.raises(ChildRefused, match="'n' is a required property"):
        delegation.prepare(job.id, request(agent="picky"))


def test_an_agent_that_cannot_run_now_is_refused(settings: Any) -> None:
    settings.OPENAI_API_KEY = settings.OPENAI_BASE_URL = ""
    job = make_job()
    make_version("mind", kind="llm")

    with pytest.raises(ChildRefused, match="No model is configured"):
        delegation.prepare(job.id, request(agent="mind"))
    register_all(member(job.project), [POET])
    with pytest.raises(ChildRefused, match="poet cannot run now: No model is configured"):
        delegation.prepare(job.id, request(agent="", task="Write poems about rain"))
    assert delegation.find(job.id, "Write poems about rain") == []


# --- usage ---


def use(worker_id: UUID, claimed: Any, *rows: tuple[str, Used]) -> None:
    usages = [UsageRow(claimed.id, claimed.attempt, key, "m", used) for key, used in rows]
    write_batch(worker_id, Batch(usages=usages))


def test_what_a_job_uses_is_counted_once_and_fenced() -> None:
    worker_id = make_worker()
    make_job()
    claimed = claim_one(worker_id)
    row = ("model#1", Used(10, 5, 0.5))

    use(worker_id, claimed, row)
    use(worker_id, claimed, row)  # a batch whose reply was lost
    end_lease(worker_id)
    sweep()
    other = make_worker()
    claim_one(other)
    use(other, claimed, ("model#2", Used(1, 1)))  # of the attempt before

    assert of_job(claimed.id) == Used(10, 5, 0.5)


def test_a_family_is_counted_together() -> None:
    worker_id, parent = parent_with(child_of())
    claimed = claim_one(worker_id)

    use(worker_id, claimed, ("model#1", Used(10, 5, unpriced_tokens=15)))

    assert of_job(parent.id) == Used()
    assert of_family(parent.id) == Used(10, 5, unpriced_tokens=15)


def test_a_keys_spending_is_that_of_this_month() -> None:
    key = make_key(budget={"tokens": 100})
    job = job_of(key)
    worker_id = make_worker()
    use(worker_id, claim_one(worker_id), ("model#1", Used(10, 5)), ("model#2", Used(1, 1)))
    Usage.objects.filter(key="model#2").update(at=timezone.now() - timedelta(days=40))

    spending = key_spending(job.id)

    assert spending is not None
    assert (spending.budget, spending.used.tokens) == ({"tokens": 100}, 15)
    assert key_spending(make_job().id) is None


def test_only_who_may_change_a_keys_budget_lets_its_job_go_on() -> None:
    from apikeys.callers import Caller
    from apikeys.errors import ScopeMissing

    job, worker_id = make_job(), make_worker()
    ask(worker_id, claim_one(worker_id), question(details={"needs_scope": "admin:keys"}))
    holder = Caller(project=job.project, scopes=frozenset({"jobs:respond"}))

    with pytest.raises(ScopeMissing):
        services.respond(job.id, by=holder, answer="yes")
    services.respond(job.id, by=make_caller(job.project), answer="yes")
