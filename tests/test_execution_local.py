"""Agents in real local sandboxes: what the fakes of the other tests promise holds there too."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.execution import outcomes
from jobs.execution.outcomes import Cancelled, Suspended
from tests.execution_harness import (
    MakeStory,
    MemoryRecorder,
    PipeProvider,
    Story,
    failure_of,
    result_of,
    until,
)
from tests.sandboxes import Sandboxes, local_provider, needs_bubblewrap

pytestmark = needs_bubblewrap


@pytest.fixture(scope="module")
def sandboxes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandboxes]:
    running = Sandboxes(local_provider(tmp_path_factory.mktemp("scratch")))
    assert running.health.ok, running.health
    running.provider.tick(600)
    yield running
    running.close()


@pytest.fixture
def make_story(tmp_path: Path, settings: Any) -> MakeStory:
    return MakeStory(tmp_path, settings)


def in_sandbox(story: Story, sandboxes: Sandboxes, **limits: Any) -> Story:
    story.provider, story.run, story.limits = sandboxes.provider, sandboxes.run, limits
    return story


WORK = """
    import os, subprocess
    from pathlib import Path
    from engine_agent import *

    def write(name, text):
        Path(name).write_text(text)
        return len(text)

    def main(task, inputs):
        print("begin")
        subprocess.run(["echo", "from a subprocess"])
        first = step("write", write, "a.txt", "one")
        print("first is done")
        second = step("write", write, "sub.txt", "two" * 1000)
        step("chart", (outputs_dir / "chart.svg").write_text, "<svg/>")
        print("second is done")
        log(os.getcwd(), level="debug")
        tone = ask("Which tone?", choices=["formal", "warm"])
        artifact(b"early", "early.txt")
        print("tone is", tone)
        return [first, second, tone, sorted(os.listdir())]
"""


def test_an_agent_runs_asks_and_resumes_in_another_sandbox(
    make_story: MakeStory, sandboxes: Sandboxes
) -> None:
    story = in_sandbox(make_story(WORK), sandboxes)

    assert isinstance(story.attempt(), Suspended)
    story.durable.answers["ask#1"] = "warm"

    assert result_of(story.attempt()) == [3, 3000, "warm", ["a.txt", "sub.txt"]]
    assert story.lines("stdout") == [
        "begin",
        "from a subprocess",
        "first is done",
        "second is done",
        "tone is warm",
    ]
    assert sorted(story.durable.artifacts) == ["chart.svg", "early.txt"]


@pytest.mark.parametrize("point", range(1, 8))
def test_no_line_is_lost_or_doubled_before_the_last_durable_step(
    make_story: MakeStory, sandboxes: Sandboxes, point: int
) -> None:
    story = in_sandbox(make_story(WORK), sandboxes)

    story.dies(die_after=point)
    ended = len(story.durable.ends)
    result_of(story.to_end(lambda question: "formal"))

    assert set(story.durable.ends.values()) == {1}
    lines = story.lines("stdout")
    # What came before a step that had ended is there once; what came after the last one may come again.
    for name, after_steps in (("begin", 0), ("first is done", 1), ("second is done", 3)):
        assert lines.count(name) == 1 or (lines.count(name) == 2 and after_steps >= ended), (name, lines)


@pytest.mark.parametrize("there_first", [True, False])
def test_a_checkpoint_moves_between_providers(
    make_story: MakeStory, sandboxes: Sandboxes, there_first: bool
) -> None:
    story = make_story(WORK)
    elsewhere, run = story.provider, story.run
    assert isinstance(elsewhere, PipeProvider)
    in_sandbox(story, sandboxes)
    if there_first:
        story.provider, story.run = elsewhere, run
    assert isinstance(story.attempt(), Suspended)
    story.durable.answers["ask#1"] = "warm"

    story.provider, story.run = (sandboxes.provider, sandboxes.run) if there_first else (elsewhere, run)

    assert result_of(story.attempt())[:3] == [3, 3000, "warm"]
    assert set(story.durable.ends.values()) == {1}


@pytest.mark.parametrize(
    ("body", "limits", "code"),
    [
        ("while True: time.sleep(1)", {"wall_seconds": 1}, "timeout"),
        ("x = [bytearray(1 << 20) for _ in range(10**6)]", {"memory_mb": 128}, "out_of_memory"),
        ("while True: print('x' * 1000)", {}, "output_limit"),
        ("open('big', 'wb').write(b'x' * (20 << 20))", {"disk_mb": 8}, "disk_full"),
        ("os.kill(os.getpid(), 11)", {}, "agent_crashed"),
    ],
)
def test_crossed_limits_are_told_apart(
    make_story: MakeStory, sandboxes: Sandboxes, body: str, limits: dict[str, Any], code: str
) -> None:
    source = f"""
    import os, time

    def main(task, inputs):
        {body}
    """
    story = in_sandbox(make_story(source), sandboxes, **limits)

    failed = failure_of(story.attempt())

    assert failed.code == code
    assert failed.remedy


def test_a_cancelled_agent_cleans_up(make_story: MakeStory, sandboxes: Sandboxes) -> None:
    source = """
    import time
    from engine_agent import *

    def main(task, inputs):
        try:
            while True:
                step("tick", int)
                time.sleep(0.01)
        finally:
            log("cleaned up")
    """

    async def cancel(story: Story, recorder: MemoryRecorder) -> None:
        await until(lambda: len(story.durable.ends) > 2)
        story.control.cancel.set()

    story = in_sandbox(make_story(source), sandboxes)

    assert isinstance(story.attempt(meanwhile=cancel), Cancelled)
    assert story.lines("agent") == ["cleaned up"]


def test_an_attempt_whose_task_is_cancelled_ends_at_once(make_story: MakeStory, sandboxes: Sandboxes) -> None:
    source = """
    import time
    from engine_agent import step

    def main(task, inputs):
        step("a", int)
        time.sleep(60)
    """

    async def stop(story: Story, recorder: MemoryRecorder) -> None:
        await until(lambda: len(story.durable.ends) > 0)
        story.running.cancel()
        async with asyncio.timeout(10):
            await asyncio.wait([story.running])

    story = in_sandbox(make_story(source), sandboxes)

    with pytest.raises(asyncio.CancelledError):
        story.attempt(meanwhile=stop)


def test_processes_and_threads_of_an_agent_work_inside(make_story: MakeStory, sandboxes: Sandboxes) -> None:
    source = """
    import multiprocessing
    from concurrent.futures import ThreadPoolExecutor
    from engine_agent import *

    def square(number):
        return number * number

    def main(task, inputs):
        with multiprocessing.get_context("fork").Pool(2) as pool:
            forked = pool.map(square, range(4))
        with ThreadPoolExecutor(3) as pool:
            steps = list(pool.map(lambda n: step(f"s{n}", square, n), range(4)))
        return [forked, steps]
    """
    story = in_sandbox(make_story(source), sandboxes)

    assert result_of(story.attempt()) == [[0, 1, 4, 9], [0, 1, 4, 9]]


def test_the_job_file_tells_nothing_of_the_platform(make_story: MakeStory, sandboxes: Sandboxes) -> None:
    source = """
    import os
    from pathlib import Path

    def main(task, inputs):
        description = (Path.home() / "sdk" / "job.json").read_text()
        return [description, dict(os.environ), sorted(os.listdir(Path.home() / "sdk"))]
    """
    story = in_sandbox(make_story(source), sandboxes)

    outcome = story.attempt()

    assert isinstance(outcome, outcomes.Completed)
    assert str(story.id) not in str(outcome.result)
    assert str(story.project_id) not in str(outcome.result)
    assert "ENGINE_RECORDS" not in outcome.result[1]
