"""The code interpreter of an E2B sandbox: one context of our own, and a new one after anything that went wrong."""

import asyncio
import dataclasses
import json
import re
from typing import Any

from e2b_code_interpreter import Execution, OutputMessage, Result
from e2b_code_interpreter.models import Context

from jobs.sandboxes.base import CodeError, CodeOutput, CodeResult, Limits, SandboxError, SandboxLost
from jobs.sandboxes.interpreting import MOST_OUTPUT_BYTES, MOST_OUTPUTS, MOST_TEXT_BYTES

from .box import Box
from .calls import Unclear, sdk_call

CONTEXT_SECONDS = 60.0
MOST_FORM_BYTES = 1_500_000  # of one result in one form
LONGEST_SECONDS = 86_400.0
MIME = {
    "text": "text/plain",
    "html": "text/html",
    "markdown": "text/markdown",
    "latex": "text/latex",
    "svg": "image/svg+xml",
    "png": "image/png",
    "jpeg": "image/jpeg",
    "pdf": "application/pdf",
    "json": "application/json",
    "javascript": "application/javascript",
}
KERNEL_DIED = ("ContextRestarting", "UnexpectedEndOfExecution")  # what the server says then
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class TooMuch(SandboxError):
    """The code wrote more than a sandbox may."""


class Session:
    """The context of one sandbox. Calls take turns."""

    def __init__(self, box: Box, limits: Limits, *, has_layer: bool) -> None:
        self.box, self.limits, self.has_layer = box, limits, has_layer
        self.context: Context | None = None
        self.untold = False  # variables were lost, and the caller does not know it
        self.turn = asyncio.Lock()
        self.call: asyncio.Task[CodeResult] | None = None
        self.closed = False

    async def run(self, code: str, seconds: float) -> CodeResult:
        """Run one piece of code. Raises SandboxLost when the whole sandbox is gone."""
        async with self.turn:
            self._check_open()
            self.call = asyncio.create_task(self._run(code, seconds))
            untold, self.untold = self.untold, True
            try:
                result = await self.call
                self.untold = False
            except asyncio.CancelledError:
                if self.closed:
                    raise SandboxLost("the sandbox is closed") from None
                raise
            finally:
                if self.untold:
                    self.call.cancel()
                    self._drop_context()
            return dataclasses.replace(result, state_lost=True) if untold else result

    def close(self) -> None:
        """End the call at work."""
        self.closed = True
        if self.call is not None:
            self.call.cancel()

    def _check_open(self) -> None:
        if self.closed:
            raise SandboxLost("the sandbox is closed")

    async def _run(self, code: str, seconds: float) -> CodeResult:
        context = self.context or await self.box.surely(self._new_context)
        call = Call(self.limits.output_bytes)
        try:
            # The deadline is ours: the SDK's runs twice as long. Nothing travels in envs: their values are pasted
            # into source code there, and logged.
            async with sdk_call("running code", seconds=min(seconds, LONGEST_SECONDS)):
                execution: Execution = await self.box.remote.run_code(
                    code,
                    context=context,
                    timeout=0,
                    on_stdout=call.on_stdout,
                    on_stderr=call.on_stderr,
                    on_result=call.on_result,
                )
        except TooMuch:
            self._drop_context()
            return call.result(
                CodeError("OutputLimit", "it wrote too much; the interpreter was restarted", ""),
                state_lost=True,
            )
        except Unclear as doubt:
            # Leaving interrupts the code, and the next call would race with that: the context is given up.
            self._drop_context()
            if isinstance(doubt.__cause__, TimeoutError):
                error = CodeError(
                    "Timeout", f"it took over {seconds:g} seconds; the interpreter was restarted", ""
                )
                return call.result(error, timed_out=True, state_lost=True)
            await self.box.look(doubt)
            error = CodeError("InterpreterDied", "the interpreter was cut off and is restarted", "")
            return call.result(error, state_lost=True)
        if execution.error is None and execution.execution_count is None and not call.any:
            # The kernel is gone, or the stream ended before it said anything.
            self._drop_context()
            error = CodeError("InterpreterDied", "the interpreter ended and was restarted", "")
            return call.result(error, state_lost=True)
        if execution.error is not None and execution.error.name in KERNEL_DIED:
            self._drop_context()
            error = CodeError("InterpreterDied", f"the interpreter died: {execution.error.value}", "")
            return call.result(error, state_lost=True)
        return call.result(_error(execution))

    async def _new_context(self) -> Context:
        try:
            async with sdk_call("making a code context", seconds=CONTEXT_SECONDS):
                context = await self.box.remote.create_code_context(cwd=f"{self.box.home}/workspace")
        except Unclear:
            raise
        except SandboxError as error:
            raise SandboxError(f"the template's code interpreter does not answer: {error}") from error
        self.context = context
        if self.has_layer:
            await self._make_layer_importable(context)
        return context

    async def _make_layer_importable(self, context: Context) -> None:
        """The agent's requirements lie in a folder of their own."""
        code = f"import sys; sys.path.insert(0, {self.box.home + '/layer'!r}); del sys"
        async with sdk_call("preparing a code context", seconds=CONTEXT_SECONDS):
            await self.box.remote.run_code(code, context=context, timeout=0)

    def _drop_context(self) -> None:
        """Give it up; what it still runs is ended in the background."""
        context, self.context = self.context, None
        if context is not None and not self.closed:
            self.box.later(self._remove(context))

    async def _remove(self, context: Context) -> None:
        try:
            async with sdk_call("removing a code context"):
                await self.box.remote.remove_code_context(context)
        except SandboxError:
            return  # it ends with the sandbox


class Call:
    """What one call has brought so far. Everything in it was written by the code that ran."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.texts = {"stdout": "", "stderr": ""}
        self.left_out = {"stdout": 0, "stderr": 0}
        self.outputs: list[CodeOutput] = []
        self.output_bytes = 0
        self.any = False

    def on_stdout(self, message: OutputMessage) -> None:
        """A piece of standard output."""
        self._add("stdout", message.line)

    def on_stderr(self, message: OutputMessage) -> None:
        """A piece of standard error."""
        self._add("stderr", message.line)

    def _add(self, name: str, text: str) -> None:
        """Keep the beginning, count the rest."""
        self.any = True
        self.room -= len(text)
        if self.room < 0:
            raise TooMuch("over the output limit")
        kept = text[: max(0, MOST_TEXT_BYTES - len(self.texts[name]))]
        self.texts[name] += kept
        self.left_out[name] += len(text) - len(kept)

    def on_result(self, result: Result) -> None:
        """A value that was shown."""
        self.any = True
        data = forms(result)
        self.output_bytes += sum(map(len, data.values()))
        if len(self.outputs) < MOST_OUTPUTS and self.output_bytes <= MOST_OUTPUT_BYTES:
            self.outputs.append(CodeOutput(data, bool(result.is_main_result)))

    def result(
        self, error: CodeError | None, *, timed_out: bool = False, state_lost: bool = False
    ) -> CodeResult:
        """The result for the caller."""
        for name, count in self.left_out.items():
            if count:
                self.texts[name] += f"\n[{count:,} more bytes left out]"
        return CodeResult(
            stdout=self.texts["stdout"],
            stderr=self.texts["stderr"],
            outputs=tuple(self.outputs),
            error=error,
            timed_out=timed_out,
            state_lost=state_lost,
        )


def forms(result: Result) -> dict[str, str]:
    """A result as a MIME bundle, as the local interpreter gives it."""
    data: dict[str, str] = {}
    for name, mime in MIME.items():
        value: Any = getattr(result, name)
        if value is not None:
            data[mime] = value if isinstance(value, str) else json.dumps(value)
    large = [mime for mime, value in data.items() if len(value) > MOST_FORM_BYTES]
    if large:
        kept = data.get("text/plain", "")[:10_000]
        return {"text/plain": f"{kept}\n[left out: {', '.join(data)} over {MOST_FORM_BYTES:,} bytes]"}
    return data


def _error(execution: Execution) -> CodeError | None:
    error = execution.error
    if error is None:
        return None
    return CodeError(
        str(error.name), str(error.value)[:10_000], COLOURS.sub("", str(error.traceback))[-50_000:]
    )
