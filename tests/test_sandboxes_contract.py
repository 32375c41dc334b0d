"""What every sandbox provider promises, whatever it is made of."""

import asyncio
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.sandboxes.base import (
    Ended,
    EndReason,
    Record,
    Sandbox,
    SandboxError,
    SandboxFileError,
    SandboxLost,
    SandboxRefused,
    Stdout,
)
from tests.sandboxes import EVERY_PROVIDER, Run, Sandboxes, collect, read, spec, started

START = ["python", "../agent/agent.py"]
RECORD = """
import json, os
def record(**fields):
    os.write(int(os.environ["ENGINE_RECORDS"].removeprefix("fd:")), json.dumps(fields).encode() + b"\\n")
def replies():
    return os.fdopen(int(os.environ["ENGINE_REPLIES"].removeprefix("fd:")))
"""


@pytest.fixture(scope="module", params=EVERY_PROVIDER)
def sandboxes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sandboxes]:
    with started(request.param, tmp_path_factory.mktemp("scratch")) as running:
        yield running


def test_a_program_s_output_streams_and_its_exit_code_comes_last(sandboxes: Sandboxes) -> None:
    run = sandboxes.program("import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)")

    assert (run.stdout, run.stderr) == (b"out\n", b"err\n")
    assert (run.reason, run.exit_code, run.ends) == (EndReason.EXITED, 7, 1)


def test_output_is_there_before_the_program_ends(sandboxes: Sandboxes) -> None:
    async def work(sandbox: Sandbox) -> list[object]:
        await sandbox.start(START)
        seen: list[object] = []
        async for output in sandbox.outputs():
            seen.append(type(output))
            if isinstance(output, Stdout) and output.data.startswith(b"first"):
                await sandbox.send(b"go on")
        return seen

    code = RECORD + "print('first'); assert replies().readline() == 'go on\\n'; record(last=True)"
    assert sandboxes.with_sandbox(work, code) == [Stdout, Record, Ended]


def test_an_uncaught_exception_prints_its_traceback_and_exits_1(sandboxes: Sandboxes) -> None:
    run = sandboxes.program("def f():\n    raise KeyError('lost')\nf()\n")

    assert run.exit_code == 1
    assert run.stderr.decode().startswith("Traceback (most recent call last):\n  File ")
    assert '../agent/agent.py", line 3, in <module>\n' in run.stderr.decode()
    assert run.stderr.decode().endswith("KeyError: 'lost'\n")


def test_a_program_finds_its_layout_and_starts_in_the_workspace(sandboxes: Sandboxes) -> None:
    files = {
        "inputs/a/b.csv": b"x,y\n",
        "sdk/engine_agent.py": b"name = 'sdk'",
        "agent/helper.py": b"name = 'helper'",
        "workspace/deep/state.json": b"{}",
    }
    code = """
import os, sys
sys.path.insert(0, "../sdk")
import engine_agent, helper
print(os.path.basename(os.getcwd()), engine_agent.name, helper.name, __name__, sys.argv)
print(os.path.samefile(os.environ["HOME"], ".."), os.path.relpath(__file__))
print(open("../inputs/a/b.csv").read().strip(), open("deep/state.json").read(), sorted(os.listdir("../outputs")))
open("deep/state.json", "w").write("[]"); open("../outputs/done.txt", "w").write("done")
"""
    run = sandboxes.program(code, [*START, "one"], files=files)

    assert run.stderr == b""
    assert run.stdout.decode().splitlines() == [
        "workspace sdk helper __main__ ['../agent/agent.py', 'one']",
        "True ../agent/agent.py",
        "x,y {} []",
    ]


@pytest.mark.parametrize("path", ["agent/agent.py", "inputs/data.csv", "sdk/job.json"])
def test_what_a_program_was_given_cannot_be_changed(sandboxes: Sandboxes, path: str) -> None:
    if sandboxes.provider.name == "e2b" and os.geteuid() != 0:
        pytest.skip("the tests' E2B server has two users only when it is root")
    code = f"""
import os
for act in (lambda: open("../{path}", "a"), lambda: os.chmod("../{path}", 0o777), lambda: os.unlink("../{path}")):
    try:
        act()
    except OSError as error:
        print(type(error).__name__, error.errno)
"""
    run = sandboxes.program(code, files={"inputs/data.csv": b"1", "sdk/job.json": b"{}"})

    assert len(run.stdout.splitlines()) == 3, run


def test_an_executable_file_and_another_program_than_python_run(sandboxes: Sandboxes) -> None:
    run = sandboxes.program("", ["sh", "-c", "echo from a shell; exit 3"])

    assert (run.stdout, run.exit_code) == (b"from a shell\n", 3)


def test_a_program_that_does_not_exist_exits_127(sandboxes: Sandboxes) -> None:
    run = sandboxes.program("", ["no-such-program"])

    assert run.exit_code == 127
    assert b"no-such-program" in run.stderr


def test_python_takes_c_m_and_u(sandboxes: Sandboxes) -> None:
    assert (
        sandboxes.program("", ["python", "-c", "import sys; print(sys.argv)", "a"]).stdout == b"['-c', 'a']\n"
    )
    assert sandboxes.program("", ["python", "-u", "-m", "calendar", "2026", "1"]).stdout.startswith(
        b"    January 2026"
    )


def test_a_program_s_variables_and_exit_handlers_work_as_in_any_python(sandboxes: Sandboxes) -> None:
    code = """
import atexit, os, pickle, sys, threading
class Thing: pass
pickle.loads(pickle.dumps(Thing()))
atexit.register(print, "at exit")
threading.Timer(0.05, print, ["from a thread"]).start()
print(os.environ["TONE"], sys.stdin.read() == "")
"""
    run = sandboxes.program(code, env={"TONE": "formal"})

    assert run.stdout == b"formal True\nfrom a thread\nat exit\n", run.stderr


def test_records_come_whole_and_in_order_however_they_were_written(sandboxes: Sandboxes) -> None:
    code = (
        RECORD
        + """
import time
channel = int(os.environ["ENGINE_RECORDS"].removeprefix("fd:"))
for n in range(2000):
    record(n=n)
for piece in (b'{"sp', b'lit": "', "é".encode()[:1], "é".encode()[1:], b'"}\\n{"two": 2}\\n', b'{"unfinished'):
    os.write(channel, piece)
    time.sleep(0.01)
"""
    )
    run = sandboxes.program(code)

    assert run.records == [*({"n": n} for n in range(2000)), {"split": "é"}, {"two": 2}]


def test_output_written_before_a_record_comes_before_it(sandboxes: Sandboxes) -> None:
    code = RECORD + "for n in range(300): os.write(1, b'%d\\n' % n); record(n=n)"
    seen: list[int] = []
    behind: list[int] = []

    def look(output: object) -> None:
        if isinstance(output, Stdout):
            seen.extend(map(int, output.data.split()))
        elif isinstance(output, Record):
            n = json.loads(output.line)["n"]
            behind.extend([n] if n not in seen else [])

    async def work(sandbox: Sandbox) -> None:
        await sandbox.start(START)
        await collect(sandbox, look)

    sandboxes.with_sandbox(work, code)
    assert len(seen) == 300
    assert behind == []


def test_stdout_can_never_pass_for_a_record(sandboxes: Sandboxes) -> None:
    run = sandboxes.program('print(\'{"type": "result"}\')')

    assert run.records == []
    assert run.stdout == b'{"type": "result"}\n'


def test_replies_reach_the_program_line_by_line(sandboxes: Sandboxes) -> None:
    async def work(sandbox: Sandbox) -> Run:
        await sandbox.start(START)
        for n in range(3):
            await sandbox.send(b'{"reply": %d}' % n)
        return await collect(sandbox)

    run = sandboxes.with_sandbox(
        work, RECORD + "channel = replies()\nfor _ in range(3): print(channel.readline().strip())"
    )

    assert run.stdout == b'{"reply": 0}\n{"reply": 1}\n{"reply": 2}\n'


def test_a_reply_to_a_program_that_has_ended_is_no_error(sandboxes: Sandboxes) -> None:
    async def work(sandbox: Sandbox) -> None:
        await sandbox.start(["python", "-c", "pass"])
        await collect(sandbox)
        await sandbox.send(b"x" * 200_000)

    sandboxes.with_sandbox(work)


def test_a_large_reply_waits_for_its_reader(sandboxes: Sandboxes) -> None:
    async def work(sandbox: Sandbox) -> Run:
        await sandbox.start(START)
        sending = asyncio.create_task(sandbox.send(b"x" * 1_000_000))
        run = await collect(sandbox)
        await sending
        return run

    code = RECORD + "import time; time.sleep(0.2); print(len(replies().readline()))"
    assert sandboxes.with_sandbox(work, code).stdout == b"1000001\n"


def test_a_slow_reader_gets_everything_in_the_end(sandboxes: Sandboxes) -> None:
    async def work(sandbox: Sandbox) -> bytes:
        await sandbox.start(START)
        outputs = sandbox.outputs()
        first = await anext(outputs)
        assert isinstance(first, Stdout)
        await asyncio.sleep(0.5)  # the program goes on, or is held back
        got = bytearray(first.data)
        async for output in outputs:
            got += output.data if isinstance(output, Stdout) else b""
        return bytes(got)

    code = "import os\nfor n in range(500): os.write(1, b'%05d' % n * 2000)"
    assert sandboxes.with_sandbox(work, code) == b"".join(b"%05d" % n * 2000 for n in range(500))


def test_the_wall_clock_ends_a_program_and_its_files_stay(sandboxes: Sandboxes) -> None:
    async def work(sandbox: Sandbox) -> tuple[Run, bytes]:
        await sandbox.start(START)
        return await collect(sandbox), await read(sandbox, "outputs/partial.txt")

    code = "import time; open('../outputs/partial.txt', 'w').write('so far'); print('up'); time.sleep(600)"
    run, partial = sandboxes.with_sandbox(work, code, wall_seconds=1.0)

    assert (run.reason, run.stdout, partial) == (EndReason.TIMEOUT, b"up\n", b"so far")


def test_cpu_time_ends_a_program(sandboxes: Sandboxes) -> None:
    assert sandboxes.program("while True: pass", cpu_seconds=1).reason == EndReason.TIMEOUT


def test_too_much_output_ends_a_program(sandboxes: Sandboxes) -> None:
    run = sandboxes.program("while True: print('x' * 1000)", output_bytes=100_000)

    assert run.reason == EndReason.OUTPUT
    assert len(run.stdout) == 100_000


def test_a_record_over_its_limit_ends_a_program(sandboxes: Sandboxes) -> None:
    run = sandboxes.program(RECORD + "record(fine=1); record(big='x' * 5000)", record_bytes=1000)

    assert (run.reason, run.records) == (EndReason.OUTPUT, [{"fine": 1}])


def test_terminate_asks_and_the_program_may_tidy_up(sandboxes: Sandboxes) -> None:
    async def work(sandbox: Sandbox) -> Run:
        await sandbox.start(START)
        outputs, run = sandbox.outputs(), Run()
        async for output in outputs:
            if isinstance(output, Stdout):
                run.stdout += output.data
                await sandbox.terminate()
            elif isinstance(output, Ended):
                run.ended = output
        return run

    code = """
import os, signal, sys, time
def stop(*_):
    os.write(1, b"tidied up\\n"); sys.exit(5)
signal.signal(signal.SIGTERM, stop)
print("ready"); time.sleep(600)
"""
    run = sandboxes.with_sandbox(work, code)

    assert run.stdout == b"ready\ntidied up\n"
    assert (run.reason, run.exit_code) == (EndReason.KILLED, 5)


def test_close_ends_whoever_is_reading(sandboxes: Sandboxes) -> None:
    async def work(sandbox: Sandbox) -> Run:
        await sandbox.start(["python", "-c", "import time; time.sleep(600)"])
        reading = asyncio.create_task(collect(sandbox))
        await asyncio.sleep(0.1)
        await asyncio.gather(sandbox.close(), sandbox.close())
        return await reading

    run = sandboxes.with_sandbox(work)

    assert (run.reason, run.ends) == (EndReason.KILLED, 1)


def test_a_closed_sandbox_says_that_it_is_gone(sandboxes: Sandboxes) -> None:
    async def work(sandbox: Sandbox) -> None:
        await sandbox.close()
        with pytest.raises(SandboxLost):
            await sandbox.list_files("outputs")
        with pytest.raises(SandboxLost):
            await sandbox.start(START)
        await sandbox.terminate()
        await sandbox.send(b"nobody hears this")

    sandboxes.with_sandbox(work)


def test_files_are_listed_and_read_while_it_runs_and_after_its_end(sandboxes: Sandboxes) -> None:
    async def work(sandbox: Sandbox) -> list[object]:
        await sandbox.start(START)
        seen: list[object] = []
        async for output in sandbox.outputs():
            if isinstance(output, Stdout):
                seen.append(await read(sandbox, "outputs/a.txt"))
                await sandbox.send(b"")
        seen.append({entry.path: entry.size for entry in await sandbox.list_files("outputs")})
        seen.append({entry.path: entry.size for entry in await sandbox.list_files("workspace")})
        seen.append(len(await read(sandbox, "outputs/sub/big.bin", 4_000_000)))
        return seen

    code = (
        RECORD
        + """
open("../outputs/a.txt", "w").write("early"); print("ready"); replies().readline()
os.makedirs("../outputs/sub"); open("../outputs/sub/big.bin", "wb").write(b"x" * 3_000_000); open("w", "w").close()
"""
    )
    assert sandboxes.with_sandbox(work, code) == [
        b"early",
        {"a.txt": 5, "sub/big.bin": 3_000_000},
        {"w": 0},
        3_000_000,
    ]


@pytest.mark.parametrize(
    "path", ["outputs/none", "outputs", "outputs/../agent/agent.py", "/etc/passwd", "agent/agent.py"]
)
def test_what_is_no_file_of_the_program_is_refused(sandboxes: Sandboxes, path: str) -> None:
    async def work(sandbox: Sandbox) -> None:
        with pytest.raises(SandboxFileError):
            await read(sandbox, path)

    sandboxes.with_sandbox(work)


def test_files_over_the_callers_limits_are_refused(sandboxes: Sandboxes) -> None:
    async def work(sandbox: Sandbox) -> None:
        await sandbox.start(START)
        await collect(sandbox)
        with pytest.raises(SandboxFileError):
            await read(sandbox, "outputs/0", most_bytes=9)
        assert await read(sandbox, "outputs/0", most_bytes=10) == b"x" * 10
        with pytest.raises(SandboxFileError):
            await sandbox.list_files("outputs", most=4)
        assert len(await sandbox.list_files("outputs", most=5)) == 5

    sandboxes.with_sandbox(work, "for n in range(5): open(f'../outputs/{n}', 'w').write('x' * 10)")


def test_a_large_workspace_is_restored_byte_for_byte(sandboxes: Sandboxes) -> None:
    big = bytes(range(256)) * 12_000
    code = "import hashlib; print(hashlib.sha256(open('big', 'rb').read()).hexdigest(), open('empty').read() == '')"

    run = sandboxes.program(code, files={"workspace/big": big, "workspace/empty": b""})

    assert run.stdout.decode() == f"{hashlib.sha256(big).hexdigest()} True\n"


@pytest.mark.parametrize(
    "path", ["../x", "agent/../../x", "/etc/x", "agent", "elsewhere/x", "inputs//x", "inputs/\0"]
)
def test_a_file_can_only_be_placed_in_the_layout(sandboxes: Sandboxes, path: str) -> None:
    with pytest.raises(SandboxError):
        sandboxes.run(sandboxes.provider.open(spec(files={path: b""})))


def test_a_reader_that_leaves_does_not_confuse_the_next(sandboxes: Sandboxes) -> None:
    async def work(sandbox: Sandbox) -> bytes:
        await sandbox.start(START)
        await collect(sandbox)
        for _ in range(20):
            leaving = [
                asyncio.create_task(sandbox.list_files("outputs")),
                asyncio.create_task(read(sandbox, "outputs/a")),
            ]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            for task in leaving:
                task.cancel()
            await asyncio.wait(leaving)
        assert [entry.path for entry in await sandbox.list_files("outputs")] == ["a"]
        return await read(sandbox, "outputs/a")

    assert sandboxes.with_sandbox(work, "open('../outputs/a', 'w').write('a')") == b"a"


def test_close_ends_whoever_waits_to_send(sandboxes: Sandboxes) -> None:
    async def work(sandbox: Sandbox) -> None:
        await sandbox.start(["python", "-c", "import time; time.sleep(600)"])
        sending = asyncio.create_task(sandbox.send(b"x" * 1_000_000))
        await asyncio.sleep(0.1)
        await sandbox.close()
        async with asyncio.timeout(5):
            await sending

    sandboxes.with_sandbox(work)


def test_many_sandboxes_at_once_do_not_mix(sandboxes: Sandboxes) -> None:
    async def one(n: int) -> bytes:
        sandbox = await sandboxes.provider.open(
            spec(f"import os; print({n}, os.listdir('.')); open('w{n}', 'w')")
        )
        try:
            await sandbox.start(START)
            return (await collect(sandbox)).stdout
        finally:
            await sandbox.close()

    async def work() -> list[bytes]:
        return await asyncio.gather(*(one(n) for n in range(10)))

    assert sandboxes.run(work()) == [b"%d []\n" % n for n in range(10)]


def test_a_cancelled_open_leaves_nothing(sandboxes: Sandboxes, tmp_path: Path) -> None:
    async def work() -> None:
        opening = asyncio.create_task(sandboxes.provider.open(spec()))
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening

    sandboxes.run(work())

    assert sandboxes.program("print('next')").stdout == b"next\n"


def test_a_ref_can_be_killed_by_name(sandboxes: Sandboxes) -> None:
    async def work(sandbox: Sandbox) -> Run:
        await sandbox.start(["python", "-c", "import time; time.sleep(600)"])
        await sandboxes.provider.kill(sandbox.ref)
        await sandboxes.provider.kill("nonsense")
        return await collect(sandbox)

    assert sandboxes.with_sandbox(work).reason == EndReason.KILLED


@pytest.mark.parametrize("limits", [{"memory_mb": 1}, {"disk_mb": 0}, {"processes": 0}])
def test_limits_that_nothing_can_run_in_are_refused(sandboxes: Sandboxes, limits: dict[str, int]) -> None:
    with pytest.raises(SandboxRefused):
        sandboxes.run(sandboxes.provider.open(spec("", **limits)))
