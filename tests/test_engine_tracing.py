"""Traces as a collector sees them: real web and worker processes, a real sandbox, a scripted model."""

import json
import logging
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agents.embeddings.openai import OpenAIEmbedder
from engine import diagnosis, tracing
from jobs import bulk
from jobs.models import Job
from jobs.services import JobRequest
from tests.collector import Collector, Seen, collecting, make_certificate
from tests.embeddings_server import EmbeddingsServer
from tests.jobs import make_caller, make_job, make_project
from tests.model_server import ModelServer, call, say
from tests.processes import ROOT, Instance, Program, copy_home, eventually
from tests.receivers import Receiver, receiving
from tests.sandboxes import needs_bubblewrap
from tests.test_end_to_end import LEASE, Client, runtime
from tests.test_llm_end_to_end import register

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
SECRET_WORDS = "the secret words of the task"
TELLER = """
import os
from engine_agent import ask

def main(task, inputs):
    ask("Go on?", choices=["yes"])
    return {"traceparent": os.environ.get("TRACEPARENT")}
"""
FAILING = "def main(task, inputs):\n    raise ValueError('words of the agent')\n"


@dataclass
class Traced:
    """A running installation that is traced."""

    web: Program
    client: Client
    collector: Collector
    model: ModelServer
    receiver: Receiver

    def submit(self, agent: str, traceparent: str = "", **fields: Any) -> str:
        body = {"task": SECRET_WORDS, "agent": agent, **fields}
        headers = {"traceparent": traceparent} if traceparent else {}
        reply = self.client.http.post("/api/v1/jobs", json=body, headers=headers)
        assert reply.status_code == 201, reply.text
        return str(reply.json()["id"])


@pytest.fixture(scope="module")
def traced(migrated_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    home = tmp_path_factory.mktemp("traced") / "home"
    copy_home(migrated_home, home)
    with collecting() as collector, ModelServer() as model, receiving() as receiver:
        environment = collector.environment() | model.environment()
        environment |= {"ENGINE_WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8", "LOG_FORMAT": "json"}
        instance = Instance(home, LEASE | runtime() | environment)
        try:
            web = instance.serve()
            instance.worker("--concurrency", "2")
            client = Client(instance, instance.key())
            client.register("teller", TELLER)
            client.register("failing", FAILING)
            register(client, "thinker")
            instance.ready()
            yield Traced(web, client, collector, model, receiver)
            client.http.close()
        finally:
            instance.stop()


@needs_bubblewrap
def test_one_trace_leads_from_a_request_to_the_model(traced: Traced) -> None:
    traced.model.script = [call("run_python", code="6 * 7"), say("It is 42.")]

    job_id = traced.submit("thinker", f"00-{TRACE}-{CALLER}-01", webhook_url=traced.receiver.url)
    traced.client.until(job_id, "completed")

    seen = traced.collector
    attempt = seen.one("attempt", engine_job_id=job_id)
    job, request = seen.one("job", engine_job_id=job_id), seen.one("POST /api/v1/jobs")
    (sandbox,) = eventually(lambda: [span for span in seen.named("sandbox") if span.trace_id == TRACE])
    chats = eventually(lambda: [] if len(found := seen.named("chat scripted")) < 2 else found)
    assert (request.trace_id, request.parent_id) == (TRACE, CALLER)
    assert (job.trace_id, job.parent_id) == (TRACE, request.id)
    assert (attempt.trace_id, attempt.parent_id) == (TRACE, job.id)
    assert {span.parent_id for span in (sandbox, *chats)} == {attempt.id}
    assert request.attributes["http.response.status_code"] == 201
    assert request.attributes["http.route"] == "/api/v1/jobs"
    assert attempt.attributes["engine.attempt.outcome"] == "completed"
    assert attempt.attributes["engine.agent.slug"] == "thinker"
    assert attempt.attributes["engine.wait_seconds"] >= 0
    assert chats[0].attributes["gen_ai.request.model"] == "scripted"
    assert chats[0].attributes["gen_ai.usage.input_tokens"] == 100
    assert not any(span.is_error for span in (request, job, attempt, sandbox, *chats))
    # The model and the webhook's receiver were told of it.
    assert traced.model.headers[-1]["traceparent"] in {span.traceparent for span in chats}
    told = eventually(
        lambda: [call for call in traced.receiver.calls if call.json["type"] == "job.completed"]
    )
    sent = seen.one("webhook", engine_webhook_event="job.completed")
    assert told[0].headers["traceparent"] == sent.traceparent
    assert (sent.trace_id, sent.parent_id) == (TRACE, job.id)


@needs_bubblewrap
def test_an_attempt_after_an_answer_joins_the_trace_and_its_program_may_go_on_with_it(traced: Traced) -> None:
    job_id = traced.submit("teller")
    traced.client.until(job_id, "waiting_for_input")
    traced.client.http.post(f"/api/v1/jobs/{job_id}/respond", json={"answer": "yes"})
    ended = traced.client.until(job_id, "completed")

    job = traced.collector.one("job", engine_job_id=job_id)
    first, second = (traced.collector.one("attempt", engine_job_id=job_id, engine_attempt=n) for n in (1, 2))
    assert {(span.trace_id, span.parent_id) for span in (first, second)} == {(job.trace_id, job.id)}
    assert [span.attributes["engine.attempt.outcome"] for span in (first, second)] == [
        "suspended",
        "completed",
    ]
    assert ended["result"] == {"traceparent": second.traceparent}


@needs_bubblewrap
def test_a_failed_attempt_is_an_error_by_its_code_and_a_new_try_links_to_it(traced: Traced) -> None:
    job_id = traced.submit("failing", max_attempts=1)
    traced.client.until(job_id, "failed")
    again = traced.client.http.post(f"/api/v1/jobs/{job_id}/retry").json()["id"]

    attempt = traced.collector.one("attempt", engine_job_id=job_id)
    assert attempt.is_error
    assert attempt.attributes["error.type"] == "agent_error"
    retried = traced.collector.one("job", engine_job_id=again)
    assert retried.links == (attempt.trace_id,)
    assert retried.trace_id != attempt.trace_id


@needs_bubblewrap
def test_a_job_that_a_job_starts_stays_in_the_trace(traced: Traced) -> None:
    traced.model.script = [call("run_agent", agent="failing", task="fail"), say("It failed.")]

    job_id = traced.submit("thinker", max_attempts=1)
    traced.client.until(job_id, "completed")

    first = traced.collector.one("attempt", engine_job_id=job_id, engine_attempt=1)
    child = traced.collector.one("job", engine_job_parent=job_id)
    attempt = traced.collector.one("attempt", engine_job_id=child.attributes["engine.job.id"])
    assert (child.trace_id, child.parent_id) == (first.trace_id, first.id)
    assert (attempt.trace_id, attempt.parent_id) == (child.trace_id, child.id)


@needs_bubblewrap
def test_a_caller_that_does_not_sample_is_kept_to_in_every_process(traced: Traced) -> None:
    trace = "ab" * 16

    job_id = traced.submit("teller", f"00-{trace}-{CALLER}-00")
    traced.client.until(job_id, "waiting_for_input")
    traced.client.http.post(f"/api/v1/jobs/{job_id}/respond", json={"answer": "yes"})
    inside = traced.client.until(job_id, "completed")["result"]["traceparent"]

    assert inside.startswith(f"00-{trace}-")
    assert inside.endswith("-00")
    traced.collector.one("job", engine_job_id=traced.submit("failing"))  # what came before has come
    assert not [span for span in traced.collector.spans if span.trace_id == trace]


def test_what_is_no_traceparent_begins_a_trace_of_its_own(traced: Traced) -> None:
    given = [
        "",
        "junk",
        "x" * 7000,
        f"00-{'0' * 32}-{CALLER}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{CALLER}-01",
        f"00-{TRACE}-{CALLER}-01-more",
        f"ff-{TRACE}-{CALLER}-01",
        f"00-{TRACE}-{CALLER}-01,00-{TRACE}-{CALLER}-01",
        f"00-{TRACE}-{CALLER}-zz",
        f"01-{TRACE}-{CALLER}-01-{'x' * 5000}",
    ]
    headers = [[("traceparent", value)] for value in given]
    headers.append([("traceparent", f"00-{TRACE}-{CALLER}-01")] * 2)
    before = len(traced.collector.named("GET /api/v1/agents"))

    for some in headers:
        reply = traced.client.http.get("/api/v1/agents?q=secret-of-a-query", headers=some)
        assert reply.status_code == 200

    def came() -> list[Seen]:
        found = traced.collector.named("GET /api/v1/agents")[before:]
        return found if len(found) >= len(headers) else []

    spans = eventually(came)
    assert {span.parent_id for span in spans} == {""}
    assert len({span.trace_id for span in spans} | {TRACE}) == len(headers) + 1
    assert all(span.attributes["http.route"] == "/api/v1/agents" for span in spans)


def test_a_later_version_of_the_header_is_understood(traced: Traced) -> None:
    trace = "cd" * 16

    traced.client.http.get("/api/v1/questions", headers={"traceparent": f"cc-{trace}-{CALLER}-01-later"})

    assert traced.collector.one("GET /api/v1/questions").trace_id == trace


def test_log_lines_name_the_trace(traced: Traced) -> None:
    trace = "ef" * 16

    traced.client.http.get("/api/v1/nothing", headers={"traceparent": f"00-{trace}-{CALLER}-01"})

    def lines() -> list[str]:
        return [line for line in traced.web.output().splitlines() if "/api/v1/nothing" in line]

    assert json.loads(eventually(lines)[0])["trace_id"] == trace
    (span,) = eventually(lambda: [span for span in traced.collector.spans if span.trace_id == trace])
    assert span.attributes["http.response.status_code"] == 404
    assert not span.is_error


def test_spans_hold_nothing_that_is_secret(traced: Traced) -> None:
    """Of all that the tests above have done; the probes of health are not there at all."""
    everything = "".join(span.text for span in traced.collector.spans)

    for secret in (
        SECRET_WORDS,
        "words of the agent",
        "secret-of-a-query",
        "6 * 7",
        "It is 42",
        "secret-of-coll",
    ):
        assert secret not in everything
    assert traced.client.http.headers["authorization"].split()[1] not in everything
    assert "/health" not in everything
    assert {headers["x-team"] for headers in traced.collector.headers} == {"s,ecret-of-collector"}
    resource = traced.collector.spans[0].resource
    assert resource["service.name"] == "engine"
    assert len({span.resource["service.instance.id"] for span in traced.collector.spans}) == 2


# --- in this process ---


@pytest.fixture
def sending(settings: Any) -> Iterator[Any]:
    """Traces from this process to an address: `sending(url)`."""

    def to(url: str) -> None:
        settings.OTEL_EXPORTER_OTLP_TRACES_ENDPOINT = url
        tracing.start()

    yield to
    tracing.stop()


def spans(number: int) -> float:
    """Open and close as many; seconds."""
    started = time.monotonic()
    for _ in range(number):
        with tracing.span("work", {"engine.number": 1}):
            pass
    return time.monotonic() - started


def test_a_dead_collector_costs_spans_and_nothing_else(sending: Any) -> None:
    sending("http://127.0.0.1:9/v1/traces")

    assert spans(6000) < 10  # far more than may wait
    started = time.monotonic()
    tracing.stop()

    assert time.monotonic() - started < 5


def test_a_collector_that_refuses_is_told_of_once_a_minute(
    sending: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with collecting() as collector, caplog.at_level(logging.WARNING):
        collector.status = 401
        sending(f"{collector.url}/v1/traces")
        for post in range(1, 5):
            spans(600)
            eventually(lambda post=post: collector.posts >= post)  # type: ignore[misc]  # a lambda's default
        tracing.stop()

    (line,) = caplog.messages
    assert "401" in line


def test_a_collector_that_never_answers_holds_up_neither_work_nor_the_end(sending: Any) -> None:
    with collecting() as collector:
        collector.may_answer.clear()
        sending(f"{collector.url}/v1/traces")

        assert spans(3000) < 10
        eventually(lambda: collector.posts)
        started = time.monotonic()
        tracing.stop()

    assert time.monotonic() - started < 5


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_what_is_left_is_sent_when_a_process_ends(sending: Any, settings: Any, compression: str) -> None:
    settings.OTEL_EXPORTER_OTLP_COMPRESSION = compression
    with collecting() as collector:
        sending(f"{collector.url}/v1/traces")
        spans(700)
        tracing.stop()

        assert len(collector.spans) == 700
        assert {headers.get("content-encoding", "none") for headers in collector.headers} == {compression}


def test_an_authority_of_ones_own_is_trusted_whatever_the_environment_names(
    sending: Any, settings: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", ssl.get_default_verify_paths().cafile or "/etc/ssl/cert.pem")
    certificate = make_certificate(tmp_path)
    settings.OTEL_EXPORTER_OTLP_CERTIFICATE = str(certificate)
    with collecting(certificate) as collector:
        sending(f"{collector.url}/v1/traces")
        spans(1)
        tracing.stop()

        assert len(collector.spans) == 1
        assert diagnosis.traces("traces").ok


@pytest.mark.django_db
def test_jobs_of_one_request_share_its_span_and_without_traces_have_none(sending: Any) -> None:
    untraced = make_job()
    project, requests = make_project(), [JobRequest(task="do it", agent="echo") for _ in range(3)]
    with collecting() as collector:
        sending(f"{collector.url}/v1/traces")
        with tracing.span("work") as work:
            made = bulk.submit(requests, by=make_caller(project), project=project)
        tracing.stop()

        (span,) = collector.named("jobs", engine_jobs_count=3)
        assert f"00-{span.trace_id}-{span.parent_id}-01" == work.traceparent
        stored = Job.objects.filter(id__in=[one.id for one in made]).values_list("traceparent", flat=True)
        assert list(stored) == [span.traceparent] * 3
        assert untraced.traceparent == ""


def test_an_exception_marks_its_span_by_its_class_alone(sending: Any) -> None:
    with collecting() as collector:
        sending(f"{collector.url}/v1/traces")
        with pytest.raises(ValueError, match="secret"), tracing.span("work"):
            raise ValueError("a secret")
        tracing.stop()

        (span,) = collector.spans
        assert span.is_error
        assert span.attributes["error.type"] == "ValueError"
        assert "a secret" not in span.text


def test_an_embeddings_server_is_told_and_its_calls_are_spans(sending: Any) -> None:
    server = EmbeddingsServer()
    with collecting() as collector, server.running():
        sending(f"{collector.url}/v1/traces")
        with tracing.span("work", parent=f"00-{TRACE}-{CALLER}-01"):
            OpenAIEmbedder("small", base_url=server.base_url).embed_query(SECRET_WORDS)
        tracing.stop()

        (embedding,) = collector.named("embeddings small")
        assert embedding.trace_id == TRACE
        assert server.traceparents == [embedding.traceparent]
        assert SECRET_WORDS not in embedding.text


def test_a_share_of_traces_is_sent_whatever_their_callers_say(sending: Any, settings: Any) -> None:
    settings.OTEL_TRACES_SAMPLER, settings.OTEL_TRACES_SAMPLER_ARG = "traceidratio", 0.0
    with collecting() as collector:
        sending(f"{collector.url}/v1/traces")
        with tracing.span("work", parent=f"00-{TRACE}-{CALLER}-01"):
            assert tracing.headers()["traceparent"].endswith("-00")
        tracing.stop()

        assert not collector.spans


def test_without_a_collector_nothing_of_opentelemetry_is_imported() -> None:
    script = """
import sys
import engine.asgi, jobs.worker
from engine import tracing
from django.urls import get_resolver
get_resolver().url_patterns
tracing.start()
with tracing.span("work") as span:
    span.note({"a": 1})
    assert not (span.traceparent or tracing.headers() or tracing.environment() or tracing.log_fields())
tracing.stop()
print(sorted(name for name in sys.modules if name.startswith("opentelemetry")))
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout.strip() == "[]"
