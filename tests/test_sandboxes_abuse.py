"""What a hostile program tries in a local sandbox. Nothing leaves it, and it ends with the reason."""

import asyncio
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.sandboxes.base import Ended, EndReason, Record, Sandbox, SandboxFileError, Stdout
from jobs.sandboxes.local import LocalProvider
from tests.processes import children_of, eventually, name_of, processes_named
from tests.sandboxes import Run, Sandboxes, collect, local_provider, needs_bubblewrap, read, spec

pytestmark = needs_bubblewrap

START = ["python", "../agent/agent.py"]
TRY = """
import ctypes, errno, json, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(function, *arguments):
    ctypes.set_errno(0)
    result = getattr(libc, function)(*arguments)
    return "done" if result >= 0 else errno.errorcode[ctypes.get_errno()]
def attempt(act):
    try:
        act()
        return "done"
    except OSError as error:
        return errno.errorcode.get(error.errno, type(error).__name__)
"""


@pytest.fixture(scope="module", params=[True, False], ids=["cgroup", "watchdog"])
def sandboxes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sandboxes]:
    """With cgroups where this user may have them, and without."""
    running = Sandboxes(local_provider(tmp_path_factory.mktemp("scratch"), cgroups=request.param))
    assert running.health.ok, running.health
    if request.param and "cgroup" not in running.health.detail:
        running.close()
        pytest.skip("no cgroup can be written here")
    yield running
    running.close()


def memory_mb() -> float:
    """What this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def results(run: Run) -> dict[str, str]:
    assert run.exit_code == 0, run
    answers = json.loads(run.stdout)
    assert isinstance(answers, dict)
    return answers


# --- eating the machine ---


def test_a_fork_bomb_runs_into_its_limit_and_ends(sandboxes: Sandboxes) -> None:
    code = """
import os, time
made = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(600)
        made += 1
except OSError as error:
    print(made, error.errno, flush=True)
while True:
    try: os.fork()
    except OSError: pass
"""
    run = sandboxes.program(code, processes=16, wall_seconds=1.0)

    made, error = run.stdout.split()[:2]
    assert 8 <= int(made) <= 16
    assert int(error) == 11
    assert run.reason == EndReason.TIMEOUT


def test_other_sandboxes_go_on_beside_a_fork_bomb(sandboxes: Sandboxes) -> None:
    async def bomb(sandbox: Sandbox) -> Run:
        await sandbox.start(
            ["python", "-c", "import os\nwhile True:\n try: os.fork()\n except OSError: pass"]
        )
        neighbour = await sandboxes.provider.open(spec("print(sum(range(1000)))"))
        try:
            await neighbour.start(START)
            return await collect(neighbour)
        finally:
            await neighbour.close()

    assert sandboxes.with_sandbox(bomb).stdout == b"499500\n"


@pytest.mark.parametrize(
    "hog",
    [
        pytest.param("kept = []\nwhile True: kept.append(bytearray(4_000_000))", id="heap"),
        pytest.param(
            "import mmap\nkept = []\nwhile True:\n"
            " kept.append(mmap.mmap(-1, 4_000_000)); kept[-1].write(b'x' * 4_000_000)",
            id="shared mapping",
        ),
        pytest.param(
            "import os\nfor _ in range(12):\n if os.fork() == 0:\n  kept = bytearray(20_000_000)\n  while True: pass\n"
            "while True: pass",
            id="many small ones",
        ),
    ],
)
def test_a_memory_hog_ends_with_that_reason(sandboxes: Sandboxes, hog: str) -> None:
    run = sandboxes.program(hog, memory_mb=100)

    assert run.reason == EndReason.MEMORY, run
    assert "100 MB" in (run.ended or Ended(EndReason.LOST, None)).detail


def test_memory_without_an_address_counts_too(sandboxes: Sandboxes) -> None:
    code = """
import os
while True:
    descriptor = os.memfd_create("hog")
    for _ in range(20): os.write(descriptor, b"x" * 1_000_000)
"""
    run = sandboxes.program(code, memory_mb=100, disk_mb=32)

    if "cgroup" in sandboxes.health.detail:
        assert run.reason == EndReason.MEMORY
    else:
        assert b"PermissionError" in run.stderr  # nobody would count it


def test_memory_and_disk_do_not_eat_into_each_other(sandboxes: Sandboxes) -> None:
    code = """
import time
file = open("big", "wb")
for _ in range(60): file.write(b"x" * 1_000_000)
kept = bytearray(60_000_000)
time.sleep(0.5); print("fits")
"""
    assert sandboxes.program(code, memory_mb=100, disk_mb=80).stdout == b"fits\n"


def test_shared_memory_has_an_end(sandboxes: Sandboxes) -> None:
    code = """
import errno
try:
    with open("/dev/shm/hog", "wb") as file:
        for n in range(1000): file.write(b"x" * 1_000_000)
except OSError as error:
    print(n, errno.errorcode[error.errno])
"""
    size, error = sandboxes.program(code, memory_mb=100).stdout.split()

    assert (error, int(size) < 30) == (b"ENOSPC", True)


@pytest.mark.parametrize("folder", [".", "/tmp", "../outputs", ".."])
def test_the_disk_is_full_at_its_limit(sandboxes: Sandboxes, folder: str) -> None:
    code = f"""
for n in range(100):
    with open(f"{folder}/{{n}}", "wb") as file: file.write(b"x" * 1_000_000)
"""
    run = sandboxes.program(code, disk_mb=16)

    assert b"No space left on device" in run.stderr
    assert run.reason == EndReason.DISK


def test_too_many_files_end_a_program(sandboxes: Sandboxes) -> None:
    code = """
import os
n = 0
while True:
    os.mkdir(str(n)); os.chdir(str(n))
    for m in range(5000): os.close(os.open(f"file-{m}", os.O_CREAT))
    n += 1
"""
    run = sandboxes.program(code, wall_seconds=60.0)

    assert run.ended == Ended(EndReason.DISK, None, "too many files")


@pytest.mark.parametrize(
    "flood",
    ["while True: os.write(1, b'x\\n' * 30_000)", "line = b'x' * (1 << 20)\nwhile True: os.write(1, line)"],
    ids=["lines", "one endless line"],
)
def test_a_flood_of_output_leaves_the_worker_s_memory_flat(sandboxes: Sandboxes, flood: str) -> None:
    async def work(sandbox: Sandbox) -> tuple[Ended | None, float]:
        await sandbox.start(START)
        before, most, last, total = memory_mb(), 0.0, None, 0
        async for output in sandbox.outputs():
            if isinstance(output, Ended):
                last = output
            elif isinstance(output, Stdout):
                total += len(output.data)
                most = max(most, memory_mb())
        assert total == 200_000_000
        return last, most - before

    ended, growth = sandboxes.with_sandbox(work, f"import os\n{flood}", output_bytes=200_000_000)

    assert ended is not None
    assert ended.reason == EndReason.OUTPUT
    assert growth < 10


def test_slow_reading_holds_the_program_back(sandboxes: Sandboxes) -> None:
    code = """
import os
for n in range(500):
    os.write(1, b"x" * 10_000)
    open("../outputs/written", "w").write(str(n + 1))
"""

    async def written(sandbox: Sandbox) -> int:
        return int(await read(sandbox, "outputs/written") or b"0")

    async def work(sandbox: Sandbox) -> tuple[int, int]:
        await sandbox.start(START)
        outputs = sandbox.outputs()
        await anext(outputs)
        before, now = -1, 0
        while before != now:  # until the program stands still
            await asyncio.sleep(0.1)
            before, now = now, await written(sandbox)
        async for _ in outputs:
            continue
        return now, await written(sandbox)

    held, end = sandboxes.with_sandbox(work, code)
    assert 0 < held < 50
    assert end == 500


def test_an_endless_record_leaves_the_worker_s_memory_flat(sandboxes: Sandboxes) -> None:
    before = memory_mb()

    run = sandboxes.program("import os\nwhile True: os.write(6, b'x' * 65536)")

    assert run.reason == EndReason.OUTPUT
    assert memory_mb() - before < 10


def test_forged_records_come_as_they_are_and_break_nothing(sandboxes: Sandboxes) -> None:
    lines = [b"\0\xff\xfe", b"null", b"[" * 1000, b"", b'{"job_id": "another"}']

    async def work(sandbox: Sandbox) -> list[bytes]:
        await sandbox.start(START)
        return [output.line async for output in sandbox.outputs() if isinstance(output, Record)]

    code = f"import os\nfor line in {lines!r}: os.write(6, line + b'\\n')"
    assert sandboxes.with_sandbox(work, code) == lines


# --- staying alive ---


def test_a_daemonised_child_dies_with_its_program(sandboxes: Sandboxes) -> None:
    token = f"314.{time.time_ns()}"
    code = f"""
import os
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execvp("sleep", ["sleep", "{token}"])
    os._exit(0)
os.wait()
while not any("{token}" in open(f"/proc/{{pid}}/cmdline").read() for pid in os.listdir("/proc") if pid.isdigit()): pass
print("it runs")
"""

    async def work(sandbox: Sandbox) -> Run:
        await sandbox.start(START)
        run = await collect(sandbox)
        assert processes_named(token) == [], "while the sandbox itself is still open"
        return run

    run = sandboxes.with_sandbox(work, code)
    assert (run.stdout, run.exit_code) == (b"it runs\n", 0)


def test_a_program_cannot_hurt_process_1(sandboxes: Sandboxes) -> None:
    code = (
        TRY
        + """
import resource, signal
for number in set(range(1, 65)) - {32, 33, signal.SIGCHLD}:
    try: os.kill(1, number)
    except OSError: pass
print(json.dumps({
    "memory": attempt(lambda: open("/proc/1/mem", "rb")),
    "environment": attempt(lambda: open("/proc/1/environ", "rb").read()),
    "descriptors": attempt(lambda: os.listdir("/proc/1/fd")),
    "root": attempt(lambda: os.listdir("/proc/1/root")),
    "limits": attempt(lambda: resource.prlimit(1, resource.RLIMIT_NOFILE, (0, 0))),
    "affinity": attempt(lambda: os.sched_setaffinity(1, {0})),
    "priority": attempt(lambda: os.setpriority(os.PRIO_PROCESS, 1, 19)),
    "user's priority": attempt(lambda: os.setpriority(os.PRIO_USER, 0, 19)),
    "scheduler": attempt(lambda: os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0))),
    "score": attempt(lambda: open("/proc/1/oom_score_adj", "w").write("1000")),
    "ptrace": call("ptrace", 16, 1, 0, 0),
    "memory by call": call("process_vm_readv", 1, 0, 0, 0, 0, 0),
}))
"""
    )
    answers = results(sandboxes.program(code))

    assert set(answers.values()) <= {"EPERM", "EACCES", "EROFS"}, answers


def test_killing_everything_it_sees_ends_only_the_program(sandboxes: Sandboxes) -> None:
    async def work(sandbox: Sandbox) -> tuple[Run, bytes]:
        await sandbox.start(START)
        return await collect(sandbox), await read(sandbox, "outputs/kept")

    code = """
import os, time
open("../outputs/kept", "w").write("kept")
if os.fork() == 0:
    os.kill(-1, 9)
time.sleep(600)
"""
    run, kept = sandboxes.with_sandbox(work, code)

    assert (run.reason, run.exit_code, kept) == (EndReason.EXITED, -9, b"kept")


# --- getting out ---


def test_the_kernel_s_dangerous_doors_are_shut(sandboxes: Sandboxes) -> None:
    code = (
        TRY
        + """
import platform
x86 = platform.machine() == "x86_64"
syscall = lambda x, arm, *rest: call("syscall", x if x86 else arm, *rest)
print(json.dumps({
    "user namespace": call("unshare", 0x10000000),
    "mount namespace": call("unshare", 0x20000),
    "setns": call("setns", os.open("/proc/self/ns/user", os.O_RDONLY), 0),
    "clone into a user namespace": syscall(56, 220, 0x10000000 | 17, 0, 0, 0, 0),
    "clone3": syscall(435, 435, 0, 0),
    "mount": call("mount", b"none", b"/home/agent/workspace", b"tmpfs", 0, None),
    "unmount": call("umount2", b"/proc", 2),
    "open_tree": syscall(428, 428, -100, b"/", 1),
    "fsopen": syscall(430, 430, b"tmpfs", 0),
    "pivot_root": syscall(155, 41, b".", b"."),
    "chroot": call("chroot", b"/"),
    "ptrace": call("ptrace", 0, 0, 0, 0),
    "keyctl": syscall(250, 219, 0, -3, 0),
    "add_key": syscall(248, 217, b"user", b"x", b"y", 1, -3),
    "io_uring": syscall(425, 425, 8, 0),
    "bpf": syscall(321, 280, 0, 0, 0),
    "perf": syscall(298, 241, 0, 0, -1, -1, 0),
    "userfaultfd": syscall(323, 282, 0),
    "handles": syscall(304, 265, -100, 0, 0),
    "sysv shared memory": call("shmget", 0, 4096, 0o600),
    "personality": call("personality", 0),
    "root": call("setuid", 0),
    "module": syscall(313, 273, 0, b"", 0),
    "kexec": syscall(246, 104, 0, 0, 0, 0),
    "clock": call("clock_settime", 0, ctypes.byref((ctypes.c_long * 2)(0, 0))),
    "host name": call("sethostname", b"x", 1),
    "vsock": attempt(lambda: socket.socket(40, socket.SOCK_STREAM)),
    "netlink": attempt(lambda: socket.socket(16, socket.SOCK_RAW)),
    "packet": attempt(lambda: socket.socket(17, socket.SOCK_RAW)),
    "raw": attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)),
    "device": attempt(lambda: os.mknod("disk", 0o60666, os.makedev(8, 0))),
    "typing for others": attempt(lambda: __import__("fcntl").ioctl(0, 0x5412, b"x")),
}))
"""
    )
    answers = results(sandboxes.program(code))

    assert answers.pop("clone3") == "ENOSYS"
    assert {name for name, answer in answers.items() if answer != "EPERM"} == set(), answers


def test_calls_of_another_architecture_s_table_are_refused(sandboxes: Sandboxes) -> None:
    code = TRY + "print(json.dumps({'x32': call('syscall', 0x40000000 | 39)}))"
    if os.uname().machine != "x86_64":
        pytest.skip("the x32 table is x86-64's")

    assert results(sandboxes.program(code)) == {"x32": "ENOSYS"}


def test_it_has_no_privilege_to_lose_or_to_gain(sandboxes: Sandboxes) -> None:
    run = sandboxes.program("print(open('/proc/self/status').read())")
    status = dict(line.split(":\t", 1) for line in run.stdout.decode().splitlines() if ":\t" in line)

    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert status["Uid"] == status["Gid"] == "1000\t1000\t1000\t1000"


def test_there_is_no_network_to_anywhere(sandboxes: Sandboxes, tmp_path: Path) -> None:
    abstract = f"\0engine-{time.time_ns()}"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(abstract)
        unix.listen()
        port = tcp.getsockname()[1]
        code = (
            TRY
            + f"""
def connect(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(2)
        sock.connect(address)
print(json.dumps({{
    "host's loopback": attempt(lambda: connect(socket.AF_INET, ("127.0.0.1", {port}))),
    "host's abstract socket": attempt(lambda: connect(socket.AF_UNIX, {abstract!r})),
    "outside": attempt(lambda: connect(socket.AF_INET, ("1.1.1.1", 443))),
    "outside by IPv6": attempt(lambda: connect(socket.AF_INET6, ("2606:4700:4700::1111", 443))),
    "metadata service": attempt(lambda: connect(socket.AF_INET, ("169.254.169.254", 80))),
    "names": attempt(lambda: socket.getaddrinfo("example.com", 80)),
    "interfaces": str([line.split(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:]]),
}}))
"""
        )
        answers = results(sandboxes.program(code))

    assert answers.pop("interfaces") == "['lo']"
    assert "done" not in answers.values(), answers


def test_the_host_s_files_processes_and_environment_are_not_there(
    sandboxes: Sandboxes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINE_SECRET_FOR_TEST", "the-secret")
    secret = tmp_path / "secret.txt"
    secret.write_text("the-secret")
    code = f"""
import os, json, glob
seen = []
for folder, _, names in os.walk("/"):
    if not folder.startswith(("/proc", "/usr", "/opt")):
        seen += [os.path.join(folder, name) for name in names]
print(json.dumps({{
    "secret": os.path.exists({str(secret)!r}),
    "shadow": os.path.exists("/etc/shadow"),
    "environment": "ENGINE_SECRET_FOR_TEST" in os.environ,
    "project": os.path.exists({str(Path(__file__))!r}),
    "top": sorted(os.listdir("/")),
    "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
    "others": [name for name in seen if not name.startswith(("/home/agent", "/dev", "/etc"))],
    "etc": sorted(os.listdir("/etc")),
    "host name": os.uname().nodename,
    "command lines": b"".join(open(path, "rb").read() for path in glob.glob("/proc/[0-9]*/cmdline")).decode(),
}}))
"""
    run = sandboxes.program(code)
    answers = json.loads(run.stdout)

    assert not any(answers.pop(name) for name in ("secret", "shadow", "environment", "project")), answers
    assert set(answers["top"]) <= {
        "bin",
        "dev",
        "etc",
        "home",
        "lib",
        "lib32",
        "lib64",
        "libx32",
        "opt",
        "proc",
        "tmp",
        "usr",
    }
    assert answers["processes"] == [1, 2]
    assert answers["others"] == []
    assert answers["etc"] == ["group", "hosts", "matplotlib", "nsswitch.conf", "passwd"]
    assert answers["host name"] == "sandbox"
    assert "/root" not in answers["command lines"]


def test_nothing_outside_its_own_folder_can_be_written(sandboxes: Sandboxes) -> None:
    code = (
        TRY
        + """
places = ["/", "/etc", "/usr", "/usr/bin", "/usr/lib", "/opt", "/opt/python", "/opt/packages", "/opt/guest", "/dev",
          "/proc", "/home", "/home/agent/agent", "/home/agent/sdk", "/home/agent/inputs", "/proc/sys/kernel"]
print(json.dumps({place: attempt(lambda: os.mkdir(place + "/x")) for place in places}))
"""
    )
    answers = results(sandboxes.program(code))

    assert set(answers.values()) <= {"EROFS", "EACCES", "EPERM", "ENOENT"}, answers


# --- what it leaves behind ---


def test_only_honest_regular_files_are_found(sandboxes: Sandboxes) -> None:
    code = r"""
import os, socket
os.chdir("../outputs")
open("good.txt", "w").write("good")
os.makedirs("folder/inner"); open("folder/inner/ü.txt", "w").write("x")
os.symlink("/etc/passwd", "link"); os.symlink("../agent/agent.py", "inward"); os.symlink("/etc", "linked-folder")
os.symlink("/proc/1/root", "root"); os.symlink("good.txt", "good-link")
os.mkfifo("fifo"); socket.socket(socket.AF_UNIX).bind("socket")
for name in (b"new\nline", b"bad\xff\xfe", b"tab\t", b"back\\slash", b"\x1b[31mred", "\u202egpj.exe".encode()):
    open(name, "w").close()
deep = "deep"
for _ in range(100):
    os.mkdir(deep); os.chdir(deep)
open("too-deep", "w").close()
"""

    async def work(sandbox: Sandbox) -> list[str]:
        await sandbox.start(START)
        run = await collect(sandbox)
        assert run.exit_code == 0, run
        for path in (
            "link",
            "inward",
            "linked-folder/passwd",
            "root/etc/passwd",
            "good-link",
            "fifo",
            "socket",
            "../agent/agent.py",
        ):
            with pytest.raises(SandboxFileError):
                await read(sandbox, f"outputs/{path}")
        return [entry.path for entry in await sandbox.list_files("outputs")]

    assert sorted(sandboxes.with_sandbox(work, code)) == ["folder/inner/ü.txt", "good.txt"]


def test_a_folder_swapped_for_a_link_leads_nowhere(sandboxes: Sandboxes) -> None:
    code = """
import os
os.chdir("../outputs"); os.mkdir("folder"); open("folder/passwd", "w").write("mine")
print("ready", flush=True)
while True:
    os.rename("folder", "away"); os.symlink("/etc", "folder"); os.unlink("folder"); os.rename("away", "folder")
"""

    async def work(sandbox: Sandbox) -> set[bytes]:
        await sandbox.start(START)
        await anext(sandbox.outputs())
        seen = set()
        for _ in range(300):
            try:
                seen.add(await read(sandbox, "outputs/folder/passwd"))
            except SandboxFileError:
                continue
            await sandbox.list_files("outputs")
        return seen

    assert sandboxes.with_sandbox(work, code) <= {b"mine", b""}


def test_a_sparse_giant_is_refused_by_its_size(sandboxes: Sandboxes) -> None:
    async def work(sandbox: Sandbox) -> Run:
        await sandbox.start(START)
        run = await collect(sandbox)
        with pytest.raises(SandboxFileError):
            await read(sandbox, "outputs/giant", most_bytes=1_000_000)
        return run

    code = """
import errno, os
with open("../outputs/giant", "wb") as file:
    file.truncate(15_000_000)
    try: file.truncate(1 << 40)
    except OSError as error: print(errno.errorcode[error.errno])
"""
    assert sandboxes.with_sandbox(work, code, disk_mb=16).stdout == b"EFBIG\n"


def test_a_file_that_grows_while_it_is_read_ends_at_the_limit(sandboxes: Sandboxes) -> None:
    async def work(sandbox: Sandbox) -> None:
        await sandbox.start(START)
        await anext(sandbox.outputs())
        got = 0

        async def read_slowly() -> None:
            nonlocal got
            async for piece in sandbox.read_file("outputs/growing", most_bytes=3_000_000):
                got += len(piece)
                await asyncio.sleep(0.02)

        with pytest.raises(SandboxFileError):
            await read_slowly()
        assert got <= 3_000_000

    code = "file = open('../outputs/growing', 'wb')\nfile.write(b'x' * 1_000_000); file.flush(); print('ready')\n"
    code += "for n in range(100): file.write(b'x' * 1_000_000); file.flush()\n"
    sandboxes.with_sandbox(work, code, disk_mb=200)


def test_a_hundred_thousand_files_are_refused_quickly(sandboxes: Sandboxes) -> None:
    async def work(sandbox: Sandbox) -> float:
        await sandbox.start(START)
        assert (await collect(sandbox)).exit_code == 0
        start = time.monotonic()
        with pytest.raises(SandboxFileError):
            await sandbox.list_files("outputs", most=1000)
        return time.monotonic() - start

    code = "import os\nos.chdir('../outputs')\nfor n in range(100_000): os.close(os.open(str(n), os.O_CREAT))"
    assert sandboxes.with_sandbox(work, code) < 5


def test_no_program_is_left_on_the_host(sandboxes: Sandboxes) -> None:
    provider = sandboxes.provider
    assert isinstance(provider, LocalProvider)
    assert provider.host is not None
    assert provider.host.supervisor.process is not None
    launcher = provider.host.supervisor.process.pid

    def names() -> list[str]:
        return [name_of(pid) for pid in children_of(launcher)]

    eventually(lambda: "bwrap" not in names(), what="every sandbox of this module has ended")
