"""Sandboxes at E2B: what its wire, its SDK and its platform do to us, trap by trap, and what we make of it.

The traps are numbered as in docs/sandboxes.md.
"""

import asyncio
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from jobs.sandboxes.base import (
    Ended,
    EndReason,
    Record,
    RequirementsFailed,
    Sandbox,
    SandboxBusy,
    SandboxError,
    SandboxFileError,
    SandboxLost,
    SandboxRefused,
    SandboxSpec,
    SandboxUnavailable,
    Stdout,
)
from jobs.sandboxes.e2b import provider as provider_module
from jobs.sandboxes.e2b.calls import Unclear, translated
from tests.e2b import FreeBudget, e2b_provider, e2b_server
from tests.e2b_server import E2BServer
from tests.e2b_server.machine import Machine
from tests.processes import eventually
from tests.sandboxes import Run, Sandboxes, collect, read, spec
from tests.test_sandboxes_runtime import make_wheel

START = ["python", "../agent/agent.py"]
COUNT = """
import os, time
for n in range(300):
    os.write(1, b"%d\\n" % n)
    os.write(int(os.environ["ENGINE_RECORDS"].removeprefix("fd:")), b'{"n": %d}\\n' % n)
    time.sleep(0.005)
"""


@pytest.fixture(scope="module")
def shared_server() -> Iterator[E2BServer]:
    with e2b_server() as server:
        yield server


@pytest.fixture
def server(shared_server: E2BServer) -> Iterator[E2BServer]:
    """With no fault and no sandbox left over from another test."""
    defaults = vars(E2BServer())
    shared_server.created.clear()
    shared_server.executed.clear()
    yield shared_server
    for name in (
        "has_root", "honours_idempotency", "swaps_on_connect", "loses_files_on_resume", "most_running",
        "longest_seconds", "page_size", "create_seconds", "pause_seconds", "hastens", "templates", "key",
    ):  # fmt: skip
        setattr(shared_server, name, defaults[name])
    shared_server.faults.waiting.clear()
    for machine in [*shared_server.running(), *shared_server.paused()]:
        shared_server.call(machine.destroy)


@pytest.fixture
def sandboxes(server: E2BServer, tmp_path: Path) -> Iterator[Sandboxes]:
    running = Sandboxes(e2b_provider(server.key, tmp_path))
    assert running.health.ok, running.health
    yield running
    running.close()
    assert server.running() == []


def machine_of(server: E2BServer, sandbox: Sandbox) -> Machine:
    return server.machines[sandbox.ref]


async def numbers(sandbox: Sandbox, on_first: Any = None) -> tuple[list[int], list[int], Ended]:
    """What a counting program printed and recorded, and how it ended."""
    run = Run()
    async with asyncio.timeout(60):
        async for output in sandbox.outputs():
            if on_first is not None:
                on_first, act = None, on_first
                act()
            match output:
                case Stdout(data):
                    run.stdout += data
                case Record(line):
                    run.records.append(int(line[6:-1]))
                case Ended():
                    run.ended = output
    assert run.ended is not None
    return list(map(int, run.stdout.split())), run.records, run.ended


# --- the traps ---


def test_trap_1_a_call_ends_at_its_time_and_not_at_twice_that(sandboxes: Sandboxes) -> None:
    async def work(sandbox: Sandbox) -> float:
        await sandbox.run_code("import time", timeout_seconds=60)
        begun = time.monotonic()
        result = await sandbox.run_code("time.sleep(600)", timeout_seconds=4)
        assert result.timed_out
        return time.monotonic() - begun

    assert 4 <= sandboxes.with_sandbox(work) < 7


def test_trap_2_a_cancel_comes_through_at_once(sandboxes: Sandboxes, server: E2BServer) -> None:
    async def work(sandbox: Sandbox) -> list[float]:
        await sandbox.start(["sleep", "600"])
        took = []
        for path in ("Process/Start", "Filesystem/Move"):
            server.faults.add("POST", path, seconds=20)
        for call in (sandbox.list_files("outputs"), sandbox.send(b"x"), collect(sandbox)):
            task = asyncio.create_task(call)
            await asyncio.sleep(0.3)
            begun = time.monotonic()
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            took.append(time.monotonic() - begun)
        return took

    assert max(sandboxes.with_sandbox(work)) < 2


def test_trap_3_nothing_is_forked_beside_the_sdk(sandboxes: Sandboxes) -> None:
    assert sandboxes.program("print(1)").exit_code == 0

    # Installers of requirements are started like this; a fork that went on in Python would hang.
    done = subprocess.run([sys.executable, "-c", "print(2)"], capture_output=True, timeout=30, check=True)

    assert done.stdout == b"2\n"
    package = Path(provider_module.__file__).parent
    for file in package.glob("*.py"):
        assert file.name == "guest.py" or "fork(" not in file.read_text()


def test_trap_4_a_call_that_is_left_leaves_no_process(sandboxes: Sandboxes, server: E2BServer) -> None:
    async def work(sandbox: Sandbox) -> None:
        machine = machine_of(server, sandbox)
        for turns in range(1, 40, 3):
            task = asyncio.create_task(sandbox.list_files("outputs"))
            for _ in range(turns):
                await asyncio.sleep(0.005)
            task.cancel()
            await asyncio.wait([task])
        async with asyncio.timeout(30):
            while machine.pids():
                await asyncio.sleep(0.05)

    sandboxes.with_sandbox(work)


def test_trap_5_a_program_outlives_the_default_time_of_a_command(
    sandboxes: Sandboxes, server: E2BServer
) -> None:
    server.hastens = 30.0  # the SDK's 60 seconds are 2 here

    run = sandboxes.program("import time; time.sleep(4); print('through')")

    assert (run.stdout, run.exit_code) == (b"through\n", 0)


def test_trap_6_nothing_is_lost_or_doubled_when_nobody_listened(
    sandboxes: Sandboxes, server: E2BServer
) -> None:
    cuts: list[int] = []

    async def work(sandbox: Sandbox) -> tuple[list[int], list[int], Ended]:
        machine = machine_of(server, sandbox)

        async def cut_again() -> None:
            while True:
                await asyncio.sleep(0.4)
                cuts.append(await asyncio.to_thread(server.call, machine.cut_streams))

        await sandbox.start(START)
        cutting = asyncio.create_task(cut_again())
        try:
            return await numbers(sandbox)
        finally:
            cutting.cancel()
            await asyncio.wait([cutting])

    printed, recorded, ended = sandboxes.with_sandbox(work, COUNT)

    assert printed == list(range(300))
    assert recorded == list(range(300))
    assert ended.exit_code == 0
    assert sum(cuts) >= 2


def test_trap_7_a_program_goes_on_when_nobody_reads(sandboxes: Sandboxes) -> None:
    async def work(sandbox: Sandbox) -> int:
        await sandbox.start(START)
        async with asyncio.timeout(30):
            while not await sandbox.list_files("outputs"):
                await asyncio.sleep(0.1)
        return len((await collect(sandbox)).stdout)

    code = "import os\nfor _ in range(400): os.write(1, b'x' * 10_000)\nopen('../outputs/done', 'w')"
    assert sandboxes.with_sandbox(work, code) == 4_000_000


def test_trap_8_a_daemon_that_holds_the_output_does_not_hold_the_end(
    sandboxes: Sandboxes, server: E2BServer
) -> None:
    code = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open("../outputs/pid", "w").write(str(os.getpid()))
        time.sleep(600)
    os._exit(0)
while not os.path.exists("../outputs/pid") or not open("../outputs/pid").read():
    time.sleep(0.01)
print("done")
"""

    async def work(sandbox: Sandbox) -> tuple[Run, bytes]:
        await sandbox.start(START)
        return await collect(sandbox), await read(sandbox, "outputs/pid")

    run, pid = sandboxes.with_sandbox(work, code)

    assert (run.stdout, run.reason, run.exit_code) == (b"done\n", EndReason.EXITED, 0)
    assert not Path(f"/proc/{int(pid)}").exists()


def test_trap_9_the_exit_code_is_known_however_late_one_asks(sandboxes: Sandboxes, server: E2BServer) -> None:
    async def work(sandbox: Sandbox) -> Ended | None:
        machine = machine_of(server, sandbox)
        await sandbox.start(START)

        def forget() -> None:  # as envd does, 30 seconds after the end
            machine.cut_streams()
            machine.processes.clear()

        outputs = sandbox.outputs()
        async for output in outputs:
            if isinstance(output, Stdout):
                await asyncio.to_thread(server.call, forget)
            elif isinstance(output, Ended):
                return output
        return None

    ended = sandboxes.with_sandbox(work, "import sys; print('up'); sys.exit(7)")
    assert ended is not None
    assert (ended.reason, ended.exit_code) == (EndReason.EXITED, 7)


def test_trap_10_a_call_after_one_that_was_left_is_always_answered(sandboxes: Sandboxes) -> None:
    async def work(sandbox: Sandbox) -> list[str]:
        answers = []
        for n in range(3):
            result = await sandbox.run_code("import time; time.sleep(600)", timeout_seconds=0.5)
            assert result.timed_out
            assert result.state_lost
            answers.append((await sandbox.run_code(str(n), timeout_seconds=60)).outputs[0].data["text/plain"])
        return answers

    assert sandboxes.with_sandbox(work) == ["0", "1", "2"]


def test_trap_11_no_value_of_the_environment_travels_through_code(
    sandboxes: Sandboxes, server: E2BServer
) -> None:
    awkward = 'it\'s "quoted"\nand $(on) two lines'

    async def work(sandbox: Sandbox) -> None:
        await sandbox.run_code("1", timeout_seconds=60)

    run = sandboxes.program("import os; print(os.environ['AWKWARD'])", env={"AWKWARD": awkward})
    sandboxes.with_sandbox(work, env={"AWKWARD": awkward})

    assert run.stdout.decode() == awkward + "\n"
    assert server.executed
    assert not any(body.get("env_vars") for body in server.executed)
    assert not any(body.get("envVars") for body in server.created)


@pytest.mark.parametrize(
    ("fault", "meaning"),
    [
        ({"status": 401}, SandboxUnavailable),
        ({"status": 403, "message": "the team is blocked"}, SandboxUnavailable),
        ({"status": 404, "message": "template not found"}, SandboxUnavailable),
        ({"status": 400, "message": "a host that is none"}, SandboxRefused),
        ({"status": 429, "times": 9, "headers": {"Retry-After": "0"}}, SandboxBusy),
        ({"status": 503, "times": 9, "headers": {"Retry-After": "0"}}, SandboxBusy),
        ({"status": 500, "times": 9}, SandboxBusy),
        ({"status": 422, "times": 9, "body": {"error_code": "idempotency_request_mismatch"}}, SandboxBusy),
    ],
)
def test_trap_12_a_refused_create_is_read_for_what_it_means(
    sandboxes: Sandboxes, server: E2BServer, fault: dict[str, Any], meaning: type[SandboxError]
) -> None:
    server.faults.add("POST", "/v2/sandboxes", **fault)

    with pytest.raises(meaning) as refusal:
        sandboxes.run(sandboxes.provider.open(spec()))

    assert type(refusal.value) is meaning or meaning is SandboxBusy
    assert server.running() == []


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_trap_12_what_passes_soon_is_waited_for(sandboxes: Sandboxes, server: E2BServer, status: int) -> None:
    server.faults.add("POST", "/v2/sandboxes", status, times=2, headers={"Retry-After": "0"})

    assert sandboxes.program("print('fine')").stdout == b"fine\n"


def test_trap_12_a_sandbox_that_is_killed_is_lost_and_one_that_is_not_reached_for_a_moment_is_not(
    sandboxes: Sandboxes, server: E2BServer
) -> None:
    async def killed(sandbox: Sandbox) -> Ended:
        await sandbox.start(START)
        kill = machine_of(server, sandbox).destroy
        ended = (
            await numbers(
                sandbox, lambda: asyncio.get_running_loop().run_in_executor(None, server.call, kill)
            )
        )[2]
        with pytest.raises(SandboxLost):
            await sandbox.list_files("outputs")
        return ended

    async def unreachable(sandbox: Sandbox) -> Ended:
        for path in ("/files", "process.Process/Start"):
            server.faults.add("POST", path, 502, message="The sandbox is running but port is not open")
        await sandbox.start(START)
        return (await numbers(sandbox))[2]

    lost = sandboxes.with_sandbox(killed, COUNT)
    assert (lost.reason, lost.exit_code) == (EndReason.LOST, None)
    assert sandboxes.with_sandbox(unreachable, COUNT).exit_code == 0


@pytest.mark.parametrize("honours", [True, False])
def test_trap_13_a_create_whose_answer_is_lost_makes_one_sandbox(
    sandboxes: Sandboxes, server: E2BServer, honours: bool
) -> None:
    server.honours_idempotency = honours
    server.faults.add("POST", "/v2/sandboxes")

    async def work(sandbox: Sandbox) -> tuple[int, Run]:
        await sandbox.start(START)
        return len(server.running()), await collect(sandbox)

    there, run = sandboxes.with_sandbox(work, "print('adopted')")

    assert (there, run.stdout) == (1, b"adopted\n")
    assert len(server.created) == 1


def test_trap_14_a_life_that_the_plan_cuts_short_is_noticed_and_named(
    server: E2BServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(provider_module, "RENEW_SECONDS", 0.2)
    server.longest_seconds = 2.0
    running = Sandboxes(e2b_provider(server.key, tmp_path))

    run = running.program("import time; print('up'); time.sleep(600)")
    running.close()

    assert run.ended is not None
    assert (run.reason, run.stdout) == (EndReason.LOST, b"up\n")
    assert "the plan's sandboxes do not live that long" in run.ended.detail
    assert "the plan's sandboxes live no longer" in caplog.text


@pytest.mark.parametrize("trouble", ["swaps_on_connect", "loses_files_on_resume", "gone", "another job's"])
def test_trap_15_a_sandbox_that_did_not_come_back_as_it_was_is_replaced(
    sandboxes: Sandboxes, server: E2BServer, trouble: str
) -> None:
    first = spec("print('first')", files={"inputs/a": b"a"})

    async def park() -> str:
        sandbox = await sandboxes.provider.open(first)
        await sandbox.start(START)
        await collect(sandbox)
        await sandbox.park()
        async with asyncio.timeout(30):
            while not server.paused():
                await asyncio.sleep(0.02)
        return sandbox.ref

    ref = sandboxes.run(park())
    if trouble == "gone":
        server.call(server.machines[ref].destroy)
    elif trouble != "another job's":
        setattr(server, trouble, True)
    job_id = uuid4() if trouble == "another job's" else first.job_id
    again = resumed(first, "print(sorted(__import__('os').listdir('../inputs')))", ref, job_id=job_id)

    async def come_back() -> tuple[str, Run]:
        sandbox = await sandboxes.provider.open(again)
        try:
            await sandbox.start(START)
            return sandbox.ref, await collect(sandbox)
        finally:
            await sandbox.close()

    new, run = sandboxes.run(come_back())

    assert new != ref
    assert (run.stdout, run.exit_code) == (b"['a']\n", 0)
    eventually(lambda: not server.running() and not server.paused(), what="nothing is left behind")


def resumed(first: SandboxSpec, code: str, ref: str, *, job_id: UUID | None = None) -> SandboxSpec:
    """The next attempt of a job whose last one was parked."""
    files = [*spec(code).files, *[file for file in first.files if file.path != "agent/agent.py"]]
    return SandboxSpec(job_id or first.job_id, first.attempt + 1, first.limits, files, parked=ref)


def test_a_message_whose_answer_is_lost_is_taken_once(sandboxes: Sandboxes, server: E2BServer) -> None:
    code = """
import os, select
replies = int(os.environ["ENGINE_REPLIES"].removeprefix("fd:"))
got = b""
while b"last" not in got:
    got += os.read(replies, 1000)
print(got.decode().split())
"""

    async def work(sandbox: Sandbox) -> Run:
        await sandbox.start(START)
        for line in (b"one", b"two", b"last"):
            server.faults.add("POST", "/files")
            server.faults.add("POST", "Filesystem/Move")
            await sandbox.send(line)
        return await collect(sandbox)

    assert sandboxes.with_sandbox(work, code).stdout == b"['one', 'two', 'last']\n"


# --- asleep and awake ---


def test_a_woken_sandbox_is_as_fresh_as_a_new_one_and_gets_only_what_is_new(
    sandboxes: Sandboxes, server: E2BServer
) -> None:
    first = spec("open('left-over', 'w'); open('../outputs/o', 'w')", files={"inputs/a": b"a" * 9_000_000})

    async def work() -> tuple[str, str, Run, list[str]]:
        sandbox = await sandboxes.provider.open(first)
        await sandbox.start(START)
        await collect(sandbox)
        await sandbox.park()
        async with asyncio.timeout(30):
            while not server.paused():
                await asyncio.sleep(0.02)
        code = "import os; print(os.listdir('.'), os.listdir('../outputs'), len(open('../inputs/a').read()))"
        again = await sandboxes.provider.open(resumed(first, code, sandbox.ref))
        try:
            await again.start(START)
            run = await collect(again)
            return sandbox.ref, again.ref, run, [entry.path for entry in await again.list_files("outputs")]
        finally:
            await again.close()

    slept, woken, run, outputs = sandboxes.run(work())

    assert slept == woken
    assert len(server.created) == 1
    assert (run.stdout, outputs) == (b"[] [] 9000000\n", [])


def test_a_sandbox_that_cannot_be_paused_is_ended(sandboxes: Sandboxes, server: E2BServer) -> None:
    server.faults.add("POST", "/pause", 503, times=9, headers={"Retry-After": "0"})

    async def work() -> None:
        sandbox = await sandboxes.provider.open(spec())
        await sandbox.park()
        async with asyncio.timeout(30):
            while server.running():
                await asyncio.sleep(0.02)

    sandboxes.run(work())
    assert server.paused() == []


# --- configuration ---


@pytest.mark.parametrize(("key", "said"), [("", "E2B_API_KEY is not set"), ("e2b_wrong", "Unauthorized")])
def test_without_a_good_key_nothing_is_opened_and_the_remedy_is_named(
    server: E2BServer, tmp_path: Path, key: str, said: str
) -> None:
    running = Sandboxes(e2b_provider(server.key, tmp_path, api_key=key))

    assert not running.health.ok
    assert said in running.health.detail
    assert "set E2B_API_KEY" in running.health.remedy
    with pytest.raises(SandboxUnavailable):
        running.run(running.provider.open(spec()))
    running.close()


def test_a_template_that_is_not_there_stops_the_worker_until_it_is(
    sandboxes: Sandboxes, server: E2BServer
) -> None:
    server.templates = ()
    with pytest.raises(SandboxUnavailable) as refusal:
        sandboxes.run(sandboxes.provider.open(spec()))
    assert "ENGINE_E2B_TEMPLATE" in refusal.value.remedy

    assert not sandboxes.run(sandboxes.provider.start()).ok
    server.templates = ("code-interpreter-v1",)

    assert sandboxes.run(sandboxes.provider.start()).ok
    assert sandboxes.program("print(1)").exit_code == 0


def test_e2b_away_is_said_and_passes(sandboxes: Sandboxes, server: E2BServer) -> None:
    server.faults.add("GET", "/v2/sandboxes", 503, times=9, headers={"Retry-After": "0"})

    assert not sandboxes.run(sandboxes.provider.start()).ok
    server.faults.waiting.clear()

    assert sandboxes.run(sandboxes.provider.start()).ok


def test_a_template_without_root_runs_programs_too(sandboxes: Sandboxes, server: E2BServer) -> None:
    server.has_root = False
    code = "import os; open('../outputs/x', 'w').write('x' * 1_000_000); print(os.getcwd())"

    async def work(sandbox: Sandbox) -> tuple[Run, bytes]:
        await sandbox.start(START)
        await sandbox.send(b"hello")
        return await collect(sandbox), await read(sandbox, "outputs/x")

    run, content = sandboxes.with_sandbox(work, code)

    assert run.exit_code == 0
    assert len(content) == 1_000_000


def test_a_template_without_the_interpreter_says_so(server: E2BServer, tmp_path: Path) -> None:
    running = Sandboxes(e2b_provider(server.key, tmp_path, template="base"))

    async def work(sandbox: Sandbox) -> None:
        with pytest.raises(SandboxError):
            await sandbox.run_code("1", timeout_seconds=30)

    running.with_sandbox(work)
    running.close()


def test_nothing_goes_out_unless_the_agent_s_hosts_allow_it(sandboxes: Sandboxes, server: E2BServer) -> None:
    sandboxes.program("pass")
    sandboxes.program("pass", allow_hosts=("api.example.com",))

    closed, opened = server.created
    assert closed["allow_internet_access"] is False
    assert opened["network"]["allowOut"] == ["api.example.com"]
    assert opened["network"]["denyOut"] == ["0.0.0.0/0"]
    for body in server.created:
        assert body["network"]["allowPublicTraffic"] is False
        assert body["autoPause"] is False
        assert body["metadata"].keys() == {"engine", "job_id", "attempt"}
        assert body["idempotency_key"] == f"{body['metadata']['job_id']}-{body['metadata']['attempt']}"


def test_requirements_are_installed_out_here_for_the_sandbox_s_python(
    sandboxes: Sandboxes, server: E2BServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "index").mkdir()
    make_wheel(tmp_path / "index", "teapot", "1.0", {"teapot/__init__.py": ""})
    for installer in ("UV", "PIP"):
        monkeypatch.setenv(f"{installer}_FIND_LINKS", str(tmp_path / "index"))
        monkeypatch.setenv(f"{installer}_NO_INDEX", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    code = "import teapot; print(teapot.__file__)"

    async def interpret(sandbox: Sandbox) -> str:
        return (await sandbox.run_code(code, timeout_seconds=60)).stdout

    run = sandboxes.program(code, requirements=["teapot==1.0"])
    interpreted = sandboxes.with_sandbox(interpret, requirements=["teapot==1.0"])

    assert "/layer/teapot/" in run.stdout.decode(), run
    assert "/layer/teapot/" in interpreted
    (archive,) = (tmp_path / "layers").glob("e2b-*.tar")
    os.utime(archive, (0, 0))
    sandboxes.run(sandboxes.provider.start())
    assert not archive.exists(), "unused for long"
    with pytest.raises(RequirementsFailed) as failed:
        sandboxes.run(sandboxes.provider.open(spec(requirements=["no-such-package-of-engine==1"])))
    assert failed.value.output
    assert server.running() == []


# --- hostile programs ---


def test_links_pipes_and_devices_are_no_files(sandboxes: Sandboxes) -> None:
    code = """
import os
os.symlink("/etc/passwd", "../outputs/link")
os.symlink("/etc", "../outputs/folder")
os.mkfifo("../outputs/pipe")
open("../outputs/honest", "w").write("x")
with open("../outputs/giant", "wb") as file:
    file.truncate(100_000_000)
"""

    async def work(sandbox: Sandbox) -> list[str]:
        await sandbox.start(START)
        await collect(sandbox)
        for path in ("link", "folder/passwd", "pipe", "../agent/agent.py", "giant"):
            with pytest.raises(SandboxFileError):
                await read(sandbox, f"outputs/{path}")
        return sorted(entry.path for entry in await sandbox.list_files("outputs"))

    assert sandboxes.with_sandbox(work, code) == ["giant", "honest"]


@pytest.mark.skipif(os.geteuid() != 0, reason="the tests' server has two users only when it is root")
def test_what_is_ours_in_its_home_can_neither_be_replaced_nor_renamed(sandboxes: Sandboxes) -> None:
    code = """
import os
home = os.environ["HOME"]
open(f"{home}/mine", "w").write("x")
for act in (
    lambda: os.rename(f"{home}/agent", f"{home}/other"),
    lambda: os.rename(f"{home}/mine", f"{home}/guest.py"),
    lambda: open(f"{home}/guest.py", "a"),
    lambda: os.listdir(f"{home}/engine"),
    lambda: os.setuid(0),
):
    try:
        act()
        print("done")
    except OSError as error:
        print(type(error).__name__)
print([line for line in open("/proc/self/status") if line.startswith("NoNewPrivs")])
"""
    run = sandboxes.program(code)

    assert run.stdout.decode().splitlines() == ["PermissionError"] * 5 + ["['NoNewPrivs:\\t1\\n']"], run
    assert run.exit_code == 0


def test_a_program_that_kills_everything_ends_only_itself(sandboxes: Sandboxes) -> None:
    run = sandboxes.program("import os, signal; print('before', flush=True); os.kill(-1, signal.SIGKILL)")

    assert run.stdout == b"before\n"
    assert run.reason in (EndReason.EXITED, EndReason.KILLED)


def test_a_flood_leaves_the_worker_s_memory_flat(sandboxes: Sandboxes) -> None:
    def resident_mb() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

    async def work(sandbox: Sandbox) -> tuple[float, Ended | None]:
        await sandbox.start(START)
        before, ended = resident_mb(), None
        async for output in sandbox.outputs():
            ended = output if isinstance(output, Ended) else None
        return resident_mb() - before, ended

    grown, ended = sandboxes.with_sandbox(
        work, "import os\nwhile True: os.write(1, b'x' * 1_000_000)", output_bytes=60_000_000
    )

    assert ended is not None
    assert ended.reason == EndReason.OUTPUT
    assert grown < 60


def test_memory_over_the_limit_ends_a_program(sandboxes: Sandboxes) -> None:
    run = sandboxes.program(
        "import time; x = bytearray(300_000_000); x[:] = x; time.sleep(60)", memory_mb=100
    )

    assert run.reason == EndReason.MEMORY


def test_disk_over_the_limit_ends_a_program(sandboxes: Sandboxes) -> None:
    code = "import time\nfor n in range(8): open(f'{n}', 'wb').write(b'x' * 1_000_000)\ntime.sleep(60)"

    assert sandboxes.program(code, disk_mb=5).reason == EndReason.DISK


def test_inputs_that_do_not_fit_are_refused_for_good(sandboxes: Sandboxes, server: E2BServer) -> None:
    server.faults.add("POST", "/files", 507, message="not enough disk space available")

    with pytest.raises(SandboxRefused):
        sandboxes.run(sandboxes.provider.open(spec()))


# --- ends ---


def test_a_worker_that_lost_its_lease_ends_its_sandboxes(sandboxes: Sandboxes, server: E2BServer) -> None:
    async def work(sandbox: Sandbox) -> Run:
        await sandbox.start(["sleep", "600"])
        sandboxes.provider.tick(0.3)
        return await collect(sandbox)

    assert sandboxes.with_sandbox(work).reason == EndReason.KILLED
    assert server.running() == []


def test_another_worker_ends_a_sandbox_by_its_ref(
    sandboxes: Sandboxes, server: E2BServer, tmp_path: Path
) -> None:
    async def work(sandbox: Sandbox) -> Run:
        other = e2b_provider(server.key, tmp_path)
        await sandbox.start(["sleep", "600"])
        await other.kill(sandbox.ref)
        await other.kill("../../nonsense")
        await other.close()
        return await collect(sandbox)

    assert sandboxes.with_sandbox(work).reason == EndReason.LOST


def test_what_no_job_has_any_use_for_is_swept_on_every_page_running_and_paused(
    sandboxes: Sandboxes, server: E2BServer
) -> None:
    server.page_size = 3
    headers = {"X-API-Key": server.key}
    for n in range(8):
        body = {"templateID": "base", "timeout": 300, "metadata": {"engine": "test" if n else "another"}}
        made = httpx.post(f"{server.url}/v2/sandboxes", json=body, headers=headers).json()
        if n % 2:
            httpx.post(f"{server.url}/sandboxes/{made['sandboxID']}/pause", json={}, headers=headers)

    async def work(sandbox: Sandbox) -> None:
        provider = sandboxes.provider
        assert isinstance(provider, provider_module.E2BProvider)
        assert await provider.sweep() == 7
        await sandbox.start(START)
        assert (await collect(sandbox)).exit_code == 0

    sandboxes.with_sandbox(work, "pass")
    (stranger,) = [*server.running(), *server.paused()]
    assert stranger.metadata["engine"] == "another"
    server.call(stranger.destroy)


def test_a_closed_sandbox_gives_its_slot_back_and_one_that_may_live_keeps_it(
    server: E2BServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(provider_module, "KILL_PAUSES", (0.0, 0.1))
    budget = FreeBudget()
    running = Sandboxes(e2b_provider(server.key, tmp_path, budget=budget))

    running.program("pass")
    assert budget.slots == {}
    server.faults.add("DELETE", "/sandboxes/", 500, times=2)
    running.program("pass")
    kept = len(budget.slots)
    for machine in server.running():
        server.call(machine.destroy)
    running.close()

    assert kept == 1
    assert "could not be ended yet" in caplog.text


def test_a_cancelled_open_leaves_no_sandbox(sandboxes: Sandboxes, server: E2BServer) -> None:
    server.create_seconds = 0.3

    async def work() -> None:
        opening = asyncio.create_task(sandboxes.provider.open(spec()))
        await asyncio.sleep(0.1)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        async with asyncio.timeout(30):
            while not server.created or server.running():
                await asyncio.sleep(0.02)

    sandboxes.run(work())


def test_a_proxys_page_in_place_of_an_answer_is_no_fault_of_ours() -> None:
    error = translated(json.JSONDecodeError("Expecting value", "<html>", 0), "asking")

    assert isinstance(error, Unclear)
    assert "not JSON" in str(error)
