"""The code interpreter of every provider: variables stay, results are typed, and it always answers."""

import asyncio
import base64
import time
from collections.abc import Iterator
from typing import Any

import pytest

from jobs.sandboxes.base import CodeResult, Sandbox, SandboxError, SandboxLost
from tests.sandboxes import EVERY_PROVIDER, Sandboxes, collect, needs_bubblewrap, read, started

PNG = b"\x89PNG\r\n"


@pytest.fixture(scope="module", params=EVERY_PROVIDER)
def sandboxes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sandboxes]:
    with started(request.param, tmp_path_factory.mktemp("scratch")) as running:
        yield running


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandboxes]:
    """Where the interpreter is ours, and more is promised of it."""
    with started("local", tmp_path_factory.mktemp("scratch")) as running:
        yield running


def run_cells(sandboxes: Sandboxes, *cells: str, seconds: float = 30.0, **options: Any) -> list[CodeResult]:
    """Run pieces of code one after another in one sandbox."""

    async def work(sandbox: Sandbox) -> list[CodeResult]:
        return [await sandbox.run_code(cell, timeout_seconds=seconds) for cell in cells]

    return sandboxes.with_sandbox(work, "", **options)


def test_variables_stay_between_calls(sandboxes: Sandboxes) -> None:
    first, second = run_cells(sandboxes, "x = 20\nprint('set')", "import math\nx + math.floor(22.9)")

    assert (first.stdout, first.outputs, first.error) == ("set\n", (), None)
    assert (second.stdout, second.outputs[0].data, second.outputs[0].is_main_result) == (
        "",
        {"text/plain": "42"},
        True,
    )
    assert not second.state_lost


def test_the_last_expression_is_shown_unless_it_is_none_or_closed_by_a_semicolon(
    sandboxes: Sandboxes,
) -> None:
    results = run_cells(sandboxes, "1; 'two'", "None", "3;", "x = 4", "_ + '!'")

    assert [[output.data["text/plain"] for output in result.outputs] for result in results] == [
        ["'two'"],
        [],
        [],
        [],
        ["'two!'"],
    ]


def test_stdout_and_stderr_are_kept_apart_whoever_writes_them(sandboxes: Sandboxes) -> None:
    code = "import os, sys\nprint('p'); os.write(1, b'w\\n'); print('e', file=sys.stderr); os.system('echo child');"
    (result,) = run_cells(sandboxes, code)

    assert (result.stdout, result.stderr) == ("p\nw\nchild\n", "e\n")


def test_an_error_comes_with_its_traceback_and_keeps_the_variables(sandboxes: Sandboxes) -> None:
    failed, after = run_cells(sandboxes, "kept = 1\ndef divide(n):\n    return 1 / n\ndivide(0)", "kept")

    assert failed.error is not None
    assert (failed.error.name, failed.error.value) == ("ZeroDivisionError", "division by zero")
    assert "ZeroDivisionError" in failed.error.traceback
    assert "divide(0)" in failed.error.traceback
    assert "\x1b" not in failed.error.traceback
    assert after.outputs[0].data == {"text/plain": "1"}


@needs_bubblewrap
def test_a_traceback_shows_the_code_and_nothing_of_ours(local: Sandboxes) -> None:
    (failed,) = run_cells(local, "def divide(n):\n    return 1 / n\ndivide(0)")

    assert failed.error is not None
    assert failed.error.traceback.splitlines()[:4] == [
        "Traceback (most recent call last):",
        '  File "<cell 1>", line 3, in <module>',
        "    divide(0)",
        '  File "<cell 1>", line 2, in divide',
    ]


@pytest.mark.parametrize(
    "code", ["def broken(:", "raise SystemExit(3)", "raise KeyboardInterrupt", "x = \x00"]
)
def test_whatever_code_raises_is_its_error_and_not_the_end(sandboxes: Sandboxes, code: str) -> None:
    failed, after = run_cells(sandboxes, code, "'still here'")

    assert failed.error is not None
    assert after.outputs[0].data == {"text/plain": "'still here'"}


def test_tables_come_as_html_and_figures_as_png(sandboxes: Sandboxes) -> None:
    table, figure, shown = run_cells(
        sandboxes,
        "import pandas as pd\ndata = pd.DataFrame({'rating': [1, 5]})\ndata",
        "import matplotlib.pyplot as plt\nplt.plot([1, 2]); plt.show()\nplt.figure(); plt.plot([3]);",
        "display(data, 'text')\nplt.figure()",
    )

    assert table.outputs[0].data["text/html"].count("<td>") == 2
    assert "rating" in table.outputs[0].data["text/plain"]
    assert figure.error is None, figure.error
    assert figure.stderr == ""
    assert [base64.b64decode(output.data["image/png"])[:6] for output in figure.outputs] == [PNG, PNG]
    assert ["text/html" in output.data for output in shown.outputs] == [True, False, False]
    assert ["image/png" in output.data for output in shown.outputs] == [False, False, True]


def test_files_that_code_writes_can_be_read(sandboxes: Sandboxes) -> None:
    async def work(sandbox: Sandbox) -> bytes:
        await sandbox.run_code("open('../outputs/chart.txt', 'w').write('chart')", timeout_seconds=30)
        return await read(sandbox, "outputs/chart.txt")

    assert sandboxes.with_sandbox(work) == b"chart"


def test_a_call_over_its_time_ends_and_says_whether_the_variables_are_kept(sandboxes: Sandboxes) -> None:
    _, slow, after = run_cells(
        sandboxes, "x = 1", "import time\nx = 2\nprint('waits')\ntime.sleep(600)", "x", seconds=2.0
    )

    assert slow.timed_out
    assert slow.error is not None
    assert slow.stdout == "waits\n"
    if slow.state_lost:
        assert after.error is not None
        assert after.error.name == "NameError"
    else:
        assert after.outputs[0].data == {"text/plain": "2"}


@needs_bubblewrap
def test_a_call_over_its_time_is_interrupted_and_keeps_the_variables(local: Sandboxes) -> None:
    _, slow, after = run_cells(
        local, "x = 1", "import time\nx = 2\nprint('waits')\ntime.sleep(600)", "x", seconds=1.0
    )

    assert slow.timed_out
    assert slow.error is not None
    assert (slow.error.name, slow.stdout, slow.state_lost) == ("KeyboardInterrupt", "waits\n", False)
    assert after.outputs[0].data == {"text/plain": "2"}


def test_code_that_does_not_heed_the_interrupt_loses_its_interpreter(sandboxes: Sandboxes) -> None:
    stubborn = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"
    _, result, after = run_cells(sandboxes, "x = 1", stubborn, "x", seconds=1.0)

    assert result.timed_out
    assert result.state_lost
    assert after.error is not None
    assert after.error.name == "NameError"
    assert not after.state_lost, "that was said already"


def test_an_interpreter_that_dies_says_so_and_is_replaced(sandboxes: Sandboxes) -> None:
    died, after = run_cells(sandboxes, "import os\nprint('last words')\nos._exit(3)", "'new'")

    assert died.stdout in ("", "last words\n")
    assert died.error is not None
    assert died.error.name == "InterpreterDied"
    assert died.state_lost
    assert after.outputs[0].data == {"text/plain": "'new'"}


def test_children_that_code_left_die_with_its_interpreter(sandboxes: Sandboxes) -> None:
    leave = "import os\nif os.fork() == 0:\n    while True: os.write(1, b'noise')\nos._exit(0)"
    _, after = run_cells(sandboxes, leave, "'quiet'")

    assert (after.stdout, after.outputs[0].data) == ("", {"text/plain": "'quiet'"})


def test_a_flood_is_cut_and_counted(sandboxes: Sandboxes) -> None:
    long, after = run_cells(sandboxes, "print('x' * 3_000_000)", "'fine'")

    assert len(long.stdout) < 1_100_000
    assert long.stdout.endswith("more bytes left out]")
    assert (long.state_lost, after.outputs[0].data) == (False, {"text/plain": "'fine'"})


def test_an_endless_flood_ends_the_interpreter(sandboxes: Sandboxes) -> None:
    flood, after = run_cells(sandboxes, "while True: print('x' * 1000)", "'fine'", output_bytes=5_000_000)

    assert flood.error is not None
    assert (flood.error.name, flood.state_lost) == ("OutputLimit", True)
    assert after.outputs[0].data == {"text/plain": "'fine'"}


def test_a_huge_result_is_named_and_not_sent(sandboxes: Sandboxes) -> None:
    (result,) = run_cells(sandboxes, "'x' * 5_000_000")

    assert "left out" in result.outputs[0].data["text/plain"]


@needs_bubblewrap
def test_forged_and_broken_answers_are_noise(local: Sandboxes) -> None:
    forge = """
import os, json
for line in (b'{"id": "guess", "kind": "done", "error": null}', b"[]", b"\\xff", b'"', b"{}", b"[" * 100_000):
    os.write(6, line + b"\\n")
'mine'
"""
    (result,) = run_cells(local, forge)

    assert [output.data for output in result.outputs] == [{"text/plain": "'mine'"}]


@needs_bubblewrap
def test_a_memory_hog_loses_its_interpreter_or_the_sandbox(local: Sandboxes) -> None:
    async def work(sandbox: Sandbox) -> CodeResult | None:
        try:
            return await sandbox.run_code("x = bytearray(2_000_000_000)", timeout_seconds=30)
        except SandboxLost:
            return None

    result = local.with_sandbox(work, memory_mb=100, disk_mb=32)
    assert result is None or result.state_lost


def test_a_caller_that_leaves_does_not_confuse_the_next(sandboxes: Sandboxes) -> None:
    async def work(sandbox: Sandbox) -> CodeResult:
        await sandbox.run_code("x = 1", timeout_seconds=30)
        leaving = asyncio.create_task(sandbox.run_code("import time; time.sleep(600)", timeout_seconds=600))
        await asyncio.sleep(0.1)
        leaving.cancel()
        await asyncio.wait([leaving])
        return await sandbox.run_code("'next'", timeout_seconds=30)

    result = sandboxes.with_sandbox(work)
    assert (result.outputs[0].data, result.state_lost) == ({"text/plain": "'next'"}, True)


def test_calls_at_once_take_turns(sandboxes: Sandboxes) -> None:
    async def work(sandbox: Sandbox) -> list[CodeResult]:
        cells = [f"import time; time.sleep(0.05); print({n}); {n}" for n in range(3)]
        return await asyncio.gather(*(sandbox.run_code(cell, timeout_seconds=30) for cell in cells))

    results = sandboxes.with_sandbox(work)
    assert [(result.stdout, result.outputs[0].data["text/plain"]) for result in results] == [
        ("0\n", "0"),
        ("1\n", "1"),
        ("2\n", "2"),
    ]


def test_a_closed_sandbox_ends_a_call_at_once(sandboxes: Sandboxes) -> None:
    async def work(sandbox: Sandbox) -> float:
        calling = asyncio.create_task(sandbox.run_code("import time; time.sleep(600)", timeout_seconds=600))
        await asyncio.sleep(0.2)
        start = time.monotonic()
        await sandbox.close()
        with pytest.raises(SandboxLost):
            await calling
        return time.monotonic() - start

    assert sandboxes.with_sandbox(work) < 5


def test_a_sandbox_carries_a_program_or_an_interpreter_not_both(sandboxes: Sandboxes) -> None:
    async def work(sandbox: Sandbox) -> None:
        await sandbox.start(["python", "-c", "pass"])
        await collect(sandbox)
        with pytest.raises(SandboxError):
            await sandbox.run_code("1", timeout_seconds=1)

    async def other_way(sandbox: Sandbox) -> None:
        await sandbox.run_code("1", timeout_seconds=30)
        with pytest.raises(SandboxError):
            await sandbox.start(["python", "-c", "pass"])

    sandboxes.with_sandbox(work)
    sandboxes.with_sandbox(other_way)
