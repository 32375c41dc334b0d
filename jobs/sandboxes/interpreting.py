"""The worker's side of the code interpreter: one call at a time, with interrupt, restart and caps."""

import asyncio
import contextlib
import json
import secrets
import signal
from typing import TYPE_CHECKING, Any

from .base import CodeError, CodeOutput, CodeResult, SandboxLost

if TYPE_CHECKING:
    from .local_sandbox import LocalSandbox

INTERRUPT_SECONDS = 2.0  # between the interrupt and the end of patience
RESTART_SECONDS = 10.0
MOST_TEXT_BYTES = 1_000_000  # of stdout, and of stderr, in one result
MOST_OUTPUTS = 100
MOST_OUTPUT_BYTES = 16_000_000


class Session:
    """The interpreter that runs in one sandbox."""

    def __init__(self, sandbox: "LocalSandbox") -> None:
        self.sandbox = sandbox
        self.died: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.line = bytearray()  # the unfinished end of the record channel
        self.turn = asyncio.Lock()
        self.abandoned = False  # a caller left in the middle of its call

    def program_ended(self, code: int) -> None:
        """Init says that the interpreter's process has ended."""
        if not self.died.done():
            self.died.set_result(code)

    async def run(self, code: str, seconds: float) -> CodeResult:
        """Run one piece of code. Raises SandboxLost when the whole sandbox is gone."""
        async with self.turn:
            lost = self.abandoned or self.died.done()
            if lost:
                await self._restart()
            call = Call(self.sandbox.limits.output_bytes)
            self.abandoned = True
            await self.sandbox.send(json.dumps({"id": call.id, "code": code}).encode())
            answered = await self._await_answer(call, seconds)
            self.abandoned = False
            if not answered:
                call.explain(await self._restart())
            return call.result(state_lost=lost or not answered)

    async def _await_answer(self, call: "Call", seconds: float) -> bool:
        """True when the call was answered, if only after an interrupt; False when its interpreter must go."""
        reading = asyncio.create_task(self._read(call))
        try:
            done, _ = await asyncio.wait([reading], timeout=seconds)
            if not done:
                call.timed_out = True
                await self.sandbox.request("signal", int(signal.SIGINT))
                done, _ = await asyncio.wait([reading], timeout=INTERRUPT_SECONDS)
            return bool(done) and reading.result()
        finally:
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading

    async def _read(self, call: "Call") -> bool:
        """Collect until this call is answered (True), or its interpreter has ended or must be ended (False)."""
        pipes, dead = self.sandbox.pipes, self.sandbox.dead
        while True:
            # Whether it has died is asked before its last words are read, so that none is missed.
            over = self.died.done()
            while pieces := pipes.read_now():
                for name, piece in pieces:
                    self._take(call, name, piece)
                if call.room < 0:
                    return False
                await asyncio.sleep(0)
            if call.answered:
                return True
            if dead.done():
                raise SandboxLost("the sandbox is gone")
            if over:
                return False
            readable = asyncio.create_task(pipes.readable())
            try:
                waiting: list[asyncio.Future[Any]] = [readable, self.died, dead]
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            finally:
                readable.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await readable

    def _take(self, call: "Call", name: str, piece: bytes) -> None:
        if name != "records":
            call.add_text(name, piece)
            return
        *complete, rest = piece.split(b"\n")
        for part in complete:
            line, self.line = bytes(self.line) + part, bytearray()
            call.add_record(line)
        self.line += rest
        if len(self.line) > self.sandbox.limits.record_bytes:
            self.line.clear()
            call.room = -1

    async def _restart(self) -> int:
        """End this interpreter for good, start another one; returns the exit code of the old one."""
        if not self.died.done():
            await self.sandbox.request("stop")
            await asyncio.wait([self.died], timeout=RESTART_SECONDS)
            if not self.died.done():
                raise SandboxLost("the interpreter could not be ended")
        while self.sandbox.pipes.read_now():
            continue  # all writers are dead: what they left is at most what the pipes hold
        self.line.clear()
        code, self.died = self.died.result(), asyncio.get_running_loop().create_future()
        await self.sandbox.start_program(None)
        return code


class Call:
    """What one call has brought so far. Everything in it was written by the code that ran."""

    def __init__(self, room: int) -> None:
        self.id = secrets.token_hex(8)
        self.room = room  # bytes of output until the interpreter is ended
        self.texts = {"stdout": bytearray(), "stderr": bytearray()}
        self.left_out = {"stdout": 0, "stderr": 0}
        self.outputs: list[CodeOutput] = []
        self.output_bytes = 0
        self.error: CodeError | None = None
        self.answered = self.timed_out = False

    def add_text(self, name: str, piece: bytes) -> None:
        """Keep the beginning, count the rest."""
        self.room -= len(piece)
        kept = piece[: max(0, MOST_TEXT_BYTES - len(self.texts[name]))]
        self.texts[name] += kept
        self.left_out[name] += len(piece) - len(kept)

    def add_record(self, line: bytes) -> None:
        """Take one answer line if it is of this call and well formed; anything else is noise."""
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not isinstance(answer, dict) or answer.get("id") != self.id or self.answered:
            return
        if answer.get("kind") == "output":
            self._add_output(answer.get("data"), len(line), is_main=answer.get("main") is True)
        elif answer.get("kind") == "done":
            self.answered = True
            error = answer.get("error")
            if isinstance(error, dict):
                self.error = CodeError(*(str(error.get(key, "")) for key in ("name", "value", "traceback")))

    def _add_output(self, data: Any, size: int, *, is_main: bool) -> None:
        self.output_bytes += size
        if len(self.outputs) >= MOST_OUTPUTS or self.output_bytes > MOST_OUTPUT_BYTES:
            return
        if isinstance(data, dict) and all(isinstance(value, str) for value in data.values()):
            self.outputs.append(CodeOutput(data, is_main))

    def explain(self, code: int) -> None:
        """Say in the result why there is no answer."""
        if self.room < 0:
            self.error = CodeError("OutputLimit", "it wrote too much; the interpreter was restarted", "")
        elif self.timed_out:
            self.error = CodeError(
                "Timeout", "it did not stop when interrupted; the interpreter was restarted", ""
            )
        else:
            what = f"signal {-code}" if code < 0 else f"exit code {code}"
            self.error = CodeError(
                "InterpreterDied", f"the interpreter ended with {what} and was restarted", ""
            )

    def result(self, *, state_lost: bool) -> CodeResult:
        """The result for the caller."""
        texts = {name: bytes(text).decode(errors="replace") for name, text in self.texts.items()}
        for name, count in self.left_out.items():
            if count:
                texts[name] += f"\n[{count:,} more bytes left out]"
        return CodeResult(
            stdout=texts["stdout"],
            stderr=texts["stderr"],
            outputs=tuple(self.outputs),
            error=self.error,
            timed_out=self.timed_out,
            state_lost=state_lost,
        )
