"""What keeps one sandbox from eating the machine: a cgroup where one can be had, else a count of its processes' sizes.

The kernel's hard limit is memory plus disk, because files in a sandbox lie in memory, too. Memory alone is watched by
the launcher ten times a second (`used_memory`), which is exact for heap, shared memory and memfd and leaves a program
its whole disk beside its whole memory.

cgroup v1 and v2 are both used below the group this process is in, so that an operator's limits stay above ours.
Sources: kernel documentation, admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst.
"""

import contextlib
import errno
import os
import signal
import time
from abc import ABC, abstractmethod
from pathlib import Path

MEGABYTE = 1024 * 1024
SPARE_PROCESSES = 4  # bubblewrap and init count, too
CPU_SHARE = 512  # of 1024: under load the worker itself comes first


class Group(ABC):
    """The control group of one sandbox."""

    def __init__(self, folders: list[Path]) -> None:
        self.folders = folders

    def enter(self) -> None:
        """Move the calling process in; everything it starts is in there, too."""
        for folder in self.folders:
            (folder / "cgroup.procs").write_text("0")

    @abstractmethod
    def limit(self, *, memory_mb: int, disk_mb: int, processes: int) -> None:
        """Set or change the kernel's limits."""

    @abstractmethod
    def used_memory(self) -> int:
        """Bytes of memory that the programs hold, files in memory included, caches not."""

    @abstractmethod
    def oom_kills(self) -> int:
        """How often the kernel killed something in here for want of memory."""

    def kill(self) -> None:
        """Kill what is in here. For orphans: a living sandbox dies by its process 1."""
        for folder in self.folders:
            with contextlib.suppress(OSError):
                for pid in (folder / "cgroup.procs").read_text().split():
                    if (
                        int(pid) > 0
                    ):  # 0 is a process that this container cannot see, and for kill() our own group
                        os.kill(int(pid), signal.SIGKILL)

    def remove(self) -> bool:
        """Remove the group; False while something in it is still ending."""
        gone = True
        for folder in self.folders:
            try:
                folder.rmdir()
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                gone = False
        return gone


class GroupV1(Group):
    """Memory, pids and cpu are three hierarchies."""

    def limit(self, *, memory_mb: int, disk_mb: int, processes: int) -> None:
        """Memory first with, then without swap, or the other way round."""
        memory, pids, *cpu = self.folders
        limit = (memory_mb + disk_mb) * MEGABYTE
        swap = memory / "memory.memsw.limit_in_bytes"
        files = [memory / "memory.limit_in_bytes"] + ([swap] if swap.exists() else [])
        if limit > int(files[0].read_text()):
            files.reverse()  # memory with swap may never be below memory
        for file in files:
            file.write_text(str(limit))
        (pids / "pids.max").write_text(str(processes + SPARE_PROCESSES))
        for folder in cpu:
            (folder / "cpu.shares").write_text(str(CPU_SHARE))

    def used_memory(self) -> int:
        """What v1 calls rss, and what v1 calls shmem."""
        numbers = read_numbers(self.folders[0] / "memory.stat")
        return numbers["rss"] + numbers.get("shmem", 0)

    def oom_kills(self) -> int:
        """Kernels before 4.13 do not count: 0."""
        return read_numbers(self.folders[0] / "memory.oom_control").get("oom_kill", 0)


class GroupV2(Group):
    """One hierarchy for all."""

    def limit(self, *, memory_mb: int, disk_mb: int, processes: int) -> None:
        """No memory.oom.group: it would take init along, and with it the program's files."""
        (folder,) = self.folders
        (folder / "memory.max").write_text(str((memory_mb + disk_mb) * MEGABYTE))
        (folder / "pids.max").write_text(str(processes + SPARE_PROCESSES))
        for name, value in (("memory.swap.max", "0"), ("cpu.weight", str(CPU_SHARE * 100 // 1024))):
            if (folder / name).exists():  # no swap accounting, or no cpu controller: nothing to set
                (folder / name).write_text(value)

    def used_memory(self) -> int:
        """What v2 calls anon, and what it calls shmem."""
        numbers = read_numbers(self.folders[0] / "memory.stat")
        return numbers["anon"] + numbers["shmem"]

    def oom_kills(self) -> int:
        """From memory.events."""
        return read_numbers(self.folders[0] / "memory.events").get("oom_kill", 0)


class Groups:
    """Makes the groups of one launcher, in one folder of its own per hierarchy named after the launcher."""

    def __init__(self, roots: list[Path], kind: type[Group], run: str) -> None:
        self.roots, self.kind, self.run = roots, kind, run

    @property
    def name(self) -> str:
        """For people: "cgroup v1" or "cgroup v2"."""
        return "cgroup v1" if self.kind is GroupV1 else "cgroup v2"

    def make(self, name: str) -> Group:
        """A group without limits yet. Raises OSError."""
        folders = [root / self.run / name for root in self.roots]
        for folder in folders:
            folder.mkdir(parents=True)
        return self.kind(folders)

    def of_other(self, run: str, name: str) -> Group:
        """The group of another launcher's sandbox."""
        return self.kind([root / run / name for root in self.roots])

    def close(self) -> None:
        """Remove our own folders; they are empty when every sandbox has ended."""
        for root in self.roots:
            with contextlib.suppress(OSError):
                (root / self.run).rmdir()

    def kill_orphans(self) -> None:
        """Kill and remove what launchers that are gone have left; `run` names carry their process."""
        for root in self.roots:
            for folder in root.glob(f"{ours()}*"):
                if folder.name != self.run and not is_alive(folder.name):
                    for inner in [*folder.iterdir(), folder]:
                        if inner.is_dir():
                            remove_soon(self.kind([inner]))


RUN_PREFIX = "engine_"


def run_name() -> str:
    """Names this process: its id alone would soon be another's, and means another one in each PID namespace."""
    return f"{ours()}{os.getpid()}-{started_at(os.getpid())}"


def ours() -> str:
    """How the names of all launchers begin whose processes can be seen from here.

    Containers may share one hierarchy of control groups. The launchers of another container look dead from here, and
    must not be taken for it.
    """
    return f"{RUN_PREFIX}{Path('/proc/self/ns/pid').stat().st_ino}-"


def is_alive(run: str) -> bool:
    """Whether the process that `run_name` named, in our PID namespace, is still there."""
    pid, _, start = run.removeprefix(ours()).partition("-")
    return pid.isdigit() and start.isdigit() and started_at(int(pid)) == int(start)


def started_at(pid: int) -> int | None:
    """The process's start time in clock ticks since boot, None if there is none."""
    try:
        # The name may hold anything, spaces and brackets too; the rest follows its last bracket.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])  # a zombie does nothing any more


def remove_soon(group: Group) -> None:
    """Kill and remove a group whose processes may take a moment to end."""
    for _ in range(100):
        group.kill()
        with contextlib.suppress(OSError):
            if group.remove():
                return
        time.sleep(0.01)


def find_groups(run: str) -> Groups | None:
    """Groups that really hold a process here, or None. Tries, because no list of conditions would be complete."""
    for roots, kind in ((v1_roots(), GroupV1), (v2_roots(), GroupV2)):
        for candidate in roots:
            groups = Groups(candidate, kind, run)
            try:
                if works(groups):
                    return groups
            except (OSError, KeyError):
                continue
            finally:
                groups.close()
    return None


def works(groups: Groups) -> bool:
    """Put a process of ours into a limited group and look whether it is there."""
    group = groups.make("probe")
    try:
        group.limit(memory_mb=64, disk_mb=0, processes=16)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(writer)
                group.enter()
                os.read(reader, 1)
            finally:
                os._exit(0)
        os.close(reader)
        deadline = time.monotonic() + 1.0
        inside = False
        while not inside and time.monotonic() < deadline:
            inside = all(
                str(pid) in (folder / "cgroup.procs").read_text().split() for folder in group.folders
            )
        os.close(writer)
        os.waitpid(pid, 0)
        group.used_memory()
        group.oom_kills()
        return inside
    finally:
        remove_soon(group)


def v1_roots() -> list[list[Path]]:
    """Folders for v1: [memory, pids, cpu] below our own group; in a container the mount itself may be that group."""
    mounts, own = cgroup_mounts("cgroup"), own_groups()
    if "memory" not in mounts or "pids" not in mounts:
        return []
    names = [name for name in ("memory", "pids", "cpu") if name in mounts]
    nested = [mounts[name] / own.get(name, "/").lstrip("/") for name in names]
    return [
        roots for roots in (nested, [mounts[name] for name in names]) if all(root.is_dir() for root in roots)
    ]


def v2_roots() -> list[list[Path]]:
    """Folders for v2: the nearest group above us that hands down memory and pids, and that we may write."""
    mounts = cgroup_mounts("cgroup2")
    if "" not in mounts:
        return []
    folder, candidates = mounts[""] / own_groups().get("", "/").lstrip("/"), []
    while folder.is_relative_to(mounts[""]):
        with contextlib.suppress(OSError):
            handed_down = (folder / "cgroup.subtree_control").read_text().split()
            if {"memory", "pids"} <= set(handed_down) and os.access(folder, os.W_OK):
                candidates.append([folder])
        folder = folder.parent
    return candidates


def cgroup_mounts(kind: str) -> dict[str, Path]:
    """Mount points of cgroup hierarchies by controller; v2 has the one name ""."""
    mounts: dict[str, Path] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        filesystem, _, options = after.split(" ", 2)
        if filesystem == kind:
            for name in options.split(",") if kind == "cgroup" else [""]:
                mounts[name] = Path(before.split(" ")[4])
    return mounts


def own_groups() -> dict[str, str]:
    """Our own group's path by controller, "" for v2."""
    groups = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        groups.update(dict.fromkeys(names.split(","), path))
    return groups


def read_numbers(file: Path) -> dict[str, int]:
    """A kernel file of "name number" lines."""
    return {name: int(number) for name, number in (line.split() for line in file.read_text().splitlines())}


# --- without cgroups ---


def sizes_of_trees(roots: set[int]) -> dict[int, int]:
    """Bytes of resident memory of each process tree, shared pages counted once per process."""
    parents, pages = {}, {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                parents[int(process.name)], pages[int(process.name)] = int(fields[1]), int(fields[21])
    totals = dict.fromkeys(roots, 0)
    for pid in parents:
        ancestor, steps = pid, 0
        while ancestor not in roots and ancestor in parents and steps < 1000:  # a pid may have changed hands
            ancestor, steps = parents[ancestor], steps + 1
        if ancestor in roots:
            totals[ancestor] += pages[pid] * os.sysconf("SC_PAGE_SIZE")
    return totals
