"""The client of model servers: what it sends, what it bears, when it tries again, and that the key stays with it."""

import time
from typing import Any

import pytest

from jobs.execution.llm import breaker, client
from jobs.execution.llm.replies import Assembly
from tests.execution_harness import failure_of, result_of
from tests.llm import MakeTalk, make_talk
from tests.model_server import KEY, Refused, Said, call, calls, say

__all__ = ["make_talk"]


def test_a_busy_server_is_asked_again_when_it_said(make_talk: MakeTalk) -> None:
    talk = make_talk(Refused(429, headers=(("Retry-After", "1"),)), say("ok"))

    assert result_of(talk.story.attempt()) == "ok"

    first, second = talk.server.at
    assert second - first >= 1.0
    assert "busy (HTTP 429)" in talk.story.lines("system")[0]


@pytest.mark.parametrize("fault", [Refused(500), Refused(503), Said("half of it", cut_after=2)])
def test_a_server_that_fails_is_asked_again(make_talk: MakeTalk, fault: Any) -> None:
    talk = make_talk(fault, fault, say("ok"))

    assert result_of(talk.story.attempt()) == "ok"
    assert len(talk.server.requests) == 3


def test_a_stream_that_only_stops_is_cut_too(make_talk: MakeTalk) -> None:
    talk = make_talk(Said("half", done=False, finish=""), say("whole"))

    assert result_of(talk.story.attempt()) == "whole"


def test_a_slow_first_token_is_waited_for_and_silence_is_not(make_talk: MakeTalk, settings: Any) -> None:
    patient = make_talk(Said("late", first_token_after=1.0))
    assert result_of(patient.story.attempt()) == "late"

    settings.ENGINE_MODEL_TIMEOUT_SECONDS = 0.3
    silent = make_talk(Said("late", first_token_after=2.0), say("quick"))
    assert result_of(silent.story.attempt()) == "quick"


def test_a_server_that_never_answers_ends_the_attempt_for_later(make_talk: MakeTalk) -> None:
    failed = failure_of(make_talk(*[Refused(500)] * 20).story.attempt())

    assert (failed.code, failed.retryable) == ("model_unavailable", True)


def test_much_patience_is_had_without_a_slot(make_talk: MakeTalk) -> None:
    failed = failure_of(make_talk(Refused(429, headers=(("Retry-After", "600"),))).story.attempt())

    assert failed.retryable
    assert failed.retry_after is not None
    assert failed.retry_after.total_seconds() == 600


@pytest.mark.parametrize(
    ("refused", "code"),
    [
        (Refused(401, f"Incorrect API key provided: {KEY}"), "model_key_refused"),
        (Refused(404, "no such model"), "model_not_found"),
        (Refused(400, f"This is too long, {KEY}"), "model_request_refused"),
        (Refused(429, "pay first", code="insufficient_quota"), "model_quota"),
    ],
)
def test_what_will_not_change_is_not_tried_again_and_never_shows_the_key(
    make_talk: MakeTalk, refused: Refused, code: str
) -> None:
    talk = make_talk(refused, say("never"))

    failed = failure_of(talk.story.attempt())

    assert (failed.code, failed.retryable) == (code, False)
    assert KEY not in str(failed)
    assert KEY not in str(talk.story.durable)
    assert len(talk.server.requests) == 1


def test_a_server_that_echoes_the_key_gets_it_into_no_log_and_no_result(make_talk: MakeTalk) -> None:
    echo = say(f"Your key is {KEY}.", piece=200)
    talk = make_talk(
        calls(("ask_human", {"question": f"Is it {KEY}?"}), text=f"It is {KEY}", piece=200), echo
    )

    outcome = talk.story.to_end(lambda question: question.prompt)

    assert KEY not in str(outcome)
    assert KEY not in str(talk.story.durable)


def test_a_server_without_stream_options_is_asked_without_them_from_then_on(make_talk: MakeTalk) -> None:
    talk = make_talk(call("list_files"), say("ok"), knows_stream_options=False)

    assert result_of(talk.story.attempt()) == "ok"
    assert ["stream_options" in request for request in talk.server.requests] == [True, False, False]
    assert talk.story.durable.used.input_tokens > 0, "guessed from the text"


def test_servers_differ_in_how_they_say_it(make_talk: MakeTalk) -> None:
    talk = make_talk(
        calls(("list_files", {}), ("read_file", {"name": "a"}), without_ids=True, usage=None),
        calls(("list_files", {}), as_json=True),
        calls(("read_file", {"name": "b"}), usage_with_choice=True, usage=(7, 3)),
        say("line\u2028separator", as_json=True, usage=(10, 5)),
    )

    assert result_of(talk.story.attempt()) == "line\u2028separator"
    assert not talk.server.faults
    assert talk.story.durable.steps["model#3"].result is not None
    assert talk.story.durable.steps["model#3"].result["value"]["input_tokens"] == 7


@pytest.mark.parametrize(
    "chunks",
    [
        [{"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": {"x": 1}}}]}],
        [{"tool_calls": [{"id": "a", "function": {"name": "f", "arguments": '{"x":'}}]},
         {"tool_calls": [{"function": {"arguments": " 1}"}}]}],
        [{"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f"}}]},
         {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x": 1}'}}]}],
        [{"function_call": {"name": "f", "arguments": '{"x"'}}, {"function_call": {"arguments": ": 1}"}}],
        [None, {"content": None, "tool_calls": None}, {"tool_calls": [{"name": "f", "arguments": '{"x": 1}'}]}],
    ],
)  # fmt: skip
def test_a_call_is_put_together_from_whatever_pieces_come(chunks: list[Any]) -> None:
    assembly = Assembly()
    for delta in chunks:
        assembly.take({"choices": [{"delta": delta}]})

    (made,) = assembly.calls(1)

    assert made.name == "f"
    assert made.arguments.replace(" ", "") == '{"x":1}'
    assert made.id


def test_calls_all_numbered_0_are_told_apart_by_their_ids() -> None:
    assembly = Assembly()
    for name in ("a", "b"):
        piece = {"index": 0, "id": f"call_{name}", "function": {"name": name, "arguments": "{}"}}
        assembly.take({"choices": [{"delta": {"tool_calls": [piece]}}]})

    assert [made.name for made in assembly.calls(1)] == ["a", "b"]


@pytest.mark.parametrize(
    "junk", [None, [], "x", {"choices": None}, {"choices": [3]}, {"choices": [{"delta": 1}]}]
)
def test_noise_is_passed_over(junk: Any) -> None:
    assert Assembly().take(junk) == ""


def test_the_breaker_opens_for_all_jobs_and_lets_one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "OPEN_SECONDS", 0.05)
    closed = breaker.Breaker()
    for _ in range(breaker.FAILURES):
        assert closed.delay() == 0
        closed.failed()

    assert closed.delay() > 0
    deadline = time.monotonic() + 5
    while closed.delay() and time.monotonic() < deadline:
        pass
    assert closed.delay() > 0, "the second has to wait for how the first one ends"
    closed.succeeded()
    assert closed.delay() == 0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2"}, 2.0),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "-5"}, 0.0),
        ({"retry-after": "1e300"}, 86_400.0),
        ({}, None),
        ({"retry-after": "Thu, 01 Jan 2015 00:00:00 GMT"}, 0.0),
    ],
)
def test_retry_after_is_read_in_every_form(headers: dict[str, str], seconds: float | None) -> None:
    assert client.retry_after(headers) == seconds
