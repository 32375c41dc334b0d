"""What a conversation may use: counted, warned of at 80 %, stopped before the call that would exceed it."""

from typing import Any

import pytest

from jobs.execution import outcomes
from jobs.execution.llm import budget
from jobs.execution.outcomes import Used
from jobs.execution.ports import KeySpending
from tests.execution_harness import MemoryPlatform, failure_of, result_of
from tests.llm import MakeTalk, make_talk
from tests.model_server import call, say

__all__ = ["make_talk"]

STEPS = [call("read_file", name=str(number)) for number in range(8)]  # 120 tokens each


def test_the_job_asks_before_the_call_that_would_exceed_its_budget(make_talk: MakeTalk) -> None:
    talk = make_talk(*STEPS[:3], say("done"), budget={"tokens": 300, "on_exceeded": "ask"})

    outcome = talk.story.attempt()

    assert isinstance(outcome, outcomes.Suspended)
    (question,) = outcome.questions
    assert len(talk.server.requests) == 2  # 240 used: a third would make 360
    assert question.details["arguments"] == {"tokens": 600}
    assert [event.data for event in talk.story.durable.events if event.type == "budget.warning"] == [
        {"scope": "job", "unit": "tokens", "used": 240, "limit": 300}
    ]

    talk.story.durable.answers[question.key] = {"decision": "edit", "arguments": {"tokens": 500}}
    assert result_of(talk.story.attempt()) == "done"


def test_a_second_extension_is_asked_for_when_the_first_is_used_up(make_talk: MakeTalk) -> None:
    talk = make_talk(*STEPS[:5], say("done"), budget={"tokens": 120})
    asked = []

    def extend(question: outcomes.QuestionSpec) -> dict[str, Any]:
        asked.append(question.key)
        return {"decision": "approve"}

    assert result_of(talk.story.to_end(extend)) == "done"
    assert asked == ["budget.job.tokens#1", "budget.job.tokens#2", "budget.job.tokens#3"]


def test_a_refused_extension_ends_the_job(make_talk: MakeTalk) -> None:
    talk = make_talk(*STEPS, budget={"tokens": 120})

    failed = failure_of(talk.story.to_end(lambda question: {"decision": "reject"}))

    assert (failed.code, failed.retryable) == ("budget_exceeded", False)
    assert len(talk.server.requests) == 1


def test_a_job_that_says_so_fails_instead_of_asking(make_talk: MakeTalk) -> None:
    talk = make_talk(*STEPS, budget={"tokens": 250, "on_exceeded": "fail"})

    assert failure_of(talk.story.attempt()).code == "budget_exceeded"
    assert len(talk.server.requests) == 2


def test_a_budget_in_dollars_counts_by_the_price_table(make_talk: MakeTalk, settings: Any) -> None:
    settings.ENGINE_MODEL_PRICES = {"scripted": {"input": 10_000, "output": 50_000}}  # 2 dollars a reply
    talk = make_talk(*STEPS, budget={"cost_usd": 5.0, "on_exceeded": "fail"})

    failed = failure_of(talk.story.attempt())

    assert "4.0000 US dollars of 5.0000" in failed.message
    assert talk.story.durable.used.cost_usd == pytest.approx(4.0)


def test_a_budget_in_dollars_needs_a_price(make_talk: MakeTalk) -> None:
    talk = make_talk(*STEPS, budget={"cost_usd": 5.0})

    assert failure_of(talk.story.attempt()).code == "price_unknown"
    assert not talk.server.requests


def test_the_first_call_is_guessed_from_its_text(make_talk: MakeTalk) -> None:
    talk = make_talk(say("never"), task="word " * 1000, budget={"tokens": 1000, "on_exceeded": "fail"})

    assert failure_of(talk.story.attempt()).code == "budget_exceeded"
    assert not talk.server.requests


def test_the_cards_own_limits_are_final(make_talk: MakeTalk) -> None:
    talk = make_talk(*STEPS, policy={"max_tokens": 250})

    failed = failure_of(talk.story.attempt())

    assert failed.code == "budget_exceeded"
    assert "max_tokens" in failed.remedy


def test_the_budget_of_the_key_counts_all_its_jobs(make_talk: MakeTalk) -> None:
    platform = MemoryPlatform(spending=KeySpending({"tokens": 1000}, Used(800, 100)))
    talk = make_talk(*STEPS, platform=platform)

    outcome = talk.story.attempt()

    assert isinstance(outcome, outcomes.Suspended)
    (question,) = outcome.questions
    assert question.key == "budget.key.tokens#1"
    assert question.details["needs_scope"] == "admin:keys"
    assert len(talk.server.requests) == 0 or platform.spending is not None


@pytest.mark.parametrize(
    ("model", "price"),
    [("gpt-x", 1), ("gpt-x-2026-01-01", 1), ("gpt-x-mini", 2), ("gpt-y", 9)],
)
def test_dated_models_have_the_price_of_their_name(settings: Any, model: str, price: int) -> None:
    settings.ENGINE_MODEL_PRICES = {
        name: {"input": cost, "output": cost} for name, cost in (("gpt-x", 1), ("gpt-x-mini", 2), ("*", 9))
    }

    found = budget.price_of(model)

    assert found is not None
    assert found["input"] == price
