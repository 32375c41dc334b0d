"""Jobs on E2B through real processes: a checkpoint moves between providers, and a bad key costs nothing."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2b import e2b_server
from tests.e2b_server import E2BServer
from tests.processes import Instance, copy_home, eventually
from tests.sandboxes import needs_bubblewrap
from tests.test_end_to_end import (
    ASKER,
    CHATTY,
    LEASE,
    STEPPER,
    Client,
    Site,
    assert_history_is_sound,
    runtime,
)


@pytest.fixture(scope="module")
def server() -> Iterator[E2BServer]:
    with e2b_server() as server:
        yield server


@pytest.fixture(scope="module")
def site(migrated_home: Path, server: E2BServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("site") / "home"
    copy_home(migrated_home, home)
    instance = Instance(home, LEASE | runtime() | server.environment)
    instance.serve()
    client = Client(instance, instance.key())
    for slug, source in {"asker": ASKER, "stepper": STEPPER, "chatty": CHATTY}.items():
        client.register(slug, source)
    yield Site(instance, client)
    client.http.close()
    instance.stop()


def work_on(site: Site, provider: str, **environment: str) -> None:
    site.instance.env.update({"ENGINE_SANDBOX": provider, **environment})


@needs_bubblewrap
@pytest.mark.parametrize(("first", "then"), [("e2b", "local"), ("local", "e2b")])
def test_a_job_that_asked_on_one_provider_ends_on_the_other(
    site: Site, server: E2BServer, first: str, then: str
) -> None:
    client = site.client
    work_on(site, first)
    asking = site.worker()
    job_id = client.submit("asker")
    client.until(job_id, "waiting_for_input")
    if first == "e2b":
        eventually(server.paused, what="the sandbox sleeps")
        server.call(server.paused()[0].destroy)
    asking.stop()

    reply = client.http.post(f"/api/v1/jobs/{job_id}/respond", json={"answer": "warm"})
    assert reply.status_code == 200, reply.text
    work_on(site, then)
    answering = site.worker()
    job = client.until(job_id, "completed")
    answering.stop()

    assert job["result"]["tone"] == "warm"
    assert job["result"]["notes"] == "kept over the wait"
    assert client.lines(job_id) == [f"before the question {job['result']['token']}", "after the question"]
    assert [attempt["outcome"] for attempt in job["attempts"]] == ["suspended", "completed"]
    assert_history_is_sound(client, job_id)
    assert server.running() == []


def test_an_answer_wakes_the_sandbox_that_asked(site: Site, server: E2BServer) -> None:
    client, before = site.client, len(server.created)
    work_on(site, "e2b")
    worker = site.worker()
    job_id = client.submit("asker")
    client.until(job_id, "waiting_for_input")
    eventually(server.paused, what="the sandbox sleeps")

    client.http.post(f"/api/v1/jobs/{job_id}/respond", json={"answer": "formal"})
    job = client.until(job_id, "completed")
    worker.stop()

    assert job["result"]["tone"] == "formal"
    assert len(server.created) == before + 1
    assert server.running() == server.paused() == []


def test_a_killed_worker_s_job_goes_on_and_its_sandbox_is_ended(site: Site, server: E2BServer) -> None:
    client = site.client
    work_on(site, "e2b")
    dying = site.worker()
    job_id = client.submit("stepper", input={"seconds": 2})
    client.said(job_id, "token")
    (old,) = server.running()
    dying.kill()

    worker = site.worker()
    job = client.until(job_id, "completed")
    eventually(lambda: old.state == "killed", what="the old sandbox is ended")
    worker.stop()

    assert client.lines(job_id) == [f"token {job['result']['token']}", "worked"]
    assert_history_is_sound(client, job_id)
    assert server.running() == []


def test_streams_that_break_all_the_time_lose_and_double_no_line(site: Site, server: E2BServer) -> None:
    client = site.client
    work_on(site, "e2b")
    worker = site.worker()
    job_id = client.submit("chatty", input={"lines": 40})
    client.said(job_id, "line 1")

    async def cut() -> None:
        while client.job(job_id)["status"] == "running":
            for machine in server.running():
                server.call(machine.cut_streams)
            await asyncio.sleep(0.5)

    asyncio.run(cut())
    client.until(job_id, "completed")
    worker.stop()

    assert client.lines(job_id) == [f"line {number}" for number in range(40)]


@pytest.mark.parametrize("key", ["", "e2b_wrong"])
def test_without_a_good_key_jobs_wait_and_no_attempt_is_burnt(
    site: Site, server: E2BServer, key: str
) -> None:
    client = site.client
    work_on(site, "e2b", E2B_API_KEY=key)
    worker = site.instance.worker()
    job_id = client.submit("stepper")

    worker.printed("No jobs are taken: .*set E2B_API_KEY")
    ready = client.http.get("/health/ready").json()
    job = client.job(job_id)
    shown = client.http.get("/api/v1/admin/workers").text
    worker.stop()
    work_on(site, "e2b", E2B_API_KEY=server.key)
    healed = site.worker()
    done = client.until(job_id, "completed")
    healed.stop()

    assert (job["status"], job["attempts"]) == ("queued", [])
    assert "E2B_API_KEY" in str(ready)
    assert "E2B_API_KEY" in shown
    assert [attempt["outcome"] for attempt in done["attempts"]] == ["completed"]
