"""Sandboxes on this machine whose programs run on gVisor's kernel (runsc) rather than on the host's.

runsc runs inside bubblewrap, rootless and without a network: bubblewrap's PID namespace is what ends all its processes
together, and whoever gets out of gVisor stands in a namespace that holds the same read-only files, no network, and a
user that owns nothing. So launcher, limits, lease, clean-up and warm pool are the local provider's.

Sources: OCI runtime specification 1.0.2, config.md and config-linux.md; `runsc help run` and `runsc flags`.
"""

import asyncio
import json
import os
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from . import bubblewrap
from .base import Limits, SandboxFileError, SandboxUnavailable
from .inside import GUEST, HOME
from .limits import MEGABYTE
from .local import Host, LocalProvider
from .local_sandbox import LocalSandbox, close_all, undisturbed
from .packets import PacketSocket, Pipes

INSTALL = "apt-get install -y runsc, or see https://gvisor.dev/docs/user_guide/install/"
BOX, BUNDLE, RUNSC, STATE = "/opt/box", "/opt/bundle", "/opt/runsc", "/run/runsc"
OPEN_FILES = 8192  # gVisor's file server holds one for each file that its sandbox knows
KERNEL_MB = 128  # gVisor's own memory
KERNEL_TASKS = 512  # threads of gVisor, and its stubs for the processes inside
CHANNELS = {ord("o"): "stdout", ord("e"): "stderr", ord("r"): "records"}
HEADER_BYTES, MOST_FRAME_BYTES = 5, 64 * 1024


def find_runsc() -> Path | None:
    """The program, if it is installed."""
    found = shutil.which("runsc")
    return Path(found).resolve() if found else None


def config(*, memory_mb: int, disk_mb: int, warm: tuple[str, ...]) -> dict[str, Any]:
    """The OCI configuration of one sandbox. Its root is the root that bubblewrap made, read-only."""
    nothing: list[str] = []
    may = ["CAP_SETUID"]  # of process 1, to become the program's user: see inside_gvisor.py
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 1000},
            "args": ["/opt/python/bin/python3", f"{GUEST}/inside_gvisor.pyc", *warm],
            "env": [f"{name}={value}" for name, value in bubblewrap.ENVIRONMENT.items()],
            "cwd": "/",
            "capabilities": {
                "bounding": nothing,
                "effective": may,
                "permitted": may,
                "inheritable": nothing,
                "ambient": nothing,
            },
            "noNewPrivileges": True,
            "rlimits": [
                {"type": "RLIMIT_NOFILE", "soft": 256, "hard": 256},
                {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
            ],
        },
        "root": {"path": "/", "readonly": True},
        "hostname": "sandbox",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "dev", "source": "dev"},
            tmpfs("/dev/shm", max(16, memory_mb // 4) * MEGABYTE, "mode=1777"),  # noqa: S108
            # What the program must not see of gVisor itself.
            *(tmpfs(place, 4096, "mode=0555", "ro") for place in (STATE, BUNDLE, BOX)),
            tmpfs("/tmp", disk_mb * MEGABYTE, "mode=1777"),  # noqa: S108
            tmpfs(HOME, disk_mb * MEGABYTE, "mode=0755", "uid=1000", "gid=1000"),
            *(read_only(f"{BOX}/{name}", f"{HOME}/{name}") for name in bubblewrap.READ_ONLY_FOLDERS),
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]},
    }


def tmpfs(place: str, size: int, *options: str) -> dict[str, Any]:
    """A fresh file system in memory; a size in bytes."""
    return {
        "destination": place,
        "type": "tmpfs",
        "source": "tmpfs",
        "options": [f"size={size}", *options, "nosuid", "nodev"],
    }


def read_only(source: str, place: str) -> dict[str, Any]:
    """A folder of ours."""
    options = ["rbind", "ro", "nosuid", "nodev"]
    return {"destination": place, "type": "bind", "source": source, "options": options}


def arguments(places: bubblewrap.Places, runsc: Path, bundle: Path) -> list[str]:
    """bubblewrap's command line with runsc in it. Its user is root of an empty user namespace, as runsc needs."""
    line = ["bwrap", "--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    line += ["--unshare-cgroup-try", "--die-with-parent", "--new-session", "--uid", "0", "--gid", "0"]
    line += ["--cap-add", "ALL", "--clearenv"]
    for place in ("/usr", "/opt", "/home"):  # made on the way to a mount, only their owner could enter them
        line += ["--dir", place]
    line += bubblewrap.system_folders()
    line += ["--ro-bind", f"{places.python}/python", "/opt/python"]
    line += ["--ro-bind", f"{places.python}/packages", "/opt/packages"]
    line += ["--ro-bind", f"{places.python}/etc", "/etc"]
    line += ["--ro-bind", str(places.guest), GUEST]
    if places.layer is not None:
        line += ["--ro-bind", str(places.layer), "/opt/layer"]
    line += ["--ro-bind", str(runsc), RUNSC, "--ro-bind", str(bundle), BUNDLE]
    for name in bubblewrap.READ_ONLY_FOLDERS:
        line += ["--ro-bind", f"{places.box}/{name}", f"{BOX}/{name}", "--dir", f"{HOME}/{name}"]
    # gVisor's kernel makes its own empty root on /tmp.
    line += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", STATE, "--tmpfs", "/tmp"]  # noqa: S108
    line += ["--chdir", "/", "--remount-ro", "/", "--"]
    # runsc hands on 0, 1 and 2 and nothing else; the launcher has put the channels at 3 and 4.
    line += ["/bin/sh", "-c", 'exec "$@" <&3 >&4 3<&- 4>&- 5>&- 6>&- 7>&- 8>&-', "sh"]
    line += [RUNSC, f"--root={STATE}", "--rootless", "--network=none", "--ignore-cgroups"]
    return [*line, "run", f"--bundle={BUNDLE}", "sandbox"]


def remedy_for(error: str) -> str:
    """The line that most likely fixes what bubblewrap or runsc complained about."""
    if "bwrap:" in error:
        return bubblewrap.remedy_for(error)
    return "set ENGINE_SANDBOX=local or e2b, or install a newer runsc: https://gvisor.dev/docs/user_guide/install/"


class Frames(Pipes):
    """The program's channels, out of one stream."""

    def __init__(self, stream: int) -> None:
        super().__init__({"frames": stream})
        self.buffer = bytearray()
        self.open = set(CHANNELS)

    def read_now(self) -> list[tuple[str, bytes]]:
        """The pieces that are there. The stream is left when all channels are at their end."""
        self.buffer += b"".join(piece for _, piece in super().read_now())
        pieces = []
        while self.open and len(self.buffer) >= HEADER_BYTES:
            channel, size = self.buffer[0], int.from_bytes(self.buffer[1:HEADER_BYTES], "big")
            if channel not in self.open or size > MOST_FRAME_BYTES:
                self.open.clear()  # whoever speaks there, it is not our init
                break
            if len(self.buffer) < HEADER_BYTES + size:
                break
            if size:
                pieces.append((CHANNELS[channel], bytes(self.buffer[HEADER_BYTES : HEADER_BYTES + size])))
            else:
                self.open.discard(channel)
            del self.buffer[: HEADER_BYTES + size]
        if not self.open:
            for end in self.ends.values():
                os.close(end)
            self.ends.clear()
        return pieces


class GvisorSandbox(LocalSandbox):
    """One gVisor sandbox, warm or cold."""

    program = "gVisor"
    open_files = OPEN_FILES
    remedy_for = staticmethod(remedy_for)

    def channels(self) -> list[int]:
        """A control socket, a stream both ways, and standard error."""
        made: list[socket.socket] = []
        try:
            made += socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            made += socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            self.boot, boot = os.pipe()
        except OSError:
            for end in made:
                end.close()
            raise
        control, their_control, stream, their_stream = made
        self.control = PacketSocket(control, self._hear, self._silence)
        self.pipes = Frames(stream.detach())
        self.reply_end = os.dup(self.pipes.ends["frames"])
        os.set_blocking(self.boot, False)
        others = [os.dup(their_stream.fileno()) for _ in range(3)]  # the launcher fills five places
        return [their_control.detach(), their_stream.detach(), *others, boot]

    def host_limits(self) -> dict[str, int]:
        """Files lie in gVisor's memory: from outside the two cannot be told apart."""
        memory_mb = self.limits.memory_mb + self.limits.disk_mb + KERNEL_MB
        return {
            "memory_mb": memory_mb,
            "disk_mb": 0,
            "processes": 2 * self.limits.processes + KERNEL_TASKS,
        }

    async def read_file(self, path: str, *, most_bytes: int) -> AsyncIterator[bytes]:
        """Ask for piece after piece: no descriptor comes out of gVisor."""
        offset = 0
        while True:
            size, piece = await undisturbed(self._piece(path, offset))
            if max(size, offset + len(piece)) > most_bytes:
                raise SandboxFileError(f"{path!r} is over {most_bytes:,} bytes")
            if not piece:
                return
            yield piece
            offset += len(piece)

    async def _piece(self, path: str, offset: int) -> tuple[int, bytes]:
        async with self.asking:
            await self.request("read", path, offset)
            data, descriptors = await self._answer(b"O", f"not a regular file in the sandbox: {path!r}")
        close_all(descriptors)
        return int.from_bytes(data[1:9], "big"), data[9:]


class GvisorProvider(LocalProvider):
    """Opens gVisor sandboxes on this machine."""

    name = "gvisor"
    sandbox_type = GvisorSandbox
    # Its own kernel makes namespaces as it likes, and the system call filter is around that kernel.
    accepted = frozenset({"has no system call filter", "makes namespaces"})
    runsc: Path

    async def _prepare(self) -> Host:
        runsc = await asyncio.to_thread(find_runsc)
        if runsc is None:
            raise SandboxUnavailable("gVisor's program runsc is not installed", remedy=INSTALL)
        self.runsc = runsc
        return await super()._prepare()

    def _command(
        self, places: bubblewrap.Places, folder: Path, limits: Limits, warm: tuple[str, ...]
    ) -> list[str]:
        bundle = folder / "bundle"
        bundle.mkdir()
        bundle.chmod(0o755)
        plan = config(memory_mb=limits.memory_mb, disk_mb=limits.disk_mb, warm=warm)
        (bundle / "config.json").write_text(json.dumps(plan))
        return arguments(places, self.runsc, places.box / "bundle")
