"""The worker's side of the launcher: starts it, asks it, and hears from it."""

import asyncio
import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .base import SandboxUnavailable
from .launcher import boot_time
from .packets import PacketSocket
from .seccomp import filter_program

PROJECT = Path(__file__).resolve().parent.parent.parent
START_SECONDS = 10.0
ASK_SECONDS = 5.0
END_SECONDS = 15.0


@dataclass(frozen=True)
class Exit:
    """How a sandbox as a whole ended, as the launcher saw it."""

    status: int
    reason: str  # why the launcher killed it: asked, silent, lease, memory, disk; refused; or empty
    oom_kills: int = 0
    error: str = ""


@dataclass(frozen=True)
class Ready:
    """What the launcher found on this host."""

    runtime: Path  # where sandboxes can reach the runtime folder, and the scratch folder
    scratch: Path
    limits: str
    run: str


class Supervisor:
    """One launcher process. `on_exit(sandbox name, how)` is called for every sandbox exactly once."""

    def __init__(self, on_exit: Callable[[str, Exit], None]) -> None:
        self.on_exit = on_exit
        self.alive: set[str] = set()
        self.gone = False
        self.ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self.usages: dict[str, asyncio.Future[int]] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self.packets: PacketSocket | None = None

    async def start(self, *, bwrap: Path, runtime: Path, scratch: Path, cgroups: bool = True) -> Ready:
        """Start the launcher and let it look at this host. Raises SandboxUnavailable."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(  # noqa: ASYNC220  (a few milliseconds, once)
                [sys.executable, "-s", "-m", "jobs.sandboxes.launcher", str(theirs.fileno())],
                cwd=PROJECT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a terminal's Ctrl+C and a stopped worker do not reach it
            )
        self.packets = PacketSocket(ours, self._hear, self._lost)
        machine = platform.machine()
        setup = {
            "op": "setup",
            "bwrap": str(bwrap),
            "runtime": str(runtime),
            "scratch": str(scratch),
            "cgroups": cgroups,
            "filter": filter_program(machine, allow_memfd=True).hex(),
            "filter_without_memfd": filter_program(machine, allow_memfd=False).hex(),
        }
        await self.packets.send(json.dumps(setup).encode())
        try:
            async with asyncio.timeout(START_SECONDS):
                return await self.ready
        except TimeoutError:
            raise SandboxUnavailable("the sandbox launcher did not start") from None

    async def launch(self, name: str, argv: Sequence[str], descriptors: Sequence[int], **limits: int) -> None:
        """Start a sandbox. Raises ConnectionError when the launcher is gone; else `on_exit` tells its end."""
        message = json.dumps({"op": "launch", "id": name, "argv": list(argv), **limits}).encode()
        if self.packets is None or self.gone:
            raise ConnectionResetError
        self.alive.add(name)
        try:
            await self.packets.send(message, descriptors)
        except ConnectionError:
            self.alive.discard(name)
            raise

    def watch(self, name: str, **limits: int) -> None:
        """A program is about to start in there: look after it by these limits."""
        self._tell({"op": "watch", "id": name, **limits})

    def kill(self, name: str, reason: str = "asked") -> None:
        """Kill a sandbox; `on_exit` says when it is dead, and why: this reason, or an earlier one."""
        self._tell({"op": "kill", "id": name, "reason": reason})

    def kill_other(self, run: str, name: str) -> None:
        """Kill a sandbox that another launcher on this host made, as far as its group can be reached."""
        self._tell({"op": "kill_other", "run": run, "id": name})

    async def oom_kills(self, name: str) -> int:
        """How often the kernel killed something in this sandbox for want of memory."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.usages[name] = future
        if not self._tell({"op": "usage", "id": name}):
            return 0
        try:
            async with asyncio.timeout(ASK_SECONDS):
                return await future
        except TimeoutError:
            return 0
        finally:
            self.usages.pop(name, None)

    def tick(self, seconds: float) -> None:
        """The lease holds for so long from now. A tick that finds no room is dropped: that errs on the safe side."""
        self._tell({"op": "tick", "until": boot_time() + seconds})

    async def close(self) -> None:
        """Let the launcher kill everything and leave."""
        if self.packets is not None:
            self.packets.close()
            self._lost()
        if self.process is not None:
            await asyncio.to_thread(end, self.process)

    def _tell(self, message: dict[str, Any]) -> bool:
        return (
            self.packets is not None and not self.gone and self.packets.send_now(json.dumps(message).encode())
        )

    def _hear(self, data: bytes, descriptors: list[int]) -> None:
        for descriptor in descriptors:
            os.close(descriptor)
        event = json.loads(data)
        match event["event"]:
            case "ready":
                runtime, scratch = Path(event["runtime"]), Path(event["scratch"])
                self.ready.set_result(Ready(runtime, scratch, event["limits"], event["run"]))
            case "refused":
                self.ready.set_exception(SandboxUnavailable(event["error"]))
            case "usage":
                future = self.usages.get(event["id"])
                if future is not None and not future.done():
                    future.set_result(event["oom"])
            case "exit":
                self.alive.discard(event["id"])
                how = Exit(event["status"], event["reason"], event["oom"], event.get("error", ""))
                self.on_exit(event["id"], how)

    def _lost(self) -> None:
        """The launcher is gone, and with it, by the kernel's hand, every sandbox."""
        if self.gone:
            return
        self.gone = True
        if not self.ready.done():
            self.ready.set_exception(SandboxUnavailable("the sandbox launcher ended at once"))
        for future in self.usages.values():
            if not future.done():
                future.set_result(0)
        for name in sorted(self.alive):
            self.on_exit(name, Exit(-1, "launcher gone"))
        self.alive.clear()


def end(process: "subprocess.Popen[bytes]") -> None:
    """Wait for the launcher to tidy up; if it hangs, the kernel does that for it."""
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
