"""`/health/live` says that the process lives, `/health/ready` that jobs can run, and what is missing if not."""

import time
from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.db import OperationalError, connection
from django.test import Client
from django.utils import timezone

from agents import discovery
from engine import diagnosis, readiness
from jobs.models import Worker


def make_worker(*, lease: float = 15, **fields: object) -> Worker:
    lease_until = timezone.now() + timedelta(seconds=lease)
    return Worker.objects.create(
        host="here", pid=1, slots=4, lease_until=lease_until, **{"can_run": True, **fields}
    )


@pytest.fixture(autouse=True)
def fresh_readings() -> Iterator[None]:
    readiness.forget()
    yield
    readiness.forget()


def test_a_process_that_answers_is_alive_whatever_else_is_down(client: Client):
    answer = client.get("/health/live")

    assert (answer.status_code, answer.json()["status"]) == (200, "ok")


@pytest.mark.django_db
def test_jobs_can_run_once_a_live_worker_has_a_sandbox(client: Client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(discovery, "_degraded", [])
    make_worker()

    answer = client.get("/health/ready")

    assert answer.status_code == 200
    parts = answer.json()["parts"]
    assert list(parts) == [*diagnosis.PARTS]
    states = {name: part["state"] for name, part in parts.items()}
    assert states == dict.fromkeys(parts, "ok") | {"e2b": "off", "model_api": "off", "traces": "off"}
    assert all(part["ok"] for part in parts.values())


@pytest.mark.django_db
def test_a_balancer_can_ask_without_the_workers(client: Client):
    answer = client.get("/health/ready?without=workers")

    assert answer.status_code == 200
    assert "workers" not in answer.json()["parts"]


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("worker", "remedy"),
    [
        (None, "runworker"),
        ({"lease": -1}, "runworker"),
        ({"stopped_at": timezone.now()}, "runworker"),
        ({"drain_requested_at": timezone.now()}, "runworker"),
        ({"can_run": False}, "doctor"),
    ],
)
def test_without_such_a_worker_it_says_what_to_do(client: Client, worker, remedy):
    if worker is not None:
        make_worker(**worker)

    answer = client.get("/health/ready")

    assert answer.status_code == 503
    part = answer.json()["parts"]["workers"]
    assert part["ok"] is False
    assert remedy in part["remedy"]


def test_a_database_that_is_away_is_named_and_nothing_else_is_asked_of_it(client: Client, monkeypatch):
    def away() -> None:
        raise OperationalError("connection refused to hunter2")

    monkeypatch.setattr(connection, "ensure_connection", away)

    answer = client.get("/health/ready")

    parts = answer.json()["parts"]
    assert answer.status_code == 503
    assert (parts["database"]["ok"], parts["database"]["remedy"]) == (
        False,
        "start PostgreSQL, or set DATABASE_URL",
    )
    assert {"migrations", "workers", "clock"}.isdisjoint(parts)
    assert parts["storage"]["ok"]
    assert "hunter2" not in answer.content.decode()


@pytest.mark.django_db
def test_a_probe_may_call_the_process_by_any_address(client: Client, settings):
    settings.SECURE_SSL_REDIRECT = True

    assert client.get("/health/live", HTTP_HOST="10.1.2.3:8000").status_code == 200
    assert client.get("/health/ready", HTTP_HOST="10.1.2.3:8000").status_code == 503
    assert client.get("/api/v1/jobs", HTTP_HOST="evil.example").status_code == 400


@pytest.mark.django_db
def test_probes_only_ask(client: Client):
    assert client.post("/health/ready").status_code == 404
    assert client.get("/health/other").status_code == 404


def test_tables_that_are_missing_are_named_until_they_are_there(tmp_path, make_instance):
    instance = make_instance()
    instance.manage("migrate", "jobs", "zero", "--verbosity", "0")
    instance.serve()
    with instance.client() as client:
        assert client.get("/health/ready").json()["parts"]["migrations"]["remedy"] == "Run manage.py migrate."

        instance.manage("migrate", "--verbosity", "0")

        assert client.get("/health/ready").json()["parts"]["migrations"] == {"ok": True, "state": "ok"}


def test_without_a_database_the_web_process_starts_and_answers_503(make_instance):
    instance = make_instance(DATABASE_URL="postgresql://engine@127.0.0.1:1/engine")
    instance.serve()
    with instance.client("engine_live_" + "x" * 50) as client:
        begun = time.monotonic()
        ready = client.get("/health/ready")
        answer = client.get("/api/v1/jobs", headers={"Authorization": f"Bearer {'x' * 40}"})

        assert client.get("/health/live").status_code == 200
    assert time.monotonic() - begun < 10
    assert (ready.status_code, ready.json()["parts"]["database"]["ok"]) == (503, False)
    assert answer.status_code in (401, 503)  # a malformed key needs no database to be refused


def test_the_api_says_503_while_the_database_is_away_and_recovers_by_itself(make_instance):
    from engine.embedded import DATABASE, USER, EmbeddedServer

    instance = make_instance()
    secret = instance.key("admin")
    server = EmbeddedServer(instance.home)
    server.ensure()
    # Through DATABASE_URL, so that the web process does not start the server again by itself.
    instance.env["DATABASE_URL"] = f"postgresql://{USER}@/{DATABASE}?host={server.socket_folder}"
    instance.serve()
    with instance.client(secret) as client:
        assert client.get("/api/v1/admin/keys").status_code == 200

        server.leave()
        away = client.get("/api/v1/admin/keys")
        assert away.status_code == 503
        assert away.headers["content-type"] == "application/problem+json"
        assert int(away.headers["retry-after"]) >= 1

        server.ensure()
        try:
            assert client.get("/api/v1/admin/keys").status_code == 200
        finally:
            instance.stop()
            server.leave()
