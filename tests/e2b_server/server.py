"""The server: one address for the control plane and for everything in the sandboxes, as a self-hosted E2B may have.

Requests with `E2b-Sandbox-Id` go to that sandbox, by `E2b-Sandbox-Port` to envd or to the code interpreter; the others
go to the control plane. Runs in a thread of its own, so that tests and real worker processes can use it.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tests.e2b_server import envd, interpreter
from tests.e2b_server.control import TEMPLATES, ControlPlane
from tests.e2b_server.faults import Faults, lost, problem
from tests.e2b_server.machine import Machine

T = TypeVar("T")
ENVD_PORT, INTERPRETER_PORT = "49983", "49999"
API_KEY = "e2b_" + "0" * 40


class E2BServer:
    """Started by `start`; its switches may be turned at any time."""

    def __init__(self) -> None:
        self.machines: dict[str, Machine] = {}
        self.faults = Faults()
        self.created: list[dict[str, Any]] = []  # bodies of creates
        self.requests: list[tuple[str, str]] = []
        self.key = API_KEY
        self.templates: tuple[str, ...] = TEMPLATES
        self.has_root = True
        self.honours_idempotency = True
        self.swaps_on_connect = self.loses_files_on_resume = False
        self.most_running, self.longest_seconds, self.page_size = 1000, 86_400.0, 100
        self.create_seconds = self.pause_seconds = 0.0
        self.hastens = 1.0  # how much faster time-outs of commands run
        self.executed: list[dict[str, Any]] = []  # bodies of /execute
        self.control = ControlPlane(self)
        self.rest = Starlette(routes=self.control.routes())

    # --- life ---

    def start(self) -> "E2BServer":
        config = uvicorn.Config(
            self, host="127.0.0.1", port=0, log_level="critical", lifespan="off", ws="none", access_log=False
        )
        self.uvicorn = uvicorn.Server(config)
        self.thread = threading.Thread(target=self._run, name="e2b-server", daemon=True)
        self.thread.start()
        deadline = time.monotonic() + 20
        while not self.uvicorn.started:
            assert time.monotonic() < deadline, "the E2B server did not start"
            time.sleep(0.01)
        port = self.uvicorn.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    def _run(self) -> None:
        asyncio.run(self._serve_and_expire())

    async def _serve_and_expire(self) -> None:
        self.loop = asyncio.get_running_loop()
        await asyncio.gather(self.uvicorn.serve(), self._expire())

    async def _expire(self) -> None:
        while not self.uvicorn.should_exit:
            for machine in list(self.machines.values()):
                if machine.expired:
                    machine.destroy()
            await asyncio.sleep(0.1)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._destroy_all(), self.loop).result(30)
        self.uvicorn.force_exit = self.uvicorn.should_exit = True
        self.thread.join(20)

    async def _destroy_all(self) -> None:
        for machine in self.machines.values():
            if machine.state != "killed":
                machine.destroy()
            if machine.leaving is not None:
                await machine.leaving

    def call(self, function: Callable[[], T]) -> T:
        """Do something to machines on the server's own loop."""

        async def run() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(20)

    @property
    def environment(self) -> dict[str, str]:
        """What a worker needs to find it."""
        return {"E2B_API_KEY": API_KEY, "E2B_API_URL": self.url, "E2B_SANDBOX_URL": self.url}

    # --- requests ---

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        self.requests.append((request.method, request.url.path))
        fault = self.faults.take(request)
        if fault is not None and fault.seconds:
            await asyncio.sleep(fault.seconds)
        if fault is not None and fault.status:
            await fault.answer()(scope, receive, send)
            return
        if fault is not None:
            await self._serve(request)(scope, receive, swallow)
            await lost()(scope, receive, send)
            return
        await self._serve(request)(scope, receive, send)

    def _serve(self, request: Request) -> Any:
        id = request.headers.get("E2b-Sandbox-Id")
        if id is None:
            if request.headers.get("X-API-Key") != self.key:
                return problem(401, "Invalid API key")
            return self.rest
        machine = self.machines.get(id)
        if machine is None or machine.state != "running":
            return problem(502, "The sandbox was not found", sandboxId=id)
        port = request.headers.get("E2b-Sandbox-Port")
        serve = envd.serve if (port or ENVD_PORT) == ENVD_PORT else interpreter.serve
        if port == INTERPRETER_PORT and machine.request["templateID"] == "base":
            return problem(502, "The sandbox is running but port is not open", sandboxId=id)

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            response: Response = await serve(self, machine, request)
            try:
                await response(scope, receive, send)
            except ConnectionResetError:
                return  # uvicorn closes a connection whose answer is not whole

        return answer

    # --- for tests ---

    def running(self) -> list[Machine]:
        return [machine for machine in self.machines.values() if machine.state == "running"]

    def paused(self) -> list[Machine]:
        return [machine for machine in self.machines.values() if machine.state == "paused"]


async def swallow(message: Any) -> None:
    """Where an answer goes that nobody hears."""
