"""One sandbox of the server: a folder, the processes that run there, and whether it sleeps."""

import asyncio
import base64
import contextlib
import datetime
import os
import secrets
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

CHUNK = 32 * 1024
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
USER_ID = 1000
KEPT_SECONDS = 30.0  # a process can be connected to for so long after its end


class Process:
    """A command with its subscribers; output that nobody listens to is dropped, one that is not taken holds it back."""

    def __init__(self, machine: "Machine", spec: dict[str, Any]) -> None:
        self.machine, self.spec = machine, spec
        self.subscribers: list[asyncio.Queue[dict[str, Any]]] = []
        self.ended: dict[str, Any] | None = None

    async def start(self, user: str) -> None:
        env = {
            "PATH": PATH,
            "HOME": str(self.machine.home(user)),
            "USER": user,
            "LOGNAME": user,
            **self.machine.env,
            **self.spec.get("envs", {}),
        }
        ids: dict[str, Any] = {}
        if os.geteuid() == 0 and user != "root":
            ids = {"user": USER_ID, "group": USER_ID, "extra_groups": []}
        self.process = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", 'exec nice -n 0 "$@"', "--", self.spec["cmd"], *self.spec.get("args", []),
            cwd=self.machine.path(self.spec.get("cwd", ""), user), env=env, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, limit=CHUNK, **ids,
        )  # fmt: skip
        self.running = asyncio.create_task(self._run())

    @property
    def pid(self) -> int:
        return self.process.pid

    async def _run(self) -> None:
        assert self.process.stdout
        assert self.process.stderr
        await asyncio.gather(
            self._read("stdout", self.process.stdout), self._read("stderr", self.process.stderr)
        )
        code = await self.process.wait()
        exited = code >= 0
        status = f"exit status {code}" if exited else f"signal: {signal.Signals(-code).name.lower()}"
        self.ended = {"exitCode": code if exited else -1, "exited": exited, "status": status}
        if code != 0:
            self.ended["error"] = status
        await self._tell({"end": self.ended})
        asyncio.get_running_loop().call_later(KEPT_SECONDS, self.machine.processes.pop, self.pid, None)

    async def _read(self, name: str, pipe: asyncio.StreamReader) -> None:
        while data := await pipe.read(CHUNK):
            await self._tell({"data": {name: base64.b64encode(data).decode()}})

    async def _tell(self, event: dict[str, Any]) -> None:
        for subscriber in list(self.subscribers):
            while subscriber in self.subscribers:
                try:
                    subscriber.put_nowait(event)
                    break
                except asyncio.QueueFull:
                    await asyncio.sleep(0.005)

    def subscribe(self) -> asyncio.Queue[dict[str, Any]]:
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(4)
        self.subscribers.append(queue)
        return queue


class Machine:
    """A sandbox. `user` is its default user; `root` exists where the server itself is root."""

    def __init__(self, request: dict[str, Any], *, has_root: bool) -> None:
        self.id = "i" + secrets.token_hex(9)
        self.token, self.traffic_token = secrets.token_hex(16), secrets.token_hex(16)
        self.request = request
        self.metadata: dict[str, str] = dict(request.get("metadata") or {})
        self.env: dict[str, str] = dict(request.get("envVars") or {})
        self.has_root = has_root and os.geteuid() == 0
        self.started_at = now()
        self.state = "running"
        self.disk_bytes = 1 << 30
        self.processes: dict[int, Process] = {}
        self.kernels: dict[str, Any] = {}
        self.cuts: set[asyncio.Event] = set()  # one for each open stream
        self.leaving: asyncio.Task[None] | None = None
        self.root = Path(tempfile.mkdtemp(prefix="e2b-", dir="/tmp"))
        self.root.chmod(0o755)
        for user in ("user", "root"):
            self.home(user).mkdir(parents=True)
        if os.geteuid() == 0:
            os.chown(self.home("user"), USER_ID, USER_ID)
        self.prolong(request.get("timeout", 300))

    def home(self, user: str) -> Path:
        return self.root / ("root" if user == "root" else f"home/{user}")

    def path(self, path: str, user: str) -> Path:
        """As envd reads it: relative to the user's home."""
        expanded = path.replace("~", str(self.home(user)), 1) if path.startswith("~") else path
        return self.home(user) / expanded

    def prolong(self, seconds: float) -> None:
        self.end_at = now() + datetime.timedelta(seconds=seconds)

    @property
    def expired(self) -> bool:
        return self.state == "running" and now() > self.end_at

    # --- its processes ---

    def pids(self) -> list[int]:
        """Everything that works below its folder, daemons included."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with contextlib.suppress(OSError):
                    if str((folder / "cwd").readlink()).startswith(str(self.root)):
                        found.append(int(folder.name))
        return found

    def signal_all(self, number: int) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def cut_streams(self) -> int:
        """Break every connection that a stream goes over; what they stream goes on."""
        cuts = list(self.cuts)
        for cut in cuts:
            cut.set()
        return len(cuts)

    # --- what happens to it ---

    def pause(self) -> None:
        self.state = "paused"
        self.signal_all(signal.SIGSTOP)
        self.cut_streams()

    def resume(self, seconds: float) -> None:
        self.state = "running"
        self.prolong(seconds)
        self.signal_all(signal.SIGCONT)

    def lose_files(self) -> None:
        """As some resumed sandboxes did: the disk is that of the template."""
        for user in ("user", "root"):
            for entry in self.home(user).iterdir():
                shutil.rmtree(entry)

    def destroy(self) -> None:
        self.state = "killed"
        deadline = now() + datetime.timedelta(seconds=5)
        while self.pids() and now() < deadline:
            self.signal_all(signal.SIGKILL)
        self.cut_streams()
        for process in self.processes.values():
            process.subscribers.clear()
        shutil.rmtree(self.root, ignore_errors=True)
        self.leaving = asyncio.create_task(self._read_to_the_end())

    async def _read_to_the_end(self) -> None:
        """Its processes are dead: their pipes end, and are closed by it."""
        await asyncio.gather(*(process.running for process in self.processes.values()))
        for kernel in self.kernels.values():
            await kernel.close()


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
