"""The control plane: makes, lists, pauses, resumes and ends sandboxes."""

import asyncio
import datetime
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.e2b_server.faults import problem, read_json
from tests.e2b_server.machine import Machine

if TYPE_CHECKING:
    from tests.e2b_server.server import E2BServer

ENVD_VERSION = "0.6.13"
TEMPLATES = ("code-interpreter-v1", "base")


class ControlPlane:
    """REST, as the sandboxes' owner sees it."""

    def __init__(self, server: "E2BServer") -> None:
        self.server = server
        self.keys: dict[str, tuple[str, str]] = {}  # idempotency key -> (body, sandbox id)

    def routes(self) -> list[Route]:
        return [
            Route("/v2/sandboxes", self.create, methods=["POST"]),
            Route("/v2/sandboxes", self.list, methods=["GET"]),
            Route("/sandboxes/{id}", self.info, methods=["GET"]),
            Route("/sandboxes/{id}", self.kill, methods=["DELETE"]),
            Route("/sandboxes/{id}/timeout", self.timeout, methods=["POST"]),
            Route("/sandboxes/{id}/pause", self.pause, methods=["POST"]),
            Route("/v2/sandboxes/{id}/connect", self.connect, methods=["POST"]),
        ]

    def find(self, request: Request, *states: str) -> Machine | None:
        machine = self.server.machines.get(request.path_params["id"])
        return machine if machine is not None and machine.state in (states or ("running", "paused")) else None

    async def create(self, request: Request) -> Response:
        body = await request.body()
        wanted = read_json(body)
        key = request.headers.get("Idempotency-Key", "")
        if key and key in self.keys and self.server.honours_idempotency:
            old_body, old_id = self.keys[key]
            if json.loads(old_body) != wanted:
                return problem(422, "the key was used", error_code="idempotency_request_mismatch")
            machine = self.server.machines.get(old_id)
            if machine is None or machine.state == "killed":
                return problem(409, "the outcome is unknown", error_code="idempotency_outcome_unknown")
            return created(machine)
        if wanted.get("templateID") not in self.server.templates:
            return problem(404, f"template '{wanted.get('templateID')}' not found")
        if len(self.server.running()) >= self.server.most_running:
            return problem(429, "you have reached the maximum number of concurrent E2B sandboxes")
        await asyncio.sleep(self.server.create_seconds)
        machine = Machine(wanted, has_root=self.server.has_root)
        self.prolong(machine, wanted.get("timeout", 300))
        self.server.machines[machine.id] = machine
        self.keys[key] = (body.decode(), machine.id)
        self.server.created.append(wanted | {"idempotency_key": key})
        return created(machine)

    def prolong(self, machine: Machine, seconds: float) -> None:
        """The plan's longest life cuts what was asked, without a word."""
        machine.prolong(seconds)
        longest = datetime.timedelta(seconds=self.server.longest_seconds)
        machine.end_at = min(machine.end_at, machine.started_at + longest)

    async def list(self, request: Request) -> Response:
        wanted = {unquote(k): unquote(v) for k, v in parse_qsl(request.query_params.get("metadata", ""))}
        states = [part for value in request.query_params.getlist("state") for part in value.split(",")]
        found = [
            machine
            for machine in self.server.machines.values()
            if machine.state in (states or ("running", "paused"))
            and wanted.items() <= machine.metadata.items()
        ]
        begin = int(request.query_params.get("nextToken") or 0)
        size = min(int(request.query_params.get("limit") or self.server.page_size), self.server.page_size)
        headers = {"X-Next-Token": str(begin + size)} if begin + size < len(found) else {}
        page = [listed(machine) for machine in found[begin : begin + size]]
        return Response(json.dumps(page), 200, headers, "application/json")

    async def info(self, request: Request) -> Response:
        machine = self.find(request)
        if machine is None:
            return problem(404, "sandbox not found")
        more = {"envdAccessToken": machine.token, "diskSizeMB": 512, "domain": None}
        return Response(json.dumps(listed(machine) | more), media_type="application/json")

    async def kill(self, request: Request) -> Response:
        machine = self.find(request)
        if machine is None:
            return problem(404, "sandbox not found")
        machine.destroy()
        return Response(status_code=204)

    async def timeout(self, request: Request) -> Response:
        machine = self.find(request, "running")
        if machine is None:
            return problem(404, "sandbox not found")
        self.prolong(machine, read_json(await request.body())["timeout"])
        return Response(status_code=204)

    async def pause(self, request: Request) -> Response:
        machine = self.find(request)
        if machine is None:
            return problem(404, "sandbox not found")
        if machine.state == "paused":
            return problem(409, "sandbox is already paused")
        await asyncio.sleep(self.server.pause_seconds)
        machine.pause()
        return Response(status_code=204)

    async def connect(self, request: Request) -> Response:
        machine = self.find(request)
        if machine is None:
            return problem(404, "sandbox not found")
        if self.server.swaps_on_connect:
            machine = Machine(machine.request, has_root=self.server.has_root)
            self.server.machines[machine.id] = machine
            return created(machine)
        status = 200
        if machine.state == "paused":
            status = 201
            if self.server.loses_files_on_resume:
                machine.lose_files()
            machine.resume(read_json(await request.body()).get("timeout", 300))
        return created(machine, status)


def created(machine: Machine, status: int = 201) -> Response:
    body: dict[str, Any] = {
        "templateID": machine.request["templateID"],
        "sandboxID": machine.id,
        "clientID": "6532622b",
        "envdVersion": ENVD_VERSION,
        "envdAccessToken": machine.token,
        "trafficAccessToken": machine.traffic_token,
        "alias": machine.request["templateID"],
        "domain": None,
    }
    return Response(json.dumps(body), status, media_type="application/json")


def listed(machine: Machine) -> dict[str, Any]:
    return {
        "templateID": machine.request["templateID"],
        "sandboxID": machine.id,
        "clientID": "6532622b",
        "startedAt": machine.started_at.isoformat(),
        "endAt": machine.end_at.isoformat(),
        "envdVersion": ENVD_VERSION,
        "cpuCount": 2,
        "memoryMB": 512,
        "diskSizeMB": 512,
        "state": machine.state,
        "metadata": machine.metadata,
    }
