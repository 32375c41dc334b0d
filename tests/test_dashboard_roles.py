"""Roles of people in the dashboard: which of them may do what, and that each thing done leaves an audit row."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.core.management import call_command
from django.test import Client
from django.utils import timezone

from agents import services
from agents.models import Agent
from apikeys.models import AuditRow
from engine.dashboard.roles import ROLES
from jobs.admin.answer_forms import AnswerForm
from jobs.models import Job, SavedView
from jobs.notifying.models import Delivery, WebhookEndpoint
from tests.agents import make_card, staff, words  # noqa: F401  (a fixture)
from tests.dashboard import asking, make_artifact, sole_question
from tests.factories import make_key
from tests.jobs import (
    claim_one,
    make_job,
    make_project,
    make_version,
    make_worker,
    settlement,
    step_row,
    write,
)

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("words")]

NOBODY = "nobody"  # staff without a role
EVERYBODY = ("viewer", "operator", "author", "admin")
OPERATORS = ("operator", "admin")
AUTHORS = ("author", "admin")
ADMINS = ("admin",)


@dataclass(frozen=True)
class Action:
    """Something that a page of the dashboard does when it is posted to."""

    name: str
    roles: tuple[str, ...]
    # Makes what is acted on, and gives the address and the form.
    prepare: Callable[[], tuple[str, dict[str, Any]]]
    audit: str  # several in their order: "agent.tried job.submitted"


def _job_action(name: str, *, ended: bool = False) -> Callable[[], tuple[str, dict[str, Any]]]:
    def prepare() -> tuple[str, dict[str, Any]]:
        job = make_job()
        if ended:
            Job.objects.filter(id=job.id).update(
                status="failed", finished_at=job.created_at, error={"code": "x", "message": "x"}
            )
        return f"/admin/jobs/job/{job.id}/{name}/", {}

    return prepare


def _answer() -> tuple[str, dict[str, Any]]:
    job = asking()
    question = sole_question(job)
    return f"/admin/jobs/job/{job.id}/questions/{question.id}/", {
        f"{AnswerForm(question).prefix}-answer": "yes"
    }


def _submit() -> tuple[str, dict[str, Any]]:
    make_version()
    form = {"task": "do it", "project": make_project().slug, "priority": "normal", "agent": "echo"}
    return "/admin/jobs/job/new/", form


def _fork() -> tuple[str, dict[str, Any]]:
    job, worker = make_job(), make_worker()
    claimed = claim_one(worker)
    step = step_row(claimed, "load#1", ended=True, result={"value": 1})
    write(worker, steps=[step], settlements=[settlement(claimed)])
    return f"/admin/jobs/job/{job.id}/fork/", {"checkpoint": "load#1"}


def _many(deed: str) -> Callable[[], tuple[str, dict[str, Any]]]:
    def prepare() -> tuple[str, dict[str, Any]]:
        address, _ = _job_action(deed, ended=deed == "retry")()
        return "/admin/jobs/job/many/", {"deed": deed, "jobs": address.split("/")[4], "confirmed": "yes"}

    return prepare


def _save_view() -> tuple[str, dict[str, Any]]:
    return "/admin/jobs/job/views/", {"name": "Broken", "query": "status=failed"}


def _new_key() -> tuple[str, dict[str, Any]]:
    form = {"name": "import", "project": make_project().slug, "scopes": ["jobs:read"], "mode": "live"}
    return "/admin/apikeys/apikey/add/", form


def _revoke_key() -> tuple[str, dict[str, Any]]:
    return f"/admin/apikeys/apikey/{make_key().key.id}/revoke/", {}


def _key_action(action: str, **form: Any) -> Callable[[], tuple[str, dict[str, Any]]]:
    return lambda: (f"/admin/apikeys/apikey/{make_key('jobs:read').key.id}/{action}/", form)


def _enable_key() -> tuple[str, dict[str, Any]]:
    return f"/admin/apikeys/apikey/{make_key(disabled_at=timezone.now()).key.id}/enable/", {}


def _project(**fields: Any) -> dict[str, Any]:
    return {"name": "Shop", "on_weak_match": "ask", "discovery_cut": "q80", "weight": "1", **fields}


def _new_project() -> tuple[str, dict[str, Any]]:
    return "/admin/apikeys/project/add/", _project(slug="shop")


def _change_project() -> tuple[str, dict[str, Any]]:
    return f"/admin/apikeys/project/{make_project().id}/change/", _project(max_running="5")


def _new_webhook() -> tuple[str, dict[str, Any]]:
    form = {"url": "https://example.com/hook", "project": make_project().slug}
    return "/admin/jobs/webhookendpoint/add/", form


def _redeliver() -> tuple[str, dict[str, Any]]:
    delivery = Delivery.objects.create(
        project=make_project(),
        channel="webhook",
        receiver="https://192.0.2.1/",
        event="job.failed",
        state="failed",
    )
    return f"/admin/jobs/webhookendpoint/deliveries/{delivery.id}/redeliver/", {}


def _webhook(action: str) -> Callable[[], tuple[str, dict[str, Any]]]:
    def prepare() -> tuple[str, dict[str, Any]]:
        endpoint = WebhookEndpoint.objects.create(
            project=make_project(), url="https://192.0.2.1/hook", created_by="test"
        )
        return f"/admin/jobs/webhookendpoint/{endpoint.id}/{action}/", {}

    return prepare


def _agent_form(**fields: Any) -> dict[str, Any]:
    return {
        "name": "Echo",
        "description": "Says it again",
        "file_name": ["agent.py"],
        "file_text": ["def main(task, inputs):\r\n    return {}\r\n"],
        **fields,
    }


def _new_agent() -> tuple[str, dict[str, Any]]:
    return "/admin/agents/agent/new/", _agent_form()


def _agent() -> Agent:
    return services.register(staff(), make_card()).agent


def _edit_agent() -> tuple[str, dict[str, Any]]:
    return f"/admin/agents/agent/{_agent().id}/edit/", _agent_form()


def _try_agent() -> tuple[str, dict[str, Any]]:
    form = _agent_form(try_task="do it", try_project=make_project().slug)
    return f"/admin/jobs/job/try/{_agent().id}/", form


def _stop_trial() -> tuple[str, dict[str, Any]]:
    job = make_job(metadata={"trial": True})
    Job.objects.filter(id=job.id).update(created_by="user:the-author")
    return f"/admin/jobs/job/trials/{job.id}/stop/", {}


def _archive_agent() -> tuple[str, dict[str, Any]]:
    return f"/admin/agents/agent/{_agent().id}/archive/", {}


def _restore_agent() -> tuple[str, dict[str, Any]]:
    agent = _agent()
    services.archive(staff(), agent.slug)
    return f"/admin/agents/agent/{agent.id}/restore/", {}


def _drain() -> tuple[str, dict[str, Any]]:
    return f"/admin/jobs/worker/{make_worker()}/drain/", {}


def _queue(action: str) -> Callable[[], tuple[str, dict[str, Any]]]:
    return lambda: (f"/admin/jobs/worker/queues/default/{action}/", {})


ACTIONS = [
    Action("submit a job", OPERATORS, _submit, "job.submitted"),
    Action("cancel a job", OPERATORS, _job_action("cancel"), "job.cancelled"),
    Action("retry a job", OPERATORS, _job_action("retry", ended=True), "job.retried"),
    Action("fork a job", OPERATORS, _fork, "job.forked"),
    Action("cancel many jobs", OPERATORS, _many("cancel"), "job.cancelled"),
    Action("retry many jobs", OPERATORS, _many("retry"), "job.retried"),
    Action("keep filters as a view", EVERYBODY, _save_view, "view.saved"),
    Action("answer a question", OPERATORS, _answer, "question.answered"),
    Action("pause a queue", OPERATORS, _queue("pause"), "queue.pause"),
    Action("resume a queue", OPERATORS, _queue("resume"), "queue.resume"),
    Action("drain a worker", OPERATORS, _drain, "worker.drain"),
    Action("register an agent", AUTHORS, _new_agent, "agent.registered"),
    Action("change an agent", AUTHORS, _edit_agent, "agent.registered"),
    Action("try an agent", AUTHORS, _try_agent, "agent.tried job.submitted"),
    Action("archive an agent", AUTHORS, _archive_agent, "agent.archived"),
    Action("restore an agent", AUTHORS, _restore_agent, "agent.restored"),
    Action("make a key", ADMINS, _new_key, "key.created"),
    Action("change a key", ADMINS, _key_action("change", name="new", scopes=["jobs:read"]), "key.changed"),
    Action("rotate a key", ADMINS, _key_action("rotate"), "key.rotated"),
    Action("disable a key", ADMINS, _key_action("disable"), "key.disabled"),
    Action("enable a key", ADMINS, _enable_key, "key.enabled"),
    Action("revoke a key", ADMINS, _revoke_key, "key.revoked"),
    Action("make a project", ADMINS, _new_project, "project.created"),
    Action("change a project", ADMINS, _change_project, "project.changed"),
    Action("make a webhook", ADMINS, _new_webhook, "webhook.created"),
    Action("disable a webhook", ADMINS, _webhook("disable"), "webhook.changed"),
    Action("ping a webhook", ADMINS, _webhook("ping"), "webhook.pinged"),
    Action("send a delivery again", ADMINS, _redeliver, "webhook.redelivered"),
    Action("rotate a webhook's secret", ADMINS, _webhook("rotate"), "webhook.rotated"),
    Action("delete a webhook", ADMINS, _webhook("delete"), "webhook.deleted"),
]
PAGES = {
    "/admin/jobs/job/": EVERYBODY,
    "/admin/jobs/question/": EVERYBODY,
    "/admin/jobs/worker/": EVERYBODY,
    "/admin/system/": EVERYBODY,
    "/admin/agents/agent/": EVERYBODY,
    "/admin/agents/agent/discover/": EVERYBODY,
    "/admin/agents/agent/discover/?task=x": EVERYBODY,
    "/admin/apikeys/apikey/connect/": EVERYBODY,
    "/admin/jobs/job/new/": OPERATORS,
    "/admin/agents/agent/new/": AUTHORS,
    "/admin/apikeys/apikey/": ADMINS,
    "/admin/apikeys/apikey/add/": ADMINS,
    "/admin/apikeys/project/": ADMINS,
    "/admin/apikeys/project/add/": ADMINS,
    "/admin/apikeys/auditrow/": ADMINS,
    "/admin/jobs/webhookendpoint/": ADMINS,
    "/admin/auth/user/": (),
    "/admin/auth/group/": (),
}


def browser_of(role: str) -> Client:
    """A browser in which a member of staff with this role alone has signed in."""
    person = User.objects.create_user(f"the-{role}", is_staff=True)
    if role != NOBODY:
        person.groups.add(Group.objects.get(name=role))
    client = Client()
    client.force_login(person)
    return client


@pytest.mark.parametrize("role", [*EVERYBODY, NOBODY])
@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.name)
def test_an_action_is_done_by_its_roles_alone_and_leaves_an_audit_row(action: Action, role: str) -> None:
    address, form = action.prepare()
    prepared = set(AuditRow.objects.values_list("id", flat=True))

    reply = browser_of(role).post(address, form)

    done = AuditRow.objects.exclude(id__in=prepared)
    rows = list(done.values_list("action", "actor", "via", "ip"))
    if role in action.roles:
        assert reply.status_code in (200, 201, 302), reply.content
        by = (f"user:the-{role}", "dashboard", "127.0.0.1")
        assert rows[::-1] == [(name, *by) for name in action.audit.split()]
    else:
        assert reply.status_code == 403
        assert rows == []


def test_a_trial_is_stopped_by_whoever_started_it_alone() -> None:
    address, form = _stop_trial()
    assert browser_of("admin").post(address, form).status_code == 404

    reply = browser_of("author").post(address, form)

    assert reply.status_code == 200
    assert list(AuditRow.objects.values_list("action", flat=True)) == ["job.cancelled"]
    other = make_job()
    assert browser_of("operator").post(f"/admin/jobs/job/trials/{other.id}/stop/").status_code == 403


@pytest.mark.parametrize("role", [*EVERYBODY, NOBODY])
def test_a_page_is_seen_by_its_roles_alone(role: str) -> None:
    make_project()
    browser = browser_of(role)

    seen = {address: browser.get(address).status_code for address in PAGES}

    assert seen == {address: 200 if role in roles else 403 for address, roles in PAGES.items()}


def test_nothing_about_a_job_agent_or_key_is_read_without_a_role() -> None:
    job, agent, key = asking(), _agent(), make_key().key
    artifact = make_artifact(job, "a.txt", b"x", "text/plain")
    of_job = [
        *("", "parts/", "log.txt", "events.ndjson", "fork/"),
        *(f"artifacts/{artifact.id}/", f"artifacts/{artifact.id}/preview/"),
    ]
    addresses = [
        *(f"/admin/jobs/job/{job.id}/{page}" for page in of_job),
        *(f"/admin/jobs/job/{page}/" for page in ("overview", f"trials/{job.id}")),
        *(f"/admin/agents/agent/{agent.id}/{page}" for page in ("", "edit/", "diff/")),
        *(f"/admin/apikeys/apikey/{key.id}/{page}/" for page in ("change", "revoke")),
        f"/admin/apikeys/project/{key.project_id}/change/",
    ]
    browser = browser_of(NOBODY)

    assert {address: browser.get(address).status_code for address in addresses} == dict.fromkeys(
        addresses, 403
    )


def test_what_a_form_asks_while_it_is_filled_in_needs_the_right_to_send_it() -> None:
    address, form = _submit()
    _, agent_form = _new_agent()
    viewer = browser_of("viewer")

    assert viewer.post(f"{address}foresee/", form).status_code == 403
    assert viewer.post("/admin/agents/agent/check/", agent_form).status_code == 403
    assert browser_of("operator").post(f"{address}foresee/", form).status_code == 200
    assert browser_of("author").post("/admin/agents/agent/check/", agent_form).status_code == 200


def test_a_view_is_forgotten_by_whoever_keeps_it_with_an_audit_row() -> None:
    viewer, other = browser_of("viewer"), browser_of("operator")
    viewer.post(*_save_view())
    forget = f"/admin/jobs/job/views/{SavedView.objects.get().id}/forget/"

    assert browser_of(NOBODY).post(forget).status_code == 403
    assert other.post(forget).status_code == 404
    assert viewer.post(forget).status_code == 302
    assert AuditRow.objects.filter(action="view.forgotten", actor="user:the-viewer").count() == 1


def test_the_sidebar_offers_what_a_role_may_see() -> None:
    page = browser_of("viewer").get("/admin/").content.decode()

    assert "/admin/jobs/job/" in page
    assert '/admin/apikeys/apikey/"' not in page
    assert "/admin/auth/user/" not in page


def test_migrating_makes_missing_roles_and_leaves_the_others_as_they_are() -> None:
    Group.objects.get(name="viewer").permissions.clear()
    Group.objects.get(name="author").delete()

    call_command("migrate", verbosity=0)

    assert set(Group.objects.values_list("name", flat=True)) == set(ROLES)
    assert not Group.objects.get(name="viewer").permissions.exists()
    assert Group.objects.get(name="author").permissions.count() == len(ROLES["author"])


@pytest.mark.django_db(transaction=True)
def test_a_database_emptied_of_rows_has_its_roles_again() -> None:
    call_command("flush", interactive=False, verbosity=0)

    assert set(Group.objects.values_list("name", flat=True)) == set(ROLES)
    assert Group.objects.get(name="viewer").permissions.count() == len(ROLES["viewer"])


def test_people_and_their_roles_are_changed_by_superusers_with_an_audit_row_each() -> None:
    root = Client()
    root.force_login(User.objects.create_superuser("root"))
    bob = User.objects.create_user("bob", is_staff=True)
    form = {
        "username": "bob",
        "is_active": "on",
        "is_staff": "on",
        "groups": [Group.objects.get(name="operator").id],
        "date_joined_0": "2026-01-01",
        "date_joined_1": "00:00:00",
    }

    assert browser_of("admin").post(f"/admin/auth/user/{bob.id}/change/", form).status_code == 403
    reply = root.post(f"/admin/auth/user/{bob.id}/change/", form)

    assert reply.status_code == 302, reply.content
    assert [group.name for group in bob.groups.all()] == ["operator"]
    row = AuditRow.objects.get()
    assert (row.action, row.object, row.actor) == ("person.changed", "person:bob", "user:root")
