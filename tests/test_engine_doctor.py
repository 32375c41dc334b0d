"""`manage.py doctor` names the remedy that fits what it was told."""

from datetime import timedelta
from typing import Any

import httpx
import psycopg
import pytest
from django.core.management import call_command
from django.db import OperationalError, connection
from django.utils import timezone
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from engine import diagnosis
from engine.database import direct_dsn
from engine.diagnosis import storage
from engine.remedies import database_remedy, storage_remedy
from tests.buckets import bucket_server, storages_in
from tests.collector import collecting


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"dbname": "not_there"}, "create the database"),
        ({"user": "nobody_of_that_name"}, "create the role"),
        ({"host": "no.such.host.invalid"}, "correct the host"),
        ({"host": "127.0.0.1", "port": "1"}, "start PostgreSQL"),
    ],
)
@pytest.mark.django_db
def test_a_database_that_cannot_be_reached_gets_the_remedy_that_fits(change, remedy):
    parameters = {**conninfo_to_dict(direct_dsn()), **change}

    with pytest.raises(psycopg.OperationalError) as refused:
        psycopg.connect(make_conninfo(**parameters))

    assert remedy in database_remedy(refused.value)


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ('FATAL:  password authentication failed for user "engine"', "password"),
        ('FATAL:  no pg_hba.conf entry for host "10.0.0.7", no encryption', "sslmode"),
        ("connection timeout expired", "firewall"),
        ("FATAL:  sorry, too many clients already", "max_connections"),
        ("unsupported startup parameter: options", "ENGINE_DIRECT_DATABASE_URL"),
    ],
)
def test_what_a_server_refuses_with_gets_the_remedy_that_fits(said, remedy):
    assert remedy in database_remedy(psycopg.OperationalError(said))


@pytest.mark.parametrize(
    ("key", "bucket", "remedy"),
    [("wrong", "engine-artifacts", "AWS_ACCESS_KEY_ID"), ("test", "not-there", "create the bucket")],
)
def test_a_bucket_that_refuses_gets_the_remedy_that_fits(settings, key, bucket, remedy):
    with bucket_server() as server:
        settings.STORAGES = {
            **settings.STORAGES,
            "artifacts": storages_in(server.url, key=key, bucket=bucket),
        }
        finding = storage("artifacts")

    assert not finding.ok
    assert remedy in finding.remedy


class Server:
    """What a database says of itself."""

    def __init__(self, *rows: Any) -> None:
        self.rows = list(rows)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def execute(self, *_: Any) -> None:
        pass

    def fetchone(self) -> Any:
        return self.rows.pop(0)


@pytest.mark.parametrize(
    ("says", "state", "remedy"),
    [
        (("14.9", 140_009, [], "0.8.0"), "failed", "PostgreSQL 15"),
        (("16.4", 160_004, [], None), "failed", "install pgvector"),
        (("16.4", 160_004, ["fsync"], "0.8.0"), "degraded", "switch fsync on"),
        (("16.4", 160_004, [], "0.7.4"), "degraded", "update pgvector"),
        (("16.4", 160_004, [], "0.10.0"), "ok", ""),
    ],
)
def test_a_database_that_lacks_something_is_told_by_its_version(monkeypatch, says, state, remedy):
    monkeypatch.setattr(connection, "cursor", lambda: Server(says))

    finding = diagnosis.database("database")

    assert finding.state == state
    assert remedy in finding.remedy
    assert says[0] in finding.detail
    assert says[0] not in finding.public  # an exact version helps whoever looks for a hole


@pytest.mark.parametrize(("seconds", "ok"), [(0, True), (-30, False), (30, False)])
def test_a_clock_that_is_wrong_is_told(monkeypatch, seconds, ok):
    there = timezone.now() + timedelta(seconds=seconds)
    monkeypatch.setattr(connection, "cursor", lambda: Server((there,)))

    finding = diagnosis.clock("clock")

    assert finding.ok is ok
    assert ("NTP" in finding.remedy) is not ok


@pytest.mark.parametrize(
    ("status", "state", "remedy"),
    [(200, "ok", ""), (404, "ok", ""), (401, "failed", "OPENAI_API_KEY"), (500, "failed", "log")],
)
def test_a_model_server_is_judged_by_its_answer_and_its_password_is_not_shown(
    monkeypatch, settings, status, state, remedy
):
    settings.OPENAI_BASE_URL = "https://me:hunter2@models.example/v1"
    monkeypatch.setattr(httpx, "get", lambda *_, **__: httpx.Response(status))

    finding = diagnosis.model_api("model_api")

    assert finding.state == state
    assert remedy in finding.remedy
    assert "models.example" in finding.detail
    assert "hunter2" not in finding.detail


@pytest.mark.parametrize(
    ("path", "status", "state", "remedy"),
    [
        ("/v1/traces", 200, "ok", ""),
        ("/v1/traces", 401, "failed", "OTEL_EXPORTER_OTLP_HEADERS"),
        ("/v1/traces", 503, "failed", "log"),
        ("/elsewhere", 200, "failed", "4318"),
    ],
)
def test_a_collector_is_sent_no_spans_to_see_whether_it_takes_them(settings, path, status, state, remedy):
    with collecting() as collector:
        collector.status = status
        settings.OTEL_EXPORTER_OTLP_TRACES_ENDPOINT = collector.url.replace("//", "//me:hunter2@") + path
        finding = diagnosis.traces("traces")

    assert finding.state == state
    assert remedy in finding.remedy
    assert "127.0.0.1" in finding.detail
    assert "hunter2" not in finding.detail
    assert not collector.spans


def test_a_collector_that_is_away_is_named(settings):
    settings.OTEL_EXPORTER_OTLP_TRACES_ENDPOINT = "http://127.0.0.1:9/v1/traces"

    finding = diagnosis.traces("traces")

    assert (finding.state, "127.0.0.1:9" in finding.detail) == ("failed", True)
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in finding.remedy


def test_whatever_a_library_raises_the_other_parts_are_looked_at(monkeypatch, capsys):
    def broken(part: str) -> diagnosis.Finding:
        raise LookupError("odd")

    parts = {"disk": diagnosis.PARTS["disk"], "storage": diagnosis.Part(broken, "")}
    monkeypatch.setattr(diagnosis, "PARTS", {"storage": parts["storage"], "disk": parts["disk"]})

    with pytest.raises(SystemExit) as ended:
        call_command("doctor")

    assert ended.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("FAIL  storage        LookupError: odd")
    assert "LOG_LEVEL=DEBUG" in lines[1]
    assert lines[2].startswith("ok    disk")


def test_a_part_that_asks_the_database_does_not_wait_for_one_that_is_away(monkeypatch):
    def away() -> None:
        raise OperationalError("connection refused")

    monkeypatch.setattr(connection, "ensure_connection", away)
    monkeypatch.setitem(
        diagnosis.PARTS, "sandbox", diagnosis.Part(diagnosis.disk, "")
    )  # which takes its time

    found = {finding.part: finding.state for finding in diagnosis.findings()}

    assert found["database"] == "failed"
    assert {found[name] for name in ("migrations", "clock", "pooling", "workers")} == {"unknown"}
    assert found["cache"] == "ok"


def test_a_command_without_its_database_says_so_in_a_line(make_instance):
    instance = make_instance(DATABASE_URL="postgresql://engine:hunter2@127.0.0.1:1/engine")

    ended = instance.manage("migrate", check=False)

    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert "To fix it: start PostgreSQL, or set DATABASE_URL" in ended.stderr
    assert "hunter2" not in ended.stderr


def test_a_full_disk_is_called_so():
    assert "room" in storage_remedy(OSError(28, "No space left on device"))
