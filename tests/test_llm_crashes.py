"""What survives a crash of a conversation: every durable reply, every durable result, and the doubt about the rest."""

import json
from collections.abc import Mapping

import pytest

from jobs.execution import outcomes
from jobs.execution.llm.calls import AGAIN, FAIL, RAN
from tests.execution_harness import WorkerDied, failure_of, result_of
from tests.llm import MakeTalk, make_talk
from tests.model_server import Said, call, calls, say

__all__ = ["make_talk"]

WRITE = "from pathlib import Path\nwith Path('log').open('a') as log: print('ran', file=log)"


def test_whatever_write_a_worker_dies_at_no_durable_reply_is_asked_for_again(make_talk: MakeTalk) -> None:
    """Die before and after each write in turn; the story goes on from there each time."""
    script = [
        call("run_python", code=WRITE),
        calls(("list_files", {}), ("save_artifact", {"name": "a.txt", "content": "a"})),
        say("done"),
    ]
    writes = 0
    for number in range(1, 30):
        for before in (True, False):
            talk = make_talk(*script, *script, policy={"in_doubt": "run_again"})
            try:
                outcome = (
                    talk.story.attempt(die_before=number) if before else talk.story.attempt(die_after=number)
                )
            except WorkerDied:
                talk.server.script[:] = script[_durable_replies(talk.story.durable.steps) :]
                outcome = talk.story.attempt()
            else:
                writes = number
            assert result_of(outcome) == "done"
            assert not talk.server.faults
            assert all(count == 1 for count in talk.story.durable.ends.values())
            lost = 1 if before else 0
            assert len(talk.server.requests) <= 3 + lost
        if writes:
            break
    assert writes > 8


def _durable_replies(steps: Mapping[str, object]) -> int:
    return sum("/" not in key and key.startswith("model#") for key in steps)


def test_code_that_was_cut_off_becomes_a_question(make_talk: MakeTalk) -> None:
    talk = make_talk(call("run_python", code=WRITE), say("done"))
    talk.story.dies(die_after=2)  # the reply, the begin of the call

    outcome = talk.story.attempt()

    assert isinstance(outcome, outcomes.Suspended)
    (question,) = outcome.questions
    assert question.details == {"step": "model#1/run_python#1"}
    assert WRITE.splitlines()[0] in question.prompt
    assert "step.uncertain" in talk.story.types()
    assert len(talk.server.requests) == 1


@pytest.mark.parametrize(("answer", "runs"), [(RAN, 0), (AGAIN, 1)])
def test_a_person_says_whether_it_ran(make_talk: MakeTalk, answer: str, runs: int) -> None:
    code = f"{WRITE}\nprint(Path('log').read_text().count('ran'))"
    talk = make_talk(call("run_python", code=code), say("done"))
    talk.story.dies(die_after=2)

    assert result_of(talk.story.to_end(lambda question: answer)) == "done"

    (told,) = talk.results()
    assert ("1\n" in told) == bool(runs)
    assert ("A person says" in told) != bool(runs)
    assert talk.story.durable.ends["model#1/run_python#1"] == 1


def test_a_second_crash_asks_a_second_time(make_talk: MakeTalk) -> None:
    talk = make_talk(call("run_python", code="1"), say("done"))
    talk.story.dies(die_after=2)
    (first,) = _questions(talk.story.attempt())
    talk.story.durable.answers[first.key] = AGAIN
    talk.story.dies(die_after=2)  # the answer taken, the call begun again

    (second,) = _questions(talk.story.attempt())

    assert (first.key, second.key) == (
        "model#1/run_python#1/doubt#1",
        "model#1/run_python#1/doubt#2",
    )
    talk.story.durable.answers[second.key] = FAIL
    assert failure_of(talk.story.attempt()).code == "step_in_doubt"


def _questions(outcome: outcomes.Outcome) -> tuple[outcomes.QuestionSpec, ...]:
    assert isinstance(outcome, outcomes.Suspended), outcome
    return outcome.questions


def test_files_outlive_the_sandbox_and_variables_do_not(make_talk: MakeTalk) -> None:
    talk = make_talk(
        call("run_python", code="x = 1\nfrom pathlib import Path\nPath('kept.txt').write_text('kept')"),
        call("ask_human", question="Go on?"),
        call(
            "run_python",
            code="from pathlib import Path\nprint(Path('kept.txt').read_text(), 'x' in globals())",
        ),
        call("run_python", code="Path('kept.txt').unlink()"),
        call("ask_human", question="And now?"),
        call("run_python", code="from pathlib import Path\nprint(Path('kept.txt').exists())"),
        say("done"),
    )

    assert result_of(talk.story.to_end(lambda question: "yes")) == "done"

    _, _, after_pause, _, _, after_deletion = talk.results()
    assert after_pause == (
        "[The interpreter is a new one: variables of earlier calls are gone, files are still there.]\n"
        "kept False\n"
    )
    assert after_deletion.endswith("False\n")


def test_no_log_line_doubles_when_a_stream_is_cut_in_the_middle(make_talk: MakeTalk) -> None:
    whole = "First line.\nSecond line.\nThird line.\n"
    talk = make_talk(Said(whole, cut_after=4), say(whole))

    talk.story.attempt()

    assert talk.story.lines("agent") == ["First line.", "Second line.", "Third line."]
    assert talk.story.lines("system")[0].startswith("The model's reply was cut off")


def test_a_worker_that_drains_hands_back_between_two_entries(make_talk: MakeTalk) -> None:
    talk = make_talk(call("list_files"), call("list_files"), say("done"))

    async def drain(story: object, recorder: object) -> None:
        talk.story.control.hand_back.set()

    outcome = talk.story.attempt(meanwhile=drain)

    assert isinstance(outcome, outcomes.HandedBack)
    assert result_of(talk.story.attempt()) == "done"
    assert len(talk.server.requests) <= 3


def test_a_cancelled_conversation_stops_in_the_middle_of_a_reply(make_talk: MakeTalk) -> None:
    talk = make_talk(Said("late", first_token_after=20))

    async def cancel(story: object, recorder: object) -> None:
        talk.story.control.cancel.set()

    assert isinstance(talk.story.attempt(meanwhile=cancel), outcomes.Cancelled)


def test_a_child_is_started_under_the_same_id_after_a_crash(make_talk: MakeTalk) -> None:
    talk = make_talk(call("run_agent", task="one"), say("done"))
    talk.story.dies(die_after=2)  # the call is begun, its job is not inserted yet

    outcome = talk.story.attempt()

    assert isinstance(outcome, outcomes.Suspended)
    first, second = talk.story.platform.prepared
    assert first.id == second.id == outcome.children[0].id
    talk.story.platform.endings = {"one": {"status": "completed", "result": 1}}
    assert result_of(talk.story.attempt()) == "done"
    assert json.loads(talk.results()[0])["result"] == 1
