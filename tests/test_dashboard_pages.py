"""The dashboard's pages: who may see them, what they show, and that no hostile text gets into their markup."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from agents import discovery
from engine.dashboard.lists import UncountedPaginator
from jobs import buckets
from jobs.models import Job, MinuteStat, Usage
from tests.dashboard import asking, completed, make_agent, make_artifact, make_person, signed_in
from tests.factories import make_key
from tests.jobs import make_job, make_worker

pytestmark = pytest.mark.django_db

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202egnp.exe"
LISTS = [
    "/admin/",
    "/admin/jobs/job/",
    "/admin/jobs/job/new/",
    "/admin/jobs/question/",
    "/admin/jobs/question/?answered",
    "/admin/jobs/webhookendpoint/",
    "/admin/jobs/webhookendpoint/add/",
    "/admin/jobs/worker/",
    "/admin/system/",
    "/admin/agents/agent/",
    "/admin/agents/agent/?status=archived",
    "/admin/apikeys/apikey/",
    "/admin/apikeys/apikey/add/",
    "/admin/apikeys/project/",
    "/admin/apikeys/project/add/",
    "/admin/apikeys/auditrow/",
    "/admin/auth/user/",
    "/admin/auth/group/",
]


@pytest.fixture
def browser() -> Client:
    """A superuser's."""
    return signed_in(make_person())


def job_page(job: Job) -> str:
    return f"/admin/jobs/job/{job.id}/"


@pytest.mark.parametrize("address", LISTS)
def test_every_page_answers_on_an_empty_installation(browser: Client, address: str) -> None:
    assert browser.get(address).status_code == 200


def test_an_installation_without_a_project_has_no_jobs(browser: Client) -> None:
    assert not any(browser.get("/admin/").context["figures"].states.values())


@pytest.mark.parametrize("address", LISTS)
def test_every_page_answers_with_rows(browser: Client, address: str) -> None:
    make_key()
    make_worker()
    asking()
    completed(None, "hello", result={"rows": 1})

    assert browser.get(address).status_code == 200


@pytest.mark.parametrize("address", [address for address in LISTS if address != "/admin/"])
def test_staff_without_a_permission_see_nothing(address: str) -> None:
    nobody = signed_in(make_person("bob", "contenttypes.view_contenttype"))

    assert nobody.get(address).status_code == 403


def test_the_overview_of_staff_without_a_permission_names_no_job() -> None:
    make_job()
    nobody = signed_in(make_person("bob", "contenttypes.view_contenttype"))

    page = nobody.get("/admin/")

    assert "You cannot see jobs" in page.text
    assert nobody.get("/admin/jobs/job/overview/").status_code == 403


def test_whoever_is_not_signed_in_is_asked_to(client: Client) -> None:
    job = make_job()

    for address in [*LISTS, job_page(job), f"{job_page(job)}parts/", f"{job_page(job)}log.txt"]:
        reply = client.get(address)
        assert reply.status_code == 302
        assert reply.headers["Location"].startswith("/admin/login/")


# --- the overview ---


def test_the_overview_counts_states_and_questions_now(browser: Client) -> None:
    make_job()
    make_job()
    asking()

    figures = browser.get("/admin/").context["figures"]

    assert figures.states == {"queued": 2, "running": 0, "waiting_for_input": 1, "scheduled": 0}
    assert figures.open_questions == 1
    assert figures.oldest_queued[0] == Job.objects.filter(status="queued").order_by("id")[0].id


def test_the_overview_says_when_agents_are_found_by_words_alone(
    browser: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "_degraded", [])
    usual = browser.get("/admin/").content.decode()
    monkeypatch.setattr(discovery, "_degraded", [f"The model is gone {HOSTILE}"])
    degraded = browser.get("/admin/").content.decode()

    assert "found by their words alone" not in usual
    assert "found by their words alone" in degraded
    assert "The model is gone" in degraded
    assert HOSTILE not in degraded


def test_the_overview_counts_what_ended_in_the_last_hour(browser: Client) -> None:
    completed()

    hour = browser.get("/admin/").context["figures"].past

    assert (hour.completed, hour.failed, hour.success) == (1, 0, 1.0)
    assert hour.slots[-1].total + hour.slots[-2].total == 1
    assert hour.run_p50 is not None


def test_the_overview_says_what_today_used_and_how_much_room_there_is(browser: Client) -> None:
    job = completed()
    assert job.agent_version_id is not None
    Usage.objects.create(
        job_id=job.id,
        key="reply#1",
        project_id=job.project_id,
        agent_version_id=job.agent_version_id,
        input_tokens=900,
        output_tokens=100,
        cost_usd=0.25,
        at=timezone.now(),
    )

    page = browser.get("/admin/")

    assert 'data-figure="tokens">1,000<' in page.text
    assert "$0.25" in page.text
    assert page.context["figures"].room.database > 0


def test_minutes_that_are_over_are_added_up(browser: Client) -> None:
    minute = timezone.now().replace(second=0, microsecond=0) - timedelta(minutes=5)
    project = completed().project
    row = {"minute": minute, "project": project, "queue": "default", "agent_id": None}
    for outcome, waits in (("completed", [1, 2]), ("completed", [0, 5]), ("failed", [1, 0])):
        MinuteStat.objects.create(
            **row, outcome=outcome, count=3, wait_ms=10, run_ms=20, wait_histogram=waits, run_histogram=[3, 0]
        )
    before = browser.get("/admin/").context["figures"].past

    assert buckets.fold() == 1

    after = browser.get("/admin/").context["figures"].past
    folded = MinuteStat.objects.get(minute=minute, outcome="completed")
    assert (folded.count, folded.wait_ms, folded.run_ms) == (6, 20, 40)
    assert (folded.wait_histogram, folded.run_histogram) == ([1, 7], [6, 0])
    assert after == before
    assert buckets.fold() == 0


def test_the_overview_looks_back_a_day_and_a_week_on_hours(browser: Client) -> None:
    job = completed()  # in a minute of the hour that goes on
    hour = timezone.now().replace(minute=0, second=0, microsecond=0)
    for ago, code in ((hour - timedelta(hours=3), ""), (hour - timedelta(days=3), "timeout")):
        for minute in (1, 59):
            MinuteStat.objects.create(
                minute=ago + timedelta(minutes=minute),
                project=job.project,
                queue="default",
                outcome="failed" if code else "completed",
                error_code=code,
                count=2,
                wait_ms=0,
                run_ms=0,
                wait_histogram=[2, 0],
                run_histogram=[0, 2],
            )

    def seen(window: str) -> tuple[int, int, int]:
        past = browser.get(f"/admin/?window={window}").context["figures"].past
        return len(past.slots), past.completed, past.failed

    unfolded = [seen(window) for window in ("24h", "7d")]
    assert unfolded == [(24, 5, 0), (168, 5, 4)]
    assert (buckets.fold_hours(), buckets.fold_hours()) == (2, 0)
    assert [seen(window) for window in ("24h", "7d")] == unfolded
    page = browser.get("/admin/?window=7d")
    assert "?error=timeout&amp;ended=7d" in page.text
    assert page.context["figures"].past.run_p95 is not None

    late = MinuteStat.objects.filter(minute__gt=hour - timedelta(hours=4), outcome="completed")
    late.exclude(minute__gte=hour).update(count=10_000)
    buckets.fold_hours()  # minutes of the last hour that was added up came late
    assert seen("24h")[1] == 20_001
    assert ">20,001</a>" in browser.get("/admin/?window=24h").text
    assert seen("nonsense")[0] == 60


def test_tokens_of_today_lead_to_the_jobs_that_used_them(browser: Client) -> None:
    idle, busy = completed(), completed()
    used = {"project_id": busy.project_id, "agent_version_id": busy.agent_version_id, "input_tokens": 1}
    Usage.objects.create(job_id=busy.id, key="a", at=timezone.now(), **used)
    Usage.objects.create(job_id=idle.id, key="a", at=timezone.now() - timedelta(days=2), **used)

    assert "?used=today" in browser.get("/admin/").text
    for query in ("used=today", "used=today&status=completed", "used=today&q=do"):
        page = browser.get(f"/admin/jobs/job/?{query}")
        assert [job.id for job in page.context["cl"].result_list] == [busy.id], query
    assert not browser.get("/admin/jobs/job/?used=today&status=failed").context["cl"].result_list


def test_the_overview_refreshes_by_parts(browser: Client) -> None:
    make_job()

    answer = browser.get("/admin/jobs/job/overview/").json()

    assert set(answer["parts"]) == {"overview-now", "overview-past", "overview-attention"}
    assert 'data-figure="queued">1<' in answer["parts"]["overview-now"]
    assert "<html" not in answer["parts"]["overview-now"]


# --- the list of jobs ---


def ids_on(page: Any) -> list[Any]:
    return [job.id for job in page.context["cl"].result_list]


def test_jobs_come_newest_first(browser: Client) -> None:
    jobs = [make_job() for _ in range(3)]

    assert ids_on(browser.get("/admin/jobs/job/")) == [job.id for job in reversed(jobs)]


def test_jobs_are_filtered_by_state_project_and_agent(browser: Client) -> None:
    mine, other = make_key().project, make_key().project
    done, job = completed(other), make_job(mine)

    def found(query: str) -> list[Any]:
        return ids_on(browser.get(f"/admin/jobs/job/?{query}"))

    assert found("status=queued") == [job.id]
    assert found("status=completed") == [done.id]
    assert found(f"project={other.slug}") == [done.id]
    assert found(f"project={mine.slug}&status=completed") == []
    assert found("agent=echo") == [job.id, done.id]
    assert found("agent=another") == []


def test_jobs_are_found_by_words_tag_and_id(browser: Client) -> None:
    job, other = make_job(tags=["nightly"]), make_job()
    Job.objects.filter(id=other.id).update(task="Draw the revenue")

    def found(words: str) -> list[Any]:
        return ids_on(browser.get("/admin/jobs/job/", {"q": words}))

    assert found("REVENUE") == [other.id]
    assert found("nightly") == [job.id]
    assert found(str(job.id)) == [job.id]
    assert found(str(uuid4())) == []


def test_the_list_of_jobs_is_never_counted(browser: Client) -> None:
    make_job()
    browser.get("/admin/jobs/job/")  # content types are read once

    with CaptureQueriesContext(connection) as queries:
        browser.get("/admin/jobs/job/")

    counts = [
        query["sql"]
        for query in queries
        if "COUNT(*)" in query["sql"].upper() and "LIMIT" not in query["sql"]
    ]
    assert counts == []


def test_pages_go_on_while_there_are_rows(browser: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.admin.job.JobAdmin.list_per_page", 2)
    jobs = [make_job().id for _ in range(5)]

    pages = [browser.get(f"/admin/jobs/job/?p={number}") for number in (1, 2, 3)]

    assert [job for page in pages for job in ids_on(page)] == list(reversed(jobs))
    assert ["Older →" in page.text for page in pages] == [True, True, False]
    assert ["← Newer" in page.text for page in pages] == [False, True, True]


def test_a_paginator_reads_one_row_more_than_a_page() -> None:
    class Rows(list[int]):
        asked: slice | None = None

        def __getitem__(self, index: Any) -> Any:
            Rows.asked = index
            return super().__getitem__(index)

    page = UncountedPaginator(Rows(range(10)), 3).page(2)

    assert list(page.object_list) == [3, 4, 5]
    assert Rows.asked == slice(3, 7)


def test_the_list_refreshes_its_rows(browser: Client) -> None:
    make_job()

    answer = browser.get("/admin/jobs/job/?status=queued", headers={"Accept": "application/json"}).json()

    assert set(answer["parts"]) == {"job-rows", "job-states"}
    assert "do it" in answer["parts"]["job-rows"]


# --- a job's page ---


def test_a_job_shows_result_log_and_who_asked(browser: Client) -> None:
    job = completed(None, "hello", result={"rows": 3708})

    page = browser.get(job_page(job))

    assert "3708" in page.text
    assert f'data-log="/ws/v1/jobs/{job.id}"' in page.text
    assert "user:tester" in page.text


def test_a_failed_job_shows_the_error_and_its_remedy(browser: Client) -> None:
    job = make_job()
    error = {"code": "agent_error", "message": "No text column", "remedy": "Name the column"}
    Job.objects.filter(id=job.id).update(status="failed", finished_at=job.created_at, error=error)

    page = browser.get(job_page(job))

    assert all(text in page.text for text in error.values())


def test_a_job_that_is_not_there_is_not_found(browser: Client) -> None:
    for path in ("", "parts/", "log.txt", "events.ndjson", f"artifacts/{uuid4()}/"):
        assert browser.get(f"/admin/jobs/job/{uuid4()}/{path}").status_code == 404


def test_the_parts_of_an_ended_job_say_that_nothing_comes_any_more(browser: Client) -> None:
    ended, queued = completed(), make_job()

    assert browser.get(f"{job_page(ended)}parts/").json()["final"] is True
    assert browser.get(f"{job_page(queued)}parts/").json()["final"] is False


def test_text_from_agents_and_callers_is_never_markup(browser: Client) -> None:
    agent = make_agent(HOSTILE)
    job = completed(None, HOSTILE, result={"html": HOSTILE})
    make_artifact(job, HOSTILE, b"x", "text/html")
    waiting = asking(None, {"prompt": HOSTILE, "kind": "choice", "choices": [HOSTILE]})
    Job.objects.filter(id=waiting.id).update(task=HOSTILE, tags=[HOSTILE], progress_message=HOSTILE)

    addresses = [*LISTS, job_page(job), job_page(waiting), f"/admin/agents/agent/{agent.id}/"]
    for address in addresses:
        text = browser.get(address).text
        assert "<script>alert" not in text, address
        assert "\x1b" not in text, address
        assert "\u202e" not in text, address
    assert "U+202E" in browser.get(job_page(waiting)).text


def test_questions_may_stress_words_and_nothing_more(browser: Client) -> None:
    prompt = (
        "**Bold** and `code`, <b onclick=alert(1)>html</b>, [a link](javascript:alert(1)), [x](https://evil.example), "
        "<https://evil.example>, ![picture](https://evil.example/a.png)\n\n# Heading\n\n- one\n- two"
    )
    job = asking(None, {"prompt": prompt})

    for address in (job_page(job), "/admin/jobs/question/", "/admin/"):
        page = browser.get(address).text
        assert "<strong>Bold</strong> and <code>code</code>" in page
        assert "<b onclick" not in page
        assert 'href="javascript' not in page
        assert '"https://evil.example' not in page
        assert "<h1>Heading" not in page
    assert "<li>one</li>" in browser.get(job_page(job)).text


def test_the_inbox_says_beside_its_name_how_many_wait(browser: Client) -> None:
    def badge() -> Any:
        groups = browser.get("/admin/jobs/job/").context["sidebar_navigation"]
        return next(item.get("badge") for item in groups[0]["items"] if item["title"] == "Inbox")

    assert badge() is None
    asking()
    assert badge() == "1"


# --- files ---


def fetched(browser: Client, address: str) -> tuple[Any, bytes]:
    """Headers and content of a file, read to its end, which closes it."""
    reply: Any = browser.get(address)
    return reply.headers, b"".join(reply.streaming_content)


def test_the_log_is_downloaded_as_text(browser: Client) -> None:
    job = completed(None, "first", "second")

    headers, content = fetched(browser, f"{job_page(job)}log.txt")
    text = content.decode()

    assert headers["Content-Disposition"].startswith("attachment")
    assert text.index("first") < text.index("second")


def test_raw_events_are_all_events_in_order(browser: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.admin.files.READ_AT_ONCE", 2)
    job = completed(None, *(f"line {number}" for number in range(5)))

    lines = fetched(browser, f"{job_page(job)}events.ndjson")[1].decode().splitlines()

    assert len(lines) == 8  # queued, started, five lines, completed
    assert all(f'"seq": {number}' in line for number, line in enumerate(lines, 1))


def test_an_artifact_is_a_download_that_can_run_nothing(browser: Client) -> None:
    job = completed()
    artifact = make_artifact(job, "page.html", b"<script>1</script>", "text/html")

    for query in ("", "?shown"):
        headers, content = fetched(browser, f"{job_page(job)}artifacts/{artifact.id}/{query}")
        assert content == b"<script>1</script>"
        assert headers["Content-Type"] == "application/octet-stream"
        assert headers["Content-Disposition"] == 'attachment; filename="page.html"'
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in headers["Content-Security-Policy"]


def test_a_picture_is_shown_in_the_page(browser: Client) -> None:
    job = completed()
    artifact = make_artifact(job, "chart.png", b"\x89PNG", "image/png")
    address = f"{job_page(job)}artifacts/{artifact.id}/?shown"

    assert f'<img src="{address}"' in browser.get(job_page(job)).text
    assert fetched(browser, address)[0]["Content-Type"] == "image/png"


def test_an_svg_is_never_shown_as_a_picture(browser: Client) -> None:
    job = completed()
    artifact = make_artifact(job, "x.svg", b"<svg onload='alert(1)'/>", "image/svg+xml")

    address = f"{job_page(job)}artifacts/{artifact.id}/"

    page = browser.get(job_page(job)).text
    assert address in page
    assert f"{address}?shown" not in page
    assert fetched(browser, f"{address}?shown")[0]["Content-Type"] == "application/octet-stream"


def test_an_artifact_of_another_job_is_not_found(browser: Client) -> None:
    job, other = completed(), completed()
    artifact = make_artifact(other, "a.txt", b"x", "text/plain")

    assert browser.get(f"{job_page(job)}artifacts/{artifact.id}/").status_code == 404


def test_pages_let_no_inline_script_run(browser: Client) -> None:
    job = asking()

    for address in [*LISTS, job_page(job)]:
        reply = browser.get(address)
        policy = reply.headers["Content-Security-Policy"]
        scripts = next(part for part in policy.split(";") if part.strip().startswith("script-src"))
        assert "'unsafe-inline'" not in scripts


def test_refusals_say_what_happened_and_where_to_go() -> None:
    viewer = signed_in(make_person("vera", "jobs.view_job"))

    missing, forbidden = viewer.get(f"/admin/jobs/job/{uuid4()}/"), viewer.get("/admin/apikeys/apikey/")

    assert (missing.status_code, forbidden.status_code) == (404, 403)
    assert "There is nothing at this address" in missing.text
    assert "Your account may not see this" in forbidden.text
    assert 'href="/admin/"' in forbidden.text
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(make_person("ann"))
    assert "The form was not accepted" in strict.post("/admin/jobs/job/new/", {}).text


def test_whoever_may_not_answer_still_sees_what_is_to_be_approved() -> None:
    details = {"action": "refund", "arguments": {"amount": 119.5}, "allowed": ["approve", "edit"]}
    job = asking(None, {"kind": "approval", "schema": {}, "details": details})
    viewer = signed_in(make_person("vera", "jobs.view_job", "jobs.view_question"))

    for address in (f"/admin/jobs/job/{job.id}/", "/admin/jobs/question/"):
        page = viewer.get(address).text
        assert "119.5" in page
        assert "not answer them" in page
