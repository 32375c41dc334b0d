"""What is outside never keeps a probe waiting: it is looked at apart, and the last finding is told with its age."""

import asyncio
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from django.test import Client

from engine import asgi, diagnosis, readiness
from engine.bridge import Bridge, Message
from tests.processes import eventually

READY = "/health/ready?without=workers"


@pytest.fixture(autouse=True)
def fresh_readings() -> Iterator[None]:
    readiness.forget()
    yield
    readiness.forget()


@contextmanager
def silent_server() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        yield listener.getsockname()[1]


def part(client: Client, name: str) -> dict[str, Any]:
    answer = client.get(READY)
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()["parts"][name]
    return found


@pytest.mark.django_db
def test_a_server_that_hangs_delays_no_probe_and_is_named_without_its_address(
    client: Client, settings: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(readiness, "SLOW_SECONDS", 0.3)
    monkeypatch.setattr(diagnosis, "OUTSIDE_SECONDS", 30.0)
    client.get(READY)  # loads what is loaded once
    readiness.forget()
    with silent_server() as port:
        settings.OPENAI_BASE_URL = f"http://user:hunter2@127.0.0.1:{port}/v1"
        begun = time.monotonic()
        answers = [client.get(READY) for _ in range(5)]
        took = time.monotonic() - begun
        eventually(lambda: part(client, "model_api")["state"] == "degraded", seconds=30, what="the silence")
        answer = client.get(READY)

    assert {answer.status_code for answer in answers} == {200}
    assert took < 20  # and not 30 s
    assert answer.json()["degraded"] is True
    found = answer.json()["parts"]["model_api"]
    assert (found["ok"], found["degraded"]) == (True, True)
    assert found["remedy"]
    assert "hunter2" not in answer.text
    assert str(port) not in answer.text


@pytest.mark.django_db
def test_what_is_outside_is_told_with_its_age_and_looked_at_again(
    client: Client, settings: Any, monkeypatch: pytest.MonkeyPatch
):
    statuses = [401]

    def answer(address: str, **_: Any) -> httpx.Response:
        return httpx.Response(statuses[-1])

    monkeypatch.setattr(httpx, "get", answer)
    monkeypatch.setattr(readiness, "AGAIN_SECONDS", 0.0)
    settings.OPENAI_API_KEY = "sk-hunter2"
    eventually(lambda: part(client, "model_api")["state"] == "degraded", seconds=30, what="the refusal")
    refused = part(client, "model_api")
    statuses.append(200)
    eventually(lambda: part(client, "model_api")["state"] == "ok", seconds=30, what="the return")
    well = part(client, "model_api")

    assert "OPENAI_API_KEY" in refused["remedy"]
    assert refused["checked_at"] < well["checked_at"]
    assert part(client, "model_api")["checked_at"] == well["checked_at"]  # not looked at by each who asks


@pytest.mark.django_db
def test_one_look_at_a_time_goes_to_a_server_that_hangs(
    client: Client, settings: Any, monkeypatch: pytest.MonkeyPatch
):
    asked: list[str] = []

    def hang(address: str, **_: Any) -> httpx.Response:
        asked.append(address)
        time.sleep(1)  # a server that hangs, not a test that waits
        raise httpx.ReadTimeout("")

    monkeypatch.setattr(httpx, "get", hang)
    settings.OPENAI_API_KEY = "sk-x"
    for _ in range(5):
        client.get(READY)

    assert len(asked) == 1


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("free", "state", "status"), [(1024**3, "degraded", 200), (1024**2, "failed", 503), (2**40, "ok", 200)]
)
def test_a_disk_that_fills_is_said_before_nothing_can_be_written(
    client: Client, monkeypatch: pytest.MonkeyPatch, free: int, state: str, status: int
):
    usage = shutil.disk_usage("/")._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    answer = client.get(READY)

    assert (answer.status_code, answer.json()["parts"]["disk"]["state"]) == (status, state)


@pytest.mark.django_db
def test_a_database_that_hangs_keeps_no_probe_waiting(monkeypatch: pytest.MonkeyPatch):
    let_go = threading.Event()

    def hang(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        let_go.wait(60)
        return []

    monkeypatch.setattr(asgi, "PROBE_SECONDS", 0.2)
    monkeypatch.setitem(asgi.probes, "/health/ready", Bridge(hang, threads=1))
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/health/ready", "http_version": "1.1", "headers": []}
    begun = time.monotonic()
    asyncio.run(asgi.application(scope, receive, send))
    took = time.monotonic() - begun
    let_go.set()

    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert took < 20  # and not a minute
    assert sent[0]["status"] == 503
    parts = json.loads(sent[1]["body"])["parts"]
    assert (parts["database"]["ok"], parts["database"]["state"]) == (False, "failed")
    assert "storage" in parts
