"""A sandbox never outlives its worker's right to it, whichever process dies or stops."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import packaging
import pytest

from jobs.sandboxes import limits, local, runtime
from tests.processes import (
    ROOT,
    children_of,
    eventually,
    is_running,
    name_of,
    processes_named,
    read_process,
)
from tests.sandboxes import LOCK, Sandboxes, built_runtime, local_provider, needs_bubblewrap

pytestmark = needs_bubblewrap


def launcher_of(ref: str) -> int:
    """The process id in a ref: local:HOST:RUN:NUMBER, and the run ends in -PID-START."""
    return int(ref.split(":")[2].split("-")[-2])


class Worker:
    """One `sandbox_worker.py`."""

    def __init__(self, scratch: Path, *, lease: float = 0.0) -> None:
        self.token = f"2718.{time.time_ns()}"
        command = [
            sys.executable,
            "-m",
            "tests.sandbox_worker",
            str(built_runtime()),
            str(LOCK),
            str(scratch),
        ]
        self.process = subprocess.Popen([*command, self.token, str(lease)], cwd=ROOT, stdout=subprocess.PIPE)
        assert self.read()["ok"]
        self.ref = self.read()["ref"]
        self.launcher = launcher_of(self.ref)

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        answer = json.loads(self.process.stdout.readline())
        assert isinstance(answer, dict)
        return answer

    def programs(self) -> list[int]:
        """The sandbox's programs, this worker's own command line left out."""
        return [pid for pid in processes_named(self.token) if pid != self.process.pid]

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    started: list[Worker] = []

    def start(**options: Any) -> Worker:
        started.append(Worker(tmp_path / "scratch", **options))
        assert started[-1].programs()
        return started[-1]

    yield start
    for worker in started:
        worker.stop()
    for worker in started:
        eventually(lambda: not worker.programs() and not is_running(worker.launcher))  # noqa: B023  (called at once)


def link_or_copy(source: str, target: str) -> None:
    """A hard link is quicker, where the file system is the same."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def groups_of(worker: Worker) -> list[Path]:
    run = worker.ref.split(":")[2]
    return [
        path
        for roots in (*limits.v1_roots(), *limits.v2_roots())
        for root in roots
        for path in root.glob(run)
    ]


def test_a_killed_worker_s_sandboxes_die_and_leave_nothing(
    start_worker: Callable[..., Worker], tmp_path: Path
) -> None:
    worker = start_worker()

    worker.process.kill()

    eventually(lambda: not worker.programs(), seconds=5)
    eventually(lambda: not is_running(worker.launcher), seconds=5)
    assert groups_of(worker) == []
    assert [path.name for path in (tmp_path / "scratch").glob("run-*") if path.is_dir()] == []


def test_a_stopped_worker_s_sandboxes_die_when_its_lease_is_over(start_worker: Callable[..., Worker]) -> None:
    worker = start_worker(lease=1.0)
    time.sleep(1.5)
    assert worker.programs(), "a worker that ticks keeps its sandboxes"

    worker.process.send_signal(signal.SIGSTOP)

    eventually(lambda: not worker.programs(), seconds=5)
    worker.process.send_signal(signal.SIGCONT)
    assert worker.read()["ended"] == "lost"
    assert worker.read()["ref"] != worker.ref, "after a tick there is a new one"


def test_a_stopped_worker_keeps_its_sandboxes_until_then(start_worker: Callable[..., Worker]) -> None:
    worker = start_worker(lease=30.0)

    worker.process.send_signal(signal.SIGSTOP)
    time.sleep(0.5)

    assert worker.programs()


def test_a_killed_launcher_takes_the_sandboxes_along_and_is_replaced(
    start_worker: Callable[..., Worker],
) -> None:
    worker = start_worker()
    worker.process.send_signal(signal.SIGSTOP)

    os.kill(worker.launcher, signal.SIGKILL)

    eventually(lambda: not worker.programs(), seconds=5, what="the kernel has ended them, nobody else can")
    worker.process.send_signal(signal.SIGCONT)
    assert worker.read()["ended"] == "lost"
    following = worker.read()["ref"]
    assert following.split(":")[2] != worker.ref.split(":")[2]
    worker.launcher = launcher_of(following)


def test_what_a_killed_worker_and_launcher_left_is_swept_at_the_next_start(
    start_worker: Callable[..., Worker], tmp_path: Path
) -> None:
    worker = start_worker()
    os.kill(worker.process.pid, signal.SIGSTOP)
    os.kill(worker.launcher, signal.SIGKILL)
    worker.process.kill()
    eventually(lambda: not worker.programs(), seconds=5)
    left = [path for path in (tmp_path / "scratch").glob("run-*") if path.is_dir()]
    assert left, "nobody was there to tidy up"

    successor = Sandboxes(local_provider(tmp_path / "scratch"))

    try:
        assert successor.health.ok
        assert not any(path.exists() for path in left)
        assert groups_of(worker) == []
    finally:
        successor.close()


def test_a_worker_that_lives_is_not_swept(start_worker: Callable[..., Worker], tmp_path: Path) -> None:
    worker = start_worker()

    other = Sandboxes(local_provider(tmp_path / "scratch"))
    other.close()

    assert worker.programs()
    assert [path for path in (tmp_path / "scratch").glob("run-*") if path.is_dir()]


def test_another_worker_s_sandbox_can_be_killed_by_its_ref(
    start_worker: Callable[..., Worker], tmp_path: Path
) -> None:
    worker = start_worker()
    other = Sandboxes(local_provider(tmp_path / "other"))

    try:
        if "cgroup" not in other.health.detail:
            pytest.skip("without a cgroup nobody else can reach it")
        other.run(other.provider.kill(worker.ref))
        assert worker.read()["ended"] == "lost"
    finally:
        other.close()


def processes_of(worker: Worker) -> list[int]:
    """bubblewrap's own process outside, and process 1 inside."""
    (outer,) = (pid for pid in children_of(worker.launcher) if name_of(pid) == "bwrap")
    (inner,) = children_of(outer)
    return [outer, inner]


def launchers_of_ours() -> set[int]:
    """Launchers that this process has started, in any thread; other tests may run beside it."""
    named = processes_named("jobs.sandboxes.launcher")
    return {pid for pid in named if f"\nPPid:\t{os.getpid()}\n" in read_process(pid, "status")}


def test_the_child_forked_ahead_may_die(tmp_path: Path) -> None:
    running = Sandboxes(local_provider(tmp_path / "scratch"))
    provider = running.provider
    assert isinstance(provider, local.LocalProvider)
    assert provider.host is not None
    launcher = launcher_of(f"::{provider.host.ready.run}:")
    try:
        (spare,) = eventually(
            lambda: [pid for pid in children_of(launcher) if name_of(pid) not in ("", "bwrap")]
        )
        os.kill(spare, signal.SIGKILL)
        eventually(lambda: not is_running(spare))

        assert [running.program("print(1)").stdout for _ in range(2)] == [b"1\n"] * 2
    finally:
        running.close()


@pytest.mark.skipif(os.getuid() != 0, reason="only root may look into process 1 of a sandbox")
def test_a_sandbox_holds_no_descriptor_but_its_own(start_worker: Callable[..., Worker]) -> None:
    start_worker()
    worker = start_worker()

    outer, init = (
        {path.name: str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()}
        for pid in processes_of(worker)
    )

    sockets = [link for link in [*outer.values(), *init.values()] if link.startswith("socket:")]
    files = [
        link for link in [*outer.values(), *init.values()] if link.startswith("/") and link != "/dev/null"
    ]
    assert (len(sockets), files) == (1, [])
    assert len(init) <= 11, init


@pytest.mark.skipif(os.getuid() != 0, reason="only root drops to other users")
def test_root_s_sandboxes_are_users_of_their_own_and_no_other_user_sees_their_inputs(
    start_worker: Callable[..., Worker], tmp_path: Path
) -> None:
    first, second = start_worker(), start_worker()

    users = [
        {Path(f"/proc/{pid}/task").stat().st_uid for pid in processes_of(worker)[:1]}
        for worker in (first, second)
    ]

    assert len(users[0]) == len(users[1]) == 1
    assert users[0] != users[1]
    assert not {0, 65534} & (users[0] | users[1])
    for box in (tmp_path / "scratch").glob("run-*/*"):
        assert box.stat().st_mode & 0o777 == 0o750
        assert box.stat().st_gid not in (0, 65534)


def test_a_closed_provider_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    before = launchers_of_ours()
    running = Sandboxes(local_provider(tmp_path / "scratch", warm=1))
    provider = running.provider
    assert isinstance(provider, local.LocalProvider)

    running.close()

    assert launchers_of_ours() <= before
    assert [path for path in (tmp_path / "scratch").iterdir() if path.is_dir()] == []


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to show that its private home does not matter")
def test_root_s_engine_may_live_below_a_private_home(tmp_path: Path) -> None:
    built = runtime.find(built_runtime(), LOCK)
    assert built is not None
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    folder = private / "runtime" / built.folder.name
    shutil.copytree(built.folder, folder, symlinks=True, copy_function=link_or_copy)

    running = Sandboxes(
        local.LocalProvider(
            runtime_folder=folder.parent, lock=LOCK, scratch_folder=private / "scratch", warm=0
        )
    )

    try:
        assert running.health.ok, running.health
        files = {"inputs/a.txt": b"given"}
        assert running.program("print(open('../inputs/a.txt').read())", files=files).stdout == b"given\n"
        assert private.stat().st_mode & 0o777 == 0o700
    finally:
        running.close()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become somebody else")
def test_an_ordinary_user_has_sandboxes_too() -> None:
    """Everything that user needs is copied to where it may read: this project may lie in a private home."""
    uid = 54_321
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
        home = Path(place)
        home.chmod(0o755)
        library = home / "library"
        (library / "jobs").mkdir(parents=True)
        (library / "tests").mkdir()
        shutil.copytree(ROOT / "jobs" / "sandboxes", library / "jobs" / "sandboxes")
        for file in ("jobs/__init__.py", "tests/__init__.py", "tests/sandbox_worker.py"):
            shutil.copy(ROOT / file, library / file)
        shutil.copytree(Path(packaging.__file__).parent, library / "packaging")
        shutil.copy(LOCK, home / "sandbox.lock")
        built = runtime.find(built_runtime(), LOCK)
        assert built is not None
        own = home / "own" / "runtime"
        shutil.copytree(built.folder, own / built.folder.name, symlinks=True, copy_function=link_or_copy)
        for folder in (home / "own", own):
            os.chown(folder, uid, uid)
        python = own / built.folder.name / "python" / "bin" / "python3"
        command = [python, "-m", "tests.sandbox_worker", own, home / "sandbox.lock", home / "own" / "scratch"]
        worker = subprocess.Popen(
            [*map(str, command), "1618.0", "0"],
            cwd=library,
            env={"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": str(python.parent.parent / "lib")},
            stdout=subprocess.PIPE,
            user=uid,
            group=uid,
            extra_groups=[],
        )
        assert worker.stdout is not None
        try:
            health = json.loads(worker.stdout.readline())
            assert health["ok"], health
            assert "ref" in json.loads(worker.stdout.readline())
        finally:
            worker.kill()
            worker.wait()
            worker.stdout.close()
        eventually(lambda: not processes_named("1618.0"))
