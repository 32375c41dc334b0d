"""The Python client over a real server with a worker: jobs, questions, files, streams that break."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine_client import AsyncClient, Client, Event, JobFailed, Question, errors
from tests.clients import Office
from tests.processes import eventually


@pytest.fixture
def engine(office: Office) -> Iterator[Client]:
    with Client(office.url, office.key) as engine:
        yield engine


def reply_to(question: Question) -> Any:
    return "warm" if question.kind == "choice" else {"name": "Ann"}


def test_a_job_runs_with_its_files_questions_events_and_artifacts(engine: Client, tmp_path: Path) -> None:
    asked: list[Question] = []
    events: list[Event] = []

    def on_question(question: Question) -> Any:
        asked.append(question)
        return reply_to(question)

    job = engine.run(
        "Write it",
        agent="clerk",
        files=[("b.txt", b"two\n"), ("a.txt", b"one\n")],
        on_question=on_question,
        on_event=events.append,
    )

    assert job.result == {"tone": "warm", "name": "Ann"}
    assert [question.prompt for question in asked] == ["Which tone?", "Who?"]
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    said = [event.message for event in events if event.source == "stdout"]
    assert (said[0], said[-1]) == ("line one", "line two")
    assert events[-1].type == "job.completed"
    assert engine.download(job.id, tmp_path) == [tmp_path / "out" / "report.txt"]
    assert (tmp_path / "out" / "report.txt").read_text() == "one\ntwo\n"


def test_the_same_from_asyncio(office: Office, tmp_path: Path) -> None:
    async def reply(question: Question) -> Any:
        await asyncio.sleep(0)
        return reply_to(question)

    async def work() -> None:
        async with AsyncClient(office.url, office.key) as engine:
            file = ("a.txt", b"one\n")
            job = await engine.run("Write it", agent="clerk", files=[file], on_question=reply)
            [path] = await engine.download(job.id, tmp_path)
            assert (job.result["tone"], path.read_text()) == ("warm", "one\n")
            assert (await engine.discover("Analyze the sentiment of reviews")).decision == "match"

    asyncio.run(work())


class Cut(httpx.SyncByteStream):
    """A body that breaks off after so many bytes."""

    def __init__(self, whole: Any, most: int) -> None:
        self.whole, self.most = whole, most

    def __iter__(self) -> Iterator[bytes]:
        left = self.most
        for chunk in self.whole:
            yield chunk[:left]
            left -= len(chunk)
            if left <= 0:
                raise httpx.ReadError("cut off")

    def close(self) -> None:
        self.whole.close()


class Scissors(httpx.HTTPTransport):
    """A network that breaks every stream off."""

    cuts = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        if request.headers["accept"] == "text/event-stream":
            self.cuts += 1
            response.stream = Cut(response.stream, 4_000 + 611 * self.cuts)
        return response


def test_a_stream_that_is_cut_again_and_again_loses_and_repeats_nothing(office: Office) -> None:
    network = Scissors()
    with Client(office.url, office.key, transport=network) as engine:
        job = engine.submit("count", agent="counter")

        events = list(engine.events(job.id))

    assert network.cuts > 2
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    lines = [event.message for event in events if event.source == "stdout"]
    assert lines == [f"line {number}" for number in range(300)]


def test_what_does_not_complete_says_why(engine: Client) -> None:
    with pytest.raises(JobFailed, match="no text column") as failed:
        engine.run("try", agent="failing").checked()
    assert failed.value.code == "user_error"

    assert engine.run("Book me a flight to Paris next Tuesday").status == "rejected"


def test_refusals_come_as_the_class_of_their_code(engine: Client, office: Office) -> None:
    with pytest.raises(errors.ValidationFailed) as refused:
        engine.submit("x", colour="red")
    assert refused.value.errors[0]["pointer"] == "/colour"
    job = engine.submit("write", agent="clerk")
    assert engine.wait(job.id, timeout=60).status == "waiting_for_input"
    with pytest.raises(errors.InvalidAnswer):
        engine.respond(job.id, "shrill")
    assert next(engine.questions(job=job.id)).choices == ["formal", "warm"]
    assert engine.cancel(job.id).status == "cancelled"
    with pytest.raises(errors.JobNotWaiting):
        engine.respond(job.id, "warm")
    with Client(office.url, "engine_live_wrong") as stranger, pytest.raises(errors.InvalidKey):
        next(stranger.jobs())


def test_a_submission_sent_twice_is_one_job(engine: Client) -> None:
    first = engine.submit("count", agent="counter", idempotency_key="order-1", files=[("a.txt", b"1")])
    again = engine.submit("count", agent="counter", idempotency_key="order-1", files=[("a.txt", b"1")])

    assert first.id == again.id
    assert next(engine.jobs(agent="counter")).id == first.id


def test_a_key_is_made_used_and_revoked(engine: Client, office: Office) -> None:
    key = engine.create_key("ci", ["jobs:read"])
    assert key.secret not in repr(key)
    with Client(office.url, key.secret) as limited:
        assert next(limited.jobs())
        with pytest.raises(errors.ScopeMissing):
            limited.submit("count", agent="counter")

        engine.revoke_key(key.id)

        with pytest.raises(errors.KeyRevoked):
            next(limited.jobs())


def test_a_running_job_is_cancelled(engine: Client) -> None:
    job = engine.submit("sleep", agent="sleeper")
    events = engine.events(job.id)
    next(event for event in events if event.message == "awake")

    engine.cancel(job.id)

    assert list(events)[-1].type == "job.cancelled"
    eventually(lambda: engine.job(job.id).is_final)
