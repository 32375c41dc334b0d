"""A job's page: its timeline, previews of its artifacts, forks, its budget, and itself as a command."""

import json
import shlex
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from apikeys.models import AuditRow
from jobs.admin.commands import as_curl
from jobs.admin.timeline import timeline
from jobs.models import Attempt, InputFile, Job, Question, Step
from tests.dashboard import completed, make_artifact, make_person, signed_in
from tests.jobs import claim_one, make_job, make_worker, settlement, step_row, write

pytestmark = pytest.mark.django_db


@pytest.fixture
def browser() -> Client:
    return signed_in(make_person())


def page_of(job: Job) -> str:
    return f"/admin/jobs/job/{job.id}/"


# --- the timeline ---


def test_the_timeline_says_when_the_job_was_in_which_state() -> None:
    start = timezone.now()

    def at(seconds: float) -> Any:
        return start + timedelta(seconds=seconds)

    job = Job(status="running", created_at=start, attempt=2)
    attempts = [
        Attempt(job_id=job.id, number=1, started_at=at(10), ended_at=at(40), outcome="suspended"),
        Attempt(job_id=job.id, number=2, started_at=at(80), outcome="running"),
    ]
    asked = Question(
        prompt="Why?", status="answered", created_at=at(40), answered_at=at(70), answered_by="user:ada"
    )
    steps = [
        Step(key="load#1", kind="step", attempt=1, begun_at=at(10), ended_at=at(30)),
        Step(key="ask#1", kind="ask", attempt=2, begun_at=at(40), ended_at=at(80)),
        Step(key="write#1", kind="step", attempt=2, begun_at=at(90)),
    ]

    drawn = timeline(job, attempts, steps, [asked], at(100))

    bars = [(bar.look, bar.left, bar.width) for bar in drawn.rows[0].bars]
    assert bars == [
        ("queued", 0, 10),
        ("running", 10, 30),
        ("waiting_for_input", 40, 30),
        ("queued", 70, 10),
        ("running", 80, 20),
    ]
    assert [row.label for row in drawn.rows[1:]] == ["Attempt 1", "Attempt 2", "load#1", "Why?", "write#1"]
    assert (drawn.rows[-1].bars[0].left, drawn.rows[-1].bars[0].width) == (90, 10)
    assert drawn.ticks[-1] == timedelta(seconds=100)


def test_the_page_draws_the_timeline(browser: Client) -> None:
    page = browser.get(page_of(completed()))

    assert [row.label for row in page.context["timeline"].rows] == ["Job", "Attempt 1"]
    assert 'class="e-bar e-is-running" style="left:' in page.text


# --- previews ---


def preview(browser: Client, content: bytes, media_type: str, name: str = "file.bin") -> Any:
    job = completed()
    artifact = make_artifact(job, name, content, media_type)
    return browser.get(f"{page_of(job)}artifacts/{artifact.id}/preview/")


def test_csv_is_shown_as_a_table_of_text(browser: Client) -> None:
    shown = preview(browser, b"\xef\xbb\xbfname;note\n<b>kettle</b>;\x1b[31mred\n", "text/csv").text

    assert '<th scope="col">name</th>' in shown
    assert "<td>&lt;b&gt;kettle&lt;/b&gt;</td>" in shown
    assert "ESC" in shown


def test_markdown_is_shown_without_links_pictures_and_html(browser: Client) -> None:
    text = b"# Title\n\n[x](javascript:alert(1)) ![p](http://x/y.png) <script>x</script>\n\n|a|b|\n|-|-|\n|1|2|\n"

    shown = preview(browser, text, "text/markdown").text

    assert "<h1>Title</h1>" in shown
    assert "<td>1</td>" in shown
    assert not any(tag in shown for tag in ("<a ", "<img", "<script"))


@pytest.mark.parametrize(
    ("content", "media_type", "name", "expected"),
    [
        (b'{"b":[1]}', "application/json", "x", "&quot;b&quot;: [\n"),
        (b"{broken", "application/json", "x", "{broken"),
        (b"[" * 100_000, "application/json", "x", "[[[["),
        (b"a\xff\xfeb", "text/plain", "x.txt", "a\ufffd\ufffdb"),
        (b"a,b\n1,2\n", "application/octet-stream", "x.CSV", "<td>1</td>"),
        (b'a,"b\n', "text/csv", "x", "a"),
        (b"", "text/csv", "x", ""),
        (b"line\n" * 100_000, "text/plain", "x.log", "This is the beginning"),
    ],
)
def test_whatever_is_in_it_is_shown_as_text(
    browser: Client, content: bytes, media_type: str, name: str, expected: str
) -> None:
    shown = preview(browser, content, media_type, name)

    assert shown.status_code == 200
    assert expected in shown.text


@pytest.mark.parametrize(
    "media_type", ["text/html", "image/svg+xml", "application/pdf", "application/octet-stream"]
)
def test_other_kinds_are_only_downloaded(browser: Client, media_type: str) -> None:
    assert preview(browser, b"<script>", media_type).status_code == 404


def test_previews_need_the_permission() -> None:
    assert preview(signed_in(make_person("bob", "agents.view_agent")), b"a", "text/csv").status_code == 403


# --- forks ---


def ended_with_steps() -> Job:
    job, worker = make_job(), make_worker()
    claimed = claim_one(worker)
    steps = [
        step_row(claimed, f"{name}#1", ended=True, result={"value": number}, ordinal=number)
        for number, name in enumerate(("load", "score"), 1)
    ]
    write(worker, steps=steps, settlements=[settlement(claimed)])
    job.refresh_from_db()
    return job


def test_an_ended_job_is_forked_from_a_checkpoint(browser: Client) -> None:
    job = ended_with_steps()

    form = browser.get(f"{page_of(job)}fork/?checkpoint=load%231")
    reply = browser.post(f"{page_of(job)}fork/", {"checkpoint": "load#1"}, follow=True)

    assert '<option value="load#1" selected>' in form.text
    new = Job.objects.get(retried_from=job)
    assert reply.redirect_chain[-1][0] == page_of(new)
    assert list(new.steps.values_list("key", flat=True)) == ["load#1"]
    assert AuditRow.objects.get(action="job.forked").object == f"job:{new.id}"


def test_a_checkpoint_that_is_not_there_and_a_job_that_goes_on_are_refused(browser: Client) -> None:
    job, running = ended_with_steps(), make_job()

    assert browser.post(f"{page_of(job)}fork/", {"checkpoint": "other#1"}).status_code == 422
    assert browser.post(f"{page_of(running)}fork/", {"checkpoint": "x"}).status_code == 422
    assert signed_in(make_person("bob", "jobs.view_job")).get(f"{page_of(job)}fork/").status_code == 403
    assert not Job.objects.exclude(retried_from=None).exists()


# --- budget ---


def test_usage_is_shown_against_the_budget(browser: Client) -> None:
    job = make_job(budget={"tokens": 1000, "cost_usd": 0.5})

    (tokens, cost) = browser.get(page_of(job)).context["budget"]

    assert (tokens.used, tokens.limit, tokens.share) == (0, 1000, 0)
    assert (cost.limit, cost.is_money) == (0.5, True)


# --- as a command ---


def test_the_command_quotes_what_a_shell_would_act_on() -> None:
    task = "it's $(rm -rf) `x`\n\x1b[31m \u202e @file"
    job = Job(task=task, input={"a": ["'"]}, priority="high", queue="default")

    plain = shlex.split(as_curl(job, [], url="http://engine"))
    with_files = shlex.split(as_curl(job, [InputFile(name='a "b";type=x.csv')], url="http://engine"))

    assert plain[1] == "http://engine/api/v1/jobs"
    assert json.loads(plain[-1]) == {"task": task, "input": {"a": ["'"]}, "priority": "high"}
    assert "\x1b" not in as_curl(Job(task=task), [], url="http://engine")
    assert with_files[with_files.index("--form-string") + 1] == f"task={task}"
    assert with_files[-1] == 'files=@"a \\"b\\";type=x.csv"'


def test_the_page_offers_the_command(browser: Client) -> None:
    assert 'data-copy="curl http://testserver/api/v1/jobs' in browser.get(page_of(make_job())).text
