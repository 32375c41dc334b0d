"""The code interpreter's server in each sandbox: contexts, and their cells' output as one JSON object a line."""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from jobs.sandboxes import runtime
from tests.e2b_server.faults import read_json
from tests.e2b_server.machine import Machine
from tests.processes import ROOT

if TYPE_CHECKING:
    from tests.e2b_server.server import E2BServer

FIELDS = {
    "text/plain": "text",
    "text/html": "html",
    "text/markdown": "markdown",
    "text/latex": "latex",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/json": "json",
}
KERNEL = """
import sys
sys.path.insert(0, {root!r})
from jobs.sandboxes.interpreter import main
sys.path[0] = {packages!r}
main({records}, {requests})
"""
KEEPALIVE_SECONDS = 5.0


class Kernel:
    """One Python with its variables."""

    def __init__(self, machine: Machine, cwd: str) -> None:
        self.machine, self.cwd = machine, cwd
        self.id = secrets.token_hex(8)
        self.count = 0
        self.turn = asyncio.Lock()

    async def start(self) -> None:
        records, their_records = os.pipe()
        their_requests, self.requests = os.pipe()
        folder = Path(settings.ENGINE_RUNTIME_DIR)
        built = runtime.build(folder, settings.BASE_DIR / "requirements" / "sandbox.lock").folder
        command = KERNEL.format(
            root=str(ROOT), packages=str(built / "packages"), records=their_records, requests=their_requests
        )
        self.process = await asyncio.create_subprocess_exec(
            *(*runtime.interpreter(built), "-u", "-c", command),
            env=runtime.environment(built),
            cwd=self.cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            pass_fds=[their_records, their_requests],
        )
        os.close(their_records)
        os.close(their_requests)
        loop = asyncio.get_running_loop()
        self.records = asyncio.StreamReader(limit=1 << 26)
        self.record_pipe, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(self.records), os.fdopen(records, "rb", 0)
        )

    async def close(self) -> None:
        """End it, and read its pipes to their end, which closes them."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        async with self.turn:
            await self.process.communicate()
        self.record_pipe.close()
        os.close(self.requests)

    async def execute(self, code: str) -> AsyncGenerator[dict[str, Any], None]:
        """What the cell brings. A caller that leaves interrupts it, and the next cell races with that."""
        async with self.turn:
            self.count += 1
            yield {"type": "number_of_executions", "execution_count": self.count}
            call = secrets.token_hex(4)
            os.write(self.requests, json.dumps({"id": call, "code": code}).encode() + b"\n")
            outputs: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
            readers = [asyncio.create_task(self._read(name, outputs)) for name in ("stdout", "stderr")]
            answering = asyncio.create_task(self._answers(call, outputs))
            done = False
            try:
                while True:
                    try:
                        output = await asyncio.wait_for(outputs.get(), KEEPALIVE_SECONDS)
                    except TimeoutError:
                        yield {"type": "keepalive"}
                        continue
                    if output is None:
                        break
                    yield output
                done = True
                yield {"type": "end_of_execution"}
            finally:
                for task in (*readers, answering):
                    task.cancel()
                await asyncio.gather(*readers, answering, return_exceptions=True)
                if not done:
                    with contextlib.suppress(ProcessLookupError):
                        self.process.send_signal(signal.SIGINT)

    async def _read(self, name: str, outputs: asyncio.Queue[dict[str, Any] | None]) -> None:
        pipe = self.process.stdout if name == "stdout" else self.process.stderr
        assert pipe is not None
        while data := await pipe.read(65536):
            await outputs.put(
                {"type": name, "text": data.decode(errors="replace"), "timestamp": time.time_ns()}
            )

    async def _answers(self, call: str, outputs: asyncio.Queue[dict[str, Any] | None]) -> None:
        while line := await self.records.readline():
            answer = json.loads(line)
            if answer["id"] != call:
                continue
            if answer["kind"] == "output":
                fields = {FIELDS[mime]: value for mime, value in answer["data"].items() if mime in FIELDS}
                await outputs.put({"type": "result", "is_main_result": answer["main"], **fields})
                continue
            await asyncio.sleep(0.02)  # the last text comes by another pipe
            if answer["error"]:
                await outputs.put({"type": "error", **answer["error"]})
            await outputs.put(None)
            return
        await outputs.put(
            {"type": "error", "name": "ContextRestarting", "value": "Context was restarted", "traceback": ""}
        )
        await outputs.put(None)


async def serve(server: "E2BServer", machine: Machine, request: Request) -> Response:
    """Answer one request for this machine."""
    path, body = request.url.path, read_json(await request.body())
    if path == "/health":
        return Response("OK")
    if path == "/contexts" and request.method == "POST":
        kernel = Kernel(machine, body.get("cwd") or str(machine.home("user")))
        await kernel.start()
        machine.kernels[kernel.id] = kernel
        return Response(json.dumps(described(kernel)), media_type="application/json")
    if path.startswith("/contexts/") and request.method == "DELETE":
        await machine.kernels.pop(path.rpartition("/")[2]).close()
        return Response(status_code=204)
    if path == "/execute":
        server.executed.append(body)
        found = machine.kernels.get(str(body.get("context_id")))
        if found is None:
            return Response(f"Context {body.get('context_id')} not found", 404)

        async def lines() -> AsyncIterator[bytes]:
            cut = asyncio.Event()
            machine.cuts.add(cut)
            try:
                async with contextlib.aclosing(found.execute(body["code"])) as outputs:
                    async for output in outputs:
                        if cut.is_set():
                            raise ConnectionResetError("cut on purpose")
                        yield json.dumps(output).encode() + b"\n"
            finally:
                machine.cuts.discard(cut)

        return StreamingResponse(lines(), media_type="application/x-ndjson")
    return Response("not found", 404)


def described(kernel: Kernel) -> dict[str, str]:
    return {"id": kernel.id, "language": "python", "cwd": kernel.cwd}
