"""Questions that go to the person behind an MCP client, and waits that are tasks."""

from typing import Any
from uuid import uuid4

import pytest

from jobs.models import Job, Question
from tests.factories import KeyInHand, make_key
from tests.jobs import question
from tests.mcp import META, InProcess, RawClient
from tests.streams import Talker

pytestmark = pytest.mark.django_db(transaction=True)

TONES = ["formal", "warm"]
TASKS: dict[str, Any] = {"extensions": {f"{META}/tasks": {}}}
FORMS: dict[str, Any] = {"elicitation": {"form": {}}}


@pytest.fixture
def key() -> KeyInHand:
    return make_key()


@pytest.fixture
def talker(key: KeyInHand, settings: Any) -> Talker:
    settings.ENGINE_LEASE_SECONDS = 600  # nobody here sends heartbeats
    return Talker.start(key.project)


@pytest.fixture
def asking(talker: Talker) -> Job:
    """A job with two open questions."""
    choice = question("a#1", kind="choice", prompt="Which tone?", choices=TONES, schema={"enum": TONES})
    talker.ask(choice, question("a#2", kind="confirm", prompt="Send it?", schema={"type": "boolean"}))
    return talker.job


def client(key: KeyInHand, **capabilities: Any) -> RawClient:
    return RawClient(InProcess(), key.secret, capabilities=capabilities)


def wait(raw: RawClient, job: Job, **more: Any) -> dict[str, Any]:
    arguments = {"job_id": str(job.id), "timeout_s": 1}
    return raw.result("tools/call", name="wait_for_job", arguments=arguments, **more)


def accepted(value: Any) -> dict[str, Any]:
    return {"action": "accept", "content": {"answer": value}}


def statuses(job: Job) -> list[str]:
    return list(Question.objects.filter(job_id=job.id).order_by("key").values_list("status", flat=True))


def test_a_client_that_shows_forms_is_asked_and_its_answers_count(key: KeyInHand, asking: Job) -> None:
    raw = client(key, **FORMS)

    asked = wait(raw, asking)
    first, second = asked["inputRequests"]
    left = wait(raw, asking, inputResponses={first: accepted("warm")})
    done = wait(raw, asking, inputResponses={second: accepted(True)})

    assert asked["resultType"] == "input_required"
    schema = asked["inputRequests"][first]["params"]["requestedSchema"]
    assert schema["properties"]["answer"]["enum"] == ["formal", "warm"]
    assert list(left["inputRequests"]) == [second]
    assert done["structuredContent"]["status"] == "queued"
    answers = Question.objects.filter(job_id=asking.id).order_by("key")
    assert [(one.answer, one.answered_via) for one in answers] == [("warm", "mcp"), (True, "mcp")]


NO_ANSWERS: list[Any] = [
    {"action": "decline"},
    {"action": "cancel"},
    {"action": "decline", "content": {"answer": "warm"}},
    {"action": "accept"},
    {"action": "accept", "content": {}},
    {"action": "accept", "content": {"other": "warm"}},
    {},
    "warm",
]


def test_whatever_is_not_an_answer_leaves_the_question_open(key: KeyInHand, asking: Job) -> None:
    raw = client(key, **FORMS)
    first = next(iter(wait(raw, asking)["inputRequests"]))

    for response in NO_ANSWERS:
        result = wait(raw, asking, inputResponses={first: response})
        assert result["resultType"] == "complete", response
        assert "stays open" in result["content"][0]["text"]
    assert statuses(asking) == ["open", "open"]


def test_an_answer_that_does_not_fit_is_told(key: KeyInHand, asking: Job) -> None:
    raw = client(key, **FORMS)
    first = next(iter(wait(raw, asking)["inputRequests"]))

    result = wait(raw, asking, inputResponses={first: accepted("cold"), str(uuid4()): accepted(1)})

    assert result["structuredContent"]["code"] == "invalid_answer"
    assert statuses(asking) == ["open", "open"]


def test_nobody_is_asked_who_cannot_be_or_may_not_answer(key: KeyInHand, asking: Job) -> None:
    reader = make_key("jobs:read", project=key.project)

    for raw in (client(key), client(reader, **FORMS), RawClient(InProcess(), key.secret)):
        result = wait(raw, asking)
        assert result["structuredContent"]["status"] == "waiting_for_input"
        assert len(result["structuredContent"]["questions"]) == 2


def test_a_wait_is_a_task_for_a_client_that_takes_one(key: KeyInHand, talker: Talker) -> None:
    raw = client(key, **TASKS)

    task = wait(raw, talker.job)
    working = raw.result("tasks/get", taskId=task["taskId"])
    talker.end({"rows": 3})
    done = raw.result("tasks/get", taskId=task["taskId"])

    assert (task["resultType"], task["status"]) == ("task", "working")
    assert (working["resultType"], working["status"]) == ("complete", "working")
    assert done["status"] == "completed"
    assert done["result"]["structuredContent"]["result"] == {"rows": 3}


def test_a_task_asks_and_takes_part_of_the_answers(key: KeyInHand, asking: Job) -> None:
    raw, task = client(key, **TASKS, **FORMS), str(asking.id)

    asked = raw.result("tasks/get", taskId=task)
    first, second = asked["inputRequests"]
    raw.result("tasks/update", taskId=task, inputResponses={first: {"action": "decline"}})
    raw.result("tasks/update", taskId=task, inputResponses={second: accepted(True)})
    bad = raw.request("tasks/update", taskId=task, inputResponses={first: accepted("cold")})
    left = raw.result("tasks/get", taskId=task)
    raw.result("tasks/update", taskId=task, inputResponses={first: accepted("formal")})

    assert asked["status"] == "input_required"
    assert bad["error"]["code"] == -32602
    assert list(left["inputRequests"]) == [first]
    assert raw.result("tasks/get", taskId=task)["status"] == "working"


def test_a_task_is_cancelled(key: KeyInHand, asking: Job) -> None:
    raw, task = client(key, **TASKS), str(asking.id)

    raw.result("tasks/cancel", taskId=task)
    again = raw.result("tasks/cancel", taskId=task)

    assert again["resultType"] == "complete"
    assert raw.result("tasks/get", taskId=task)["status"] == "cancelled"


def test_tasks_are_for_those_who_said_so_and_for_their_own_jobs(key: KeyInHand, asking: Job) -> None:
    stranger, plain = client(make_key(), **TASKS), client(key)

    for method in ("tasks/get", "tasks/update", "tasks/cancel"):
        theirs = stranger.request(method, taskId=str(asking.id), inputResponses={})["error"]
        none = stranger.request(method, taskId=str(uuid4()), inputResponses={})["error"]
        bad = stranger.request(method, taskId="x", inputResponses={})["error"]
        assert theirs == none == bad
        assert theirs["code"] == -32602
        assert plain.request(method, taskId=str(asking.id))["error"]["code"] == -32021
    assert statuses(asking) == ["open", "open"]
