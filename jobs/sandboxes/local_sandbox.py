"""One sandbox on this machine, as the worker holds it: five channels, and belief in nothing that comes out of them."""

import asyncio
import contextlib
import io
import marshal
import os
import re
import shutil
import signal
import socket
import stat
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from . import bubblewrap, interpreting
from .base import (
    CodeResult,
    Ended,
    EndReason,
    FileEntry,
    Limits,
    Record,
    Sandbox,
    SandboxBusy,
    SandboxError,
    SandboxFile,
    SandboxFileError,
    SandboxLost,
    SandboxOutput,
    SandboxRefused,
    SandboxUnavailable,
    Stderr,
    Stdout,
)
from .limits import MEGABYTE
from .packets import PacketSocket, Pipes, writable
from .scratch import open_source, write_files
from .supervisor import Exit, Supervisor

T = TypeVar("T")

OPEN_FILES = 256  # descriptors of one process inside

OPEN_SECONDS = 60.0  # a loaded machine is slow; a sandbox that takes longer will not come
ANSWER_SECONDS = 60.0
STOP_SECONDS = 3.0  # how long init may take to end a program before the launcher ends the sandbox
PIECE_BYTES = 60 * 1024
READ_BYTES = 256 * 1024
MOST_ANSWERS = 2000  # of init, waiting to be read: more would be somebody else talking
LAST_WORDS_BYTES = 2000
END_REASONS = {
    "memory": EndReason.MEMORY,
    "disk": EndReason.DISK,
    "asked": EndReason.KILLED,
    "lease": EndReason.LOST,
}


@dataclass(frozen=True)
class ProgramEnd:
    """How the program ended, as init tells."""

    code: int
    cpu_seconds: float
    disk_full: bool


class LocalSandbox(Sandbox):
    """One bubblewrap sandbox, warm or cold."""

    program = "bubblewrap"
    open_files = OPEN_FILES
    remedy_for = staticmethod(bubblewrap.remedy_for)

    def __init__(self, name: str, ref: str, folder: Path, limits: Limits, supervisor: Supervisor) -> None:
        self.name, self.ref, self.folder, self.limits = name, ref, folder, limits
        self.supervisor = supervisor
        self.env: dict[str, str] = {}
        self.born_at = time.monotonic()
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.warm: asyncio.Future[None] = loop.create_future()
        self.dead: asyncio.Future[Exit] = loop.create_future()  # the sandbox as a whole
        self.ended: asyncio.Future[ProgramEnd] = loop.create_future()
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
        """Make the five channels and init's standard error; returns the sandbox's ends, in the launcher's order.

        Raises OSError, and then leaves none open.
        """
        made: list[int] = []
        try:
            for _ in range(5):
                made += os.pipe()
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            close_all(made)
            raise
        self.control = PacketSocket(ours, self._hear, self._silence)
        (
            stdout,
            to_stdout,
            stderr,
            to_stderr,
            records,
            to_records,
            replies,
            self.reply_end,
            self.boot,
            boot,
        ) = made
        self.pipes = Pipes({"stdout": stdout, "stderr": stderr, "records": records})
        for end in (self.reply_end, self.boot):
            os.set_blocking(end, False)
        return [theirs.detach(), to_stdout, to_stderr, to_records, replies, boot]

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
        raise SandboxUnavailable(f"{self.program}: {said}", remedy=self.remedy_for(said))

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
        self.supervisor.watch(self.name, **self.host_limits())
        await self.request("start", {"argv": argv, "env": self.env, "limits": rlimits(self.limits)})

    def host_limits(self) -> dict[str, int]:
        """What the launcher holds it to, from outside."""
        limits = self.limits
        return {"memory_mb": limits.memory_mb, "disk_mb": limits.disk_mb, "processes": limits.processes}

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
        end = self.ended.result() if self.ended.done() else None
        if self.stop_reason is not None:
            return Ended(self.stop_reason, end.code if end else None, self.stop_detail)
        if end is None:
            return self._conclude_dead()
        if end.code != 0 and not self.dead.done() and await self.supervisor.oom_kills(self.name):
            return Ended(EndReason.MEMORY, end.code, f"over {self.limits.memory_mb} MB of memory")
        killed_late = end.code == -signal.SIGKILL and end.cpu_seconds >= self.limits.cpu_seconds
        if end.code == -signal.SIGXCPU or killed_late:
            return Ended(EndReason.TIMEOUT, end.code, f"over {self.limits.cpu_seconds} seconds of CPU time")
        if end.code != 0 and end.disk_full:
            return Ended(EndReason.DISK, end.code, f"its {self.limits.disk_mb} MB of disk are full")
        return Ended(EndReason.EXITED, end.code)

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
                self.ended.set_result(ProgramEnd(int(match[1]), int(match[2]) / 1000, match[3] == b"1"))
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
