"""People in the loop from outside: each kind of question through each door, and webhooks over the death of workers."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from drills.people import Drill
from tests.processes import Instance, copy_home, eventually
from tests.receivers import LOOPBACK, Receiver, receiving
from tests.test_end_to_end import FINAL, LEASE, Client, Site, assert_history_is_sound, runtime

ASKER = """
from engine_agent import approve, ask, ask_many, job, log, step

def main(task, inputs):
    stamp = [job.now().isoformat(), job.random(), str(job.uuid())]
    text = ask("Text?", key="text")
    choice = ask("Choice?", choices=[1, 2, 3], key="choice")
    several, sure = ask_many([
        {"prompt": "Several?", "choices": ["a", "b", "c"], "multi": True, "key": "several"},
        {"prompt": "Sure?", "kind": "confirm", "key": "sure"},
    ])
    form = ask("Form?", schema={"properties": {"age": {"type": "integer"}}, "required": ["age"]}, key="form")
    paid = approve("pay", {"amount": 3}, key="pay", risk="high")
    again = [job.now().isoformat(), job.random(), str(job.uuid())]
    return {"stamp": stamp, "text": text, "choice": choice, "several": several, "sure": sure, "form": form,
            "paid": [paid.decision, paid.arguments], "again": again}
"""
TIMED = """
from engine_agent import ask

def main(task, inputs):
    return {"tone": ask("Tone?", timeout=inputs["timeout"], default="plain", on_timeout=inputs["then"], remind=[1])}
"""


@pytest.fixture(scope="module")
def running(migrated_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A fresh installation with a web process, a short lease and the test agents."""
    home = tmp_path_factory.mktemp("people") / "home"
    copy_home(migrated_home, home)
    allowed = {"ENGINE_WEBHOOK_ALLOWED_NETWORKS": ",".join(LOOPBACK)}
    instance = Instance(home, {**LEASE, **runtime(), **allowed, "EMAIL_URL": f"filemail://{home}/mail"})
    instance.serve()
    client = Client(instance, instance.key())
    for slug, source in {"asker": ASKER, "timed": TIMED}.items():
        client.register(slug, source)
    yield Site(instance, client)
    client.http.close()
    instance.stop()


@pytest.fixture
def site(running: Site) -> Iterator[Site]:
    """The installation, with no worker yet."""
    before = len(running.instance.programs)
    yield running
    for program in running.instance.programs[before:]:
        program.stop()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


def asked(client: Client, job_id: str, key: str) -> dict[str, Any]:
    """The open question of this key, once it is there."""

    def there() -> dict[str, Any]:
        items = client.http.get(f"/api/v1/questions?job={job_id}").json()["items"]
        assert client.job(job_id)["status"] not in FINAL, client.job(job_id)
        return next((item for item in items if item["prompt"].lower().startswith(key)), {})

    return eventually(there, seconds=60, what=f"the question {key}")


def test_every_kind_is_answered_through_every_door_and_a_deploy_changes_nothing(
    site: Site, receiver: Receiver
) -> None:
    client = site.client
    site.worker()
    secret = client.http.post("/api/v1/webhooks/job-secret").json()["secret"]
    job_id = client.submit("asker", webhook_url=receiver.url)

    # REST respond, with an answer that does not fit first.
    asked(client, job_id, "text")
    wrong = client.http.post(f"/api/v1/jobs/{job_id}/respond", json={"answer": 7})
    assert (wrong.status_code, wrong.json()["errors"][0]["pointer"]) == (422, "/answer")
    assert client.http.post(f"/api/v1/jobs/{job_id}/respond", json={"answer": "hello"}).status_code == 200
    # A new version, deployed while the job waits, is for other jobs.
    asked(client, job_id, "choice")
    client.register("asker", "def main(task, inputs):\n    return {'version': 'new'}\n")
    # The inbox.
    question = asked(client, job_id, "choice")
    answered = client.http.post(f"/api/v1/questions/{question['id']}/answer", json={"answer": "2"})
    assert answered.json()["answered_via"] == "api_key"
    # Several open at once: the one by id, the other as the last one left.
    several, sure = asked(client, job_id, "several"), asked(client, job_id, "sure")
    unclear = client.http.post(f"/api/v1/jobs/{job_id}/respond", json={"answer": True})
    assert (unclear.status_code, len(unclear.json()["questions"])) == (409, 2)
    both = {sure["id"]: True, several["id"]: ["c", "c"]}
    wrong = client.http.post(f"/api/v1/jobs/{job_id}/respond", json={"answers": both})
    assert wrong.json()["errors"][0]["pointer"] == f"/answers/{several['id']}"
    both[several["id"]] = ["c", "a"]
    assert client.http.post(f"/api/v1/jobs/{job_id}/respond", json={"answers": both}).status_code == 200
    # The link of the webhook's message.
    form = asked(client, job_id, "form")
    opened = eventually(
        lambda: [
            call
            for call in receiver.calls
            if call.json["type"] == "question.opened" and call.json["data"]["question"]["id"] == form["id"]
        ],
        what="the webhook",
    )
    assert opened[0].is_signed_by(secret)
    link = opened[0].json["data"]["question"]["answer_url"].split("/", 3)[3]
    page = httpx.get(f"{site.instance.url}/{link}")
    assert page.status_code == 200
    field = re.findall(r'name="([^"]+-f0)"', page.text)[0]
    assert httpx.post(f"{site.instance.url}/{link}", data={field: "41"}).status_code == 200
    late = httpx.post(f"{site.instance.url}/{link}", json={"answer": {"age": 1}})
    assert (late.status_code, late.json()["answered_via"]) == (409, "link")
    # An approval: what was not edited may not be changed.
    asked(client, job_id, "may the agent")
    smuggled = {"answer": {"decision": "approve", "arguments": {"amount": 3000}}}
    assert client.http.post(f"/api/v1/jobs/{job_id}/respond", json=smuggled).status_code == 422
    edited = {"answer": {"decision": "edit", "arguments": {"amount": 2}}}
    assert client.http.post(f"/api/v1/jobs/{job_id}/respond", json=edited).status_code == 200

    result = client.until(job_id, "completed")["result"]
    assert result.pop("stamp") != result.pop("again")
    assert result == {
        "text": "hello",
        "choice": 2,
        "several": ["c", "a"],
        "sure": True,
        "form": {"age": 41},
        "paid": ["edit", {"amount": 2}],
    }
    assert_history_is_sound(client, job_id)
    eventually(lambda: "job.completed" in receiver.types(), what="the last webhook")
    assert client.until(client.submit("asker"), "completed")["result"] == {"version": "new"}


def test_time_reminds_and_takes_the_default_in_nobodys_name(site: Site, receiver: Receiver) -> None:
    client = site.client
    site.worker()
    job_id = client.submit("timed", input={"timeout": 3, "then": "default"}, webhook_url=receiver.url)
    failing = client.submit("timed", input={"timeout": 1, "then": "fail"})

    job = client.until(job_id, "completed")
    (question,) = job["questions"]
    assert job["result"] == {"tone": "plain"}
    assert (question["status"], question["answered_by"], question["answered_via"]) == ("expired", "", "")
    by_type = {event["type"]: event for event in client.events(job_id)}
    assert late_by(by_type["question.opened"], by_type["question.reminder"]) < 1 + 2
    assert late_by(by_type["question.opened"], by_type["question.expired"]) < 3 + 2
    eventually(lambda: {"question.reminder", "question.expired"} <= set(receiver.types()), what="webhooks")
    failed = client.until(failing, "failed")
    assert (failed["status_reason"], failed["questions"][0]["status"]) == ("question_expired", "expired")


def late_by(earlier: dict[str, Any], later: dict[str, Any]) -> float:
    from datetime import datetime

    at = [datetime.fromisoformat(event["at"]) for event in (earlier, later)]
    return (at[1] - at[0]).total_seconds()


def test_webhooks_outlive_the_workers_that_send_them(site: Site, receiver: Receiver) -> None:
    """Workers are killed while the receiver holds their calls; everything arrives, under one id each."""
    client = site.client
    endpoint = client.http.post(
        "/api/v1/webhooks", json={"url": receiver.url, "events": ["job.cancelled"]}
    ).json()
    ids = [client.submit("timed") for _ in range(8)]
    for job_id in ids:
        assert client.http.delete(f"/api/v1/jobs/{job_id}").status_code == 200
    receiver.may_answer.clear()
    worker = site.worker()
    eventually(lambda: len(receiver.calls) >= 2, what="calls in progress")
    worker.kill()
    worker.wait()
    receiver.may_answer.set()

    site.worker()
    started = time.monotonic()

    def delivered() -> bool:
        query = f"/api/v1/webhooks/deliveries?webhook={endpoint['id']}&state=delivered"
        return len(client.http.get(query).json()["items"]) == len(ids)

    eventually(delivered, seconds=90, what="all deliveries")
    told = {call.headers["webhook-id"]: call.json["data"]["job"]["id"] for call in receiver.calls}
    assert sorted(told.values()) == sorted(ids)
    assert all(call.is_signed_by(endpoint["secret"]) for call in receiver.calls)
    assert time.monotonic() - started < 75


@pytest.mark.drill
def test_a_worker_may_be_killed_at_any_moment(site: Site) -> None:
    """The short form of `make drill-people`."""
    drill = Drill(site.instance, site.instance.key())
    drill.prepare()

    length = drill.walk(None)
    for part in (0.2, 0.4, 0.6, 0.8):
        drill.walk(length * part)
    drill.close()

    assert sum(drill.seen.killed_while.values()) == 4
