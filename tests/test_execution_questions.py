"""Agents that ask: what reaches a person, and how the answers come back."""

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from jobs.execution import outcomes
from jobs.execution.outcomes import QuestionSpec
from jobs.schemas import faults
from tests.execution_harness import MakeStory, failure_of, result_of
from tests.test_execution_journal import counting, counts


@pytest.fixture
def make_story(tmp_path: Path, settings: Any) -> MakeStory:
    return MakeStory(tmp_path, settings)


@pytest.fixture
def effects(tmp_path: Path) -> Path:
    path = tmp_path / "effects"
    path.touch()
    return path


def asked(outcome: outcomes.Outcome) -> tuple[QuestionSpec, ...]:
    assert isinstance(outcome, outcomes.Suspended), outcome
    return outcome.questions


@pytest.mark.parametrize("channel", ["fd", "file"])
def test_an_ask_suspends_the_job_and_its_answer_resumes_it(
    make_story: MakeStory, effects: Path, channel: str
) -> None:
    source = counting(
        effects,
        """
    def main(task, inputs):
        print("before")
        step("work", effect, "work")
        print("asking")
        try:
            answer = ask("Which *tone*?")
        finally:
            effect("finally")
        print("after")
        return answer
    """,
    )
    story = make_story(source, channel=channel)

    questions = asked(story.attempt())

    assert [(q.key, q.kind, q.prompt) for q in questions] == [("ask#1", "text", "Which *tone*?")]
    assert story.lines() == ["before", "asking"]
    assert counts(effects) == {"work": 1}  # a pause is not an end: nothing of the agent was unwound
    story.durable.answers["ask#1"] = "warm"
    assert result_of(story.attempt()) == "warm"
    assert story.lines() == ["before", "asking", "after"]
    assert counts(effects) == {"work": 1, "finally": 1}


def test_fifty_asks_in_a_loop_run_each_body_once_in_linear_time(make_story: MakeStory, effects: Path) -> None:
    source = counting(
        effects,
        """
    def main(task, inputs):
        total = 0
        for number in range(50):
            step("body", effect, f"body {number}")
            total += int(ask(f"How much is {number}?"))
            print("got", number)
        return total
    """,
    )
    story = make_story(source)
    spans = []

    for number in range(50):
        started = time.monotonic()
        (question,) = asked(story.attempt())
        spans.append(time.monotonic() - started)
        assert question.key == f"ask#{number + 1}"
        story.durable.answers[question.key] = str(number)

    assert result_of(story.attempt()) == sum(range(50))
    assert counts(effects) == {f"body {number}": 1 for number in range(50)}
    assert story.lines() == [f"got {number}" for number in range(50)]
    assert (
        sorted(spans[40:])[5] < 5 * sorted(spans[:10])[5]
    )  # an attempt does not cost the more the later it is


def test_twenty_questions_open_together_each_get_their_own_answer(
    make_story: MakeStory, effects: Path
) -> None:
    source = counting(
        effects,
        """
    def main(task, inputs):
        return ask_many([{"prompt": f"Question {n}", "key": f"q{n}" if n % 2 else None} for n in range(20)])
    """,
    )
    story = make_story(source)
    seen: list[str] = []

    def answer(question: QuestionSpec) -> str:
        seen.append(question.prompt)
        return f"answer to {question.prompt}"

    result = result_of(story.to_end(answer))

    assert result == [f"answer to Question {n}" for n in range(20)]
    assert story.attempts == 2
    assert sorted(seen) == sorted(f"Question {n}" for n in range(20))


def test_questions_that_were_asked_but_never_became_durable_are_asked_again(
    make_story: MakeStory, effects: Path
) -> None:
    source = counting(effects, "    def main(task, inputs):\n        return ask_many(['one', 'two'])\n")
    story = make_story(source)
    story.dies(die_after=1)  # the journal has an entry, no question exists

    questions = asked(story.attempt())

    assert [q.prompt for q in questions] == ["one", "two"]


def test_a_job_with_one_of_two_answers_asks_for_the_other(make_story: MakeStory, effects: Path) -> None:
    source = counting(effects, "    def main(task, inputs):\n        return ask_many(['one', 'two'])\n")
    story = make_story(source)
    asked(story.attempt())
    story.durable.answers["ask#2"] = "second"

    (question,) = asked(story.attempt())

    assert question.prompt == "one"
    story.durable.answers["ask#1"] = "first"
    assert result_of(story.attempt()) == ["first", "second"]


def test_a_question_inside_a_step_resumes_inside_it(make_story: MakeStory, effects: Path) -> None:
    source = counting(
        effects,
        """
    def body():
        first = step("inner", effect, "inner")
        return [first, ask("Go on?", kind="confirm"), effect("rest")]

    def main(task, inputs):
        return step("outer", body)
    """,
    )
    story = make_story(source)
    (question,) = asked(story.attempt())

    assert question.key == "outer#1/ask#1"
    story.durable.answers[question.key] = True
    assert result_of(story.attempt()) == ["inner", True, "rest"]
    assert counts(effects) == {"inner": 1, "rest": 1}


CALLS = {
    "text": 'ask("Text?")',
    "choice": 'ask("Which?", choices=["a", "b"])',
    "choice of numbers": 'ask("Which?", choices=[1, 2])',
    "multi_choice": 'ask("Which?", choices=["a", "b", "c"], multi=True)',
    "confirm": 'ask("Sure?", kind="confirm")',
    "form": 'ask("Who?", schema={"properties": {"name": {"type": "string"}, "age": {"type": "integer"}},'
    ' "required": ["name"]})',
    "approval": 'approve("pay", {"amount": 3})',
    "approval by schema": 'approve("pay", {"amount": 3},'
    ' schema={"properties": {"amount": {"type": "integer", "maximum": 5}}, "required": ["amount"]})',
}


@pytest.mark.parametrize(
    ("call", "right", "wrong", "gives"),
    [
        ("text", "anything", 3, "anything"),
        ("choice", "b", "c", "b"),
        ("choice of numbers", "2", 2, 2),
        ("multi_choice", ["c", "a"], ["c", "c"], ["c", "a"]),
        ("multi_choice", [], "a", []),
        ("confirm", False, "no", False),
        ("form", {"name": "Ann", "age": 3}, {"age": 3}, {"name": "Ann", "age": 3}),
        ("form", {"name": "Ann"}, {"name": "Ann", "extra": 1}, {"name": "Ann"}),
        (
            "approval",
            {"decision": "approve"},
            {"decision": "maybe"},
            {"decision": "approve", "arguments": {"amount": 3}, "message": ""},
        ),
        (
            "approval",
            {"decision": "edit", "arguments": {"amount": 2}},
            {"decision": "edit"},
            {"decision": "edit", "arguments": {"amount": 2}, "message": ""},
        ),
        (
            "approval",
            {"decision": "respond", "message": "why?"},
            {"decision": "respond"},
            {"decision": "respond", "arguments": {"amount": 3}, "message": "why?"},
        ),
        (
            # Approving is no way to change what is approved.
            "approval",
            {"decision": "approve", "arguments": {"amount": 3}},
            {"decision": "approve", "arguments": {"amount": 300}},
            {"decision": "approve", "arguments": {"amount": 3}, "message": ""},
        ),
        (
            "approval",
            {"decision": "edit", "arguments": {"amount": 2.5}},
            {"decision": "edit", "arguments": {"amount": "2"}},
            {"decision": "edit", "arguments": {"amount": 2.5}, "message": ""},
        ),
        (
            "approval by schema",
            {"decision": "edit", "arguments": {"amount": 5}},
            {"decision": "edit", "arguments": {"amount": 6}},
            {"decision": "edit", "arguments": {"amount": 5}, "message": ""},
        ),
    ],
)
def test_each_kind_says_which_answers_fit_and_gives_them_back(
    make_story: MakeStory, effects: Path, call: str, right: Any, wrong: Any, gives: Any
) -> None:
    story = make_story(counting(effects, f"    def main(task, inputs):\n        return {CALLS[call]}\n"))
    (question,) = asked(story.attempt())

    assert not faults(right, question.schema)
    assert faults(wrong, question.schema)
    assert question.kind == call.split()[0]
    story.durable.answers[question.key] = right
    assert result_of(story.attempt()) == gives


@pytest.mark.parametrize(
    ("arguments", "expires_in", "on_timeout", "default"),
    [
        ('timeout="2d"', timedelta(days=2), "wait", None),
        ('timeout="90m", default="x"', timedelta(minutes=90), "default", "x"),
        ('timeout=30, default="x", on_timeout="wait"', timedelta(seconds=30), "wait", "x"),
        ('timeout=1.5, on_timeout="fail"', timedelta(seconds=1.5), "fail", None),
        ('default="x"', None, "wait", "x"),
    ],
)
def test_timeouts_and_defaults_reach_the_question(
    make_story: MakeStory,
    effects: Path,
    arguments: str,
    expires_in: timedelta | None,
    on_timeout: str,
    default: Any,
) -> None:
    story = make_story(counting(effects, f'    def main(task, inputs):\n        ask("Well?", {arguments})\n'))

    (question,) = asked(story.attempt())

    assert (question.expires_in, question.on_timeout, question.default) == (expires_in, on_timeout, default)
    assert question.has_default == ("default" in arguments.split(", on_")[0])


def test_reminders_assignees_and_risk_reach_the_question(make_story: MakeStory, effects: Path) -> None:
    source = """
    def main(task, inputs):
        approve("pay", {"amount": 3}, risk="low", allowed=["approve", "reject"], timeout="1d", on_timeout="default",
                remind=["1h", 7200], assignees=["ann"])
    """
    story = make_story(counting(effects, source))

    (question,) = asked(story.attempt())

    assert question.remind_after == (timedelta(hours=1), timedelta(hours=2))
    assert question.assignees == ["ann"]
    assert question.details == {
        "action": "pay",
        "arguments": {"amount": 3},
        "allowed": ["approve", "reject"],
        "risk": "low",
    }
    assert question.default == {"decision": "reject"}  # time passing never approves


@pytest.mark.parametrize(
    "call",
    [
        'ask("")',
        'ask("Which?", choices=[])',
        'ask("Which?", choices=["a", "a"])',
        'ask("Which?", multi=True)',
        'ask("Which?", kind="color")',
        'ask("Which?", kind="choice")',
        'ask("Which?", choices=["a"], default="b")',
        'ask("When?", timeout="soon")',
        'ask("When?", on_timeout="fail")',
        'ask("When?", timeout="1d", on_timeout="default")',
        'ask("Who?", schema={"properties": {"name": {"type": "object"}}})',
        'ask("Who?", schema={"properties": {"name": {"type": "string", "pattern": "(a+)+$"}}})',
        'ask("x" * 30_000)',
        'approve("pay", {"amount": 3}, allowed=["yes"])',
        'approve("pay", {"amount": 3}, risk="none")',
        'approve("pay", {"amount": 3}, schema={"properties": {"amount": {"type": "object"}}})',
    ],
)
def test_a_question_that_cannot_be_asked_is_an_error_on_the_agents_own_line(
    make_story: MakeStory, effects: Path, call: str
) -> None:
    story = make_story(counting(effects, f"    def main(task, inputs):\n        return {call}\n"))

    failed = failure_of(story.attempt())

    assert failed.message.startswith("ValueError: ")
    assert f"return {call}" in failed.data["traceback"]


def test_a_once_step_cannot_ask(make_story: MakeStory, effects: Path) -> None:
    source = '    def main(task, inputs):\n        step("a", ask, "Sure?", once=True)\n'

    failed = failure_of(make_story(counting(effects, source)).attempt())

    assert "once=True" in failed.message


def test_an_answer_to_another_question_is_not_taken(make_story: MakeStory, effects: Path) -> None:
    marker = effects.with_name("marker")
    source = counting(
        effects,
        f"""
    def main(task, inputs):
        return ask("Delete everything?" if Path({str(marker)!r}).exists() else "Keep everything?", kind="confirm")
    """,
    )
    story = make_story(source)
    asked(story.attempt())
    story.durable.answers["ask#1"] = True
    marker.touch()

    assert failure_of(story.attempt()).code == "non_determinism"


def test_an_ask_in_a_thread_suspends_the_whole_program(make_story: MakeStory, effects: Path) -> None:
    source = counting(
        effects,
        """
    from concurrent.futures import ThreadPoolExecutor

    def main(task, inputs):
        with ThreadPoolExecutor(2) as pool:
            return [future.result() for future in (pool.submit(ask, "In a thread?"), pool.submit(effect, "beside"))]
    """,
    )
    story = make_story(source)

    (question,) = asked(story.attempt())

    story.durable.answers[question.key] = "yes"
    assert result_of(story.attempt()) == ["yes", "beside"]
