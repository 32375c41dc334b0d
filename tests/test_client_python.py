import asyncio
import json
import time
from collections.abc import Callable

import httpx
import pytest

import engine_client
from engine.error_table import error_classes
from engine_client import AsyncClient, Client, Question, core, errors

KEY = "engine_live_secret"
JOB = {"id": "j1", "status": "queued", "task": "t"}
Answer = Callable[[httpx.Request], httpx.Response]


@pytest.fixture(autouse=True)
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What a client would have slept."""
    pauses: list[float] = []

    async def note(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(asyncio, "sleep", note)
    return pauses


def problem(status: int, code: str, **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"code": code, "detail": "no"}, headers=headers)


def scripted(*answers: httpx.Response | Exception) -> tuple[Answer, list[httpx.Request]]:
    """Answer requests one after another, and note them."""
    seen: list[httpx.Request] = []
    left = list(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        given = left.pop(0)
        if isinstance(given, Exception):
            raise given
        return given

    return answer, seen


def client(answer: Answer) -> Client:
    return Client("http://engine", KEY, transport=httpx.MockTransport(answer))


def stream(*seqs: int, end: bool = False) -> httpx.Response:
    frames = "".join(
        f'id: {n}\ndata: {{"seq": {n}, "type": "log", "data": null}}\n\n: ping\n\n' for n in seqs
    )
    frames += 'event: end\ndata: {"status": "completed"}\n\n' if end else "id: 99\ndata: cut o"
    return httpx.Response(200, text=frames, headers={"content-type": "text/event-stream"})


def test_every_code_of_the_api_has_a_class_below_the_one_of_its_status():
    missing = {kind.code for kind in error_classes()} - set(errors.BY_CODE)

    assert not missing
    assert issubclass(errors.QueueFull, errors.TooManyRequests)
    assert issubclass(errors.JobNotFound, errors.NotFound)


def test_a_refusal_is_raised_as_the_class_of_its_code():
    answer, _ = scripted(problem(404, "job_not_found"), problem(409, "newer_than_us"))

    with client(answer) as engine:
        with pytest.raises(errors.JobNotFound) as refused:
            engine.job("j1")
        with pytest.raises(errors.Conflict) as newer:
            engine.job("j1")

    assert (refused.value.status, refused.value.detail) == (404, "no")
    assert newer.value.given_code == "newer_than_us"


def test_a_submission_is_repeated_with_the_same_idempotency_key_after_the_pause_asked_for(waited):
    answer, seen = scripted(
        httpx.ReadError("cut"),
        problem(429, "rate_limited", **{"retry-after": "7"}),
        httpx.Response(201, json=JOB),
    )

    with client(answer) as engine:
        job = engine.submit("t", tags=["a"], agent=None)

    assert job.id == "j1"
    assert len({request.headers["idempotency-key"] for request in seen}) == 1
    assert json.loads(seen[2].content) == {"task": "t", "tags": ["a"]}
    assert waited[1] == 7


def test_files_are_sent_whole_again_with_each_try(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"x,y\n")
    answer, seen = scripted(httpx.ReadError("cut"), httpx.Response(201, json=JOB))

    with client(answer) as engine:
        engine.submit("t", files=[path, ("b.txt", b"bee")], input={"n": 1})

    assert all(b"x,y" in request.content and b"bee" in request.content for request in seen)
    assert b'{"n": 1}' in seen[1].content


def test_an_answer_is_not_repeated_when_nobody_knows_whether_it_came_through():
    answer, seen = scripted(httpx.ReadError("cut"))

    with client(answer) as engine, pytest.raises(errors.ConnectionFailed):
        engine.respond("j1", "yes")

    assert len(seen) == 1


def test_an_answer_is_repeated_where_nothing_was_changed(waited):
    answer, _ = scripted(
        httpx.ConnectError("away"),
        problem(503, "unavailable", **{"retry-after": "2"}),
        httpx.Response(200, json=JOB),
    )

    with client(answer) as engine:
        engine.respond("j1", "yes")

    assert waited[1] == 2


@pytest.mark.parametrize(
    "refusal",
    [
        problem(429, "queue_full"),
        problem(429, "month_used_up", **{"retry-after": "999999"}),
        httpx.Response(500),
    ],
)
def test_what_time_does_not_mend_soon_is_raised_at_once(refusal, waited):
    answer, seen = scripted(refusal)

    with client(answer) as engine, pytest.raises(errors.Problem):
        engine.submit("t")

    assert len(seen) == 1
    assert not waited


def test_a_request_is_given_up_after_so_many_tries():
    answer, seen = scripted(*[httpx.ConnectError("away")] * core.TRIES)

    with client(answer) as engine, pytest.raises(errors.ConnectionFailed, match="away"):
        engine.job("j1")

    assert len(seen) == core.TRIES


def test_events_come_once_and_in_order_over_cuts_and_refusals():
    answer, seen = scripted(
        stream(1, 2),
        httpx.ReadError("cut"),
        problem(503, "unavailable"),
        stream(2, 3),
        stream(4, end=True),
    )

    with client(answer) as engine:
        seqs = [event.seq for event in engine.events("j1", type=["log", "job.waiting"])]

    assert seqs == [1, 2, 3, 4]
    assert [request.url.params["after"] for request in seen] == ["0", "2", "2", "2", "3"]
    assert seen[0].url.params["type"] == "log,job.waiting"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_stream_may_be_cut_into_chunks_anywhere_and_hold_any_line_end_of_unicode(size):
    message = "a\x85b\u2028c é"
    text = f'retry: 1000\n\n: ping\n\ndata: {{"seq": 1, "type": "log", "message": "{message}"}}\n\n'
    text += "event: end\r\ndata: x\r\n\r\n"
    data, feed = text.encode(), core.EventFeed("j1")

    events = [event for at in range(0, len(data), size) for event in feed.read(data[at : at + size])]

    assert [event.message for event in events] == [message]
    assert feed.ended


def test_discovery_takes_the_filters_of_the_api():
    answer, seen = scripted(httpx.Response(200, json={"decision": "none", "results": []}))

    with client(answer) as engine:
        engine.discover("t", tags=["csv"], health="any")

    assert json.loads(seen[0].content) == {"task": "t", "filters": {"tags": ["csv"], "health": "any"}}


def test_a_stream_that_may_not_be_read_any_more_says_so():
    answer, _ = scripted(stream(1), problem(401, "key_revoked"))

    with client(answer) as engine, pytest.raises(errors.KeyRevoked):
        list(engine.events("j1"))


def test_the_asynchronous_client_does_the_same():
    answer, seen = scripted(
        problem(429, "rate_limited", **{"retry-after": "1"}),
        httpx.Response(201, json=JOB),
        stream(1, 2),
        stream(3, end=True),
        httpx.Response(200, json={**JOB, "status": "completed"}),
        httpx.Response(200, json={"items": [JOB], "next_cursor": "n"}),
        httpx.Response(200, json={"items": [JOB], "next_cursor": None}),
    )

    async def use() -> tuple[list[int], bool, int]:
        seqs: list[int] = []
        async with AsyncClient("http://engine", KEY, transport=httpx.MockTransport(answer)) as engine:
            job = await engine.run("t", on_event=lambda event: seqs.append(event.seq))
            return seqs, job.succeeded, len([one async for one in engine.jobs(status=["queued"])])

    assert asyncio.run(use()) == ([1, 2, 3], True, 2)
    assert seen[-1].url.params["cursor"] == "n"


def test_both_clients_have_the_same_methods():
    def public(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert public(Client) == public(AsyncClient)


def test_a_question_goes_to_the_caller_once_and_a_lost_race_is_no_error():
    waiting = {
        **JOB,
        "status": "waiting_for_input",
        "status_reason": "question",
        "questions": [{"id": "q", "job_id": "j1", "kind": "text", "prompt": "Why?", "status": "open"}],
    }
    frames = (
        'data: {"seq": 1, "type": "job.waiting"}\n\ndata: {"seq": 2, "type": "job.waiting"}\n\n'
        "event: end\ndata: {}\n\n"
    )
    answer, _ = scripted(
        httpx.Response(200, text=frames),
        httpx.Response(200, json=waiting),
        problem(409, "question_already_answered"),
        httpx.Response(200, json=waiting),
        httpx.Response(
            200, json={**JOB, "status": "failed", "error": {"code": "user_error", "message": "No."}}
        ),
    )
    asked: list[str] = []

    def because(question: Question) -> str:
        asked.append(question.prompt)
        return "because"

    with client(answer) as engine:
        job = engine.follow("j1", on_question=because)

    assert asked == ["Why?"]
    with pytest.raises(engine_client.JobFailed, match="No") as failed:
        job.checked()
    assert failed.value.code == "user_error"


def test_a_stored_key_goes_to_no_other_address(monkeypatch, tmp_path):
    from engine_client import credentials

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("ENGINE_URL", raising=False)
    monkeypatch.delenv("ENGINE_API_KEY", raising=False)
    path = credentials.store("http://a", "k")

    assert path.stat().st_mode & 0o777 == 0o600
    assert credentials.connection(None, None) == ("http://a", "k")
    assert credentials.connection("http://b", None) == ("http://b", "")


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "."])
def test_a_download_never_leaves_its_folder(name, tmp_path):
    from engine_client.folders import place
    from engine_client.models import Artifact

    artifact = Artifact({}, id="a", name=name, media_type="", size=0, sha256="", url="")

    with pytest.raises(ValueError, match="leads out"):
        place(tmp_path / "out", artifact, b"x")


def test_a_download_that_changed_on_its_way_is_not_stored(tmp_path):
    from engine_client.folders import place
    from engine_client.models import Artifact

    artifact = Artifact({}, id="a", name="a.txt", media_type="", size=1, sha256="0" * 64, url="")

    with pytest.raises(errors.EngineError, match="download it again"):
        place(tmp_path, artifact, b"x")
    assert list(tmp_path.iterdir()) == []
