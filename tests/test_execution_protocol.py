"""Records may be forged: none of them may do harm, and none may stop the worker."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.execution import protocol
from jobs.execution.fields import BadRecord
from jobs.execution.outcomes import Failed
from tests.execution_harness import ENDED, MakeStory, failure_of, result_of

BEGIN = {"t": "begin", "key": "a#1", "signature": "s", "once": False}
END = {"t": "end", "n": 1, "key": "a#1", "result": 1, "files": [], "deleted": []}
QUESTION = {"key": "ask#1", "signature": "s", "kind": "text", "prompt": "Well?", "on_timeout": "wait"}
ASK = {"t": "ask", "n": 1, "questions": [QUESTION]}
ERROR = {"t": "error", "code": "agent_error", "message": "m"}
RESULT = {"t": "result", "result": {"ok": True}}
LOG = {"t": "log", "level": "info", "message": "m"}
FILE = {"path": "workspace/a", "size": 1, "sha256": "0" * 64}


@pytest.fixture
def make_story(tmp_path: Path, settings: Any) -> MakeStory:
    return MakeStory(tmp_path, settings)


def line(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode()


@pytest.mark.parametrize("record", [BEGIN, END, ASK, ERROR, RESULT, LOG, {**END, "files": [FILE]}])
def test_what_the_sdk_writes_is_taken(record: dict[str, Any]) -> None:
    protocol.parse(line(record))


@pytest.mark.parametrize(
    "forged",
    [
        b"",
        b"no json",
        b"[1, 2]",
        b'"text"',
        b"{}",
        b'{"t": []}',
        b'{"t": "exec", "cmd": "rm"}',
        b'{"t": "result", "result": NaN}',
        b'{"t": "result", "result": 1e999}',
        b'{"t": "result", "result": ' + b"9" * 5000 + b"}",
        b'{"t": "result", "result": ' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"t": "result", "result": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"t": "result", "result": "\xff\xfe"}',
        line({**RESULT, "result": "x" * 1_100_000}),
        line({**RESULT, "n": "1"}),
        line({**RESULT, "n": -1}),
        line({**RESULT, "n": True}),
        line({**RESULT, "more": 1}),
        line({**LOG, "level": "loud"}),
        line({**LOG, "message": 3}),
        line({**LOG, "message": "x" * 20_000}),
        line({**LOG, "data": [1]}),
        line({**BEGIN, "key": "a"}),
        line({**BEGIN, "key": "a#0"}),
        line({**BEGIN, "key": "a#1/"}),
        line({**BEGIN, "key": "a\n#1"}),
        line({**BEGIN, "key": "x" * 600 + "#1"}),
        line({**BEGIN, "once": "yes"}),
        line({**BEGIN, "signature": "x" * 200}),
        line({key: value for key, value in END.items() if key != "n"}),
        line({**END, "files": "all"}),
        line({**END, "files": [FILE] * 1001}),
        line({**END, "files": [{**FILE, "path": "/etc/passwd"}]}),
        line({**END, "files": [{**FILE, "path": "workspace/../../etc/passwd"}]}),
        line({**END, "files": [{**FILE, "path": "inputs/a"}]}),
        line({**END, "files": [{**FILE, "path": "workspace"}]}),
        line({**END, "files": [{**FILE, "path": "workspace//a"}]}),
        line({**END, "files": [{**FILE, "path": "workspace/a\\b"}]}),
        line({**END, "files": [{**FILE, "path": "workspace/a\nb"}]}),
        line({**END, "files": [{**FILE, "path": 7}]}),
        line({**END, "files": [{**FILE, "size": -1}]}),
        line({**END, "files": [{**FILE, "size": 1.5}]}),
        line({**END, "files": [{**FILE, "sha256": "../../x"}]}),
        line({**END, "files": [{**FILE, "storage_key": "another/job"}]}),
        line({**END, "deleted": ["../x"]}),
        line({"t": "artifact", "n": 1, "path": "workspace/a"}),
        line({"t": "artifact", "n": 1, "path": "outputs/../a"}),
        line({"t": "artifact", "path": "outputs/a"}),
        line({"t": "progress", "fraction": 2, "message": ""}),
        line({"t": "progress", "fraction": "half", "message": ""}),
        line({"t": "progress", "fraction": True, "message": ""}),
        line({"t": "failed", "key": "a#1"}),
        line({**ERROR, "code": "Not A Code"}),
        line({**ERROR, "message": "x" * 9000}),
        line({**ASK, "questions": []}),
        line({**ASK, "questions": [QUESTION] * 2}),
        line({**ASK, "questions": [7]}),
        line({**ASK, "questions": [{**QUESTION, "kind": "secret"}]}),
        line({**ASK, "questions": [{**QUESTION, "prompt": " "}]}),
        line({**ASK, "questions": [{**QUESTION, "timeout": 0}]}),
        line({**ASK, "questions": [{**QUESTION, "timeout": 1e12}]}),
        line({**ASK, "questions": [{**QUESTION, "timeout": True}]}),
        line({**ASK, "questions": [{**QUESTION, "on_timeout": "fail"}]}),
        line({**ASK, "questions": [{**QUESTION, "default": 3}]}),
        line({**ASK, "questions": [{**QUESTION, "answered_by": "root"}]}),
        line({**ASK, "questions": [{**QUESTION, "kind": "choice"}]}),
        line({**ASK, "questions": [{**QUESTION, "kind": "choice", "choices": [1]}]}),
        line({**ASK, "questions": [{**QUESTION, "kind": "form", "schema": {"$ref": "file:///etc/passwd"}}]}),
        line({**ASK, "questions": [{**QUESTION, "kind": "form", "schema": {"properties": {"a": 1}}}]}),
        line(
            {
                **ASK,
                "questions": [
                    {**QUESTION, "kind": "form", "schema": {"properties": {"a": {}}, "required": [[]]}}
                ],
            }
        ),
        line(
            {
                **ASK,
                "questions": [
                    {
                        **QUESTION,
                        "kind": "form",
                        "schema": {"properties": {"a": {"type": "array", "items": []}}},
                    }
                ],
            }
        ),
        line({**ASK, "questions": [{**QUESTION, "kind": "approval", "details": {"allowed": [["approve"]]}}]}),
    ],
)
def test_a_forged_record_is_refused(forged: bytes) -> None:
    with pytest.raises(BadRecord):
        protocol.parse(forged)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = sorted({*BEGIN, *END, *ASK, *ERROR, *RESULT, *LOG, *QUESTION, "fraction", "path", "error", "data"})
SHAPED = st.dictionaries(
    st.sampled_from(FIELDS), JSON | st.just("a#1") | st.just([FILE]) | st.just([QUESTION])
)


@given(kind=st.sampled_from(sorted(protocol._READERS)), record=SHAPED)
def test_no_record_raises_anything_but_a_refusal(kind: str, record: dict[str, Any]) -> None:
    try:
        protocol.parse(line({**record, "t": kind}))
    except BadRecord:
        return


@given(
    kind=st.sampled_from(["text", "choice", "multi_choice", "confirm", "form", "approval"]),
    question=SHAPED,
    parts=JSON,
)
def test_no_question_raises_anything_but_a_refusal(kind: str, question: dict[str, Any], parts: Any) -> None:
    whole = {**QUESTION, **question, "kind": kind, "schema": parts, "choices": parts, "details": parts}
    try:
        protocol.parse(line({**ASK, "questions": [whole]}))
    except BadRecord:
        return


@given(st.binary(max_size=300))
def test_no_line_raises_anything_but_a_refusal(data: bytes) -> None:
    with pytest.raises(BadRecord):
        protocol.parse(data)


def test_text_that_postgresql_cannot_store_is_replaced() -> None:
    parsed = protocol.parse(b'{"t": "result", "result": {"a\\u0000": ["\\ud800x", "\\ud83d\\ude00"]}}')

    assert parsed == protocol.Result({"a\ufffd": ["\ufffdx", "\U0001f600"]})


# --- what a whole program of forged records can do ---


def test_a_step_that_never_began_cannot_end(make_story: MakeStory) -> None:
    story, sandbox = make_story.scripted(END, RESULT, ENDED)

    result_of(story.attempt())

    assert [reply["t"] for reply in sandbox.sent] == ["refuse"]
    assert story.durable.steps == {}


def test_a_step_cannot_end_twice_or_begin_again(make_story: MakeStory) -> None:
    story, sandbox = make_story.scripted(BEGIN, END, {**END, "n": 2, "result": "other"}, BEGIN, RESULT, ENDED)

    result_of(story.attempt())

    assert [reply["t"] for reply in sandbox.sent] == ["ack", "refuse"]
    assert story.durable.ends == {"a#1": 1}
    assert story.types().count("step.started") == 1
    assert story.durable.steps["a#1"].result == {"value": 1}


def test_an_answer_that_nobody_gave_is_not_taken(make_story: MakeStory) -> None:
    forged = {"t": "answered", "key": "ask#1", "signature": "s"}
    story, _ = make_story.scripted(forged, RESULT, ENDED)

    result_of(story.attempt())

    assert story.durable.steps == {}


def test_nothing_is_taken_after_the_result(make_story: MakeStory) -> None:
    story, _ = make_story.scripted(RESULT, {**RESULT, "result": "other"}, BEGIN, ASK, ERROR, ENDED)

    assert result_of(story.attempt()) == {"ok": True}
    assert story.durable.steps == {}


def test_files_are_what_was_read_not_what_the_program_says(make_story: MakeStory) -> None:
    end = {**END, "files": [FILE, {**FILE, "path": "workspace/absent"}]}
    story, _ = make_story.scripted(BEGIN, end, RESULT, ENDED, files={"workspace/a": b"true content"})

    story.attempt()

    (file,) = story.durable.steps["a#1"].files
    assert (file.path, file.size) == ("workspace/a", 12)
    assert file.sha256 != FILE["sha256"]


def test_content_that_an_earlier_step_brought_is_not_read_again(make_story: MakeStory) -> None:
    files = {"workspace/a": b"content"}
    end = {**END, "files": [FILE]}
    story, _ = make_story.scripted(BEGIN, end, RESULT, ENDED, files=files)
    story.attempt()
    (stored,) = story.durable.steps["a#1"].files
    again = {
        **END,
        "key": "b#1",
        "files": [{"path": "workspace/b", "size": stored.size, "sha256": stored.sha256}],
    }
    later, _ = make_story.scripted({**BEGIN, "key": "b#1"}, again, RESULT, ENDED, files={})
    later.durable = story.durable

    later.attempt()

    (copy,) = story.durable.steps["b#1"].files
    assert (copy.path, copy.storage_key) == ("workspace/b", stored.storage_key)


def test_a_program_that_floods_the_channel_is_stopped(make_story: MakeStory) -> None:
    story, sandbox = make_story.scripted(*[b"garbage"] * 1000)

    failed = failure_of(story.attempt())

    assert failed.code == "bad_records"
    assert not failed.retryable
    assert len(story.lines()) == 10
    assert sandbox.calls[-1] == "close"


def test_too_many_steps_are_refused_by_name(make_story: MakeStory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.execution.python_agent.MOST_STEPS", 3)
    source = """
    from engine_agent import step

    def main(task, inputs):
        for number in range(5):
            step("a", int)
    """
    failed = failure_of(make_story(source).attempt())

    assert failed.code == "journal_full"
    assert not failed.retryable


def test_results_that_grow_over_the_jobs_cap_are_refused(
    make_story: MakeStory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.execution.python_agent.MOST_JOURNAL_BYTES", 1000)
    source = """
    from engine_agent import step

    def main(task, inputs):
        for number in range(5):
            step("a", str, "x" * 300)
    """

    failed = failure_of(make_story(source).attempt())

    assert failed.code == "journal_full"
    assert "together" in failed.message


def test_files_over_the_archives_cap_are_refused(
    make_story: MakeStory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.execution.python_agent.MOST_ARCHIVE_BYTES", 1000)
    source = """
    from pathlib import Path
    from engine_agent import step

    def main(task, inputs):
        for number in range(5):
            step("a", Path(str(number)).write_text, str(number) * 300)
    """

    failed = failure_of(make_story(source).attempt())

    assert isinstance(failed, Failed)
    assert failed.code == "checkpoint_too_large"
