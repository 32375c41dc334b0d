"""What a program prints becomes lines that any reader can show."""

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.execution import logs
from jobs.execution.logs import LINE_CHARACTERS, LogLines
from jobs.sandboxes.base import Stderr, Stdout
from tests.execution_harness import ENDED, Durable, MakeStory, MemoryRecorder

RESULT = {"t": "result", "result": None}


@pytest.fixture
def make_story(tmp_path: Path, settings: Any) -> MakeStory:
    return MakeStory(tmp_path, settings)


def lines_of(*pieces: bytes) -> list[str]:
    durable = Durable()
    recorder = MemoryRecorder(durable, 1)
    log = LogLines(recorder)
    for piece in pieces:
        log.feed("stdout", piece)
    log.close()
    recorder.settle()
    return [event.message for event in durable.events]


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        ([b"one\ntwo\n"], ["one", "two"]),
        ([b"on", b"e\nt", b"wo"], ["one", "two"]),
        ([b"a\r\nb\r\n"], ["a", "b"]),
        ([b"a\n\nb\n"], ["a", "", "b"]),
        ([b" 10%\r 50%\r100%\nnext\n"], ["100%", "next"]),
        ([b"\xc3", b"\xa9\n"], ["é"]),
        ([b"\xff\xfe\n"], ["\\xff\\xfe"]),
        ([b"nul \x00 bell \x07 tab\t.\n"], ["nul  bell  tab\t."]),
        ([b"\x1b[1;31mred\x1b[0m \x1b]0;title\x07plain\n"], ["red plain"]),
        ([b"\x1b[2J\x1b[H\x1bcgone\n"], ["gone"]),
        ([b""], []),
    ],
)
def test_output_is_cut_into_clean_lines(pieces: list[bytes], lines: list[str]) -> None:
    assert lines_of(*pieces) == lines


def test_a_long_line_is_cut_with_a_mark_and_the_next_one_is_whole() -> None:
    cut, following = lines_of(b"x" * 1_000_000 + b"\nnext\n")
    assert cut.startswith("x" * LINE_CHARACTERS)
    assert "cut" in cut
    assert following == "next"


def test_a_line_without_end_is_cut_and_never_held_whole() -> None:
    durable = Durable()
    recorder = MemoryRecorder(durable, 1)
    log = LogLines(recorder)

    for _ in range(1000):
        log.feed("stdout", b"x" * 10_000)
        assert len(log._rest["stdout"]) <= LINE_CHARACTERS + 10_000
    log.feed("stdout", b"tail\nnext\n")

    recorder.settle()
    first, second = (event.message for event in durable.events)
    assert first.endswith("…") or "cut" in first
    assert second == "next"


def test_a_progress_bar_that_never_ends_its_line_is_no_flood() -> None:
    bar = b"".join(b"\r%d%%" % (number % 100) for number in range(100_000))
    assert len(lines_of(bar, b"\rdone\n")) == 1


@given(st.binary(max_size=400), st.integers(0, 2**32))
def test_where_output_is_cut_into_pieces_makes_no_difference(data: bytes, seed: int) -> None:
    cuts = sorted(random.Random(seed).choices(range(len(data) + 1), k=5))
    pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]

    assert lines_of(*pieces) == lines_of(data)


def test_the_jobs_log_is_cut_with_one_visible_mark(
    make_story: MakeStory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MOST_LINES", 5)
    log = {"t": "log", "level": "warning", "message": "from the agent"}
    story, _ = make_story.scripted(
        Stdout(b"a\nb\n"), log, Stderr(b"c\n" * 10), log, Stdout(b"d\n" * 10), RESULT, ENDED
    )

    story.attempt()

    assert story.lines() == ["a", "b", "from the agent", "c", "c"]
    assert story.types().count("log.truncated") == 1


def test_the_logs_size_is_capped_too(make_story: MakeStory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MOST_BYTES", 100)
    story, _ = make_story.scripted(Stdout(b"x" * 60 + b"\n" + b"y" * 60 + b"\nz\n"), RESULT, ENDED)

    story.attempt()

    assert story.lines() == ["x" * 60]
    assert "log.truncated" in story.types()


def test_lines_keep_their_source_level_and_values(make_story: MakeStory) -> None:
    source = """
    import sys
    from engine_agent import log

    def main(task, inputs):
        print("to stdout")
        print("to stderr", file=sys.stderr)
        log("said", level="warning", rows=3, path=__file__.__class__)

    """
    source = source.replace(", path=__file__.__class__", "")
    story = make_story(source)

    story.attempt()

    seen = {
        (e.source, e.level, e.message, e.data and e.data.get("rows"))
        for e in story.durable.events
        if e.type == "log"
    }
    assert seen == {
        ("stdout", "info", "to stdout", None),
        ("stderr", "info", "to stderr", None),
        ("agent", "warning", "said", 3),
    }


def test_what_was_printed_before_a_step_ended_is_stored_no_later(make_story: MakeStory) -> None:
    source = """
    from engine_agent import step

    def main(task, inputs):
        for number in range(30):
            print(f"line {number}")
            step("step", int)
    """
    story = make_story(source)

    story.dies(die_after=60)  # the last end is durable, nothing after it

    assert story.lines() == [f"line {number}" for number in range(30)]


def test_output_that_comes_a_moment_after_a_record_is_stored_with_it(make_story: MakeStory) -> None:
    begin = {"t": "begin", "key": "a#1", "signature": "s", "once": False}
    end = {"t": "end", "n": 1, "key": "a#1", "result": 1, "files": [], "deleted": []}
    story, _ = make_story.scripted(begin, end, Stdout(b"printed before the end\n"), RESULT, ENDED)

    story.dies(die_after=2)

    assert story.lines() == ["printed before the end"]


def test_progress_is_kept_and_shown_where_it_changes(make_story: MakeStory) -> None:
    source = """
    from engine_agent import progress

    def main(task, inputs):
        for number in range(100_000):
            progress(number / 100_000, "counting")
        progress(7, "over")
    """
    story = make_story(source)

    story.attempt()

    events = [event for event in story.durable.events if event.type == "job.progress"]
    assert story.durable.progress == (1.0, "over")
    assert 1 <= len(events) <= 102
    assert events[-1].message == "over"
