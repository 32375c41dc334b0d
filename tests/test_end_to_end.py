"""The main job from outside: real web and worker processes, HTTP and WebSocket, and signals that nobody can catch."""

import asyncio
import base64
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.conf import settings

from tests.mcp import official
from tests.processes import ROOT, Instance, Program, copy_home, eventually

FINAL = {"completed", "failed", "cancelled", "rejected"}
LEASE = {"ENGINE_LEASE_SECONDS": "2", "ENGINE_HEARTBEAT_SECONDS": "0.5"}

# Says a token that only its first step knows, so that a second run of the step would show.
STEPPER = """
import time, uuid
from engine_agent import log, step

def main(task, inputs):
    token = step("draw", lambda: uuid.uuid4().hex)
    print("token", token, flush=True)
    step("work", time.sleep, inputs.get("seconds", 0))
    print("worked", flush=True)
    return {"token": token}
"""
ASKER = """
import uuid
from pathlib import Path
from engine_agent import ask, step

def prepare():
    Path("notes.txt").write_text("kept over the wait")
    return uuid.uuid4().hex

def main(task, inputs):
    token = step("prepare", prepare)
    print("before the question", token, flush=True)
    tone = ask("Which tone?", choices=["formal", "warm"])
    print("after the question", flush=True)
    return {"token": token, "tone": tone, "notes": Path("notes.txt").read_text()}
"""
CHATTY = """
import time

def main(task, inputs):
    for number in range(inputs.get("lines", 40)):
        print("line", number, flush=True)
        time.sleep(0.1)
    return {"lines": number + 1}
"""


class Client:
    """One API client of one instance."""

    def __init__(self, instance: Instance, secret: str) -> None:
        self.http = httpx.Client(
            base_url=instance.url, headers={"Authorization": f"Bearer {secret}"}, timeout=30
        )

    def register(self, slug: str, source: str) -> None:
        card = {
            "slug": slug,
            "name": slug,
            "description": f"The test agent {slug}, called by its name.",
            "kind": "python",
            "source": {"agent.py": source},
        }
        reply = self.http.post("/api/v1/agents", json=card)
        assert reply.status_code in (200, 201), reply.text

    def submit(self, agent: str | None = None, task: str = "do it", **fields: Any) -> str:
        body = {"task": task, **({"agent": agent} if agent else {}), **fields}
        reply = self.http.post("/api/v1/jobs", json=body)
        assert reply.status_code == 201, reply.text
        return str(reply.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        reply = self.http.get(f"/api/v1/jobs/{job_id}")
        assert reply.status_code == 200, reply.text
        return dict(reply.json())

    def until(self, job_id: str, *statuses: str, seconds: float = 60) -> dict[str, Any]:
        """The job once it has one of these statuses; a final one it should not have fails at once."""

        def there() -> dict[str, Any]:
            job = self.job(job_id)
            assert job["status"] in statuses or job["status"] not in FINAL, job
            return job if job["status"] in statuses else {}

        return eventually(there, seconds=seconds, what=f"job {job_id} becomes {statuses}")

    def events(self, job_id: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        while True:
            after = items[-1]["seq"] if items else 0
            page = self.http.get(f"/api/v1/jobs/{job_id}/logs", params={"after": after, "limit": 1000}).json()
            if not page["items"]:
                return items
            items += page["items"]

    def lines(self, job_id: str) -> list[str]:
        return [event["message"] for event in self.events(job_id) if event["source"] == "stdout"]

    def said(self, job_id: str, words: str) -> None:
        """Wait until the agent has printed this, and it is stored."""
        eventually(
            lambda: any(words in line for line in self.lines(job_id)),
            seconds=60,
            what=f"{words!r} in the log",
        )


def assert_history_is_sound(client: Client, job_id: str) -> None:
    """What must hold of any job whatever happened: numbers without gap, one end, no word of a replaced attempt."""
    events = client.events(job_id)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert [event["attempt"] for event in events] == sorted(event["attempt"] for event in events)
    ends = [event["type"] for event in events if event["type"] in {f"job.{status}" for status in FINAL}]
    assert len(ends) == 1
    assert events[-1]["type"] == ends[0]


def runtime() -> dict[str, str]:
    """The sandbox runtime that the test run has built, for instances with a home of their own."""
    return {"ENGINE_RUNTIME_DIR": str(settings.ENGINE_RUNTIME_DIR)}


class Site:
    """A running installation and a client of it; the workers that a test starts are stopped after it."""

    def __init__(self, instance: Instance, client: Client) -> None:
        self.instance, self.client = instance, client

    def worker(self, *arguments: str) -> Program:
        """A worker that has its lease."""
        program = self.instance.worker(*arguments)
        program.printed(r"Worker \S+ serves queues")
        return program


@pytest.fixture(scope="module")
def running(migrated_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A fresh installation with a web process, a short lease, the catalog and the test agents."""
    home = tmp_path_factory.mktemp("site") / "home"
    copy_home(migrated_home, home)
    instance = Instance(home, LEASE | runtime())
    instance.manage("register_catalog")
    instance.serve()
    client = Client(instance, instance.key())
    for slug, source in {"stepper": STEPPER, "asker": ASKER, "chatty": CHATTY}.items():
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


def test_the_sample_job_of_the_readme(site: Site) -> None:
    client = site.client
    site.worker()
    site.instance.ready()

    with (ROOT / "samples" / "reviews.csv").open("rb") as reviews:
        reply = client.http.post(
            "/api/v1/jobs",
            data={"task": "Analyze the sentiment of customer reviews"},
            files={"files": reviews},
        )
    assert reply.status_code == 201, reply.text
    job = client.until(reply.json()["id"], "completed", seconds=120)

    assert job["agent"]["slug"] == "review-sentiment"
    assert job["why"]["decision"] == "match"
    assert_history_is_sound(client, job["id"])
    artifacts = client.http.get(f"/api/v1/jobs/{job['id']}/artifacts").json()["items"]
    chart = next(item for item in artifacts if item["media_type"] == "image/png")
    picture = client.http.get(f"/api/v1/jobs/{job['id']}/artifacts/{chart['id']}")
    assert picture.content.startswith(b"\x89PNG")
    assert len(picture.content) == chart["size"]


@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_the_sample_job_over_mcp(site: Site, mode: str) -> None:
    site.worker()
    site.instance.ready()
    task = "Analyze the sentiment of customer reviews"
    reviews = (ROOT / "samples" / "reviews.csv").read_text()
    secret = site.client.http.headers["Authorization"].removeprefix("Bearer ")

    async def use() -> None:
        async with official(site.instance.url, secret, mode) as client:

            async def call(tool: str, **arguments: Any) -> dict[str, Any]:
                result = await client.call_tool(tool, arguments)
                assert not result.is_error, result
                return dict(result.structured_content or {})

            async def until(job: dict[str, Any], status: str) -> dict[str, Any]:
                while job["status"] != status:
                    assert "wait_for_job" in job["next"], job
                    job = await call("wait_for_job", job_id=job["id"])
                return job

            found = await call("discover_agents", task=task)
            assert found["results"][0]["agent"] == "review-sentiment"
            files = [{"name": "reviews.csv", "text": reviews}]
            done = await until(await call("create_job", task=task, files=files), "completed")
            chart = next(item for item in done["artifacts"] if item["media_type"] == "image/png")
            picture = await call("get_artifact", job_id=done["id"], artifact=chart["name"])
            assert base64.b64decode(picture["base64"]).startswith(b"\x89PNG")

            asking = await until(await call("create_job", task="do it", agent="asker"), "waiting_for_input")
            question = (await call("list_questions", job_id=asking["id"]))["items"][0]
            answered = await call("answer_question", question_id=question["id"], answer="warm")
            assert (await until(answered, "completed"))["result"]["tone"] == "warm"

            again = await until(await call("create_job", task="do it", agent="asker"), "waiting_for_input")
            assert (await call("cancel_job", job_id=again["id"]))["status"] == "cancelled"

    asyncio.run(use())


def test_the_three_lines_of_the_specification(site: Site) -> None:
    client = site.client
    site.worker()

    job_id = client.submit(task="Analyze the sentiment of customer reviews")
    waiting = client.until(job_id, "waiting_for_input", seconds=120)
    assert [question["status"] for question in waiting["questions"]] == ["open"]
    reply = client.http.post(
        f"/api/v1/jobs/{job_id}/respond", json={"answer": "Yes, proceed with the analysis"}
    )
    assert reply.status_code == 200, reply.text

    done = client.until(job_id, "completed", seconds=120)
    assert done["result"]
    assert_history_is_sound(client, job_id)

    nothing = client.http.post("/api/v1/jobs", json={"task": "Book me a flight to Paris next Tuesday"}).json()
    assert (nothing["status"], nothing["status_reason"]) == ("rejected", "no_match")
    assert nothing["why"]["nearest"]


def test_a_killed_worker_loses_and_doubles_nothing(site: Site) -> None:
    client = site.client
    first = site.worker()
    job_id = client.submit("stepper", input={"seconds": 3})
    client.said(job_id, "token")

    first.kill(signal.SIGKILL)
    site.worker()
    job = client.until(job_id, "completed")

    assert [attempt["outcome"] for attempt in job["attempts"]] == ["lost", "completed"]
    assert client.lines(job_id) == [f"token {job['result']['token']}", "worked"]
    completed = [event["data"]["key"] for event in client.events(job_id) if event["type"] == "step.completed"]
    assert completed == ["draw#1", "work#1"]
    assert_history_is_sound(client, job_id)


def test_a_question_survives_the_death_of_worker_and_sandbox(site: Site) -> None:
    client = site.client
    first = site.worker()
    job_id = client.submit("asker")
    client.until(job_id, "waiting_for_input")

    first.kill(signal.SIGKILL)
    reply = client.http.post(f"/api/v1/jobs/{job_id}/respond", json={"answer": "warm"})
    assert reply.status_code == 200, reply.text
    site.worker()
    job = client.until(job_id, "completed")

    assert job["result"]["tone"] == "warm"
    assert job["result"]["notes"] == "kept over the wait"
    assert client.lines(job_id) == [f"before the question {job['result']['token']}", "after the question"]
    assert [attempt["outcome"] for attempt in job["attempts"]] == ["suspended", "completed"]
    assert_history_is_sound(client, job_id)


def test_a_worker_stopped_past_its_lease_can_write_nothing_more(site: Site) -> None:
    client = site.client
    zombie = site.worker()
    job_id = client.submit("chatty", input={"lines": 80})
    client.said(job_id, "line 5")

    zombie.kill(signal.SIGSTOP)
    site.worker()
    eventually(lambda: len(client.job(job_id)["attempts"]) == 2, seconds=30, what="a second attempt")
    zombie.kill(signal.SIGCONT)
    zombie.printed(r"has lost its lease and starts again under a new id")
    job = client.until(job_id, "completed")

    assert [attempt["outcome"] for attempt in job["attempts"]] == ["lost", "completed"]
    assert client.lines(job_id)[-80:] == [f"line {number}" for number in range(80)]
    assert_history_is_sound(client, job_id)

    def alive() -> int:
        return len(client.http.get("/api/v1/admin/workers", params={"state": "alive"}).json()["items"])

    eventually(lambda: alive() == 2, what="the stopped worker is back under a new id")


def test_cancel_while_queued_waiting_and_running(site: Site) -> None:
    client = site.client
    queued = client.submit("chatty")
    assert client.http.delete(f"/api/v1/jobs/{queued}").status_code == 200
    assert client.job(queued)["status"] == "cancelled"

    site.worker()
    waiting = client.submit("asker")
    client.until(waiting, "waiting_for_input")
    assert client.http.delete(f"/api/v1/jobs/{waiting}").status_code == 200
    assert client.http.post(f"/api/v1/jobs/{waiting}/respond", json={"answer": "warm"}).status_code == 409

    running = client.submit("chatty", input={"lines": 1000})
    client.said(running, "line 2")
    assert client.http.delete(f"/api/v1/jobs/{running}").status_code == 202
    client.until(running, "cancelled", seconds=10)
    assert client.http.delete(f"/api/v1/jobs/{running}").status_code == 200
    for job_id in (queued, waiting, running):
        assert_history_is_sound(client, job_id)


def test_postgresql_may_crash_in_the_middle_of_a_job(site: Site) -> None:
    client = site.client
    site.worker()
    job_id = client.submit("chatty", input={"lines": 60})
    client.said(job_id, "line 5")

    crash_database(site.instance)
    eventually(lambda: client.http.get("/health/live").status_code == 200)
    eventually(
        lambda: client.http.get(f"/api/v1/jobs/{job_id}").status_code == 200, seconds=30, what="the API again"
    )
    job = client.until(job_id, "completed")

    assert client.lines(job_id)[-60:] == [f"line {number}" for number in range(60)]
    assert job["attempts"][-1]["outcome"] == "completed"
    assert_history_is_sound(client, job_id)


def crash_database(instance: Instance) -> None:
    """SIGKILL the postmaster; whoever connects next starts it again."""
    pid = int((instance.home / "postgres" / "postmaster.pid").read_text().split()[0])
    os.kill(pid, signal.SIGKILL)


def test_a_drained_worker_hands_its_job_to_another_at_no_cost(site: Site) -> None:
    client = site.client
    first = site.worker("--grace", "1")
    job_id = client.submit("stepper", input={"seconds": 12})
    client.said(job_id, "token")

    first.kill(signal.SIGTERM)
    assert first.wait(seconds=15) == 0
    assert client.job(job_id)["status"] == "queued"
    site.worker()
    job = client.until(job_id, "completed")

    assert [attempt["outcome"] for attempt in job["attempts"]] == ["handed_back", "completed"]
    assert client.lines(job_id) == [f"token {job['result']['token']}", "worked"]
    assert_history_is_sound(client, job_id)


def test_two_workers_share_the_work(site: Site) -> None:
    client = site.client
    for _ in range(2):
        site.worker("--concurrency", "2")

    jobs = [client.submit("chatty", input={"lines": 3}) for _ in range(10)]
    done = [client.until(job_id, "completed") for job_id in jobs]

    assert len({job["attempts"][0]["worker"] for job in done}) == 2
    assert all(len(job["attempts"]) == 1 for job in done)


def test_a_revoked_key_is_refused_on_the_next_request(site: Site) -> None:
    client = site.client
    made = client.http.post(
        "/api/v1/admin/keys", json={"name": "short-lived", "scopes": ["jobs:read"]}
    ).json()
    headers = {"Authorization": f"Bearer {made['secret']}"}
    assert httpx.get(f"{site.instance.url}/api/v1/jobs", headers=headers).status_code == 200

    assert client.http.delete(f"/api/v1/admin/keys/{made['id']}").status_code in (200, 204)

    refused = httpx.get(f"{site.instance.url}/api/v1/jobs", headers=headers)
    assert refused.status_code == 401
    assert refused.headers["content-type"].startswith("application/problem+json")


def test_another_projects_job_answers_exactly_as_a_missing_one(site: Site) -> None:
    client = site.client
    job_id = client.submit("chatty")
    stranger = Client(site.instance, site.instance.key(project="elsewhere"))
    missing_id = job_id[:-1] + ("0" if job_id[-1] != "0" else "1")

    def answers(job: str) -> list[tuple[int, str]]:
        calls = [
            stranger.http.get(f"/api/v1/jobs/{job}"),
            stranger.http.get(f"/api/v1/jobs/{job}/logs"),
            stranger.http.get(f"/api/v1/jobs/{job}/logs", headers={"Accept": "text/event-stream"}),
            stranger.http.get(f"/api/v1/jobs/{job}/artifacts"),
            stranger.http.post(f"/api/v1/jobs/{job}/respond", json={"answer": "x"}),
            stranger.http.delete(f"/api/v1/jobs/{job}"),
        ]
        return [
            (call.status_code, re.sub(r'"request_id": ?"[^"]*"', "", call.text).replace(job, "ID"))
            for call in calls
        ]

    hidden, missing = answers(job_id), answers(missing_id)
    stranger.http.close()
    assert hidden == missing
    assert {status for status, _ in hidden} == {404}


def test_secrets_are_in_no_log(site: Site) -> None:
    client = site.client
    secret = client.http.headers["Authorization"].removeprefix("Bearer ")
    site.worker()
    client.until(client.submit("chatty", input={"lines": 1}), "completed")

    for log in site.instance.logs.iterdir():
        assert secret not in log.read_text(errors="replace")
    stored = json.loads((site.instance.home / "secrets.json").read_text())
    for value in stored.values():
        assert all(value not in log.read_text(errors="replace") for log in site.instance.logs.iterdir())
