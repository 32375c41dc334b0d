"""What survives a crash: steps that ended, their files, their failures; and what an agent may not do."""

import asyncio
import copy
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from jobs.execution import outcomes
from jobs.execution.outcomes import StepBegin
from tests.execution_harness import MakeStory, MemoryRecorder, WorkerDied, failure_of, result_of, until


@pytest.fixture
def make_story(tmp_path: Path, settings: Any) -> MakeStory:
    return MakeStory(tmp_path, settings)


@pytest.fixture
def effects(tmp_path: Path) -> Path:
    """A file outside every sandbox: one line each time an agent's body really runs."""
    path = tmp_path / "effects"
    path.touch()
    return path


COUNTING = """
    from pathlib import Path
    from engine_agent import *

    def effect(name):
        with open({effects!r}, "a") as file:
            file.write(name + "\\n")
        return name

"""


def counting(effects: Path, source: str) -> str:
    return COUNTING.format(effects=str(effects)) + source


def counts(effects: Path) -> dict[str, int]:
    lines = effects.read_text().splitlines()
    return {line: lines.count(line) for line in lines}


WORK = """
    def write(name, text):
        Path(name).write_text(text)
        return effect("write " + name)

    def outer():
        inner = step("inner", write, "inner.txt", "deep")
        Path("outer.txt").write_text("outer")
        return [inner, effect("outer")]

    def failing():
        effect("failing")
        raise KeyError("no such thing")

    def main(task, inputs):
        print("begin of main")
        assert not Path("a.txt").exists()
        step("write", write, "a.txt", "one")
        assert Path("a.txt").read_text() == "one"
        log("between the steps")
        step("write", write, "a.txt", "two")
        assert Path("a.txt").read_text() == "two"
        step("outer", outer)
        assert Path("inner.txt").read_text() == "deep" and Path("outer.txt").exists()
        step("delete", Path.unlink, Path("inner.txt"))
        assert not Path("inner.txt").exists()
        try:
            step("failing", failing)
        except KeyError as error:
            assert error.args == ("no such thing",)
            print("survived")
        moment = now().isoformat()
        step("last", write, "last.txt", moment)
        print("end of main")
        return {"moment": moment, "random": random(), "uuid": str(uuid()), "text": Path("a.txt").read_text()}
"""


@pytest.mark.parametrize("channel", ["fd", "file"])
def test_an_agent_runs_from_start_to_result(make_story: MakeStory, effects: Path, channel: str) -> None:
    story = make_story(counting(effects, WORK), channel=channel)

    result = result_of(story.attempt())

    assert result["text"] == "two"
    assert story.lines() == ["begin of main", "between the steps", "survived", "end of main"]
    assert [e.message for e in story.durable.events if e.type == "step.started"] == [
        "write#1",
        "write#2",
        "outer#1",
        "outer#1/inner#1",
        "delete#1",
        "failing#1",
        "last#1",
    ]


@pytest.mark.parametrize("side", ["die_before", "die_after"])
def test_no_step_with_a_durable_end_runs_again_wherever_the_worker_dies(
    make_story: MakeStory, effects: Path, side: str
) -> None:
    whole = make_story(counting(effects, WORK))
    whole.attempt()
    writes = 2 * len(whole.durable.steps)
    assert writes == 16  # eight entries, each begun and ended

    for point in range(1, writes + 1):
        effects.write_text("")
        story = make_story(counting(effects, WORK))
        story.dies(**{side: point})
        ended = {key for key, step in story.durable.steps.items() if step.ended}
        before = counts(effects)

        result_of(story.to_end())

        assert set(story.durable.ends.values()) == {1}
        for key, name in (("write#1", "write a.txt"), ("outer#1", "outer"), ("failing#1", "failing")):
            if key in ended and name != "write a.txt":
                assert counts(effects)[name] == before[name] == 1
        if {"write#1", "write#2"} <= ended:
            assert counts(effects)["write a.txt"] == 2


def test_the_program_may_be_killed_at_each_point(make_story: MakeStory, effects: Path) -> None:
    source = counting(
        effects,
        """
    def main(task, inputs):
        print("begin")
        step("a", effect, "a")
        answer = ask("Well?")
        paid = step("pay", effect, "pay", once=True)
        artifact(b"x", "x.txt")
        step("b", effect, "b")
        return [answer, paid]
    """,
    )
    for point in range(1, 7):
        effects.write_text("")
        story = make_story(source)
        assert isinstance(story.attempt(), outcomes.Suspended)
        story.durable.answers["ask#1"] = "well"
        cut = failure_of(story.attempt(kill_after=point))
        assert (cut.code, cut.retryable) == ("agent_crashed", True)
        doubtful = "pay#1" in story.durable.steps and not story.durable.steps["pay#1"].ended

        answer, paid = result_of(story.to_end(lambda question: "It happened: go on"))

        assert answer == "well"
        assert paid == (None if doubtful else "pay")
        assert counts(effects).get("pay", 0) == (0 if doubtful and "pay" not in counts(effects) else 1)
        assert set(story.durable.ends.values()) == {1}
        assert story.lines("stdout").count("begin") == 1
        assert list(story.durable.artifacts) == ["x.txt"]


def test_a_worker_may_die_in_every_attempt(make_story: MakeStory, effects: Path) -> None:
    story = make_story(counting(effects, WORK))

    for attempt in range(1, 5):
        story.dies(die_after=3)
        assert len(story.durable.ends) >= attempt

    result_of(story.to_end())
    assert set(story.durable.ends.values()) == {1}


def test_replay_is_silent_until_the_end_of_the_journal(make_story: MakeStory, effects: Path) -> None:
    source = counting(
        effects,
        """
    import subprocess, sys

    def main(task, inputs):
        print("out"); print("err", file=sys.stderr); subprocess.run(["echo", "from a subprocess"])
        log("logged"); progress(0.5, "half"); artifact(b"x", "early.txt")
        step("a", effect, "a")
        print("between"); artifact(b"y", "late.txt")
        step("b", effect, "b")
        print("after")
        return 1
    """,
    )
    story = make_story(source)
    story.dies(die_before=6)  # as b ends

    result_of(story.attempt())

    for line in ("out", "err", "from a subprocess", "logged", "between", "after"):
        assert story.lines().count(line) == 1, line
    assert story.types().count("artifact.created") == 2
    assert story.types().count("job.progress") == 1
    assert [e.message for e in story.durable.events if e.attempt == 2 and e.type == "log"] == ["after"]


def test_a_failure_while_the_journal_is_replayed_is_not_silent(make_story: MakeStory, effects: Path) -> None:
    source = counting(
        effects,
        """
    def main(task, inputs):
        print("quiet")
        if Path({marker!r}).exists():
            raise ValueError("broke in replay")
        step("a", effect, "a")
        step("b", effect, "b")
    """.replace("{marker!r}", repr(str(effects.with_name("marker")))),
    )
    story = make_story(source)
    story.dies(die_before=4)
    effects.with_name("marker").touch()

    failed = failure_of(story.attempt())

    assert failed.message == "ValueError: broke in replay"
    assert 'raise ValueError("broke in replay")' in "\n".join(story.lines("stderr"))
    assert story.lines("stdout") == ["quiet"]


def test_a_crash_in_native_code_while_replaying_leaves_its_traceback(
    make_story: MakeStory, effects: Path
) -> None:
    source = counting(
        effects,
        """
    import ctypes

    def main(task, inputs):
        if Path({marker!r}).exists():
            ctypes.string_at(0)
        step("a", effect, "a")
        step("b", effect, "b")
    """.replace("{marker!r}", repr(str(effects.with_name("marker")))),
    )
    story = make_story(source)
    story.dies(die_before=4)
    effects.with_name("marker").touch()

    failed = failure_of(story.attempt())

    assert failed.code == "agent_crashed"
    assert "SIGSEGV" in failed.message
    assert any("Segmentation fault" in line for line in story.lines("stderr"))


def test_a_step_cut_in_the_middle_runs_again_with_the_same_idempotency_key(
    make_story: MakeStory, effects: Path
) -> None:
    source = counting(
        effects,
        """
    def main(task, inputs):
        return step("pay", lambda: effect(idempotency_key()))
    """,
    )
    story = make_story(source)
    story.dies(die_before=2)

    key = result_of(story.attempt())

    assert counts(effects) == {key: 2}


def test_a_job_that_continues_another_draws_the_same_chance_and_keys(
    make_story: MakeStory, effects: Path
) -> None:
    source = counting(
        effects,
        """
    def main(task, inputs):
        first = step("first", effect, "first")
        return [first, random(), str(uuid()), step("key", idempotency_key), ask("Well?")]
    """,
    )
    old = make_story(source)
    assert isinstance(old.attempt(), outcomes.Suspended)
    old.durable.answers["ask#1"] = "well"
    new = make_story(source, seed=str(old.id), durable=copy.deepcopy(old.durable))
    other = make_story(source)

    assert result_of(new.attempt()) == result_of(old.attempt())
    assert counts(effects) == {"first": 1}
    assert result_of(other.to_end(lambda question: "well")) != result_of(old.attempt())


@pytest.mark.parametrize("kept", ["ended", "all"])
def test_a_journal_without_what_had_only_begun_is_a_past_too(
    make_story: MakeStory, effects: Path, kept: str
) -> None:
    source = counting(
        effects,
        """
    def outer():
        step("inner", effect, "inner")
        step("more", effect, "more")
        if len(Path({effects!r}).read_text().split()) < 6:
            raise ValueError("not yet")
        return effect("outer")

    def main(task, inputs):
        print("begin")
        step("first", effect, "first")
        answer = ask("Well?")
        return [answer, step("outer", outer)]
    """.replace("{effects!r}", repr(str(effects))),
    )
    old = make_story(source)
    assert isinstance(old.attempt(), outcomes.Suspended)
    old.durable.answers["ask#1"] = "well"
    failure_of(old.attempt())
    effects.write_text(effects.read_text() + "later\n" * 3)
    new = make_story(source, seed=str(old.id))
    for key, step in old.durable.steps.items():
        if step.ended or kept == "all":
            new.durable.steps[key] = step

    assert result_of(new.attempt()) == ["well", "outer"]
    assert counts(effects) == {"first": 1, "inner": 1, "more": 1, "later": 3, "outer": 1}
    assert new.lines() == []


def test_another_answer_sends_a_copied_job_another_way(make_story: MakeStory, effects: Path) -> None:
    source = counting(
        effects,
        """
    def main(task, inputs):
        step("first", effect, "first")
        answer = ask("Which way?", choices=["left", "right"])
        step(answer, effect, answer)
        return answer
    """,
    )
    old = make_story(source)
    result_of(old.to_end(lambda question: "left"))
    new = make_story(source, seed=str(old.id))
    new.durable.steps["first#1"] = old.durable.steps["first#1"]
    new.durable.answers["ask#1"] = "right"

    assert result_of(new.attempt()) == "right"
    assert counts(effects) == {"first": 1, "left": 1, "right": 1}
    assert new.durable.steps["ask#1"].result == {"value": "right"}


def test_a_failed_step_runs_again_when_the_job_is_retried(make_story: MakeStory, effects: Path) -> None:
    source = counting(
        effects,
        """
    def fetch():
        effect("fetch")
        if len(Path({effects!r}).read_text().split()) < 3:
            raise ConnectionError("not yet")
        return "fetched"

    def main(task, inputs):
        step("first", effect, "first")
        return step("fetch", fetch)
    """.replace("{effects!r}", repr(str(effects))),
    )
    story = make_story(source)

    first = failure_of(story.attempt())
    second = result_of(story.attempt())

    assert first.code == "agent_error"
    assert first.retryable
    assert first.message == "ConnectionError: not yet"
    assert second == "fetched"
    assert counts(effects) == {"first": 1, "fetch": 2}
    assert "step.failed" in story.types()


def test_an_exception_of_the_agents_own_class_is_raised_again_on_replay(
    make_story: MakeStory, effects: Path
) -> None:
    source = counting(
        effects,
        """
    class OutOfStock(Exception):
        def __init__(self, item, left):
            super().__init__(f"{item}: {left} left")

    def order():
        effect("order")
        raise OutOfStock("chair", 0)

    def main(task, inputs):
        try:
            step("order", order)
        except OutOfStock as error:
            story = str(error)
        step("next", effect, "next")
        return story
    """,
    )
    story = make_story(source)
    story.dies(die_before=4)

    assert result_of(story.attempt()) == "chair: 0 left"
    assert counts(effects) == {"order": 1, "next": 2}


def test_the_workspace_is_at_each_point_what_it_was_the_first_time(
    make_story: MakeStory, effects: Path
) -> None:
    source = counting(
        effects,
        """
    def append(text):
        with open("list.txt", "a") as file:
            file.write(text)
        Path("sub/deep").mkdir(parents=True, exist_ok=True)
        Path(f"sub/deep/{text}").write_bytes(bytes([0, 255]) * 1000)

    def main(task, inputs):
        seen = []
        for number in range(4):
            seen.append(sorted(str(p) for p in Path().rglob("*") if p.is_file()))
            step("append", append, str(number))
            seen.append(Path("list.txt").read_text())
        return seen
    """,
    )
    undisturbed = result_of(make_story(source).attempt())
    story = make_story(source)
    for point in (4, 4, 4):
        story.dies(die_before=point)

    assert result_of(story.attempt()) == undisturbed


def test_files_that_a_step_leaves_in_the_outputs_survive_until_the_end(
    make_story: MakeStory, effects: Path
) -> None:
    source = counting(
        effects,
        """
    def chart():
        (outputs_dir / "chart.txt").write_text("a chart")

    def main(task, inputs):
        step("chart", chart)
        step("more", effect, "more")
        return (outputs_dir / "chart.txt").read_text()
    """,
    )
    story = make_story(source)
    story.dies(die_before=4)

    assert result_of(story.attempt()) == "a chart"
    assert list(story.durable.artifacts) == ["chart.txt"]


def test_equal_content_is_archived_once(make_story: MakeStory, effects: Path, settings: Any) -> None:
    source = counting(
        effects,
        """
    def main(task, inputs):
        for name in "abc":
            step(name, Path(name).write_text, "the same")
        step("touch", Path("a").write_text, "the same")
    """,
    )
    story = make_story(source)

    story.attempt()

    stored = [path for path in (settings.ENGINE_HOME / "artifacts").rglob("*") if path.is_file()]
    assert len(stored) == 1
    assert story.durable.steps["touch#1"].files == ()


# --- once ---

ONCE = """
    def main(task, inputs):
        step("before", effect, "before")
        paid = step("pay", effect, "pay", once=True)
        step("after", effect, "after")
        return paid
"""


def test_a_once_step_in_doubt_becomes_a_question(make_story: MakeStory, effects: Path) -> None:
    story = make_story(counting(effects, ONCE))
    story.dies(die_before=4)  # paid, but its end is not durable

    outcome = story.attempt()

    assert isinstance(outcome, outcomes.Suspended)
    question = outcome.questions[0]
    assert question.kind == "choice"
    assert "pay#1" in question.prompt
    assert counts(effects)["pay"] == 1
    assert "step.uncertain" in story.types()


@pytest.mark.parametrize(
    ("choice", "runs", "result"),
    [("It happened: go on", 1, None), ("It did not happen: run it now", 2, "pay")],
)
def test_a_person_decides_whether_a_once_step_happened(
    make_story: MakeStory, effects: Path, choice: str, runs: int, result: str | None
) -> None:
    story = make_story(counting(effects, ONCE))
    story.dies(die_before=4)

    assert result_of(story.to_end(lambda question: choice)) == result
    assert counts(effects) == {"before": 1, "pay": runs, "after": 1}


def test_a_person_may_fail_the_job_over_a_once_step(make_story: MakeStory, effects: Path) -> None:
    story = make_story(counting(effects, ONCE))
    story.dies(die_before=4)

    failed = failure_of(story.to_end(lambda question: "Fail the job"))

    assert failed.code == "step_in_doubt"
    assert not failed.retryable
    assert "pay#1" in failed.message


def test_a_once_step_is_in_doubt_again_when_its_second_run_is_cut(
    make_story: MakeStory, effects: Path
) -> None:
    story = make_story(counting(effects, ONCE))
    story.dies(die_before=4)
    again = "It did not happen: run it now"
    first = story.attempt()
    assert isinstance(first, outcomes.Suspended)
    story.durable.answers[first.questions[0].key] = again
    story.dies(die_before=3)  # the answer taken, run again, its end not durable

    second = story.attempt()

    assert isinstance(second, outcomes.Suspended)
    assert second.questions[0].key != first.questions[0].key
    assert counts(effects)["pay"] == 2
    story.durable.answers[second.questions[0].key] = again
    assert result_of(story.attempt()) == "pay"
    assert counts(effects) == {"before": 1, "pay": 3, "after": 1}


def test_a_once_step_does_not_run_before_its_begin_is_durable(
    make_story: MakeStory, effects: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_step = MemoryRecorder.begin_step

    async def slow(self: MemoryRecorder, step: StepBegin) -> None:
        if step.once and self.attempt == 1:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await until(lambda: "pay" in counts(effects))
            raise WorkerDied
        await begin_step(self, step)

    monkeypatch.setattr(MemoryRecorder, "begin_step", slow)
    story = make_story(counting(effects, ONCE))
    story.dies()

    assert "pay" not in counts(effects)
    assert result_of(story.attempt()) == "pay"


def test_a_once_step_that_raised_is_in_doubt_when_the_job_is_retried(
    make_story: MakeStory, effects: Path
) -> None:
    source = counting(
        effects,
        """
    def pay():
        effect("pay")
        raise TimeoutError("the bank did not answer")

    def main(task, inputs):
        return step("pay", pay, once=True)
    """,
    )
    story = make_story(source)
    failure_of(story.attempt())

    outcome = story.attempt()

    assert isinstance(outcome, outcomes.Suspended)
    assert counts(effects) == {"pay": 1}


# --- determinism ---


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        ('step("a", effect, "1")', 'step("a", effect, "2")', "'a#1'"),
        ('step("a", effect, "1")', 'step("b", effect, "1")', "'a#1'"),
        ('step("a", effect, "1")', 'step("a", effect, "1", once=True)', "'a#1'"),
        ('step("a", effect, "1")', 'ask("a question")', "'a#1'"),
        ('step("a", effect, "1")', "pass", "'a#1'"),
        ('step("a", effect, "1")', "now()", "'a#1'"),
        (
            'step("a", effect, "1"); step("c", effect, "1")',
            'step("c", effect, "1"); step("a", effect, "1")',
            "'a#1'",
        ),
    ],
)
def test_an_agent_that_takes_another_way_is_stopped_and_the_step_is_named(
    make_story: MakeStory, effects: Path, first: str, second: str, names: str
) -> None:
    source = counting(
        effects,
        f"""
    def main(task, inputs):
        try:
            if not Path({str(effects.with_name("marker"))!r}).exists():
                {first}
            else:
                {second}
        except BaseException:
            effect("caught")
        step("z", effect, "z")
        return 1
    """,
    )
    story = make_story(source)
    story.dies(die_before=len(first.split(";")) * 2 + 2)
    effects.with_name("marker").touch()

    failed = failure_of(story.attempt())

    assert failed.code == "non_determinism"
    assert names in failed.message
    assert not failed.retryable
    assert "caught" not in counts(effects)


def test_paths_inside_the_sandbox_are_the_same_arguments_in_another_sandbox(
    make_story: MakeStory, effects: Path
) -> None:
    source = counting(
        effects,
        """
    import tempfile

    class Thing:
        pass

    def take(*arguments, **named):
        return effect("take")

    def main(task, inputs):
        with tempfile.TemporaryDirectory() as folder:
            step("take", take, inputs_dir / "x.csv", str(outputs_dir), folder, Thing(), value=[Thing(), {1, 2}])
        return step("end", effect, "end")
    """,
    )
    story = make_story(source)
    story.dies(die_before=4)

    assert result_of(story.attempt()) == "end"
    assert counts(effects)["take"] == 1


# --- threads and processes ---


def test_threads_keep_their_own_steps(make_story: MakeStory, effects: Path) -> None:
    source = counting(
        effects,
        """
    from concurrent.futures import ThreadPoolExecutor

    def part(number):
        def body():
            Path(f"part-{number}").write_text(str(number))
            return effect(f"part {number}")
        return step(f"part {number}", body)

    def all_parts():
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(part, range(10, 16)))

    def main(task, inputs):
        with ThreadPoolExecutor(4) as pool:
            first = list(pool.map(part, range(6)))
        second = step("all", all_parts)
        assert len(list(Path().glob("part-*"))) == 12
        return first + second + [step("end", effect, "end")]
    """,
    )
    whole = make_story(source)
    expected = result_of(whole.attempt())
    writes = 2 * len(whole.durable.steps)

    for point in (5, 11, 18, writes - 1):
        effects.write_text("")
        story = make_story(source)
        story.dies(die_before=point)
        ended = {key for key, step in story.durable.steps.items() if step.ended}

        assert result_of(story.attempt()) == expected
        for key in ended:
            name = key.rpartition("/")[2].removesuffix("#1")
            if name.startswith("part"):
                assert counts(effects)[name] == 1
        assert set(story.durable.ends.values()) == {1}


def test_an_agent_may_fork_and_spawn(make_story: MakeStory, effects: Path) -> None:
    source = counting(
        effects,
        """
    import multiprocessing, os

    def square(number):
        log(f"child {number}")
        return number * number

    def forbidden(number):
        try:
            step("in a child", effect, "child")
        except RuntimeError as error:
            return str(error)

    def main(task, inputs):
        found = []
        for method in ("fork", "spawn"):
            with multiprocessing.get_context(method).Pool(2) as pool:
                found.append(pool.map(square, range(4)))
                found.append(pool.map(forbidden, [1])[0])
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os._exit(0)
        os.waitpid(pid, 0)
        return found + [step("end", effect, "end")]
    """,
    )
    story = make_story(source)

    squares, refusal, again, refusal_again, end = result_of(story.attempt())

    assert squares == again == [0, 1, 4, 9]
    assert "children" in refusal
    assert refusal == refusal_again
    assert end == "end"
    assert sum("child" in line for line in story.lines("stderr")) == 8


def test_a_coroutine_may_be_main(make_story: MakeStory, effects: Path) -> None:
    source = counting(
        effects,
        """
    import asyncio

    async def main(task, inputs):
        await asyncio.sleep(0)
        return await asyncio.gather(*(asyncio.to_thread(step, f"s{i}", effect, str(i)) for i in range(3)))
    """,
    )

    assert result_of(make_story(source).attempt()) == ["0", "1", "2"]


# --- results ---


@pytest.mark.parametrize(
    ("body", "code", "word"),
    [
        ("return 'x' * (64 * 1024 * 1024)", "result_too_large", "64 MiB"),
        ("return object()", "agent_error", "object"),
        ("return {'a': [1, {2: b'bytes'}]}", "agent_error", "/a/1/2"),
        ("for n in range(1001): Path(str(n)).touch()", "checkpoint_too_large", "1,001"),
    ],
)
def test_a_result_that_cannot_be_kept_says_why(
    make_story: MakeStory, effects: Path, body: str, code: str, word: str
) -> None:
    story = make_story(
        counting(
            effects,
            f"""
    def body():
        {body}

    def main(task, inputs):
        step("a", body)
    """,
        )
    )

    failed = failure_of(story.attempt())

    assert failed.code == code
    assert word in failed.message


def test_a_large_result_is_a_file_and_comes_back_from_it(make_story: MakeStory, effects: Path) -> None:
    source = counting(
        effects,
        """
    def table():
        return {"rows": [[n, "\u00e4" * 9] for n in range(100_000)]}

    def main(task, inputs):
        table_1 = step("table", lambda: effect("table") and table())
        import shutil
        shutil.rmtree(".engine")
        step("after", effect, "after")
        sure = ask("Sure?", kind="confirm")
        return [table_1 == table(), sure]
    """,
    )
    story = make_story(source)
    story.attempt()

    kept = story.durable.steps["table#1"]
    assert kept.result is not None
    assert list(kept.result) == ["file"]
    assert kept.files[0].size > 1024 * 1024
    story.durable.answers["ask#1"] = True
    assert result_of(story.attempt()) == [True, True]
    assert counts(effects) == {"table": 1, "after": 1}


def test_results_come_as_json_gives_them_back_the_first_time_too(
    make_story: MakeStory, effects: Path
) -> None:
    source = counting(
        effects,
        """
    import dataclasses, datetime

    @dataclasses.dataclass
    class Point:
        x: int
        y: float

    def body():
        return {1: (1, 2), "nan": float("nan"), "set": {3, 1}, "path": Path("a/b"), "nul": "a\\0b\\ud800",
                "point": Point(1, float("inf")), "day": datetime.date(2026, 1, 2)}

    def main(task, inputs):
        return step("a", body)
    """,
    )

    assert result_of(make_story(source).attempt()) == {
        "1": [1, 2],
        "nan": None,
        "set": [1, 3],
        "path": "a/b",
        "nul": "a\ufffdb\ufffd",
        "point": {"x": 1, "y": None},
        "day": "2026-01-02",
    }
