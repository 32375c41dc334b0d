"""Wake-ups over a real Redis: heard at once, lost with it for a while, and nothing else is lost with them."""

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from engine import diagnosis, readiness
from jobs import listening, wakeups
from tests.processes import Instance, eventually
from tests.redis_server import RedisServer, redis_server


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as started:
        yield started


@pytest.fixture
def over_redis(server: RedisServer, settings: Any) -> RedisServer:
    wakeups.notifier.stop()
    settings.REDIS_URL = server.url
    settings.CACHES = {
        **settings.CACHES,
        "default": {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": server.url,
            "OPTIONS": {"socket_timeout": 1.0, "socket_connect_timeout": 1.0},
        },
    }
    return server


async def heard(most: int) -> list[listening.Hint | None]:
    """What is heard from before the first hint on."""
    found: list[listening.Hint | None] = []
    async with asyncio.timeout(30), contextlib.aclosing(listening.hints(wakeups.JOB_CHANNEL)) as hints:
        async for hint in hints:
            found.append(hint)
            if hint is None:
                wakeups.notifier.send(wakeups.JOB_CHANNEL, ["one", "two"])
            if len(found) == most:
                return found
    return found


def test_hints_go_over_redis(over_redis: RedisServer):
    assert asyncio.run(heard(2)) == [None, listening.Hint(wakeups.JOB_CHANNEL, "one,two")]


def test_whoever_listens_to_a_redis_that_dies_is_told(over_redis: RedisServer):
    async def listen() -> None:
        async with contextlib.aclosing(listening.connection(wakeups.JOB_CHANNEL)) as hints:
            async for _ in hints:
                over_redis.kill()

    with pytest.raises(listening.HintsLost):
        asyncio.run(listen())


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[None]:
    """One entry per call of a function, from now on."""
    calls: list[None] = []
    real = getattr(module, name)

    def call(*arguments: Any) -> Any:
        calls.append(None)
        return real(*arguments)

    monkeypatch.setattr(module, name, call)
    return calls


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage().partition(",")[0] for record in caplog.records if record.name == "engine.wakeups"
    ]


def test_a_listener_logs_an_outage_once_and_goes_on_by_itself(
    over_redis: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    connections = counted(monkeypatch, listening, "connection")
    monkeypatch.setattr(listening, "RECONNECT_SECONDS", 0.01)
    caplog.set_level("INFO", "engine.wakeups")

    def start_again() -> None:
        eventually(lambda: len(connections) >= 4)
        over_redis.start()

    async def listen() -> None:
        heard = 0
        async with asyncio.timeout(60), contextlib.aclosing(listening.hints(wakeups.JOB_CHANNEL)) as hints:
            async for _ in hints:
                heard += 1
                if heard == 2:
                    return
                over_redis.kill()
                asyncio.get_running_loop().run_in_executor(None, start_again)

    asyncio.run(listen())

    assert said(caplog) == ["Wake-ups are not heard", "Wake-ups are heard again."]


def test_a_sender_logs_an_outage_once(
    over_redis: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    connections = counted(monkeypatch, wakeups, "_by_redis")
    monkeypatch.setattr(wakeups, "RETRY_SECONDS", 0.01)
    caplog.set_level("INFO", "engine.wakeups")
    notifier = wakeups.Notifier()
    over_redis.kill()
    for tries in range(1, 5):
        notifier.send(wakeups.JOB_CHANNEL, ["one"])
        eventually(lambda: len(connections) > tries)  # noqa: B023  (called at once)
    over_redis.start()
    notifier.send(wakeups.JOB_CHANNEL, ["one"])
    eventually(lambda: len(said(caplog)) > 1)
    notifier.stop()

    assert said(caplog) == ["Wake-ups are not sent", "Wake-ups are sent again."]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_nobody_waits_for_a_redis_that_is_away(over_redis: RedisServer, number: int):
    over_redis.kill(number)
    started = time.monotonic()
    wakeups.notifier.send(wakeups.JOB_CHANNEL, ["one"])
    sent = time.monotonic() - started
    finding = diagnosis.shared_cache("cache")

    assert sent < 1
    assert readiness.Reading(finding).state == "degraded"  # and not failed: jobs are taken
    assert (finding.ok, finding.remedy) == (False, "start Redis, or correct REDIS_URL")


def test_jobs_run_before_during_and_after_its_death(make_instance: Any, server: RedisServer):
    instance: Instance = make_instance(REDIS_URL=server.url, ENGINE_BENCHMARK="1")
    key = instance.key()
    instance.worker()
    instance.serve()
    instance.ready()
    eventually(lambda: server.listeners(wakeups.QUEUE_CHANNEL), seconds=60, what="the worker listens")
    card = {"slug": "idle", "name": "Idle", "description": "Does nothing at all", "kind": "noop"}
    with httpx.Client(
        base_url=instance.url, headers={"Authorization": f"Bearer {key}"}, timeout=30
    ) as client:
        made = client.post("/api/v1/agents", json=card)
        assert made.status_code == 201, made.text

        def run_one() -> None:
            job = client.post("/api/v1/jobs", json={"task": "Nothing", "agent": "idle"}).json()
            address = f"/api/v1/jobs/{job['id']}"
            eventually(
                lambda: client.get(address).json()["status"] == "completed", seconds=60, what="the job"
            )

        def followed() -> list[str]:
            """What a socket is told of a job from its beginning to its end."""
            job = client.post("/api/v1/jobs", json={"task": "Nothing", "agent": "idle"}).json()["id"]
            address = f"{instance.url.replace('http', 'ws')}/ws/v1/jobs/{job}"
            with connect(address, additional_headers=client.headers, open_timeout=10) as events:
                types = []
                with contextlib.suppress(ConnectionClosed):  # after the last event
                    while True:
                        types.append(json.loads(events.recv(timeout=30))["type"])
                return types

        run_one()
        server.kill()
        run_one()
        begun = time.monotonic()
        assert followed()[-1] == "job.completed"
        assert time.monotonic() - begun < 10  # two looks at the table, on a busy machine
        server.start()
        eventually(
            lambda: server.listeners(wakeups.QUEUE_CHANNEL), seconds=30, what="the worker listens again"
        )
        run_one()
