"""What goes wrong between a client and E2B, at the next requests that match."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse


@dataclass
class Fault:
    """Answer so many matching requests otherwise."""

    method: str
    path: str  # a part of the path
    status: int = 0  # 0: the request is served, and its answer is lost on the way
    message: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    times: int = 1
    seconds: float = 0.0  # until it is served at all

    def matches(self, request: Request) -> bool:
        return self.times > 0 and self.method == request.method and self.path in request.url.path

    def answer(self) -> Response:
        body = {"code": self.status, "message": self.message, **self.body}
        return Response(json.dumps(body), self.status, dict(self.headers), "application/json")


class Faults:
    """Set by tests, looked at by the server."""

    def __init__(self) -> None:
        self.waiting: list[Fault] = []

    def add(self, method: str, path: str, status: int = 0, **details: Any) -> Fault:
        fault = Fault(method, path, status, **details)
        self.waiting.append(fault)
        return fault

    def take(self, request: Request) -> Fault | None:
        for fault in self.waiting:
            if fault.matches(request):
                fault.times -= 1
                return fault
        return None


def lost() -> Response:
    """An answer whose connection breaks before it is whole."""

    async def body() -> Any:
        yield b"{"
        raise ConnectionResetError("lost on purpose")

    return StreamingResponse(body(), 200, {"content-length": "1000", "content-type": "application/json"})


def problem(status: int, message: str, **more: Any) -> Response:
    """An error as the control plane and the proxy write it."""
    body = {"code": status, "message": message, **more}
    return Response(json.dumps(body), status, media_type="application/json")


def read_json(body: bytes) -> dict[str, Any]:
    return dict(json.loads(body or b"{}"))


Handler = Callable[[Request], Any]
