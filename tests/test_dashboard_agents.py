"""Agents in the dashboard: written, checked, tried, compared, archived."""

from typing import Any

import pytest
from django.test import Client

from agents import services
from agents.models import Agent, AgentVersion
from jobs.models import Job
from tests.agents import MAIN, make_card, staff, words  # noqa: F401  (a fixture)
from tests.dashboard import make_person, signed_in
from tests.factories import make_project
from tests.jobs import claim_one, log_line, make_worker, settlement, write

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("words")]

OTHER = "def main(task, inputs):\n    return {'n': 1}\n"
NEW = "/admin/agents/agent/new/"


@pytest.fixture
def browser() -> Client:
    return signed_in(make_person())


def form(source: str = OTHER, **fields: Any) -> dict[str, Any]:
    """The editor's form; lines end as browsers send them."""
    given = {"name": "Echo", "description": "Says it again", "file_name": ["agent.py"], **fields}
    return {"file_text": [source.replace("\n", "\r\n")], **given}


def registered(**fields: Any) -> Agent:
    return services.register(staff(), make_card(**fields)).agent


def edit(agent: Agent) -> str:
    return f"/admin/agents/agent/{agent.id}/edit/"


def attempt(browser: Client, agent: Agent, **fields: Any) -> Any:
    given = {"try_task": "do it", "try_project": make_project().slug, **fields}
    return browser.post(f"/admin/jobs/job/try/{agent.id}/", form(**given))


# --- writing ---


def test_a_new_agent_starts_from_lines_that_pass_the_checks(browser: Client) -> None:
    page = browser.get(NEW)
    files = dict(page.context["files"])

    reply = browser.post(NEW, form(files["agent.py"], examples="Say it\r\n\r\nSay it again"))

    version = AgentVersion.objects.get()
    assert reply.headers["Location"] == edit(version.agent)
    assert (version.agent.slug, version.number, version.agent.project) == ("echo", 1, None)
    assert version.source == files
    assert version.examples == ["Say it", "Say it again"]
    assert version.created_by == "user:ada"


def test_saving_makes_a_version_and_keeps_what_the_form_does_not_show(browser: Client) -> None:
    agent = registered(summary="In short")

    browser.post(edit(agent), form())

    agent.refresh_from_db()
    assert agent.current_version is not None
    assert (agent.current_version.number, agent.current_version.summary) == (2, "In short")
    assert agent.current_version.source == {"agent.py": OTHER}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"source": "def main(task, inputs)\n    pass"}, "Line 1: expected"),
        ({"source": "x = 1"}, "This must define main(task, inputs)"),
        ({"name": ""}, "This field is required."),
        ({"requirements": "httpx @ https://evil.example/x.whl"}, "Not a package name"),
        ({"limits": "{"}, "Enter a valid JSON."),
        ({"limits": '{"wall_seconds": NaN}'}, "Enter a valid JSON."),
        ({"limits": "[" * 100_000}, "nested too deeply"),
        ({"input_schema": "[]"}, "This must be of type object"),
        ({"description": "a\x00b"}, "Null characters"),
        ({"file_name": ["../../x.py"]}, "This must match"),
    ],
)
def test_what_cannot_be_an_agent_comes_back_with_what_is_wrong(
    browser: Client, fields: dict[str, Any], said: str
) -> None:
    reply = browser.post(NEW, form(**fields))

    assert reply.status_code == 422
    assert said in reply.content.decode()
    assert not Agent.objects.exists()
    faults = browser.post("/admin/agents/agent/check/", form(**fields)).json()["faults"]
    assert any(said in fault["detail"] for fault in faults)


def test_a_fault_in_a_file_has_its_line(browser: Client) -> None:
    reply = browser.post("/admin/agents/agent/check/", form("import os\n\ndef main(:\n"))

    (fault,) = reply.json()["faults"]
    assert (fault["file"], fault["line"]) == ("agent.py", 3)


def test_a_slug_that_is_taken_is_not_written_over(browser: Client) -> None:
    agent = registered()

    reply = browser.post(NEW, form())

    assert reply.status_code == 422
    assert "There is an agent of this slug already" in reply.content.decode()
    assert agent.versions.count() == 1


def test_an_agent_of_a_project_is_not_taken_for_the_shared_one_of_its_slug(browser: Client) -> None:
    shared = registered()
    project = make_project()
    browser.post(NEW, form(project=project.slug))
    own = Agent.objects.get(project=project)

    browser.post(edit(own), form(MAIN))
    browser.post(f"/admin/agents/agent/{own.id}/archive/")

    own.refresh_from_db()
    shared.refresh_from_db()
    assert (own.versions.count(), own.status) == (2, "archived")
    assert (shared.versions.count(), shared.status) == (1, "active")


# --- trying ---


def test_a_trial_runs_what_stands_in_the_page_and_leaves_the_current_version(browser: Client) -> None:
    agent = registered()

    reply = attempt(browser, agent)

    job = Job.objects.get()
    agent.refresh_from_db()
    assert reply.json() == {"follow": f"/admin/jobs/job/trials/{job.id}/"}
    assert job.agent_version is not None
    assert (job.agent_version.number, job.agent_version.source) == (2, {"agent.py": OTHER})
    assert agent.current_version is not None
    assert agent.current_version.number == 1


def test_what_was_tried_is_saved_under_its_own_number(browser: Client) -> None:
    agent = registered()
    attempt(browser, agent)
    attempt(browser, agent)

    browser.post(edit(agent), form())

    agent.refresh_from_db()
    assert agent.current_version is not None
    assert agent.current_version.number == agent.versions.count() == 2


def test_a_trial_shows_its_log_and_result_as_text(browser: Client) -> None:
    follow = attempt(browser, registered()).json()["follow"]
    worker = make_worker()
    claimed = claim_one(worker)
    hostile = "<script>alert(1)</script>\x1b[31m"
    line = log_line(claimed, 1, hostile)
    write(worker, events=[line], settlements=[settlement(claimed, offset=2, result='{"n": "<b>"}')])

    answer = browser.get(follow).json()

    assert answer["final"] is True
    assert "&lt;script&gt;alert(1)" in answer["html"]
    assert "<script>" not in answer["html"]
    assert "\x1b" not in answer["html"]
    assert "&lt;b&gt;" in answer["html"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"try_task": " "}, "Task: This field is required."),
        ({"try_project": ""}, "Choose a project"),
        ({"try_input": "[]"}, "Give an object"),
        ({"try_input": '{"a": NaN}'}, "Enter a valid JSON."),
        ({"source": "def main(:"}, "Line 1"),
    ],
)
def test_a_trial_that_cannot_start_says_why(browser: Client, fields: dict[str, Any], said: str) -> None:
    reply = attempt(browser, registered(), **fields)

    assert reply.status_code == 422
    assert said in reply.json()["faults"][0]["detail"]
    assert not Job.objects.exists()


# --- comparing, archiving ---


def test_versions_are_compared_line_by_line(browser: Client) -> None:
    agent = registered()
    browser.post(edit(agent), form(tags="<b>new</b>"))

    page = browser.get(f"/admin/agents/agent/{agent.id}/diff/").content.decode()

    assert "-    return {}" in page
    assert "+    return {&#x27;n&#x27;: 1}" in page
    assert "&lt;b&gt;new&lt;/b&gt;" in page
    assert browser.get(f"/admin/agents/agent/{agent.id}/diff/?older=9").status_code == 404
    assert browser.get(f"/admin/agents/agent/{agent.id}/diff/?older=2&newer=1").status_code == 200


def test_an_archived_agent_is_restored_and_not_changed_meanwhile(browser: Client) -> None:
    agent = registered()
    browser.post(f"/admin/agents/agent/{agent.id}/archive/")

    refused = browser.post(edit(agent), form())
    assert refused.status_code == 422
    assert "restore it first" in refused.content.decode()
    assert attempt(browser, agent).status_code == 422

    browser.post(f"/admin/agents/agent/{agent.id}/restore/")
    assert browser.post(edit(agent), form()).status_code == 302
