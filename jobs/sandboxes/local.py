"""Sandboxes on this machine, made by bubblewrap.

    worker (LocalProvider, LocalSandbox)  --packets-->  launcher.py  --fork, exec-->  bwrap  --exec-->  inside.py
        ^------------------- control socket, stdout, stderr, records, replies -----------------------------'

The worker holds one end of five channels to each sandbox and believes nothing that comes out of them. Every sandbox
is used once. A few are started ahead with the usual imports done ("warm"); they differ in nothing else.
"""

import asyncio
import contextlib
import fcntl
import io
import itertools
import logging
import marshal
import os
import platform
import re
import resource
import shutil
import signal
import socket
import stat
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from . import bubblewrap, interpreting, probe, runtime
from .base import (
    CodeResult,
    Ended,
    EndReason,
    FileEntry,
    Limits,
    Provider,
    ProviderHealth,
    Record,
    RequirementsFailed,
    Sandbox,
    SandboxBusy,
    SandboxError,
    SandboxFile,
    SandboxFileError,
    SandboxLost,
    SandboxOutput,
    SandboxRefused,
    SandboxSpec,
    SandboxUnavailable,
    Stderr,
    Stdout,
)
from .limits import MEGABYTE
from .packets import PacketSocket, Pipes, writable
from .supervisor import Exit, Ready, Supervisor

logger = logging.getLogger(__name__)
T = TypeVar("T")

WARM_IMPORTS = ("json", "typing", "datetime", "numpy", "pandas")
WARM_SECONDS = 600.0  # a warm sandbox older than this is replaced
WARM_LOOK_SECONDS = 5.0
WARM_RETRY_SECONDS = 5.0
QUIET_SECONDS = 0.2  # since the last job, before a warm sandbox is prepared
LEAST_MEMORY_MB = 32
OPEN_SECONDS = 60.0  # a loaded machine is slow; a sandbox that takes longer will not come
ANSWER_SECONDS = 60.0
STOP_SECONDS = 3.0  # how long init may take to end a program before the launcher ends the sandbox
PIECE_BYTES = 60 * 1024
READ_BYTES = 256 * 1024
MOST_ANSWERS = 2000  # of init, waiting to be read: more would be somebody else talking
LAYER_KEPT_SECONDS = 30 * 86_400.0
LAST_WORDS_BYTES = 2000
MOST_DESCRIPTORS = 65_536
END_REASONS = {
    "memory": EndReason.MEMORY,
    "disk": EndReason.DISK,
    "asked": EndReason.KILLED,
    "lease": EndReason.LOST,
}


class LocalSandbox(Sandbox):
    """One bubblewrap sandbox, warm or cold."""

    def __init__(self, name: str, ref: str, folder: Path, limits: Limits, supervisor: Supervisor) -> None:
        self.name, self.ref, self.folder, self.limits = name, ref, folder, limits
        self.supervisor = supervisor
        self.env: dict[str, str] = {}
        self.layered = False
        self.born_at = time.monotonic()
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.warm: asyncio.Future[None] = loop.create_future()
        self.dead: asyncio.Future[Exit] = loop.create_future()  # the sandbox as a whole
        self.ended: asyncio.Future[tuple[int, float, bool]] = (
            loop.create_future()
        )  # the program, as init tells
        self.answers: asyncio.Queue[tuple[bytes, list[int]] | None] = asyncio.Queue(MOST_ANSWERS)
        self.asking = asyncio.Lock()
        self.replying = asyncio.Lock()
        self.stop_reason: EndReason | None = None
        self.stop_detail = ""
        self.started = self.closed = False
        self.timer: asyncio.TimerHandle | None = None
        self.closing: asyncio.Task[None] | None = None
        self.session: interpreting.Session | None = None
        self.control: PacketSocket
        self.pipes: Pipes
        self.boot = self.reply_end = -1

    # --- opening ---

    def channels(self) -> list[int]:
        """Make the five channels and init's standard error; returns the sandbox's ends, in the launcher's order."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control = PacketSocket(ours, self._hear, self._silence)
        names = ("stdout", "stderr", "records")
        readers, writers = zip(*(os.pipe() for _ in names), strict=True)
        self.pipes = Pipes(dict(zip(names, readers, strict=True)))
        replies, self.reply_end = os.pipe()
        self.boot, boot = os.pipe()
        for end in (self.reply_end, self.boot):
            os.set_blocking(end, False)
        return [theirs.detach(), *writers, replies, boot]

    async def wait_ready(self) -> None:
        """Until init is there. Raises SandboxBusy, SandboxRefused or SandboxUnavailable, with what was said."""
        await first_of(self.ready, self.dead, seconds=OPEN_SECONDS)
        if self.ready.done():
            return
        if not self.dead.done():
            raise SandboxBusy(f"the sandbox did not start in {OPEN_SECONDS:.0f} seconds")
        how = self.dead.result()
        if how.oom_kills:
            raise SandboxRefused(f"a sandbox does not start in {self.limits.memory_mb} MB of memory")
        if how.reason not in ("", "silent"):
            raise SandboxBusy(f"the sandbox could not be started: {how.error or how.reason}")
        said = self.last_words().strip() or f"exit code {how.status}"
        raise SandboxUnavailable(f"bubblewrap: {said}", remedy=bubblewrap.remedy_for(said))

    def last_words(self) -> str:
        """What bubblewrap or init wrote to their standard error."""
        try:
            return os.read(self.boot, LAST_WORDS_BYTES).decode(errors="replace")
        except (BlockingIOError, OSError):
            return ""

    async def place(self, files: Sequence[SandboxFile]) -> None:
        """Put the files in place: read-only ones from outside, through the bind mounts; the others through init."""
        outside, inside = [], []
        for file in files:
            parts = file.path.split("/")
            if len(parts) < 2 or any(part in ("", ".", "..") or "\0" in part for part in parts):
                raise SandboxError(f"not a path for a sandbox: {file.path!r}")
            if parts[0] in bubblewrap.READ_ONLY_FOLDERS:
                outside.append(file)
            elif parts[0] in bubblewrap.WRITABLE_FOLDERS:
                inside.append(file)
            else:
                raise SandboxError(f"not a folder of a sandbox: {file.path!r}")
        if outside:
            await asyncio.to_thread(write_files, self.folder, outside)
        for file in inside:
            await self._put(file)
        if inside:
            await self._ask("put_done")

    async def _put(self, file: SandboxFile) -> None:
        with open_source(file) as source:
            piece = source.read(PIECE_BYTES)
            while True:
                following = source.read(PIECE_BYTES)
                await self.request("put", file.path, file.executable, not following, piece)
                if not following:
                    return
                piece = following

    # --- running ---

    async def start(self, argv: Sequence[str]) -> None:
        """Start the program."""
        if self.started:
            raise SandboxError("a sandbox runs one program")
        await self.start_program(list(argv))
        self.timer = asyncio.get_running_loop().call_later(
            self.limits.wall_seconds,
            self._stop,
            EndReason.TIMEOUT,
            f"over {self.limits.wall_seconds:g} seconds",
        )

    async def start_program(self, argv: list[str] | None) -> None:
        """Start a program, or the interpreter (None)."""
        self._check_alive()
        self.started = True
        limits = self.limits
        self.supervisor.watch(
            self.name, memory_mb=limits.memory_mb, disk_mb=limits.disk_mb, processes=limits.processes
        )
        await self.request("start", {"argv": argv, "env": self.env, "limits": rlimits(limits)})

    async def outputs(self) -> AsyncIterator[SandboxOutput]:
        """Merge the three channels; the end of all three, then how it ended, is the end."""
        room, line = self.limits.output_bytes, bytearray()
        async for name, piece in self.pipes.read():
            if self.stop_reason is EndReason.OUTPUT:
                continue  # only emptying the pipes until they close
            if name != "records":
                yield (Stdout if name == "stdout" else Stderr)(piece[:room])
                room -= len(piece)
                if room < 0:
                    self._stop(EndReason.OUTPUT, f"over {self.limits.output_bytes:,} bytes of output")
                continue
            *complete, rest = piece.split(b"\n")
            for part in complete:
                line += part
                if len(line) >= self.limits.record_bytes:
                    break
                yield Record(bytes(line))
                line.clear()
            else:
                line += rest
            if len(line) >= self.limits.record_bytes:
                self._stop(EndReason.OUTPUT, f"a record over {self.limits.record_bytes:,} bytes")
                line.clear()
        yield await self._conclude()

    async def _conclude(self) -> Ended:
        """How the program ended, from what init, the launcher and we ourselves know."""
        if not self.closed:
            await first_of(self.ended, self.dead)
        if self.timer is not None:
            self.timer.cancel()
        code, cpu, disk_full = self.ended.result() if self.ended.done() else (None, 0.0, False)
        if self.stop_reason is not None:
            return Ended(self.stop_reason, code, self.stop_detail)
        if code is None:
            return self._conclude_dead()
        if code != 0 and not self.dead.done() and await self.supervisor.oom_kills(self.name):
            return Ended(EndReason.MEMORY, code, f"over {self.limits.memory_mb} MB of memory")
        if code == -signal.SIGXCPU or (code == -signal.SIGKILL and cpu >= self.limits.cpu_seconds):
            return Ended(EndReason.TIMEOUT, code, f"over {self.limits.cpu_seconds} seconds of CPU time")
        if code != 0 and disk_full:
            return Ended(EndReason.DISK, code, f"its {self.limits.disk_mb} MB of disk are full")
        return Ended(EndReason.EXITED, code)

    def _conclude_dead(self) -> Ended:
        how = self.dead.result() if self.dead.done() else Exit(-1, "asked")
        details = {
            "memory": f"over {self.limits.memory_mb} MB of memory",
            "disk": "too many files",
            "lease": "the worker lost its lease",
        }
        if how.reason not in END_REASONS and how.oom_kills:
            return Ended(EndReason.MEMORY, None, details["memory"])
        reason = END_REASONS.get(how.reason, EndReason.LOST)
        return Ended(reason, None, details.get(how.reason, self.last_words().strip()))

    async def send(self, line: bytes) -> None:
        """Write one line; a program that does not read holds us back, not our memory."""
        rest = memoryview(line + b"\n")
        async with self.replying:
            while rest and not self.closed and not self.ended.done():
                try:
                    rest = rest[os.write(self.reply_end, rest) :]
                except BlockingIOError:
                    await self._room_for_reply()
                except BrokenPipeError:
                    return

    async def _room_for_reply(self) -> None:
        """Until the program has read something, or is no more."""
        room = asyncio.create_task(writable(self.reply_end))
        try:
            await first_of(room, self.ended, self.dead)
        finally:
            room.cancel()
            await asyncio.wait([room])

    async def terminate(self) -> None:
        """SIGTERM to the program."""
        if self.started and not self.ended.done() and not self.dead.done() and self.stop_reason is None:
            self.stop_reason, self.stop_detail = EndReason.KILLED, "terminated"
            with contextlib.suppress(SandboxLost):
                await self.request("signal", int(signal.SIGTERM))

    def _stop(self, reason: EndReason, detail: str) -> None:
        """End the program now, and keep its files; the whole sandbox if init does not obey."""
        if self.ended.done() or self.dead.done():
            return
        if self.stop_reason is None or self.stop_reason is EndReason.KILLED:
            self.stop_reason, self.stop_detail = reason, detail
        self.control.send_now(marshal.dumps(("stop",)))
        asyncio.get_running_loop().call_later(STOP_SECONDS, self._insist)

    def _insist(self) -> None:
        if not self.ended.done():
            self.supervisor.kill(self.name)

    # --- files ---

    async def list_files(self, folder: str, *, most: int = 1000) -> list[FileEntry]:
        """Ask init; every entry is checked again here."""
        if folder not in bubblewrap.WRITABLE_FOLDERS:
            raise SandboxFileError(f"no folder to list: {folder!r}")
        return await undisturbed(self._list(folder, most))

    async def _list(self, folder: str, most: int) -> list[FileEntry]:
        async with self.asking:
            await self.request("list", folder, most)
            entries: list[FileEntry] = []
            while True:
                data, _ = await self._answer(b"Ff", f"more than {most} files in {folder}")
                entries += [parse_entry(part) for part in data[1:].split(b"\0") if part]
                if len(entries) > most:
                    raise SandboxFileError(f"more than {most} files in {folder}")
                if data[:1] == b"f":
                    return entries

    async def read_file(self, path: str, *, most_bytes: int) -> AsyncIterator[bytes]:
        """Take a file from init and read the sandbox's memory through it."""
        with await undisturbed(self._open_file(path)) as file:
            room = most_bytes
            if os.fstat(file.fileno()).st_size > room:
                raise SandboxFileError(f"{path!r} is over {most_bytes:,} bytes")
            while piece := file.read(READ_BYTES):
                room -= len(piece)
                if room < 0:
                    raise SandboxFileError(f"{path!r} is over {most_bytes:,} bytes")
                yield piece
                await asyncio.sleep(0)

    async def _open_file(self, path: str) -> io.FileIO:
        async with self.asking:
            await self.request("open", path)
            _, descriptors = await self._answer(b"O", f"not a regular file in the sandbox: {path!r}")
        if len(descriptors) != 1:
            close_all(descriptors)
            raise SandboxFileError(f"no file came for {path!r}")
        file = io.FileIO(descriptors[0])
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise SandboxFileError(f"not a regular file: {path!r}")
        return file

    # --- interpreter ---

    async def run_code(self, code: str, *, timeout_seconds: float) -> CodeResult:
        """Run a piece of Python and keep its variables."""
        if self.session is None:
            if self.started:
                raise SandboxError("a program runs in this sandbox")
            self.session = interpreting.Session(self)
            await self.start_program(None)
        return await self.session.run(code, timeout_seconds)

    # --- the end ---

    async def close(self) -> None:
        """Kill it and free all it held; the work goes on if the caller is cancelled."""
        await asyncio.shield(self.begin_close())

    def begin_close(self) -> "asyncio.Task[None]":
        """Close without waiting for it."""
        if self.closing is None:
            self.closing = asyncio.create_task(self._close())
        return self.closing

    async def _close(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        if self.stop_reason is None and not self.ended.done():
            self.stop_reason, self.stop_detail = EndReason.KILLED, "closed"
        self.supervisor.kill(self.name)
        await asyncio.wait([self.dead], timeout=ANSWER_SECONDS)
        self.closed = True
        self.pipes.close()
        self.control.close()
        async with self.replying:  # whoever waits for room in there has just been woken
            os.close(self.reply_end)
        os.close(self.boot)
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)  # no program ever wrote there

    def exited(self, how: Exit) -> None:
        """The launcher says that the whole sandbox has ended."""
        if not self.dead.done():
            self.dead.set_result(how)
        with contextlib.suppress(asyncio.QueueFull):
            self.answers.put_nowait(None)

    # --- talking with init ---

    def _hear(self, data: bytes, descriptors: list[int]) -> None:
        kind = data[:1]
        if kind in b"OFfKX" and not self.answers.full():
            self.answers.put_nowait((data, descriptors))
            return
        close_all(descriptors)
        if kind == b"R" and not self.ready.done():
            self.ready.set_result(None)
        elif kind == b"W" and not self.warm.done():
            self.warm.set_result(None)
        elif kind == b"E" and (match := re.fullmatch(rb"E(-?\d{1,3}) (\d{1,12}) ([01])", data)):
            if self.session is not None:
                self.session.program_ended(int(match[1]))
            elif not self.ended.done():
                self.ended.set_result((int(match[1]), int(match[2]) / 1000, match[3] == b"1"))
        else:
            self.supervisor.kill(self.name, "silent")  # whoever speaks there, it is not our init

    def _silence(self) -> None:
        """Init has closed its end: it is dead, or about to be."""
        self.supervisor.kill(self.name, "silent")

    def _check_alive(self) -> None:
        if self.closed or self.dead.done() or self.closing is not None:
            raise SandboxLost("the sandbox is gone")

    async def request(self, *request: Any) -> None:
        """Ask init for something. Raises SandboxLost."""
        self._check_alive()
        try:
            await self.control.send(marshal.dumps(request, 2))
        except ConnectionError:
            raise SandboxLost("the sandbox is gone") from None

    async def _answer(self, kinds: bytes, refusal: str) -> tuple[bytes, list[int]]:
        """The next answer; a refusal becomes SandboxFileError."""
        self._check_alive()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                answer = await self.answers.get()
        except TimeoutError:
            self.supervisor.kill(self.name, "silent")
            raise SandboxLost("the sandbox does not answer") from None
        if answer is None:
            raise SandboxLost("the sandbox is gone")
        data, descriptors = answer
        if data[:1] not in kinds:
            close_all(descriptors)
            raise SandboxFileError(f"{refusal} ({data[1:200].decode(errors='replace')})")
        return answer

    async def _ask(self, verb: str) -> None:
        async with self.asking:
            await self.request(verb)
            await self._answer(b"K", "files could not be restored")


class LocalProvider(Provider):
    """Opens bubblewrap sandboxes on this machine."""

    name = "local"

    def __init__(
        self,
        *,
        runtime_folder: Path,
        lock: Path,
        scratch_folder: Path,
        warm: int = 2,
        cgroups: bool = True,
        bwrap: Path | None = None,
    ) -> None:
        self.runtime_folder, self.lock, self.scratch_folder = runtime_folder, lock, scratch_folder
        self.warm_wanted, self.cgroups, self.bwrap = warm, cgroups, bwrap
        self.health = ProviderHealth(False, self.name, "not started")
        self.numbers = itertools.count(1)
        self.sandboxes: dict[str, LocalSandbox] = {}
        self.pool: list[LocalSandbox] = []
        self.warming: asyncio.Task[None] | None = None
        self.look = asyncio.Event()  # something in the pool has changed
        self.opened_at = 0.0
        self.layers: dict[tuple[str, ...], asyncio.Future[Path]] = {}
        self.host: Host | None = None
        self.starting = asyncio.Lock()
        self.closed = False

    async def start(self) -> ProviderHealth:
        """Look for everything a sandbox needs, then open one and let a program in it try to leave."""
        try:
            if sys.platform != "linux":
                raise SandboxUnavailable("local sandboxes need Linux", remedy=bubblewrap.NOT_LINUX)
            host = await self._ensure_host()
            await probe.try_to_leave(self)
            self.health = ProviderHealth(True, self.name, f"bubblewrap, {host.ready.limits}")
            if self.warming is None and self.warm_wanted:
                self.warming = asyncio.create_task(self._keep_warm())
        except (SandboxError, OSError) as error:
            remedy = getattr(error, "remedy", "") or bubblewrap.remedy_for(str(error))
            self.health = ProviderHealth(False, self.name, str(error), remedy)
        return self.health

    async def _prepare(self) -> "Host":
        """Everything below a sandbox: runtime, bubblewrap, launcher. Raises SandboxUnavailable."""
        found = await asyncio.to_thread(runtime.find, self.runtime_folder, self.lock)
        if found is None:
            raise SandboxUnavailable(
                "the Python runtime for sandboxes has not been built", remedy="python manage.py build_runtime"
            )
        bwrap = self.bwrap or await asyncio.to_thread(bubblewrap.find_bwrap, self.runtime_folder)
        if bwrap is None:
            raise SandboxUnavailable("bubblewrap is not installed", remedy=bubblewrap.INSTALL)
        raise_descriptor_limit()
        guest = await asyncio.to_thread(runtime.build_guest, self.runtime_folder)
        await asyncio.to_thread(
            runtime.delete_unused_layers, self.runtime_folder, older_than_seconds=LAYER_KEPT_SECONDS
        )
        scratch = await asyncio.to_thread(own_scratch, self.scratch_folder)
        supervisor = Supervisor(self._exited)
        try:
            ready = await supervisor.start(
                bwrap=bwrap, runtime=self.runtime_folder, scratch=scratch.path, cgroups=self.cgroups
            )
        except SandboxUnavailable:
            await supervisor.close()
            scratch.release()
            raise
        fonts = tuple(path.name for path in (found.folder / "etc" / "matplotlib").glob("fontlist-*.json"))
        return Host(found, guest, scratch, supervisor, ready, fonts)

    async def open(self, spec: SandboxSpec) -> LocalSandbox:
        """A sandbox from the pool if one fits, else a new one."""
        if not self.health.ok:
            raise SandboxUnavailable(self.health.detail, remedy=self.health.remedy)
        return await self.open_unchecked(spec)

    async def open_unchecked(self, spec: SandboxSpec) -> LocalSandbox:
        """`open` for the probe, which runs before the provider is called healthy."""
        if spec.limits.allow_hosts:
            raise SandboxRefused(
                "the agent needs the network, which local sandboxes do not have: use ENGINE_SANDBOX=e2b"
            )
        if spec.limits.memory_mb < LEAST_MEMORY_MB or min(spec.limits.disk_mb, spec.limits.processes) < 1:
            raise SandboxRefused(
                f"no sandbox has so little: at least {LEAST_MEMORY_MB} MB of memory, 1 MB of disk"
            )
        layer = await self._layer(spec.requirements) if spec.requirements else None
        sandbox = None if layer else self._take_warm(spec.limits)
        try:
            if sandbox is None:
                sandbox = await self._launch(spec.limits, layer=layer)
                # While bubblewrap and init start, the files are written.
                results = await asyncio.gather(
                    sandbox.wait_ready(), sandbox.place(spec.files), return_exceptions=True
                )
                for problem in filter(None, results):
                    raise problem
            else:
                sandbox.limits = spec.limits
                await sandbox.place(spec.files)
        except BaseException:  # cancellation, too: nothing may stay behind
            if sandbox is not None:
                await sandbox.close()
            raise
        sandbox.env = dict(spec.env)
        return sandbox

    async def _launch(self, limits: Limits, *, layer: Path | None = None, warm: bool = False) -> LocalSandbox:
        host = await self._ensure_host()
        name = str(next(self.numbers))
        folder = host.scratch.path / name
        make_box(folder)
        ref = f"local:{platform.node()}:{host.ready.run}:{name}"
        sandbox = LocalSandbox(name, ref, folder, limits, host.supervisor)
        self.sandboxes[name] = sandbox
        visible = host.ready.runtime
        places = bubblewrap.Places(
            python=visible / host.runtime.folder.name,
            guest=visible / host.guest.name,
            box=host.ready.scratch / name,
            layer=visible / layer.relative_to(self.runtime_folder) if layer else None,
            font_caches=host.fonts,
        )
        argv = bubblewrap.arguments(
            places, memory_mb=limits.memory_mb, disk_mb=limits.disk_mb, warm=WARM_IMPORTS if warm else ()
        )
        descriptors = sandbox.channels()
        try:
            await host.supervisor.launch(
                name,
                argv,
                descriptors,
                memory_mb=limits.memory_mb,
                disk_mb=limits.disk_mb,
                processes=limits.processes,
            )
        except ConnectionError:
            self._exited(name, Exit(-1, "launcher gone"))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return sandbox

    async def _ensure_host(self) -> "Host":
        """What sandboxes stand on; made anew if something killed the launcher. Raises SandboxUnavailable."""
        async with self.starting:
            if self.closed:
                raise SandboxUnavailable("the provider is closed")
            if self.host is not None and self.host.supervisor.gone:
                logger.warning("The sandbox launcher died: starting a new one.")
                await self._drop_host()
            if self.host is None:
                self.host = await self._prepare()
            return self.host

    async def _drop_host(self) -> None:
        if self.host is not None:
            host, self.host = self.host, None
            await host.supervisor.close()
            await asyncio.to_thread(shutil.rmtree, host.scratch.path, ignore_errors=True)
            host.scratch.release()

    def _exited(self, name: str, how: Exit) -> None:
        sandbox = self.sandboxes.pop(name, None)
        if sandbox is not None:
            sandbox.exited(how)

    # --- the warm pool ---

    def _take_warm(self, limits: Limits) -> LocalSandbox | None:
        """A warm sandbox whose disk has the right size; all other limits can still be set."""
        self.opened_at = time.monotonic()
        self._drop_stale()
        if not self.pool or limits.disk_mb != Limits.disk_mb:
            return None
        self.look.set()
        return self.pool.pop(0)

    def _drop_stale(self) -> None:
        for sandbox in list(self.pool):
            stale = time.monotonic() - sandbox.born_at > WARM_SECONDS
            if stale or sandbox.dead.done() or sandbox.ended.done():
                self.pool.remove(sandbox)
                sandbox.begin_close()

    async def _keep_warm(self) -> None:
        """Keep the pool full, one after another: warming takes a core for half a second."""
        complaint = ""
        while True:
            self._drop_stale()
            quiet = time.monotonic() - self.opened_at
            if len(self.pool) >= self.warm_wanted:
                await self._look_again(WARM_LOOK_SECONDS)
            elif quiet < QUIET_SECONDS:
                # In a burst a cold start costs its job less than a refill would cost all of them.
                await asyncio.sleep(QUIET_SECONDS - quiet)
            else:
                try:
                    self.pool.append(await self._warm_one())
                    complaint = ""
                except (SandboxError, OSError) as error:
                    if str(error) != complaint:
                        logger.warning("No warm sandbox could be prepared: %s", error)
                    complaint = str(error)
                    await asyncio.sleep(WARM_RETRY_SECONDS)

    async def _look_again(self, seconds: float) -> None:
        self.look.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.look.wait()

    async def _warm_one(self) -> LocalSandbox:
        sandbox = await self._launch(Limits(), warm=True)
        try:
            await sandbox.wait_ready()
            await first_of(sandbox.warm, sandbox.dead, sandbox.ended)
            if not sandbox.warm.done():
                raise SandboxError(f"it ended while it got ready: {sandbox.last_words()}")
        except BaseException:  # cancellation, too: nothing may stay behind
            await sandbox.close()
            raise
        return sandbox

    # --- requirements ---

    async def _layer(self, requirements: Sequence[str]) -> Path:
        """The layer, built by the first who needs it; whoever is cancelled leaves the others their build."""
        host = await self._ensure_host()
        key = tuple(requirements)
        building = self.layers.get(key)
        if building is None:
            building = asyncio.ensure_future(
                asyncio.to_thread(runtime.layer, self.runtime_folder, host.runtime, requirements)
            )
            self.layers[key] = building
            building.add_done_callback(lambda _: self.layers.pop(key, None))
        try:
            return await asyncio.shield(building)
        except OSError as error:
            raise RequirementsFailed("the requirements could not be installed", output=str(error)) from error

    # --- the rest of the interface ---

    def tick(self, seconds: float) -> None:
        """Hand the lease on to the launcher."""
        if self.host is not None:
            self.host.supervisor.tick(seconds)

    async def kill(self, ref: str) -> None:
        """Ours at once; another worker's on this host through its control group. Elsewhere its own launcher does it."""
        match = re.fullmatch(r"local:([^:]+):(engine-\d+-\d+):(\d+)", ref)
        if match is None or self.host is None or match[1] != platform.node():
            return
        if match[2] != self.host.ready.run:
            self.host.supervisor.kill_other(match[2], match[3])
        elif match[3] in self.sandboxes:
            await self.sandboxes[match[3]].close()

    async def close(self) -> None:
        """Kill what is left and stop."""
        self.closed = True
        if self.warming is not None:
            self.warming.cancel()
            await asyncio.wait([self.warming])
        await asyncio.gather(*(sandbox.close() for sandbox in list(self.sandboxes.values())))
        self.pool.clear()
        await self._drop_host()
        self.health = ProviderHealth(False, self.name, "closed")


@dataclass
class Scratch:
    """This worker's folder for read-only inputs, and the lock that says it is alive."""

    path: Path
    lock: int

    def release(self) -> None:
        """Give the folder up; a later start deletes what is left of it."""
        os.close(self.lock)


@dataclass(frozen=True)
class Host:
    """What all sandboxes of a provider stand on."""

    runtime: runtime.Runtime
    guest: Path
    scratch: Scratch
    supervisor: Supervisor
    ready: Ready
    fonts: tuple[str, ...] = field(default=())


def own_scratch(folder: Path) -> Scratch:
    """A new folder for this worker; folders of workers that are gone are deleted. Nothing in them is a program's."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)
    for old in folder.glob("run-*.lock"):
        with contextlib.suppress(BlockingIOError, FileNotFoundError), old.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(old.with_suffix(""), ignore_errors=True)
            old.unlink()
    for number in itertools.count(os.getpid() * 1000):
        path = folder / f"run-{number}"
        lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_nlink:  # else another worker has swept it before it was locked
                path.mkdir()
                path.chmod(0o711)
                return Scratch(path, lock)
        except (BlockingIOError, FileExistsError):
            pass  # another container's process of the same id
        os.close(lock)
    raise AssertionError("numbers do not end")


def raise_descriptor_limit() -> None:
    """Each sandbox takes six of this process's descriptors, and the usual soft limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < MOST_DESCRIPTORS:
        wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def make_box(folder: Path) -> None:
    """The folders that a sandbox sees read-only; the launcher opens the outer one to the sandbox's own group."""
    folder.mkdir(mode=0o750)
    for name in bubblewrap.READ_ONLY_FOLDERS:
        (folder / name).mkdir()
        (folder / name).chmod(0o755)


def write_files(folder: Path, files: Sequence[SandboxFile]) -> None:
    """Write files that a sandbox will see read-only."""
    for file in files:
        target = folder / file.path
        for parent in reversed(target.relative_to(folder).parents[:-2]):
            (folder / parent).mkdir(exist_ok=True)
            (folder / parent).chmod(0o755)
        with open_source(file) as source, target.open("xb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
        target.chmod(0o755 if file.executable else 0o644)


def open_source(file: SandboxFile) -> Any:
    """A file's bytes as a stream."""
    return io.BytesIO(file.source) if isinstance(file.source, bytes) else file.source.open("rb")


def parse_entry(part: bytes) -> FileEntry:
    """One line of a listing. Raises SandboxFileError on anything that our init would not say."""
    size, _, path = part.partition(b" ")
    try:
        name = path.decode()
    except UnicodeDecodeError:
        name = ""
    parts = name.split("/")
    if (
        not size.isdigit()
        or len(size) > 18
        or any(item in ("", ".", "..") for item in parts)
        or not name.isprintable()
    ):
        raise SandboxFileError("the sandbox's listing cannot be believed")
    return FileEntry(name, int(size))


def rlimits(limits: Limits) -> dict[str, tuple[int, int]]:
    """What the program's process sets for itself and its children, soft and hard."""
    return {
        "RLIMIT_NPROC": (limits.processes + 1, limits.processes + 1),  # init has the same uid
        "RLIMIT_CPU": (limits.cpu_seconds, limits.cpu_seconds + 2),
        "RLIMIT_FSIZE": (limits.disk_mb * MEGABYTE, limits.disk_mb * MEGABYTE),
    }


async def first_of(*futures: "asyncio.Future[Any]", seconds: float | None = None) -> None:
    """Until one of them is done, or the time is up. None is cancelled."""
    await asyncio.wait(futures, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)


async def undisturbed(exchange: Coroutine[Any, Any, T]) -> T:
    """Finish a question and its answer even when who asked has left: the next answer belongs to the next question."""
    task = asyncio.create_task(exchange)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(drop_result)
        raise


def drop_result(task: "asyncio.Task[Any]") -> None:
    """Close a file that nobody waits for any more."""
    if not task.cancelled() and task.exception() is None and isinstance(task.result(), io.FileIO):
        task.result().close()


def close_all(descriptors: Sequence[int]) -> None:
    """Close descriptors that came along and are not wanted."""
    for descriptor in descriptors:
        os.close(descriptor)
