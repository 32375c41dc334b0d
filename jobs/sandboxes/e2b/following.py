"""The output of one program, over as many streams as it takes: no frame is lost and none comes twice."""

import asyncio
import base64
import binascii
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import e2b

from jobs.sandboxes.base import SandboxError, SandboxLost

from .box import Box
from .calls import Unclear, sdk_call

logger = logging.getLogger(__name__)

MOST_LINE = 128 * 1024  # a frame is shorter
MOST_WAITING = 16  # frames read ahead; more stay in the sandbox's files
SILENCE_SECONDS = 35.0  # a program that says nothing is told from a stream that hangs by its heartbeats
LONGEST_SECONDS = 10**8
MOST_USELESS = 6  # streams in a row that brought no frame at all
PAUSES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Frame:
    """A piece of one of the program's files, a heartbeat (`h`) or the end (`x`)."""

    kind: str
    offset: int
    data: bytes


class Overdue(SandboxError):
    """The program should have been stopped long ago by its supervisor."""


class Following:
    """Reads frames of one sandbox. `begin` once, then `frames` once."""

    def __init__(self, box: Box, plan: dict[str, Any], *, deadline: float) -> None:
        self.box = box
        self.plan = base64.b64encode(json.dumps(plan).encode()).decode()
        self.deadline = deadline  # of the event loop's clock
        self.offsets = {"o": 0, "e": 0, "r": 0}
        self.stream: Stream | None = None
        self.useless = 0
        self.closed = asyncio.Event()

    async def begin(self) -> None:
        """Start the program. Raises SandboxLost or SandboxError."""
        await self.box.surely(self._open)

    async def frames(self) -> AsyncIterator[Frame]:
        """Every frame once and in order, the end last. Raises SandboxLost, Overdue; ends early when closed."""
        while not self.closed.is_set():
            try:
                frame = await self._next()
            except Unclear as doubt:
                await self._again(doubt)
                continue
            if frame is None:
                return
            if frame.kind in self.offsets:
                if frame.offset != self.offsets[frame.kind]:
                    await self._again(Unclear("frames were lost on the way"))
                    continue
                self.offsets[frame.kind] += len(frame.data)
            self.useless = 0
            yield frame
            if frame.kind == "x":
                return

    async def _next(self) -> Frame | None:
        """The next frame; None when closed. Raises Unclear when the stream is of no more use."""
        assert self.stream is not None  # noqa: S101  (begin came first)
        clock = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(min(SILENCE_SECONDS, max(0.0, self.deadline - clock()))):
                item = await self.stream.queue.get()
        except TimeoutError:
            if clock() >= self.deadline:
                raise Overdue("the program was not stopped at its time") from None
            raise Unclear("the stream brings no heartbeat") from None
        if isinstance(item, Exception):
            raise Unclear(str(item)) from item
        return item

    async def _again(self, doubt: Exception) -> None:
        """Another stream from where the last one was understood. Raises SandboxLost."""
        logger.info("The stream of sandbox %s ended, looking again: %s", self.box.id, doubt)
        self._leave()
        if self.useless >= MOST_USELESS:
            raise SandboxLost(f"the sandbox's output cannot be read: {doubt}") from doubt
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.closed.wait(), PAUSES[min(self.useless, len(PAUSES) - 1)] + 0.001)
        if self.closed.is_set():
            return
        self.useless += 1
        await self.box.look(doubt)
        try:
            await self._open()
        except Unclear as error:
            self.stream = Stream()
            self.stream.end(error)

    async def _open(self) -> None:
        stream = Stream()
        arguments = ("run", self.plan, json.dumps(self.offsets))
        stream.handle = await self.box.run(arguments, stream.take)
        stream.watching = self.box.later(stream.watch(stream.handle))
        self.stream = stream
        if self.closed.is_set():
            self._leave()

    def _leave(self) -> None:
        if self.stream is not None and self.stream.handle is not None:
            assert self.stream.watching is not None  # noqa: S101  (they come together)
            self.stream.watching.cancel()
            self.box.end_command(self.stream.handle)
            self.stream.handle = None

    def close(self) -> None:
        """End whoever reads, and the command inside."""
        self.closed.set()
        self._leave()
        if self.stream is not None:
            self.stream.end(None)


class Stream:
    """One command's output as frames. Text comes cut anywhere; a reader that is slow holds the sandbox's side back."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Frame | Exception | None] = asyncio.Queue(MOST_WAITING)
        self.rest = ""
        self.over = False
        self.handle: e2b.AsyncCommandHandle[None] | None = None
        self.watching: asyncio.Task[None] | None = None

    async def take(self, text: str) -> None:
        """The SDK waits for this before it reads on."""
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            if not self.over:
                await self.queue.put(parse(line))
        if len(self.rest) > MOST_LINE:
            raise Unclear("the sandbox does not speak in frames")

    async def watch(self, handle: "e2b.AsyncCommandHandle[None]") -> None:
        """Tell the reader when the stream ends, after its last frame."""
        try:
            async with sdk_call("following the program", seconds=LONGEST_SECONDS):
                await handle.wait()
        except SandboxError as error:
            await self.queue.put(error)
        else:
            await self.queue.put(Unclear("the stream ended"))

    def end(self, word: Exception | None) -> None:
        """The reader hears this and nothing after it."""
        self.over = True
        while not self.queue.empty():
            self.queue.get_nowait()
        self.queue.put_nowait(word)


def parse(line: str) -> Frame:
    """One line. Raises Unclear, which ends the stream: whoever wrote it, it was not our script."""
    try:
        kind, offset, data = line.split(" ")
        if kind not in "oerhx" or not offset.isdigit():
            raise Unclear("the sandbox does not speak in frames")
        return Frame(kind, int(offset), base64.b64decode(data, validate=True))
    except (ValueError, binascii.Error) as error:
        raise Unclear("the sandbox does not speak in frames") from error
