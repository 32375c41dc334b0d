"""Conversations of llm agents: what the model is sent, what comes of its calls, and how they end."""

import asyncio
import json
from typing import Any

import pytest

from jobs import storage
from jobs.execution import outcomes
from jobs.execution.ports import InputFile
from tests.execution_harness import failure_of, result_of
from tests.llm import ALL_TOOLS, MakeTalk, make_talk
from tests.model_server import Said, call, calls, say

__all__ = ["make_talk"]


def stored(name: str, data: bytes) -> InputFile:
    blob = storage.store_blocks([data], folder="inputs", most_bytes=10**6)
    return InputFile(name, blob.key, blob.size, blob.sha256, "text/csv")


def question_of(outcome: outcomes.Outcome) -> outcomes.QuestionSpec:
    assert isinstance(outcome, outcomes.Suspended), outcome
    (question,) = outcome.questions
    return question


def test_the_models_last_words_are_the_result_and_its_text_is_in_the_log(make_talk: MakeTalk) -> None:
    talk = make_talk(say("First line.\nThe answer is 42."))

    assert result_of(talk.story.attempt()) == "First line.\nThe answer is 42."
    assert talk.story.lines("agent") == ["First line.", "The answer is 42."]
    assert not talk.server.faults
    system, user = talk.prompts[0]
    assert system["content"].startswith("You help.")
    assert user["content"] == "do it"
    assert (talk.story.durable.used.input_tokens, talk.story.durable.used.output_tokens) == (100, 20)


def test_the_model_hears_of_input_and_files(make_talk: MakeTalk) -> None:
    talk = make_talk(say("ok"))
    talk.story.files = (stored("a.csv", b"x\n1\n"),)
    talk.story.input = {"depth": 3}

    talk.story.attempt()

    told = talk.prompts[0][1]["content"]
    assert '"depth": 3' in told
    assert "a.csv (text/csv, 4 bytes)" in told


def test_code_runs_with_its_variables_kept_and_hands_back_figures_and_outputs(make_talk: MakeTalk) -> None:
    talk = make_talk(
        call(
            "run_python",
            code="x = 20\nshow_figure()\nfrom pathlib import Path\nPath('../outputs/t.txt').write_text('t')",
        ),
        call("run_python", code="print(x + 22)"),
        say("done"),
    )

    assert result_of(talk.story.attempt()) == "done"
    first, second = talk.results()
    assert "figure-1.png" in first
    assert second == "42\n"
    assert set(talk.story.durable.artifacts) == {"figure-1.png", "t.txt"}
    assert talk.story.durable.artifacts["figure-1.png"].media_type == "image/png"
    assert talk.story.durable.used.sandbox_seconds > 0
    assert talk.story.durable.ends == {
        "model#1": 1,
        "model#1/run_python#1": 1,
        "model#2": 1,
        "model#2/run_python#1": 1,
        "model#3": 1,
        "sandbox#1": 1,
    }


def test_an_error_in_the_code_goes_to_the_model(make_talk: MakeTalk) -> None:
    talk = make_talk(call("run_python", code="1 / 0"), say("sorry"))

    assert result_of(talk.story.attempt()) == "sorry"
    assert "ZeroDivisionError" in talk.results()[0]


def test_input_files_are_listed_and_read_in_parts(make_talk: MakeTalk) -> None:
    talk = make_talk(
        call("list_files"),
        calls(
            ("read_file", {"name": "long.txt"}),
            ("read_file", {"name": "long.txt", "offset": 20_000}),
            ("read_file", {"name": "picture"}),
            ("read_file", {"name": "nothing"}),
        ),
        say("read"),
    )
    talk.story.files = (stored("long.txt", b"a" * 20_000 + b"end"), stored("picture", b"\x89PNG\x00"))

    talk.story.attempt()

    listed, first, rest, picture, missing = talk.results()
    assert listed == "long.txt (text/csv, 20,003 bytes)\npicture (text/csv, 5 bytes)"
    assert first.endswith("[3 more characters: read on with offset 20000]")
    assert rest == "end"
    assert "no text" in picture
    assert "long.txt, picture" in missing


def test_files_are_handed_back_as_text_or_from_the_sandbox(make_talk: MakeTalk) -> None:
    talk = make_talk(
        call("save_artifact", name="report.md", content="# Report"),
        call("run_python", code="from pathlib import Path\nPath('data.csv').write_text('a,b')"),
        calls(
            ("save_artifact", {"name": "data.csv", "path": "data.csv"}),
            ("save_artifact", {"name": "x", "path": "../../etc/passwd"}),
            ("save_artifact", {"name": "../x", "content": ""}),
        ),
        say("done"),
    )

    talk.story.attempt()

    assert {name: file.media_type for name, file in talk.story.durable.artifacts.items()} == {
        "report.md": "text/markdown",
        "data.csv": "text/csv",
    }
    assert "cannot be handed back" in talk.results()[-2]
    assert "no name" in talk.results()[-1]


def test_several_questions_open_at_once_and_each_answer_reaches_its_own_call(make_talk: MakeTalk) -> None:
    talk = make_talk(
        calls(
            ("ask_human", {"question": "Which tone?", "choices": ["formal", "warm"]}),
            ("run_python", {"code": "print('meanwhile')"}),
            ("ask_human", {"question": "Who reads it?"}),
        ),
        say("written"),
    )

    outcome = talk.story.to_end(lambda question: "warm" if question.choices else "customers")

    assert result_of(outcome) == "written"
    assert talk.results() == ["warm", "meanwhile\n", "customers"]
    assert talk.story.attempts == 2
    assert len(talk.server.requests) == 2


def test_calls_that_cannot_be_understood_go_back_with_the_error(make_talk: MakeTalk) -> None:
    talk = make_talk(
        calls(("run_python", '{"code": "1')),
        calls(("run_python", {"kode": "1"}), ("fly", {}), ("list_files", "")),
        say("ok"),
    )

    assert result_of(talk.story.attempt()) == "ok"
    assert not talk.server.faults
    broken, wrong, unknown, listed = talk.results()
    assert "not valid JSON" in broken
    assert "'code' is a required property" in wrong
    assert "There is no tool 'fly'" in unknown
    assert listed == "There are no input files."


def test_three_replies_with_broken_calls_in_a_row_end_the_job(make_talk: MakeTalk) -> None:
    broken = calls(("run_python", "{"))
    talk = make_talk(broken, broken, call("list_files"), broken, broken, broken, say("never"))

    failed = failure_of(talk.story.attempt())

    assert (failed.code, failed.retryable) == ("malformed_tool_calls", False)
    assert "not valid JSON" in failed.message
    assert len(talk.server.requests) == 6


def test_a_tool_that_the_card_does_not_name_is_not_there(make_talk: MakeTalk) -> None:
    talk = make_talk(call("run_python", code="1"), say("ok"), tools=("list_files",))

    talk.story.attempt()

    assert [tool["function"]["name"] for tool in talk.server.requests[0]["tools"]] == ["list_files"]
    assert "There is no tool 'run_python'" in talk.results()[0]


def test_an_agent_without_tools_sends_none(make_talk: MakeTalk) -> None:
    talk = make_talk(say("ok"), tools=())

    assert result_of(talk.story.attempt()) == "ok"
    assert "tools" not in talk.server.requests[0]


SCHEMA = {"type": "object", "properties": {"rows": {"type": "integer"}}, "required": ["rows"]}


@pytest.mark.parametrize("text", ['{"rows": 3}', 'Here it is:\n```json\n{"rows": 3}\n```\nBye.'])
def test_a_result_is_read_by_the_output_schema(make_talk: MakeTalk, text: str) -> None:
    talk = make_talk(say(text), output_schema=SCHEMA)

    assert result_of(talk.story.attempt()) == {"rows": 3}
    assert '"rows"' in talk.prompts[0][0]["content"]


def test_a_wrong_result_gets_one_chance(make_talk: MakeTalk) -> None:
    talk = make_talk(say('{"rows": "three"}'), say('{"rows": 3}'), output_schema=SCHEMA)
    hopeless = make_talk(say("three"), say("four"), say('{"rows": 3}'), output_schema=SCHEMA)

    hopeless_end = failure_of(hopeless.story.attempt())
    talk.story.agent["model"] = "scripted"

    assert (hopeless_end.code, hopeless_end.retryable) == ("invalid_result", False)
    assert len(hopeless.server.requests) == 2
    assert "does not meet the JSON Schema" in hopeless.prompts[-1][-1]["content"]


def test_a_wrong_result_can_be_repaired(make_talk: MakeTalk) -> None:
    talk = make_talk(say('{"rows": "three"}'), say('{"rows": 3}'), output_schema=SCHEMA)

    assert result_of(talk.story.attempt()) == {"rows": 3}
    assert "/rows" in talk.prompts[-1][-1]["content"]


def test_empty_replies_are_answered_and_end_the_job_at_three(make_talk: MakeTalk) -> None:
    failed = failure_of(make_talk(say(""), say(" "), say("")).story.attempt())

    assert failed.code == "empty_replies"


def test_a_reply_that_the_server_cut_off_is_no_result(make_talk: MakeTalk) -> None:
    talk = make_talk(say("a long st", finish="length"), say("a story"))

    assert result_of(talk.story.attempt()) == "a story"
    assert "cut off" in talk.prompts[-1][-1]["content"]


def test_replies_that_are_cut_off_twice_in_a_row_end_the_job(make_talk: MakeTalk) -> None:
    talk = make_talk(say('{"rows"', finish="length"), say("", finish="length"), output_schema=SCHEMA)

    assert failure_of(talk.story.attempt()).code == "reply_too_large"


def test_a_reply_that_was_cut_off_uses_up_no_repair(make_talk: MakeTalk) -> None:
    replies = (say("a long st", finish="length"), say('{"rows": "three"}'), say('{"rows": 3}'))

    assert result_of(make_talk(*replies, output_schema=SCHEMA).story.attempt()) == {"rows": 3}


def test_a_reply_that_the_server_withheld_fails_the_job_and_says_so(make_talk: MakeTalk) -> None:
    failed = failure_of(make_talk(say("half a st", finish="content_filter")).story.attempt())

    assert (failed.code, failed.retryable) == ("reply_withheld", False)


def test_the_step_limit_ends_the_job(make_talk: MakeTalk) -> None:
    talk = make_talk(*(call("read_file", name=str(number)) for number in range(9)), policy={"max_steps": 4})

    assert failure_of(talk.story.attempt()).code == "step_limit"
    assert len(talk.server.requests) == 4


def test_the_wall_time_ends_the_job(make_talk: MakeTalk) -> None:
    talk = make_talk(Said("late", first_token_after=5), limits={"wall_seconds": 0.3})

    failed = failure_of(talk.story.attempt())

    assert (failed.code, failed.retryable) == ("timeout", False)


def test_a_worker_without_a_model_says_so(make_talk: MakeTalk) -> None:
    talk = make_talk(say("never"))
    talk.story.run = lambda attempt: unconfigured(make_talk.settings, attempt)

    failed = failure_of(talk.story.attempt())

    assert (failed.code, failed.retryable) == ("no_model", False)
    assert "OPENAI_API_KEY" in failed.message


def unconfigured(settings: Any, attempt: Any) -> outcomes.Outcome:
    settings.OPENAI_API_KEY = settings.OPENAI_BASE_URL = ""
    outcome: outcomes.Outcome = asyncio.run(attempt)
    return outcome


# --- approvals ---


def test_a_call_under_policy_always_waits_for_a_person(make_talk: MakeTalk) -> None:
    talk = make_talk(call("run_python", code="print(1)"), say("ok"), policy={"approve": ["run_python"]})

    question = question_of(talk.story.attempt())
    assert (question.kind, question.details["action"]) == ("approval", "run_python")
    assert question.details["arguments"] == {"code": "print(1)"}
    assert "model#1/run_python#1" not in talk.story.durable.steps

    talk.story.durable.answers[question.key] = {"decision": "approve"}
    assert result_of(talk.story.attempt()) == "ok"
    assert talk.results() == ["1\n"]


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        ({"decision": "edit", "arguments": {"code": "print(2)"}}, "2\n"),
        ({"decision": "reject", "message": "Too risky."}, "A person refused this call. Too risky."),
        ({"decision": "respond", "message": "It is 7."}, "It is 7."),
    ],
)
def test_a_person_may_edit_reject_or_answer_in_place_of_a_call(
    make_talk: MakeTalk, answer: dict[str, Any], result: str
) -> None:
    talk = make_talk(call("run_python", code="print(1)"), say("ok"), policy={"policy": "always"})

    talk.story.to_end(lambda question: answer)

    assert talk.results() == [result]


def test_the_arguments_that_a_person_may_give_are_those_of_the_tool(make_talk: MakeTalk) -> None:
    talk = make_talk(call("run_python", code="print(1)"), policy={"policy": "always"})

    schema = question_of(talk.story.attempt()).schema

    assert schema["properties"]["arguments"]["required"] == ["code"]


def test_only_risky_code_asks_under_policy_high_risk(make_talk: MakeTalk) -> None:
    talk = make_talk(
        call("run_python", code="print(1)"),
        call("run_python", code="import subprocess; subprocess.run(['ls'])"),
        policy={"policy": {"run_python": "high_risk"}},
    )

    question = question_of(talk.story.attempt())

    assert question.details["risk"] == "high"
    assert question.key.startswith("model#2/")


def test_the_same_call_three_times_becomes_a_question(make_talk: MakeTalk) -> None:
    same = '{"name": "a", "offset": 1}', '{"offset":1,"name":"a"}', '{"name": "a", "offset": 1}'
    talk = make_talk(*(calls(("read_file", text)) for text in same), say("enough"))

    question = question_of(talk.story.attempt())
    assert question.key == "model#3/read_file#1/approval#1"
    assert "the same call 3 times" in question.prompt

    talk.story.durable.answers[question.key] = {"decision": "reject"}
    assert result_of(talk.story.attempt()) == "enough"


# --- other agents ---


def test_other_agents_are_started_together_and_their_results_reach_the_model(make_talk: MakeTalk) -> None:
    talk = make_talk(
        call("find_agents", task="profile a table"),
        calls(("run_agent", {"task": "one", "agent": "csv-profiler"}), ("run_agent", {"task": "two"})),
        say("both"),
    )
    talk.story.platform.found = [{"agent": "csv-profiler"}]

    outcome = talk.story.attempt()
    assert isinstance(outcome, outcomes.Suspended)
    assert [child.task for child in outcome.children] == ["one", "two"]
    assert outcome.questions == ()

    talk.story.platform.endings = {
        "one": {"status": "completed", "result": {"rows": 3}},
        "two": {"status": "failed", "error": "no"},
    }
    assert result_of(talk.story.attempt()) == "both"
    assert [json.loads(result)["status"] for result in talk.results()[1:]] == ["completed", "failed"]
    assert len(talk.story.platform.prepared) == 2


def test_an_agent_that_may_not_be_run_is_an_answer_and_no_wait(make_talk: MakeTalk) -> None:
    talk = make_talk(call("run_agent", task="x", agent="nobody"), say("alone then"))
    talk.story.platform.refuses = "There is no agent 'nobody'. Use find_agents."

    assert result_of(talk.story.attempt()) == "alone then"
    assert "nobody" in talk.results()[0]


def test_a_child_gets_an_equal_share_of_what_is_left(make_talk: MakeTalk) -> None:
    talk = make_talk(
        calls(("run_agent", {"task": "one"}), ("run_agent", {"task": "two"})), budget={"tokens": 1120}
    )

    talk.story.attempt()

    assert [request.budget for request in talk.story.platform.prepared] == [
        {"tokens": 500, "on_exceeded": "fail"}
    ] * 2


def test_every_tool_of_the_cards_is_known(make_talk: MakeTalk) -> None:
    from agents.cards import LLM_TOOLS
    from jobs.execution.llm.tools import TOOLS

    assert set(TOOLS) == set(LLM_TOOLS) == set(ALL_TOOLS)
