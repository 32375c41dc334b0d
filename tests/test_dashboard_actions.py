"""What people do in the dashboard: answer, cancel, submit, make and revoke keys; and who may not."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.files.storage import storages
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.utils import timezone

from agents.models import Agent
from apikeys.models import ApiKey, AuditRow, Project
from jobs.models import Job, Question
from tests.dashboard import asking, completed, make_person, signed_in, sole_question
from tests.factories import make_key, make_project
from tests.jobs import claim_one, make_job, make_version, make_worker

pytestmark = pytest.mark.django_db

FORM = {
    "type": "object",
    "required": ["street", "pallets"],
    "additionalProperties": False,
    "properties": {
        "street": {"type": "string", "minLength": 3},
        "pallets": {"type": "integer", "minimum": 1, "maximum": 40},
        "express": {"type": "boolean"},
        "carrier": {"enum": [1, "two"]},
        "days": {"type": "array", "items": {"enum": ["mon", "tue"]}},
    },
}
APPROVAL = {
    "kind": "approval",
    "prompt": "May I order?",
    "details": {"action": "order", "arguments": {"count": 4}, "allowed": ["approve", "edit", "reject"]},
    "schema": {
        "type": "object",
        "required": ["decision"],
        "properties": {"decision": {"enum": ["approve", "edit", "reject"]}},
    },
}


@pytest.fixture(autouse=True)
def _storage_of_its_own(tmp_path: Path, settings: Any) -> None:
    settings.STORAGES = {
        **settings.STORAGES,
        "artifacts": {
            "BACKEND": "django.core.files.storage.FileSystemStorage",
            "OPTIONS": {"location": tmp_path / "artifacts"},
        },
    }


@pytest.fixture
def browser() -> Client:
    """A superuser's."""
    return signed_in(make_person())


def address_of(question: Question) -> str:
    return f"/admin/jobs/job/{question.job_id}/questions/{question.id}/"


def field(question: Question, name: str = "answer") -> str:
    return f"q{question.id.hex[-12:]}-{name}"


def answer(browser: Client, question: Question, **fields: Any) -> Any:
    """Send the question's form; names of fields without their prefix, but for the buttons' `answer`."""
    data = {
        key if key.startswith("button_") else field(question, key): value for key, value in fields.items()
    }
    data = {key.removeprefix("button_"): value for key, value in data.items()}
    return browser.post(address_of(question), data)


def stored(question: Question) -> Any:
    question.refresh_from_db()
    return question.answer if question.status == Question.Status.ANSWERED else None


# --- answering ---


def test_a_text_answer_sends_the_job_on(browser: Client) -> None:
    job = asking()
    question = sole_question(job)

    reply = answer(browser, question, answer="because")

    assert reply.status_code == 302
    assert stored(question) == "because"
    assert (question.answered_by, question.answered_via) == ("user:ada", "dashboard")
    job.refresh_from_db()
    assert job.status == "queued"


def test_a_choice_is_answered_with_the_option_itself(browser: Client) -> None:
    options = ["formal", "<b>warm</b>"]
    question = sole_question(
        asking(None, {"kind": "choice", "choices": options, "schema": {"enum": options}})
    )

    answer(browser, question, answer="1")

    assert stored(question) == "<b>warm</b>"


def test_several_choices_are_answered_with_a_list(browser: Client) -> None:
    options = ["a", "b", "c"]
    schema = {"type": "array", "items": {"enum": options}}
    spec = {"kind": "multi_choice", "choices": options, "schema": schema}
    question = sole_question(asking(None, spec))

    answer(browser, question, answer=["0", "2"])

    assert stored(question) == ["a", "c"]


@pytest.mark.parametrize(("button", "meant"), [("yes", True), ("no", False)])
def test_a_confirm_is_answered_by_its_button(browser: Client, button: str, meant: bool) -> None:
    question = sole_question(asking(None, {"kind": "confirm", "schema": {"type": "boolean"}}))

    answer(browser, question, button_answer=button)

    assert stored(question) is meant


def test_a_confirm_without_a_button_is_no_answer(browser: Client) -> None:
    question = sole_question(asking(None, {"kind": "confirm", "schema": {"type": "boolean"}}))

    assert browser.post(address_of(question)).status_code == 422
    assert stored(question) is None


def test_a_form_is_answered_by_the_schemas_names_and_types(browser: Client) -> None:
    question = sole_question(asking(None, {"kind": "form", "schema": FORM}))
    names = {name: f"f{place}" for place, name in enumerate(["street", "pallets", *order_of(question)])}

    answer(
        browser,
        question,
        **{
            names["street"]: "Main street",
            names["pallets"]: "3",
            names["express"]: "on",
            names["carrier"]: "0",
            names["days"]: ["1"],
        },
    )

    assert stored(question) == {
        "street": "Main street",
        "pallets": 3,
        "express": True,
        "carrier": 1,
        "days": ["tue"],
    }


def order_of(question: Question) -> list[str]:
    """The members that are not required, as the database keeps them."""
    return [name for name in question.schema["properties"] if name not in ("street", "pallets")]


def test_an_answer_that_does_not_fit_comes_back_with_the_fault_at_its_field(browser: Client) -> None:
    question = sole_question(asking(None, {"kind": "form", "schema": FORM}))

    reply = answer(browser, question, f0="Ab", f1="41")
    page = reply.content.decode()

    assert reply.status_code == 422
    assert 'value="Ab"' in page
    assert "less than or equal to 40" in page
    assert stored(question) is None

    assert "too short" in answer(browser, question, f0="Ab", f1="4").content.decode()


def test_an_approval_can_change_the_arguments(browser: Client) -> None:
    question = sole_question(asking(None, APPROVAL))

    answer(browser, question, arguments='{"count": 2}', message="fewer", button_answer="approve")

    assert stored(question) == {"decision": "edit", "arguments": {"count": 2}, "message": "fewer"}


def test_an_approval_of_the_arguments_as_they_are_is_no_change(browser: Client) -> None:
    question = sole_question(asking(None, APPROVAL))

    answer(browser, question, arguments='{"count":4}', button_answer="approve")

    assert stored(question) == {"decision": "approve"}


def test_a_rejection_does_not_look_at_the_arguments(browser: Client) -> None:
    question = sole_question(asking(None, APPROVAL))

    answer(browser, question, arguments="{not json", message="no", button_answer="reject")

    assert stored(question) == {"decision": "reject", "message": "no"}


def test_arguments_that_are_not_json_come_back(browser: Client) -> None:
    question = sole_question(asking(None, APPROVAL))

    reply = answer(browser, question, arguments="{not json", button_answer="approve")

    assert reply.status_code == 422
    assert "This is not JSON: line 1, column 2" in reply.content.decode()


def test_a_second_answer_says_who_was_first(browser: Client) -> None:
    question = sole_question(asking())
    answer(browser, question, answer="first")

    other = signed_in(make_person("bob"))
    for text in ("second", ""):
        answer(other, question, answer=text)
        page = other.get(f"/admin/jobs/job/{question.job_id}/")
        assert "user:ada was first" in page.content.decode()

    assert stored(question) == "first"


def test_the_inbox_answers_in_place(browser: Client) -> None:
    question = sole_question(asking())
    page = browser.get("/admin/jobs/question/").content.decode()
    assert address_of(question) in page

    reply = browser.post(address_of(question), {field(question): "so", "from": "inbox"})

    assert reply.headers["Location"] == "/admin/jobs/question/"
    assert "user:ada" in browser.get("/admin/jobs/question/?answered").content.decode()


def test_the_inbox_is_narrowed_by_due_time_assignee_and_kind(browser: Client) -> None:
    soon = asking()
    late = asking(None, {"kind": "confirm", "schema": {"type": "boolean"}})
    now = timezone.now()
    Question.objects.filter(job=soon).update(expires_at=now + timedelta(minutes=5), assignees=["ada"])
    Question.objects.filter(job=late).update(expires_at=now + timedelta(days=3))

    def found(query: str) -> list[Any]:
        page = browser.get(f"/admin/jobs/question/?{query}")
        return [form.question.job_id for form in page.context["forms"]]

    assert found("") == [soon.id, late.id]
    assert found("due=hour") == [soon.id]
    assert found("due=week&kind=confirm") == [late.id]
    assert found("assignee=ada") == [soon.id]
    assert found("assignee=-") == [late.id]
    assert found("due=none") == found("assignee=bob") == found("kind=nonsense") == []


def test_the_history_goes_back_page_by_page(browser: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.admin.inbox.MOST_CLOSED", 2)
    jobs = [asking() for _ in range(3)]
    for job in jobs:
        question = sole_question(job)
        browser.post(address_of(question), {field(question): "because"})

    first = browser.get("/admin/jobs/question/?answered&kind=text&assignee=-")
    second = browser.get(f"/admin/jobs/question/?answered&before={first.context['older']}")

    shown = [question.job_id for page in (first, second) for question in page.context["closed"]]
    assert shown == [job.id for job in reversed(jobs)]
    assert "Older →" not in second.text


def test_the_history_shows_what_of_an_approval_was_changed(browser: Client) -> None:
    question = sole_question(asking(None, APPROVAL))
    given = {field(question, "arguments"): '{"count": 7}', "answer": "approve"}
    browser.post(address_of(question), given)

    page = browser.get("/admin/jobs/question/?answered").text

    assert re.search(r'e-diff-new">\+\s+&quot;count&quot;: 7', page)
    assert "approved as changed" in page


def test_looking_is_not_answering(browser: Client) -> None:
    question = sole_question(asking())
    viewer = signed_in(make_person("bob", "jobs.view_job", "jobs.view_question"))

    assert viewer.get(f"/admin/jobs/job/{question.job_id}/").status_code == 200
    assert answer(viewer, question, answer="no").status_code == 403
    assert address_of(question) not in viewer.get("/admin/jobs/question/").content.decode()
    assert stored(question) is None


def test_one_of_two_questions_answered_leaves_the_job_waiting(browser: Client) -> None:
    job = asking(None, {"prompt": "Why?"}, {"prompt": "How?"})

    reply = answer(browser, job.questions.order_by("id")[0], answer="so")

    job.refresh_from_db()
    assert job.status == "waiting_for_input"
    assert "More is asked." in browser.get(reply.headers["Location"]).content.decode()


# --- cancelling ---


def test_a_waiting_job_is_cancelled_at_once(browser: Client) -> None:
    job = asking()

    browser.post(f"/admin/jobs/job/{job.id}/cancel/")

    job.refresh_from_db()
    assert (job.status, job.cancel_requested_by) == ("cancelled", "user:ada")


def test_a_running_job_is_asked_to_stop(browser: Client) -> None:
    job = make_job()
    claim_one(make_worker())

    reply = browser.post(f"/admin/jobs/job/{job.id}/cancel/", follow=True)

    job.refresh_from_db()
    assert job.cancel_requested_by == "user:ada"
    assert "being stopped" in reply.content.decode()
    assert "cancelling" in reply.content.decode()


def test_a_job_that_has_ended_is_not_cancelled(browser: Client) -> None:
    job = completed()

    reply = browser.post(f"/admin/jobs/job/{job.id}/cancel/", follow=True)

    assert "The job is completed." in reply.content.decode()


def test_cancelling_needs_its_permission_and_a_post(browser: Client) -> None:
    job = make_job()
    viewer = signed_in(make_person("bob", "jobs.view_job"))

    assert viewer.post(f"/admin/jobs/job/{job.id}/cancel/").status_code == 403
    assert "Cancel job" not in viewer.get(f"/admin/jobs/job/{job.id}/").content.decode()
    assert browser.get(f"/admin/jobs/job/{job.id}/cancel/").status_code == 405
    job.refresh_from_db()
    assert job.cancel_requested_at is None


def test_a_failed_job_is_retried_as_a_new_one(browser: Client) -> None:
    job = make_job()
    browser.post(f"/admin/jobs/job/{job.id}/cancel/")
    assert "Retry" in browser.get(f"/admin/jobs/job/{job.id}/").content.decode()

    reply = browser.post(f"/admin/jobs/job/{job.id}/retry/")

    new = Job.objects.get(retried_from=job)
    assert reply.headers["Location"] == f"/admin/jobs/job/{new.id}/"
    assert new.created_by == "user:ada"


def test_a_completed_job_is_not_retried(browser: Client) -> None:
    job = completed()

    reply = browser.post(f"/admin/jobs/job/{job.id}/retry/", follow=True)

    assert "The job is completed." in reply.content.decode()
    assert not Job.objects.filter(retried_from=job).exists()


def test_retrying_needs_its_permission() -> None:
    job = make_job()
    viewer = signed_in(make_person("bob", "jobs.view_job"))

    assert viewer.post(f"/admin/jobs/job/{job.id}/retry/").status_code == 403


def test_forms_of_other_sites_are_refused() -> None:
    job = make_job()
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(make_person())

    assert strict.post(f"/admin/jobs/job/{job.id}/cancel/").status_code == 403


# --- submitting ---


def new_job(browser: Client, **fields: Any) -> Any:
    project = Project.objects.first() or make_project()
    data = {"task": "do it", "project": project.slug, "priority": "normal", "agent": "echo", **fields}
    return browser.post("/admin/jobs/job/new/", data)


def test_a_job_is_submitted_with_files(browser: Client) -> None:
    make_version()
    files = [SimpleUploadedFile("a.csv", b"x,y\n1,2\n"), SimpleUploadedFile("a.csv", b"other")]

    reply = new_job(browser, input_files=files, input='{"column": "x"}', priority="high")

    job = Job.objects.get()
    assert reply.headers["Location"] == f"/admin/jobs/job/{job.id}/"
    assert (job.created_by, job.input, job.priority) == ("user:ada", {"column": "x"}, "high")
    kept = {file.name: file for file in job.input_files.all()}
    assert sorted(kept) == ["a (2).csv", "a.csv"]
    with storages["artifacts"].open(kept["a.csv"].storage_key) as content:
        assert content.read() == b"x,y\n1,2\n"
    downloaded: Any = browser.get(f"/admin/jobs/job/{job.id}/inputs/{kept['a.csv'].id}/")
    assert b"".join(downloaded.streaming_content) == b"x,y\n1,2\n"


def test_a_job_that_is_refused_keeps_no_file(browser: Client, tmp_path: Path) -> None:
    make_version(input_schema={"type": "object", "required": ["column"]})

    reply = new_job(browser, input_files=[SimpleUploadedFile("a.csv", b"x")])

    assert reply.status_code == 422
    assert "&#x27;column&#x27; is a required property" in reply.content.decode()
    assert not Job.objects.exists()
    assert not [path for path in (tmp_path / "artifacts").rglob("*") if path.is_file()]


def test_a_task_without_words_comes_back(browser: Client) -> None:
    make_version()

    reply = new_job(browser, task=" ", input="[1]")

    assert reply.status_code == 422
    assert "This field is required." in reply.content.decode()
    assert "Give an object" in reply.content.decode()


def test_submitting_needs_its_permission() -> None:
    make_version()
    viewer = signed_in(make_person("bob", "jobs.view_job"))

    assert viewer.get("/admin/jobs/job/new/").status_code == 403
    assert new_job(viewer).status_code == 403
    assert "New job" not in viewer.get("/admin/jobs/job/").content.decode()


def test_an_agents_page_leads_to_a_job_for_it(browser: Client) -> None:
    version = make_version()
    make_project()

    page = browser.get(f"/admin/agents/agent/{version.agent_id}/").content.decode()

    assert "/admin/jobs/job/new/?agent=echo" in page
    assert '<option value="echo" selected>' in browser.get("/admin/jobs/job/new/?agent=echo").content.decode()


def test_an_archived_agent_is_not_offered(browser: Client) -> None:
    version = make_version()
    Agent.objects.filter(id=version.agent_id).update(status="archived", archived_at=version.created_at)

    assert 'value="echo"' not in browser.get("/admin/jobs/job/new/").content.decode()
    assert "echo" in browser.get("/admin/agents/agent/?status=archived").content.decode()


# --- keys ---


def new_key(browser: Client, **fields: Any) -> Any:
    project = Project.objects.first() or make_project()
    data = {"name": "import", "project": project.slug, "scopes": ["jobs:read"], "mode": "live", **fields}
    return browser.post("/admin/apikeys/apikey/add/", data)


def test_a_keys_secret_is_shown_once_and_works(browser: Client) -> None:
    reply = new_key(browser, days="30")
    secret = reply.context["secret"]
    key = ApiKey.objects.get()

    assert secret in reply.content.decode()
    assert "no-store" in reply.headers["Cache-Control"]
    assert secret not in browser.get("/admin/apikeys/apikey/").content.decode()
    assert key.expires_at is not None
    assert AuditRow.objects.get(action="key.created").actor == "user:ada"
    headers = {"Authorization": f"Bearer {secret}"}
    assert Client().get("/api/v1/jobs", headers=headers).status_code == 200


def test_a_revoked_key_is_refused_from_the_next_request_on(browser: Client) -> None:
    secret = new_key(browser).context["secret"]
    key = ApiKey.objects.get()
    address = f"/admin/apikeys/apikey/{key.id}/revoke/"

    assert "cannot be undone" in browser.get(address).content.decode()
    assert Client().get("/api/v1/jobs", headers={"Authorization": f"Bearer {secret}"}).status_code == 200
    browser.post(address)

    reply = Client().get("/api/v1/jobs", headers={"Authorization": f"Bearer {secret}"})
    assert (reply.status_code, reply.json()["code"]) == (401, "key_revoked")
    assert AuditRow.objects.get(action="key.revoked").actor == "user:ada"


def test_a_key_without_scopes_comes_back(browser: Client) -> None:
    assert new_key(browser, scopes=[]).status_code == 422
    assert not ApiKey.objects.exists()


def test_nobody_gives_a_key_what_they_do_not_have() -> None:
    manager = signed_in(make_person("bob", "apikeys.view_apikey", "apikeys.change_apikey", "jobs.view_job"))

    page = manager.get("/admin/apikeys/apikey/add/").content.decode()
    assert 'value="jobs:read"' in page
    assert 'value="admin"' not in page

    assert new_key(manager, scopes=["admin"]).status_code == 422
    assert not ApiKey.objects.exists()


def test_keys_need_their_permission() -> None:
    key = make_key().key
    viewer = signed_in(make_person("bob", "apikeys.view_apikey"))

    assert viewer.get("/admin/apikeys/apikey/").status_code == 200
    assert viewer.get("/admin/apikeys/apikey/add/").status_code == 403
    assert viewer.post(f"/admin/apikeys/apikey/{key.id}/revoke/").status_code == 403
    key.refresh_from_db()
    assert key.revoked_at is None


# --- projects, audit ---


def project_form(project: Project | None = None, **fields: Any) -> dict[str, Any]:
    return {
        "name": "Shop",
        "on_weak_match": "ask",
        "discovery_cut": "q80",
        "weight": "1",
        **({} if project else {"slug": "shop"}),
        **fields,
    }


def test_a_project_is_made_and_changed_with_an_audit_row_each(browser: Client) -> None:
    browser.post("/admin/apikeys/project/add/", project_form())
    project = Project.objects.get(slug="shop")
    assert project.on_weak_match == "ask"

    browser.post(f"/admin/apikeys/project/{project.id}/change/", project_form(project, max_running="5"))

    project.refresh_from_db()
    assert project.max_running == 5
    actions = AuditRow.objects.order_by("id").values_list("action", "actor")
    assert list(actions) == [("project.created", "user:ada"), ("project.changed", "user:ada")]


def test_projects_are_changed_by_those_who_may_alone() -> None:
    project = make_project()
    manager = signed_in(make_person("bob", "apikeys.view_project", "apikeys.change_apikey"))

    reply = manager.post(f"/admin/apikeys/project/{project.id}/change/", project_form(project))

    assert reply.status_code == 403


def test_the_audit_can_only_be_read(browser: Client) -> None:
    new_key(browser)
    row = AuditRow.objects.get()

    assert "key.created" in browser.get("/admin/apikeys/auditrow/?q=created").content.decode()
    for path in ("add/", f"{row.id}/change/", f"{row.id}/delete/"):
        assert browser.post(f"/admin/apikeys/auditrow/{path}").status_code == 404
