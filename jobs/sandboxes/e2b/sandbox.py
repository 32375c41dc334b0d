"""One E2B sandbox, as the worker holds it."""

import asyncio
import base64
import binascii
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from jobs.sandboxes.base import (
    CodeResult,
    Ended,
    EndReason,
    FileEntry,
    Limits,
    Record,
    Sandbox,
    SandboxError,
    SandboxFileError,
    SandboxLost,
    SandboxOutput,
    Stderr,
    Stdout,
)

from .box import Box
from .calls import Unclear
from .following import Following, Frame, Overdue
from .interpreter import Session

OVERTIME_SECONDS = 60.0  # beyond the wall time: the supervisor inside should have acted long ago


class E2BSandbox(Sandbox):
    """A sandbox with its files in place."""

    def __init__(
        self,
        box: Box,
        limits: Limits,
        env: dict[str, str],
        *,
        mark: str,
        has_layer: bool,
        on_close: Callable[["E2BSandbox", bool], Awaitable[None]],
    ) -> None:
        self.box, self.ref, self.limits, self.env = box, box.id, limits, env
        self.mark, self.has_layer, self.on_close = mark, has_layer, on_close
        self.started = False
        self.ended = asyncio.Event()
        self.following: Following | None = None
        self.session: Session | None = None
        self.closing: asyncio.Task[None] | None = None
        self.unsent: list[dict[str, Any]] = []
        self.sent = 0  # messages
        self.sending = asyncio.Lock()
        self.cut_short = False  # its plan does not let it live as long as we asked

    # --- running ---

    async def start(self, argv: Sequence[str]) -> None:
        """Start the program."""
        if self.started:
            raise SandboxError("a sandbox runs one program")
        self._check_open()
        self.started = True
        limits = self.limits
        plan = {
            "argv": list(argv),
            "env": self.env,
            "wall_seconds": limits.wall_seconds,
            "memory_mb": limits.memory_mb,
            "cpu_seconds": limits.cpu_seconds,
            "processes": limits.processes,
            "disk_mb": limits.disk_mb,
            "output_bytes": limits.output_bytes,
        }
        deadline = asyncio.get_running_loop().time() + limits.wall_seconds + OVERTIME_SECONDS
        self.following = Following(self.box, plan, deadline=deadline)
        await self.following.begin()

    async def outputs(self) -> AsyncIterator[SandboxOutput]:
        """Frames as outputs; how the program ended is the last."""
        if self.following is None:
            raise SandboxError("no program was started")
        room, line = self.limits.output_bytes, bytearray()
        too_long = False
        ended: Ended | None = None
        try:
            async for frame in self.following.frames():
                match frame.kind:
                    case "o" | "e":
                        piece = frame.data[: max(0, room)]
                        room -= len(frame.data)
                        if piece:
                            yield (Stdout if frame.kind == "o" else Stderr)(piece)
                    case "r" if not too_long:
                        *complete, rest = frame.data.split(b"\n")
                        for part in complete:
                            line += part
                            too_long = too_long or len(line) >= self.limits.record_bytes
                            if too_long:
                                break
                            yield Record(bytes(line))
                            line.clear()
                        line += rest
                        if too_long or len(line) >= self.limits.record_bytes:
                            too_long = True
                            line.clear()
                            detail = f"a record over {self.limits.record_bytes:,} bytes"
                            await self._tell({"stop": "output", "detail": detail})
                    case "x":
                        ended = told(frame)
                        if too_long:  # it may have ended by itself before it could be stopped
                            detail = f"a record over {self.limits.record_bytes:,} bytes"
                            ended = Ended(EndReason.OUTPUT, ended.exit_code, detail)
        except SandboxLost as error:
            ended = Ended(EndReason.LOST, None, self._why_lost(error))
        except Overdue:
            ended = Ended(EndReason.TIMEOUT, None, f"over {self.limits.wall_seconds:g} seconds")
        self.ended.set()
        self.following.close()
        yield ended or Ended(EndReason.KILLED, None, "closed")

    def _why_lost(self, error: SandboxLost) -> str:
        if self.cut_short:
            return f"{error} (E2B ended it: the plan's sandboxes do not live that long)"
        return str(error)

    async def send(self, line: bytes) -> None:
        """Give the program one line; whatever waits goes in one message."""
        await self._tell({"reply": line.decode("latin-1")})

    async def terminate(self) -> None:
        """SIGTERM to the program."""
        with contextlib.suppress(SandboxError):
            await self._tell({"signal": int(signal.SIGTERM)})

    async def _tell(self, message: dict[str, Any]) -> None:
        if self.following is None or self.ended.is_set() or self.closing is not None:
            return
        self.unsent.append(message)
        async with self.sending:
            if self.unsent and not self.ended.is_set() and self.closing is None:
                messages, self.unsent = self.unsent, []
                self.sent += 1
                try:
                    await self.box.message(self.sent, messages)
                except SandboxError:
                    if not self.ended.is_set() and self.closing is None:
                        raise

    # --- files ---

    async def list_files(self, folder: str, *, most: int = 1000) -> list[FileEntry]:
        """Ask our script inside; every entry is checked again here."""
        self._check_open()
        found = await self.box.surely(lambda: self.box.ask("list", folder, str(most)))
        entries = [parse_entry(entry) for entry in found] if isinstance(found, list) else []
        if len(entries) > most:
            raise SandboxFileError(f"more than {most} files in {folder}")
        return entries

    async def read_file(self, path: str, *, most_bytes: int) -> AsyncIterator[bytes]:
        """A small file comes in one answer, a large one as a copy that the program cannot reach."""
        self._check_open()
        if not path.isprintable():
            raise SandboxFileError(f"not a file of the program: {path!r}")
        found = await self.box.surely(lambda: self.box.ask("file", path, str(most_bytes)))
        try:
            if "data" in found:
                data = base64.b64decode(found["data"], validate=True)
                if len(data) > most_bytes:
                    raise SandboxFileError(f"{path!r} is over {most_bytes:,} bytes")
                if data:
                    yield data
                return
            copy, size = str(found["copy"]), int(found["size"])
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise SandboxFileError(f"no file came for {path!r}") from error
        if size > most_bytes:
            raise SandboxFileError(f"{path!r} is over {most_bytes:,} bytes")
        try:
            async for piece in self.box.download(copy, size):
                yield piece
        except Unclear as doubt:  # in the middle: the caller has bytes that it cannot give back
            await self.box.look(doubt)
            raise SandboxLost(f"{path!r} could not be downloaded: {doubt}") from doubt

    # --- interpreter ---

    async def run_code(self, code: str, *, timeout_seconds: float) -> CodeResult:
        """Run a piece of Python in a context of this sandbox's own."""
        self._check_open()
        if self.session is None:
            if self.started:
                raise SandboxError("a program runs in this sandbox")
            self.started = True
            self.session = Session(self.box, self.limits, has_layer=self.has_layer)
        return await self.session.run(code, timeout_seconds)

    # --- the end ---

    async def close(self) -> None:
        """Kill it; the work goes on if the caller is cancelled."""
        await asyncio.shield(self._begin_close(keep=False))

    async def park(self) -> None:
        """Let it sleep while its job waits; in the background, since pausing takes seconds."""
        await asyncio.shield(self._begin_close(keep=True))

    def _begin_close(self, *, keep: bool) -> "asyncio.Task[None]":
        if self.closing is None:
            self.closing = asyncio.create_task(self._close(keep))
        return self.closing

    async def _close(self, keep: bool) -> None:
        if self.following is not None:
            self.following.close()
        if self.session is not None:
            self.session.close()
        await self.on_close(self, keep)

    def _check_open(self) -> None:
        if self.closing is not None:
            raise SandboxLost("the sandbox is closed")


def told(frame: Frame) -> Ended:
    """How our supervisor says that the program ended."""
    try:
        end = json.loads(frame.data)
        code = end["exit_code"]
        return Ended(EndReason(end["reason"]), None if code is None else int(code), str(end["detail"])[:2000])
    except (ValueError, KeyError, TypeError):
        return Ended(EndReason.LOST, None, "the sandbox did not say how the program ended")


def parse_entry(entry: Any) -> FileEntry:
    """One line of a listing. Raises SandboxFileError on anything that our script would not say."""
    match entry:
        case [str(path), int(size)] if path.isprintable() and size >= 0:
            if not any(part in ("", ".", "..") for part in path.split("/")):
                return FileEntry(path, size)
    raise SandboxFileError("the sandbox's listing cannot be believed")
