"""One E2B sandbox as Engine uses it: commands of `guest.py`, files in and out, and whether it is there at all."""

import asyncio
import contextlib
import hashlib
import json
import logging
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from functools import cache
from pathlib import Path
from typing import IO, Any, TypeVar

import e2b
from e2b_code_interpreter import AsyncSandbox

from jobs.sandboxes.base import SandboxError, SandboxFileError, SandboxLost, SandboxUnavailable

from . import guest
from .calls import NO_TEMPLATE, PATIENCE, Unclear, sdk_call

logger = logging.getLogger(__name__)
T = TypeVar("T")

LIFE_SECONDS = 300  # E2B ends a sandbox that nobody has prolonged for so long
ASK_SECONDS = 120.0
UPLOAD_SECONDS = 900.0
STALL_SECONDS = 30.0  # of a download
MOST_ANSWER_BYTES = 16 * 1024 * 1024
NOT_FOUND = 127  # the exit code of a shell that found no such program


class Box:
    """A sandbox that was created or connected to. Methods raise SandboxLost once it is certain that it is gone."""

    def __init__(self, remote: AsyncSandbox) -> None:
        self.remote = remote
        self.id: str = remote.sandbox_id
        # Of its own, should several sandboxes see one disk; known from the id alone, for whoever comes back to it.
        self.folder = f"engine-{hashlib.sha256(self.id.encode()).hexdigest()[:12]}"
        self.home = ""  # that folder's full path, once something was uploaded
        # Root where the template lets us: programs run as its ordinary user and cannot touch what is ours.
        self.user: str | None = "root"
        self.user_is_known = False
        self.background: set[asyncio.Task[Any]] = set()

    # --- is it there ---

    async def state(self) -> str | None:
        """`running` or `paused`; None when E2B does not know it any more. Raises Unclear when E2B does not answer."""
        for pause in PATIENCE:
            try:
                async with sdk_call("asking for the sandbox", seconds=10):
                    info: e2b.SandboxInfo = await self.remote.get_info(request_timeout=10)
            except SandboxLost:
                return None
            except Unclear:
                await asyncio.sleep(pause)
            else:
                return str(info.state.value)
        raise Unclear("E2B does not answer")

    async def look(self, doubt: Exception) -> None:
        """After a doubtful error: returns when the sandbox runs (woken if it was paused), else raises SandboxLost."""
        try:
            state = await self.state()
            if state == "paused":
                await self.wake()
        except SandboxError as error:
            raise SandboxLost(f"the sandbox cannot be reached: {error}") from doubt
        if state is None:
            raise SandboxLost("the sandbox is gone") from doubt

    async def wake(self) -> None:
        """Resume it. A resume may bring another sandbox than was asked for: that is none of ours."""
        async with sdk_call("resuming the sandbox"):
            remote = await type(self.remote).connect(self.id, timeout=LIFE_SECONDS)
        if remote.sandbox_id != self.id:
            raise SandboxLost("E2B resumed another sandbox")
        self.remote = remote

    async def surely(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat a call that may be repeated until it is clear what became of it. Raises SandboxLost."""
        for pause in PATIENCE:
            try:
                return await call()
            except Unclear as doubt:
                await self.look(doubt)
                await asyncio.sleep(pause)
                last = doubt
        raise SandboxLost(f"the sandbox does not answer: {last}") from last

    # --- commands ---

    async def prepare(self, archive: IO[bytes], kept: tuple[str, ...], *, woken: bool) -> dict[str, Any]:
        """Upload our own script and an archive, and unpack it. Returns what Python there is."""

        async def once() -> dict[str, Any]:
            self.home = str(Path(await self.upload("guest.py", _guest())).parent)
            archive.seek(0)
            await self.upload("bundle.tar", archive)
            answer = await self.ask("prepare", *kept, as_owner=not woken)
            return answer if isinstance(answer, dict) else {}

        return await self.surely(once)

    async def add(self, archive: Path, kept: tuple[str, ...], *, woken: bool) -> None:
        """Upload one more archive and unpack it beside what is there."""

        async def once() -> None:
            with archive.open("rb") as file:
                await self.upload("more.tar", file)
            await self.ask("prepare", *kept, as_owner=not woken)

        await self.surely(once)

    async def upload(self, name: str, data: bytes | IO[bytes], *, ours: bool = False) -> str:
        """Write one file below the sandbox's folder; returns its full path."""
        async with sdk_call(f"uploading {name}", seconds=UPLOAD_SECONDS):
            path = f"{self.home or self.folder}/{name}"
            written: e2b.WriteInfo = await self.remote.files.write(
                path, data, user=self.user if ours else None, request_timeout=UPLOAD_SECONDS
            )
        return written.path

    async def message(self, number: int, messages: list[dict[str, Any]]) -> None:
        """Hand messages to the supervisor: written under another name, then renamed, so that none is read by half."""
        data = json.dumps(messages).encode()

        async def once() -> None:
            part = f"{guest.PRIVATE}/in/{number}.part"
            await self.upload(part, data, ours=True)
            async with sdk_call("sending a message"):
                await self.remote.files.rename(
                    f"{self.home}/{part}", f"{self.home}/{guest.PRIVATE}/in/{number}", user=self.user
                )

        await self.surely(once)

    async def ask(self, *arguments: str, as_owner: bool = False) -> Any:
        """The answer of one short command of `guest.py`. Raises SandboxFileError when it refuses."""
        answer = bytearray()

        def collect(text: str) -> None:
            if len(answer) + len(text) > MOST_ANSWER_BYTES:
                raise SandboxError("the sandbox's answer is too long")
            answer.extend(text.encode())

        handle = await self.run(arguments, collect, seconds=ASK_SECONDS, as_owner=as_owner)
        try:
            async with sdk_call(f"running {arguments[0]}", seconds=ASK_SECONDS):
                await handle.wait()
        except SandboxError as error:
            failed = error.__cause__
            if not isinstance(failed, e2b.CommandExitException):
                raise
            if failed.exit_code == NOT_FOUND:
                raise SandboxUnavailable("the template has no python3", remedy=NO_TEMPLATE) from error
            raise Unclear(f"{arguments[0]} failed: {error}") from error
        finally:
            if handle.exit_code is None:
                self.end_command(handle)
        whole, done, _ = answer.decode(errors="replace").rpartition(f"\n{guest.DONE}\n")
        if not done:
            raise Unclear(f"the answer of {arguments[0]} was cut")
        value = json.loads(whole)
        if isinstance(value, dict) and "refused" in value:
            raise SandboxFileError(str(value["refused"]))
        return value

    async def run(
        self,
        arguments: tuple[str, ...],
        on_stdout: Callable[[str], Any],
        *,
        seconds: float = 0,
        as_owner: bool = False,
    ) -> "e2b.AsyncCommandHandle[None]":
        """Start a command of `guest.py`; as root unless the template knows no root, or `as_owner`."""
        starting = asyncio.create_task(self._start(arguments, on_stdout, seconds, as_owner))
        try:
            return await asyncio.shield(starting)
        except (
            asyncio.CancelledError
        ):  # it may run by then: only its pid, which comes with the answer, can end it
            self.later(self._end_unheard(starting))
            raise

    async def _end_unheard(self, starting: "asyncio.Task[e2b.AsyncCommandHandle[None]]") -> None:
        with contextlib.suppress(SandboxError):
            self.end_command(await starting)

    async def _start(
        self, arguments: tuple[str, ...], on_stdout: Callable[[str], Any], seconds: float, as_owner: bool
    ) -> "e2b.AsyncCommandHandle[None]":
        command = f"command -v python3 >/dev/null || exit {NOT_FOUND}; exec python3 guest.py {shlex.join(arguments)}"
        while True:
            user = None if as_owner else self.user
            try:
                async with sdk_call(f"starting {arguments[0]}"):
                    handle: e2b.AsyncCommandHandle[None] = await self.remote.commands.run(
                        command,
                        background=True,
                        user=user,
                        cwd=self.home,
                        timeout=seconds,  # 0: none; the default of the SDK ends a command after 60 seconds
                        on_stdout=on_stdout,
                        retain_output=False,
                    )
            except SandboxError as error:
                if user is None or self.user_is_known or isinstance(error, Unclear | SandboxLost):
                    if isinstance(error, SandboxUnavailable):  # a token of this sandbox, not the team's key
                        raise SandboxLost(f"the sandbox refuses us: {error}") from error
                    raise
                logger.info("The sandbox's template does not let us be root: %s", error)
                self.user, self.user_is_known = None, True
            else:
                self.user_is_known = self.user_is_known or user is not None
                return handle

    def end_command(self, handle: "e2b.AsyncCommandHandle[None]") -> None:
        """Leave a command and end it in the background: one that is only left goes on running inside."""

        async def end() -> None:
            try:
                async with sdk_call("leaving a command"):
                    await handle.disconnect()
                async with sdk_call("ending a command"):
                    await self.remote.commands.kill(handle.pid)
            except SandboxError as error:
                logger.debug("A command in sandbox %s was left as it is: %s", self.id, error)

        self.later(end())

    def later(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Do something that nobody waits for, until the sandbox is closed."""
        task = asyncio.create_task(work)
        self.background.add(task)
        task.add_done_callback(self.background.discard)
        return task

    # --- files out ---

    async def download(self, copy: str, size: int) -> AsyncIterator[bytes]:
        """The bytes of a copy that `guest.py` made, which is deleted afterwards."""
        got = 0
        try:
            async with sdk_call("downloading a file"):
                reader = await self.remote.files.read(
                    copy, format="stream", user=self.user, stream_idle_timeout=STALL_SECONDS
                )
            try:
                pieces = aiter(reader)
                while True:
                    async with sdk_call("downloading a file", seconds=2 * STALL_SECONDS):
                        piece = await anext(pieces, None)
                    if piece is None:
                        break
                    got += len(piece)
                    if got > size:
                        raise SandboxFileError("more bytes came than the file has")
                    yield piece
            finally:
                await reader.aclose()
            if got != size:
                raise Unclear("a download was cut")
        finally:
            self.later(self._delete(copy))

    async def _delete(self, path: str) -> None:
        try:
            async with sdk_call("deleting a copy"):
                await self.remote.files.remove(path, user=self.user)
        except SandboxError as error:
            logger.debug("A copy in sandbox %s was left: %s", self.id, error)

    async def stop_background(self) -> None:
        """Before the sandbox is killed or paused: nothing of ours goes on with it."""
        for task in list(self.background):
            task.cancel()
        await asyncio.gather(*self.background, return_exceptions=True)


@cache
def _guest() -> bytes:
    return Path(guest.__file__).read_bytes()
