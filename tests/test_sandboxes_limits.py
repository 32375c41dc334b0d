"""Control groups of both versions, on a copy of what the kernel shows where this machine has only one of them."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.sandboxes import limits
from jobs.sandboxes.limits import Group, Groups, GroupV1, GroupV2

STAT_V2 = "anon 5000\nfile 900\nkernel 70\nshmem 300\n"
STAT_V1 = "cache 900\nrss 5000\nshmem 300\n"


@pytest.fixture
def v2(tmp_path: Path) -> Group:
    (tmp_path / "memory.stat").write_text(STAT_V2)
    (tmp_path / "memory.events").write_text("low 0\nmax 4\noom 1\noom_kill 2\n")
    for name in ("memory.swap.max", "cpu.weight"):
        (tmp_path / name).touch()
    return GroupV2([tmp_path])


def written(folder: Path, *names: str) -> list[str]:
    return [(folder / name).read_text() for name in names]


def test_v2_limits_memory_with_disk_and_forbids_swap(v2: Group, tmp_path: Path) -> None:
    v2.limit(memory_mb=100, disk_mb=50, processes=64)

    assert written(tmp_path, "memory.max", "memory.swap.max", "pids.max", "cpu.weight") == [
        str(150 << 20),
        "0",
        "68",
        "50",
    ]


def test_v2_counts_what_programs_hold_and_who_was_killed(v2: Group) -> None:
    assert (v2.used_memory(), v2.oom_kills()) == (5300, 2)


def test_v2_does_without_controllers_that_are_not_there(tmp_path: Path) -> None:
    GroupV2([tmp_path]).limit(memory_mb=1, disk_mb=1, processes=1)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["memory.max", "pids.max"]


def test_v1_raises_and_lowers_memory_in_the_order_the_kernel_wants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / name for name in ("memory", "pids", "cpu")]
    for folder in folders:
        folder.mkdir()
    (folders[0] / "memory.limit_in_bytes").write_text(str(100 << 20))
    (folders[0] / "memory.memsw.limit_in_bytes").write_text(str(100 << 20))
    (folders[0] / "memory.stat").write_text(STAT_V1)
    (folders[0] / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    order: list[str] = []
    write = Path.write_text
    monkeypatch.setattr(Path, "write_text", lambda path, text: order.append(path.name) or write(path, text))  # type: ignore[func-returns-value]
    group = GroupV1(folders)

    group.limit(memory_mb=100, disk_mb=50, processes=8)
    group.limit(memory_mb=10, disk_mb=5, processes=8)

    memory = [name for name in order if "limit" in name]
    assert memory == [
        "memory.memsw.limit_in_bytes",
        "memory.limit_in_bytes",
        "memory.limit_in_bytes",
        "memory.memsw.limit_in_bytes",
    ]
    assert (group.used_memory(), group.oom_kills()) == (5300, 3)
    assert written(folders[1], "pids.max") == ["12"]


def test_v2_is_used_at_the_nearest_group_that_hands_down_both_controllers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "user.slice" / "session"
    own.mkdir(parents=True)
    for folder, controllers in ((own, ""), (own.parent, "memory pids"), (tmp_path, "cpu memory pids")):
        (folder / "cgroup.subtree_control").write_text(controllers)
    monkeypatch.setattr(limits, "cgroup_mounts", lambda kind: {"": tmp_path} if kind == "cgroup2" else {})
    monkeypatch.setattr(limits, "own_groups", lambda: {"": "/user.slice/session"})

    assert limits.v2_roots() == [[own.parent], [tmp_path]]
    assert limits.v1_roots() == []


def test_groups_that_cannot_hold_a_process_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read-only or foreign hierarchy looks like a real one until it is tried: these are plain folders."""
    monkeypatch.setattr(limits, "v1_roots", list)
    monkeypatch.setattr(limits, "v2_roots", lambda: [[tmp_path]])

    assert limits.find_groups("engine-1-1") is None


def test_killing_a_group_spares_what_it_cannot_see(tmp_path: Path) -> None:
    """A process outside of our container shows as 0, which for kill() means the caller's own process group."""
    child = subprocess.Popen(["sleep", "600"])
    (tmp_path / "cgroup.procs").write_text(f"0\n{child.pid}\n")

    GroupV2([tmp_path]).kill()

    assert child.wait() == -9


def test_a_run_s_name_tells_whether_its_process_lives() -> None:
    assert limits.is_alive(limits.run_name())
    assert not limits.is_alive(f"{limits.ours()}{os.getpid()}-1"), "an earlier process of the same id"
    assert not limits.is_alive(f"{limits.ours()}x")


def test_a_process_that_nobody_has_collected_is_dead() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    assert limits.started_at(child.pid) is None
    child.wait()


@pytest.fixture
def tree() -> Iterator[subprocess.Popen[bytes]]:
    code = "import os, time\nkept = bytearray(30_000_000)\nif os.fork() == 0: kept[:] = bytes(30_000_000)\n"
    code += "print('up', flush=True)\ntime.sleep(600)"
    process = subprocess.Popen(["python3", "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == [b"up\n"] * 2
    yield process
    os.killpg(process.pid, 9)
    process.wait()
    process.stdout.close()


def test_the_size_of_a_tree_counts_its_children(tree: subprocess.Popen[bytes]) -> None:
    sizes = limits.sizes_of_trees({tree.pid, os.getpid()})

    assert 50_000_000 < sizes[tree.pid] < 150_000_000
    assert sizes[os.getpid()] > 0


def test_orphans_of_dead_launchers_are_removed_and_others_kept(tmp_path: Path) -> None:
    alive = limits.run_name()
    dead, own = f"{limits.ours()}1-99999999999", f"{limits.ours()}own-0"
    elsewhere = f"{limits.RUN_PREFIX}1-1-99999999999"  # in another container: whether it lives cannot be seen from here
    for run in (alive, dead, own, elsewhere):
        (tmp_path / run / "1").mkdir(parents=True)
    (tmp_path / "somebody-else").mkdir()

    Groups([tmp_path], GroupV2, own).kill_orphans()

    assert {path.name for path in tmp_path.iterdir()} == {alive, own, elsewhere, "somebody-else"}


def test_the_kernel_kills_what_takes_more_than_memory_and_disk_together() -> None:
    groups = limits.find_groups(limits.run_name())
    if groups is None:
        pytest.skip("no cgroup can be written here")
    group = groups.make("1")
    try:
        group.limit(memory_mb=40, disk_mb=10, processes=8)
        enter = f"for folder in {[str(folder) for folder in group.folders]!r}:\n"
        enter += "    open(folder + '/cgroup.procs', 'w').write('0')\n"
        child = subprocess.run(["python3", "-c", enter + "kept = bytearray(100_000_000)"], check=False)

        assert (child.returncode, group.oom_kills() > 0) == (-9, True)
    finally:
        limits.remove_soon(group)
        groups.close()
