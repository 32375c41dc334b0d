"""Secrets do not reach logs and events: by their form, by whose they are, by what a job was given."""

import json
import logging
import sys
import time
from typing import Any

import pytest
from django.utils import timezone

from apikeys.secret import new_secret
from engine.logs import JsonLine, OneLine
from engine.redaction import REDACTED, Redactor, of_installation, secrets_in
from jobs.models import Event
from jobs.recorder import AttemptRecorder, Clock
from tests.factories import make_project
from tests.jobs import claim_one, make_job, make_worker
from tests.test_jobs_recorder import with_writer

SECRETS = [
    new_secret("live"),
    new_secret("test"),
    "whsec_" + "G524xK2s114Uwsu257eevQ==aaaa",
    "sk-proj-" + "a1B2" * 10,
    "sk_live_" + "4eC39HqLyjWDarjtT1",
    "ghp_" + "x" * 36,
    "github_pat_" + "1A" * 20,
    "xoxb-" + "123456789012-abcdef",
    "AKIA" + "IOSFODNN7EXAMPLE",
    "AIza" + "b" * 35,
    "hf_" + "q" * 34,
    "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0In0." + "c2lnbmF0dXJlLWhlcmU",
    "-----BEGIN PRIVATE KEY-----\nMIIEvQ\n-----END PRIVATE KEY-----",
]


@pytest.mark.parametrize("secret", SECRETS, ids=range(len(SECRETS)))
def test_what_looks_like_a_secret_is_taken_out(secret: str) -> None:
    line = f"key={secret}, done"

    assert Redactor()(line) == f"key={REDACTED}, done"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Authorization: Bearer abcdefgh12345678", f"Authorization: Bearer {REDACTED}"),
        ("postgresql://ada:s3cret@db:5432/x", f"postgresql://ada:{REDACTED}@db:5432/x"),
        ("https://example.com/a:b@c", "https://example.com/a:b@c"),
        ("a task-list with under_scores and sk-short", "a task-list with under_scores and sk-short"),
        ("", ""),
    ],
)
def test_names_and_ordinary_text_stay(text: str, shown: str) -> None:
    assert Redactor()(text) == shown


def test_json_stays_json() -> None:
    text = json.dumps({"a": [f'{secret} "quoted"' for secret in SECRETS], "b": "end"})

    read = json.loads(Redactor()(text))

    assert len(read["a"]) == len(SECRETS)
    assert read["b"] == "end"
    assert not [secret for secret in SECRETS[:-1] if secret in str(read)]


def test_the_installations_own_secrets_are_known_by_value(settings: Any) -> None:
    settings.SECRET_KEY = "a-key-of-no-known-form-at-all"
    settings.OPENAI_API_KEY = "local-model-key"
    settings.OTEL_EXPORTER_OTLP_HEADERS = {"authorization": "Bearer collectors-key"}

    text = "x a-key-of-no-known-form-at-all local-model-key collectors-key"
    assert Redactor()(text) == f"x {REDACTED} {REDACTED} {REDACTED}"


def test_a_jobs_secrets_are_told_by_their_names() -> None:
    given = {
        "db": {"Password": "hunter2hunter2"},
        "api_keys": ["one-two-three"],
        "note": "not secret",
        "token": 7,
    }

    assert sorted(secrets_in(given)) == ["hunter2hunter2", "one-two-three"]


@pytest.mark.parametrize("formatter", [OneLine("%(message)s"), JsonLine()])
def test_the_servers_log_shows_none(formatter: logging.Formatter) -> None:
    of_installation.cache_clear()
    try:
        raise ValueError(f"refused {SECRETS[0]}")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "x", 1, "with %s", (SECRETS[3],), sys.exc_info())

    line = formatter.format(record)

    assert SECRETS[0] not in line
    assert SECRETS[3] not in line
    assert line.count(REDACTED) >= 2


@pytest.mark.django_db(transaction=True)
def test_a_jobs_events_show_none() -> None:
    job = make_job(make_project(), input={"password": "correct horse battery"})
    worker = make_worker()
    claimed = claim_one(worker)

    async def talk(writer: Any) -> None:
        recorder = AttemptRecorder(writer, claimed, Clock(timezone.now()))
        recorder.event(
            "log", message=f"logging in with correct horse battery and {SECRETS[0]}", source="stdout"
        )
        recorder.event("step.failed", data={"error": f"401 for {SECRETS[3]}"})
        recorder.progress(0.5, "using correct horse battery")
        await recorder.flush()

    with_writer(worker, talk)

    job.refresh_from_db()
    stored = [
        (row.message, row.data) for row in Event.objects.filter(job_id=job.id, seq__gt=2).order_by("seq")
    ]
    assert stored[0][0] == f"logging in with {REDACTED} and {REDACTED}"
    assert stored[1][1] == {"error": f"401 for {REDACTED}"}
    assert job.progress_message == f"using {REDACTED}"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("secret", ["12345678", '", "b": "', '"number":'])
def test_a_secret_that_looks_like_json_breaks_no_event(secret: str) -> None:
    job = make_job(make_project(), input={"password": secret})
    worker = make_worker()
    claimed = claim_one(worker)

    async def talk(writer: Any) -> None:
        recorder = AttemptRecorder(writer, claimed, Clock(timezone.now()))
        recorder.event("step.failed", data={"number": 12345678, "a": "x", "b": f"said {secret}"})
        await recorder.flush()

    with_writer(worker, talk)

    stored = Event.objects.filter(job_id=job.id, type="step.failed").get()
    assert stored.data == {"number": 12345678, "a": "x", "b": f"said {REDACTED}"}


@pytest.mark.parametrize("text", ["eyJ-" * 50_000, "-----BEGIN PRIVATE KEY-----" * 9_000, "a://b:" * 40_000])
def test_no_text_takes_the_search_for_ever(text: str) -> None:
    begun = time.process_time()

    Redactor()(text)

    assert time.process_time() - begun < 5
