"""How programs end, and what the job's user is told."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from jobs.execution import outcomes, python_agent
from jobs.execution.outcomes import Cancelled, Completed, HandedBack, LeaseLost, Lost, Unavailable
from jobs.execution.ports import LeaseLostError
from jobs.sandboxes.base import (
    Ended,
    EndReason,
    RequirementsFailed,
    SandboxBusy,
    SandboxError,
    SandboxLost,
    SandboxRefused,
    SandboxSpec,
    SandboxUnavailable,
    Stderr,
)
from tests.execution_harness import (
    ENDED,
    MakeStory,
    MemoryRecorder,
    PipeProvider,
    Story,
    failure_of,
    result_of,
    until,
)

RESULT = {"t": "result", "result": {"rows": 3}}
BEGIN = {"t": "begin", "key": "a#1", "signature": "s", "once": False}
END = {"t": "end", "n": 1, "key": "a#1", "result": 1, "files": [], "deleted": []}


@pytest.fixture
def make_story(tmp_path: Path, settings: Any) -> MakeStory:
    return MakeStory(tmp_path, settings)


# --- failures ---


@pytest.mark.parametrize(
    ("source", "code", "retryable", "words"),
    [
        ("def main(task, inputs): raise ValueError('bad rows')", "agent_error", True, "ValueError: bad rows"),
        ("def main(task, inputs): raise ValueError", "agent_error", True, "ValueError"),
        ("def main(task, inputs): import os; os._exit(3)", "agent_crashed", True, "exit code 3"),
        ("def main(task, inputs): import os; os._exit(0)", "agent_crashed", True, "exit code 0"),
        ("def main(task, inputs): import os; os._exit(75)", "agent_crashed", True, "exit code 75"),
        ("def main(task, inputs): import os; os.abort()", "agent_crashed", True, "SIGABRT"),
        ("def main(task, inputs): import sys; sys.exit(2)", "agent_error", True, "sys.exit(2)"),
        ("def main(task, inputs): raise MemoryError", "out_of_memory", False, "memory"),
        ("def main(task, inputs): raise OSError(28, 'No space left on device')", "disk_full", False, "MB"),
        ("def main(task, inputs) return 1", "invalid_agent", False, "SyntaxError: expected ':'"),
        ("import nothing_like_this", "invalid_agent", False, "nothing_like_this"),
        ("x = 1", "invalid_agent", False, "main(task, inputs)"),
    ],
)
def test_a_failed_agent_says_what_happened(
    make_story: MakeStory, source: str, code: str, retryable: bool, words: str
) -> None:
    failed = failure_of(make_story(source).attempt())

    assert failed.code == code
    assert failed.retryable == retryable
    assert words in failed.message
    assert failed.remedy


def test_an_error_for_the_user_keeps_its_words_and_is_not_retried(make_story: MakeStory) -> None:
    source = """
    from engine_agent import UserError, step

    def read():
        raise UserError("The file has no text column.", "Name the column in the task.")

    def main(task, inputs):
        step("read", read)
    """
    story = make_story(source)

    failed = failure_of(story.attempt())

    assert failed == outcomes.Failed(
        "user_error", "The file has no text column.", "Name the column in the task.", retryable=False
    )
    assert story.lines("stderr") == []


def test_a_traceback_shows_the_agents_lines_and_none_of_the_sdk(make_story: MakeStory) -> None:
    source = """
    from engine_agent import step

    def divide():
        return 1 / 0

    def main(task, inputs):
        step("divide", divide)
    """
    story = make_story(source)

    failed = failure_of(story.attempt())

    assert "return 1 / 0" in failed.data["traceback"]
    assert "engine_agent.py" not in failed.data["traceback"]
    assert "return 1 / 0" in "\n".join(story.lines("stderr"))


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (EndReason.TIMEOUT, "timeout"),
        (EndReason.MEMORY, "out_of_memory"),
        (EndReason.OUTPUT, "output_limit"),
        (EndReason.DISK, "disk_full"),
    ],
)
def test_a_crossed_limit_is_named_and_not_retried(
    make_story: MakeStory, reason: EndReason, code: str
) -> None:
    story, _ = make_story.scripted(Stderr(b"last words"), Ended(reason, None, "detail"))

    failed = failure_of(story.attempt())

    assert failed.code == code
    assert not failed.retryable
    assert failed.remedy
    assert failed.data == {"exit_code": None, "stderr": ["last words"], "detail": "detail"}


@pytest.mark.parametrize("reason", [EndReason.TIMEOUT, EndReason.MEMORY])
def test_an_attempt_that_got_further_before_its_limit_is_retried(
    make_story: MakeStory, reason: EndReason
) -> None:
    story, _ = make_story.scripted(BEGIN, END, Ended(reason, None))

    assert failure_of(story.attempt()).retryable


@pytest.mark.parametrize(
    "ended", [Ended(EndReason.LOST, None), Ended(EndReason.KILLED, -9), SandboxLost("gone")]
)
def test_a_vanished_sandbox_is_a_loss_and_no_failure(make_story: MakeStory, ended: Any) -> None:
    story, sandbox = make_story.scripted(BEGIN, ended)

    assert isinstance(story.attempt(), Lost)
    assert sandbox.calls[-1] == "close"


def test_a_result_counts_though_the_program_ends_badly(make_story: MakeStory) -> None:
    story, _ = make_story.scripted(RESULT, Ended(EndReason.EXITED, -11))

    assert result_of(story.attempt()) == {"rows": 3}
    assert "exit code -11" in story.lines()[0]


def test_a_program_that_stays_after_its_result_is_ended(
    make_story: MakeStory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(python_agent, "LEAVE_GRACE_SECONDS", 0.05)
    story, sandbox = make_story.scripted(RESULT)

    assert result_of(story.attempt()) == {"rows": 3}
    assert sandbox.calls == ["start", "terminate", "close"]


# --- results ---


@pytest.mark.parametrize(
    ("schema", "where"),
    [
        ({"type": "object", "required": ["score"]}, "the result as a whole"),
        ({"properties": {"rows": {"type": "string"}}}, "/rows"),
    ],
)
def test_a_result_that_does_not_meet_the_schema_fails_and_is_not_retried(
    make_story: MakeStory, schema: dict[str, Any], where: str
) -> None:
    story, _ = make_story.scripted(RESULT, ENDED, output_schema=schema)

    failed = failure_of(story.attempt())

    assert failed.code == "invalid_result"
    assert not failed.retryable
    assert where in failed.message


def test_a_result_that_meets_the_schema_passes(make_story: MakeStory) -> None:
    story, _ = make_story.scripted(RESULT, ENDED, output_schema={"required": ["rows"]})

    assert result_of(story.attempt()) == {"rows": 3}


# --- before the program starts ---


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (
            SandboxUnavailable("no bwrap", remedy="apt-get install bubblewrap"),
            Unavailable("no bwrap", "apt-get install bubblewrap"),
        ),
        (SandboxBusy("all taken"), HandedBack("all taken")),
        (SandboxLost("gone"), Lost("gone")),
    ],
)
def test_a_sandbox_that_cannot_be_had_charges_no_attempt(
    make_story: MakeStory, monkeypatch: pytest.MonkeyPatch, error: Exception, outcome: outcomes.Outcome
) -> None:
    monkeypatch.setattr("jobs.execution.attempt.PAUSE_SECONDS", (0.0, 0.01))
    story, _ = make_story.scripted(ENDED)

    async def refuse(spec: SandboxSpec) -> None:
        raise error

    assert isinstance(story.provider, PipeProvider)
    story.provider.opening = refuse

    assert story.attempt() == outcome


def test_requirements_that_cannot_be_installed_fail_the_job_with_the_installers_words(
    make_story: MakeStory,
) -> None:
    story, _ = make_story.scripted(ENDED)

    async def refuse(spec: SandboxSpec) -> None:
        raise RequirementsFailed("pip failed", output="Collecting nothing\nERROR: No matching distribution")

    assert isinstance(story.provider, PipeProvider)
    story.provider.opening = refuse

    failed = failure_of(story.attempt())

    assert failed.code == "requirements_failed"
    assert not failed.retryable
    assert story.lines() == ["Collecting nothing", "ERROR: No matching distribution"]


def test_an_agent_that_this_provider_can_never_run_is_not_tried_again(make_story: MakeStory) -> None:
    story, _ = make_story.scripted(SandboxRefused("there is no network here"))

    failed = failure_of(story.attempt())

    assert (failed.code, failed.retryable) == ("sandbox_refused", False)
    assert "no network" in failed.message


def test_a_sandbox_that_fails_otherwise_is_tried_again(make_story: MakeStory) -> None:
    story, _ = make_story.scripted(SandboxError("the disk is slow today"))

    failed = failure_of(story.attempt())

    assert failed.code == "sandbox_error"
    assert failed.retryable


# --- cancel, drain, lease ---

LOOP = """
    import time
    from engine_agent import *

    def main(task, inputs):
        print("running")
        number = 0
        try:
            while True:
                number += 1
                step("tick", int)
                time.sleep(0.01)
        finally:
            log("cleaned up")
"""


@pytest.mark.parametrize("channel", ["fd", "file"])
def test_a_cancelled_agent_hears_it_at_its_next_call_and_may_clean_up(
    make_story: MakeStory, channel: str
) -> None:
    async def cancel(story: Story, recorder: MemoryRecorder) -> None:
        await until(lambda: len(story.durable.ends) > 2)
        story.control.cancel.set()

    story = make_story(LOOP, channel=channel)

    assert isinstance(story.attempt(meanwhile=cancel), Cancelled)
    assert story.lines("agent") == ["cleaned up"]


def test_a_deaf_agent_is_stopped_after_the_grace(
    make_story: MakeStory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(python_agent, "CANCEL_GRACE_SECONDS", 0.1)
    monkeypatch.setattr(python_agent, "TERMINATE_GRACE_SECONDS", 0.1)
    source = """
    import signal, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def main(task, inputs):
        print("deaf", flush=True)
        while True:
            time.sleep(1)
    """

    async def cancel(story: Story, recorder: MemoryRecorder) -> None:
        await until(lambda: bool(recorder._pending))
        story.control.cancel.set()

    assert isinstance(make_story(source).attempt(meanwhile=cancel), Cancelled)


def test_a_result_that_came_in_spite_of_a_cancel_is_the_result(make_story: MakeStory) -> None:
    source = """
    from engine_agent import *

    def main(task, inputs):
        step("a", int)
        try:
            while True:
                log("still here")
        except Cancelled:
            return "as far as I came"
    """

    async def cancel(story: Story, recorder: MemoryRecorder) -> None:
        await until(lambda: bool(story.durable.ends))
        story.control.cancel.set()

    assert result_of(make_story(source).attempt(meanwhile=cancel)) == "as far as I came"


def test_a_drained_worker_hands_the_job_back_at_its_next_step(make_story: MakeStory) -> None:
    async def drain(story: Story, recorder: MemoryRecorder) -> None:
        await until(lambda: len(story.durable.ends) > 2)
        story.control.hand_back.set()

    story = make_story(LOOP)

    assert isinstance(story.attempt(meanwhile=drain), HandedBack)
    ended = len(story.durable.ends)

    async def cancel(story: Story, recorder: MemoryRecorder) -> None:
        await until(lambda: len(story.durable.ends) > ended + 2)
        story.control.cancel.set()

    story.attempt(meanwhile=cancel)
    assert set(story.durable.ends.values()) == {1}


def test_a_lost_lease_stops_the_program_at_once(make_story: MakeStory) -> None:
    async def lose(story: Story, recorder: MemoryRecorder) -> None:
        await until(lambda: len(story.durable.ends) > 2)
        story.control.lease_lost.set()

    story = make_story(LOOP)

    assert isinstance(story.attempt(meanwhile=lose), LeaseLost)
    assert isinstance(story.provider, PipeProvider)
    process = story.provider.opened[0].process
    assert process is not None
    assert process.returncode == -9


def test_an_attempt_whose_task_is_cancelled_leaves_no_program_behind(make_story: MakeStory) -> None:
    async def stop(story: Story, recorder: MemoryRecorder) -> None:
        await until(lambda: len(story.durable.ends) > 2)
        story.running.cancel()

    story = make_story(LOOP)

    with pytest.raises(asyncio.CancelledError):
        story.attempt(meanwhile=stop)
    assert isinstance(story.provider, PipeProvider)
    process = story.provider.opened[0].process
    assert process is not None
    assert process.returncode == -9


def test_a_refused_write_ends_the_attempt(make_story: MakeStory, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(self: MemoryRecorder, step: Any) -> None:
        raise LeaseLostError

    monkeypatch.setattr(MemoryRecorder, "end_step", refused)
    story = make_story(LOOP)

    assert isinstance(story.attempt(), LeaseLost)


@pytest.mark.parametrize("wish", ["cancel", "hand_back", "lease_lost"])
def test_a_wish_that_comes_while_the_sandbox_opens_is_met_at_once(make_story: MakeStory, wish: str) -> None:
    story, sandbox = make_story.scripted(RESULT, ENDED)
    abandoned = []

    async def install(spec: SandboxSpec) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            abandoned.append(True)

    async def want(story: Story, recorder: MemoryRecorder) -> None:
        getattr(story.control, wish).set()

    assert isinstance(story.provider, PipeProvider)
    story.provider.opening = install

    outcome = story.attempt(meanwhile=want)

    assert isinstance(outcome, {"cancel": Cancelled, "hand_back": HandedBack, "lease_lost": LeaseLost}[wish])
    assert abandoned == [True]
    assert "start" not in sandbox.calls


def test_a_sandbox_that_opens_too_late_is_closed(make_story: MakeStory) -> None:
    story, sandbox = make_story.scripted(RESULT, ENDED)

    async def stubborn(spec: SandboxSpec) -> None:
        for _ in range(3):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return

    async def want(story: Story, recorder: MemoryRecorder) -> None:
        story.control.cancel.set()

    assert isinstance(story.provider, PipeProvider)
    story.provider.opening = stubborn

    assert isinstance(story.attempt(meanwhile=want), Cancelled)
    assert sandbox.calls == ["close"]


def test_completed_is_a_result_and_all_its_outputs(make_story: MakeStory) -> None:
    story, sandbox = make_story.scripted(RESULT, ENDED, files={"outputs/a.txt": b"a"})

    assert isinstance(story.attempt(), Completed)
    assert list(story.durable.artifacts) == ["a.txt"]
    assert sandbox.calls == ["start", "close"]
