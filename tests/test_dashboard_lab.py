"""The discovery lab: what would be picked, by what, and why not the others."""

from typing import Any

import pytest
from django.test import Client

from agents import services
from agents.models import Agent
from jobs.models import Job
from tests.agents import make_card, make_noop, member, register_all, staff, words  # noqa: F401  (a fixture)
from tests.dashboard import make_person, signed_in
from tests.factories import make_project

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("words")]

LAB = "/admin/agents/agent/discover/"


@pytest.fixture
def browser() -> Client:
    return signed_in(make_person())


def found(browser: Client, task: str, **more: Any) -> Any:
    return browser.get(LAB, {"task": task, **more})


def test_ranked_agents_come_with_the_parts_that_their_score_is_the_sum_of(browser: Client) -> None:
    register_all(
        staff(),
        [make_noop("charts", "Draws a bar chart of a table"), make_noop("mail", "Sorts letters by sender")],
    )

    page = found(browser, "Draw a bar chart of this table")

    rows = page.context["rows"]
    assert [row.result.version.agent.slug for row in rows] == ["charts", "mail"]
    for row in rows:
        parts = row.result.parts
        assert row.result.score == pytest.approx(parts.meaning + parts.words + parts.success)
    assert rows[0].why_not == ""
    assert rows[1].why_not != ""
    assert "words in common" in page.text


def test_the_line_goes_below_the_last_agent_that_fits(
    browser: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_all(staff(), [make_noop(f"a{n}", f"bar chart number {n}") for n in range(3)])
    confidences = iter([0.97, 0.85, 0.4])
    monkeypatch.setattr("agents.calibration.Yardstick.confidence", lambda *_: next(confidences))

    page = found(browser, "bar chart")

    assert [row.is_above for row in page.context["rows"]] == [True, True, False]
    assert [row.is_last_above for row in page.context["rows"]] == [False, True, False]
    assert "threshold 80 %: what follows does not fit" in page.text
    assert "is ahead by" in page.context["rows"][1].why_not


def test_where_nothing_fits_the_nearest_are_shown_below_the_line(
    browser: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_all(staff(), [make_noop("charts", "Draws charts")])
    monkeypatch.setattr("agents.calibration.Yardstick.confidence", lambda *_: 0.1)

    page = found(browser, "zzz qqq")

    assert "No match" in page.text
    assert "nothing is above it" in page.text
    assert [row.is_above for row in page.context["rows"]] == [False]


def test_agents_that_are_not_ranked_say_why(browser: Client, settings: Any) -> None:
    settings.OPENAI_API_KEY = settings.OPENAI_BASE_URL = ""
    register_all(staff(), [make_noop("charts", "Draws charts"), make_card("old"), make_noop("mail", "Mail")])
    services.archive(staff(), "old")

    page = found(browser, "Draw charts")

    assert [(agent["slug"], agent["why"]) for agent in page.context["left_out"]] == [
        ("old", "It is archived.")
    ]


def test_an_agent_that_cannot_run_is_ranked_and_no_job_is_promised(browser: Client, settings: Any) -> None:
    settings.OPENAI_API_KEY = settings.OPENAI_BASE_URL = ""
    poet = {
        "slug": "poet",
        "name": "Poet",
        "description": "Writes poems about rain",
        "instructions": "Write.",
    }
    register_all(staff(), [poet])

    page = found(browser, "Write poems about rain")
    foreseen = browser.post(FORESEE, {"task": "Write poems about rain", "project": make_project().slug})

    assert page.context["rows"][0].result.health.status == "unavailable"
    assert "cannot run now, so that a job of this task is rejected" in page.text
    assert "Poet</strong> fits and cannot run now. No model is configured" in foreseen.text


def test_a_project_sees_its_own_agents_and_no_other_projects(browser: Client) -> None:
    register_all(staff(), [make_noop("charts", "Draws charts")])
    mine, other = make_project(), make_project()
    Agent.objects.filter(slug="charts").update(project=other)

    assert found(browser, "Draw charts", project=mine.slug).context["rows"] == []
    assert len(found(browser, "Draw charts", project=other.slug).context["rows"]) == 1


def test_odd_input_comes_back(browser: Client) -> None:
    assert browser.get(LAB).status_code == 200
    assert found(browser, " ").status_code == 422
    assert found(browser, "x" * 9000).status_code == 422
    assert found(browser, "a\x00b").status_code == 422
    assert found(browser, "x", project="nobody").status_code == 422


# --- the form of a new job ---

FORESEE = "/admin/jobs/job/new/foresee/"


def test_the_form_of_a_new_job_says_who_would_do_it_and_submits_nothing(browser: Client) -> None:
    charts, mail = make_noop("charts", "Draws a bar chart of a table"), make_noop("mail", "Sorts letters")
    register_all(staff(), [charts, mail])
    form = {"task": "Draw a bar chart of this table", "project": make_project().slug}

    seen = browser.post(FORESEE, form)

    assert "Engine would take" in seen.text
    assert "charts@1" in seen.text
    assert not Job.objects.exists()
    browser.post("/admin/jobs/job/new/", form | {"priority": "normal"})
    job = Job.objects.get()
    assert job.agent_version is not None
    assert job.agent_version.agent.slug == "charts"  # as was foreseen
    assert browser.post(FORESEE, form | {"task": " "}).content == b""
    assert browser.post(FORESEE, form | {"project": "gone"}).content == b""


@pytest.mark.parametrize(
    ("on_weak_match", "confidence", "said", "status"),
    [
        ("ask", 0.85, "the job would ask", "waiting_for_input"),
        ("reject", 0.85, "would be rejected", "rejected"),
        ("run", 0.1, "would be rejected", "rejected"),
    ],
)
def test_what_is_foreseen_follows_the_projects_settings_and_so_does_the_job(
    browser: Client,
    monkeypatch: pytest.MonkeyPatch,
    on_weak_match: str,
    confidence: float,
    said: str,
    status: str,
) -> None:
    register_all(staff(), [make_noop("charts", "Draws charts")])
    monkeypatch.setattr("agents.calibration.Yardstick.confidence", lambda *_: confidence)
    form = {"task": "Draw a chart", "project": make_project(on_weak_match=on_weak_match).slug}

    assert said in browser.post(FORESEE, form).text
    browser.post("/admin/jobs/job/new/", form | {"priority": "normal"})
    assert Job.objects.get().status == status


def test_a_job_of_a_project_is_not_given_to_another_projects_agent(browser: Client) -> None:
    acme, globex = make_project("acme"), make_project("globex")
    services.register(member(globex), make_card(slug="charts", description="Draws charts"))
    form = {"task": "Draws charts", "project": acme.slug, "priority": "normal"}

    assert "would be rejected" in browser.post(FORESEE, form).text
    browser.post("/admin/jobs/job/new/", form)

    assert Job.objects.get().status == "rejected"
