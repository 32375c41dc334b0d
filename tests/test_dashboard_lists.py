"""The list of jobs over a long history, many jobs at once, and filters that people keep."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from apikeys.models import AuditRow
from benchmarks.history import count_minutes, make_history
from jobs.models import Job, SavedView
from tests.dashboard import asking, completed, make_person, signed_in
from tests.factories import make_key
from tests.jobs import claim_one, make_job, make_project, make_version, make_worker, settlement, write

pytestmark = pytest.mark.django_db

LIST = "/admin/jobs/job/"
MANY = f"{LIST}many/"
# The tables that grow with history. Pages read them by index alone.
BIG = ("jobs_job", "jobs_event", "jobs_attempt", "jobs_step", "jobs_question", "jobs_artifact", "jobs_usage")


@pytest.fixture
def browser() -> Client:
    return signed_in(make_person())


def rows_read(plan: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """How many rows of which table this plan read, those thrown away included."""
    if "Relation Name" in plan:
        rows = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)
        yield plan["Relation Name"], int(rows * plan["Actual Loops"])
    for part in plan.get("Plans", []):
        yield from rows_read(part)


def most_read(browser: Client, address: str) -> tuple[int, str]:
    """The most rows of a big table that one statement of a page reads, and the statement."""
    with CaptureQueriesContext(connection) as queries:
        assert browser.get(address).status_code == 200
    most = (0, "")
    with connection.cursor() as cursor:
        for query in queries:
            if "jobs_" in query["sql"] and query["sql"].lstrip("( \n").upper().startswith(("SELECT", "WITH")):
                cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {query['sql']}")
                plan = cursor.fetchone()[0][0]["Plan"]
                read = sum(rows for table, rows in rows_read(plan) if table.startswith(BIG))
                most = max(most, (read, query["sql"]))
    return most


# Jobs enough that reading them all would be dearer than an index, as the planner sees it.
HISTORY = 20_000
MOST_READ = 3_000  # of ended=1h: 1,800 jobs


def test_no_page_reads_more_of_a_big_table_than_it_shows(
    browser: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.admin.narrowing.SEARCHED", 1_000)
    make_history(
        HISTORY,
        projects=[make_project(slug).id for slug in ("acme", "globex")],
        versions=[make_version(slug).id for slug in ("counter", "drawer", "reader")],
    )
    count_minutes()
    make_job()  # the only one of its agent
    job = Job.objects.order_by("id")[HISTORY // 2]
    browser.get(LIST)  # content types are read once
    queries = [
        "",
        "status=failed",
        "status=running",
        "status=completed&project=acme",
        "agent=counter",
        "agent=echo",
        "p=7",
    ]
    queries += ["agent=counter&status=failed&project=globex", "error=agent_failed", "error=other", "q=words"]
    queries += ["ended=1h", "status=failed&ended=1h", f"q={job.id}", "q=words&agent=counter&status=failed"]
    queries += ["status=failed&ended=7d", "status=cancelled&ended=7d", "used=today"]
    addresses = [f"{LIST}?{query}" for query in queries]
    addresses += [
        "/admin/",
        "/admin/?window=7d",
        f"{LIST}overview/",
        f"{LIST}{job.id}/",
        "/admin/jobs/question/",
    ]
    addresses += [
        "/admin/jobs/question/?answered",
        "/admin/jobs/worker/",
        "/admin/system/",
        "/admin/agents/agent/",
    ]

    read = {address: most_read(browser, address) for address in addresses}

    assert {address: most for address, most in read.items() if most[0] > MOST_READ} == {}


def ids_on(page: Any) -> list[Any]:
    return [job.id for job in page.context["cl"].result_list]


def failed(code: str = "agent_failed") -> Job:
    job, worker = make_job(), make_worker()
    error = {"code": code, "message": "It broke"}
    end = settlement(claim_one(worker), Job.Status.FAILED, "failed", reason=code, error=error)  # type: ignore[arg-type]
    write(worker, settlements=[end])
    job.refresh_from_db()
    return job


def test_filters_find_what_they_say_over_pages(browser: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.admin.job.JobAdmin.list_per_page", 2)
    done = [completed().id for _ in range(5)]
    broken, other = failed(), failed("timeout")
    running = make_job()
    claim_one(make_worker())

    pages = [ids_on(browser.get(f"{LIST}?status=completed&p={number}")) for number in (1, 2, 3)]

    assert [job for page in pages for job in page] == list(reversed(done))
    assert ids_on(browser.get(f"{LIST}?error=timeout")) == [other.id]
    assert ids_on(browser.get(f"{LIST}?status=failed&ended=1h")) == [other.id, broken.id]
    assert ids_on(browser.get(f"{LIST}?status=running&agent=echo")) == [running.id]
    assert ids_on(browser.get(f"{LIST}?ended=1h&status=cancelled")) == []
    assert ids_on(browser.get(f"{LIST}?agent=echo")) == [running.id, other.id]
    assert browser.get(f"{LIST}?status=nonsense&ended=never&p=x").status_code in (200, 302)


# --- many jobs at once ---


def test_many_jobs_are_cancelled_after_a_count_and_a_second_click(browser: Client) -> None:
    ended, jobs = completed(), [make_job() for _ in range(3)]
    chosen = [str(job.id) for job in [*jobs[:2], ended]]

    asked = browser.post(MANY, {"deed": "cancel", "job": chosen, "query": "project=acme"})

    assert "Cancel 2 jobs?" in asked.text
    assert Job.objects.filter(status="cancelled").count() == 0
    reply = browser.post(
        MANY,
        {"deed": "cancel", "jobs": asked.context["ids"], "query": "project=acme", "confirmed": "yes"},
        follow=True,
    )
    assert "2 jobs cancelled." in reply.text
    assert reply.redirect_chain[-1][0].endswith("?project=acme")
    assert [Job.objects.get(id=job.id).status for job in jobs] == ["cancelled", "cancelled", "queued"]
    assert sorted(AuditRow.objects.filter(action="job.cancelled").values_list("object", flat=True)) == sorted(
        f"job:{job.id}" for job in jobs[:2]
    )


def test_all_jobs_that_match_are_retried(browser: Client) -> None:
    broken = [failed(), failed("timeout")]
    completed()

    asked = browser.post(MANY, {"deed": "retry", "every": "yes", "query": "status=failed&error=timeout"})
    browser.post(MANY, {"deed": "retry", "jobs": asked.context["ids"], "confirmed": "yes"})

    assert asked.context["count"] == 1
    assert list(Job.objects.exclude(retried_from=None).values_list("retried_from", flat=True)) == [
        broken[1].id
    ]


def test_many_jobs_need_the_permission_and_a_known_deed(browser: Client) -> None:
    job = make_job()
    viewer = signed_in(make_person("bob", "jobs.view_job"))

    assert viewer.post(MANY, {"deed": "cancel", "job": str(job.id), "confirmed": "yes"}).status_code == 403
    assert browser.post(MANY, {"deed": "eat", "job": str(job.id)}).status_code == 404
    assert browser.post(MANY, {"deed": "cancel", "job": "x", "query": "a\r\nb=c"}).status_code == 302
    assert 'form="many"' not in viewer.get(LIST).text
    job.refresh_from_db()
    assert job.status == "queued"


# --- what one person keeps ---


def test_filters_are_kept_under_a_name_by_each_person_alone(browser: Client) -> None:
    other = signed_in(make_person("bob"))

    browser.post(f"{LIST}views/", {"name": " Failed  here ", "query": "project=acme&status=failed&p=3"})

    view = SavedView.objects.get()
    assert (view.name, view.query) == ("Failed here", "status=failed&project=acme")
    assert (
        'href="?status=failed&amp;project=acme" aria-current="page"'
        in browser.get(f"{LIST}?{view.query}").text
    )
    assert "Failed here" not in other.get(LIST).text
    assert other.post(f"{LIST}views/{view.id}/forget/").status_code == 404
    browser.post(f"{LIST}views/", {"name": "Failed here", "query": "status=failed"})
    assert SavedView.objects.get().query == "status=failed"
    browser.post(f"{LIST}views/{view.id}/forget/")
    assert not SavedView.objects.exists()


@pytest.mark.parametrize(
    ("name", "query"), [("", "status=failed"), ("x" * 41, "status=failed"), ("all", "p=2")]
)
def test_a_view_without_a_name_or_a_filter_is_not_kept(browser: Client, name: str, query: str) -> None:
    browser.post(f"{LIST}views/", {"name": name, "query": query})

    assert not SavedView.objects.exists()


def test_cancelling_answering_and_submitting_are_in_the_audit(browser: Client) -> None:
    key = make_key()
    waiting, job = asking(), make_job()
    question = waiting.questions.get()

    browser.post(f"{LIST}{job.id}/cancel/")
    browser.post(
        f"{LIST}{waiting.id}/questions/{question.id}/", {f"q{question.id.hex[-12:]}-answer": "because"}
    )
    browser.post(
        f"{LIST}new/", {"task": "x", "agent": "echo", "project": key.project.slug, "priority": "normal"}
    )

    rows = list(AuditRow.objects.filter(via="dashboard").order_by("id").values_list("action", "actor"))
    assert rows == [
        (action, "user:ada") for action in ("job.cancelled", "question.answered", "job.submitted")
    ]
