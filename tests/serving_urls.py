"""Views that show how a request reached Django and how an answer leaves it."""

import asyncio
import hashlib
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from channels.generic.websocket import AsyncJsonWebsocketConsumer
from django.core.files.uploadedfile import UploadedFile
from django.db import connection
from django.http import FileResponse, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path, re_path
from django.views.decorators.csrf import csrf_exempt

from engine.bridge import Receive, Scope, Send
from engine.problems import handler400, handler404, handler500
from engine.routing import HTTP_ROUTES, WEBSOCKET_ROUTES, AsyncRoute

__all__ = ["handler400", "handler404", "handler500", "urlpatterns"]

PATIENCE_SECONDS = 30


@csrf_exempt
def echo(request: HttpRequest, rest: str = "") -> JsonResponse:
    digest, length = hashlib.sha256(), 0
    while chunk := request.read(65536):
        digest.update(chunk)
        length += len(chunk)
    return JsonResponse(
        {
            "method": request.method,
            "path": request.path,
            "raw": request.META["PATH_INFO"],
            "query": request.GET.dict(),
            "length": length,
            "sha256": digest.hexdigest(),
            "content_type": request.content_type,
            "content_length": request.META["CONTENT_LENGTH"],
            "headers": dict(request.headers),
            "client": request.META["REMOTE_ADDR"],
            "thread": threading.current_thread().name,
        }
    )


@csrf_exempt
def upload(request: HttpRequest) -> JsonResponse:
    file = request.FILES["file"]
    assert isinstance(file, UploadedFile)
    return JsonResponse({"size": file.size, "on_disk": hasattr(file, "temporary_file_path")})


def wait(request: HttpRequest) -> HttpResponse:
    """Answers once the named file exists; makes it known, by another file, that it is waiting."""
    gate = Path(request.GET["gate"])
    gate.with_suffix(".waiting").touch()
    wait_for(gate)
    return HttpResponse(b"x" * int(request.GET.get("bytes", "2")))


def wait_for(gate: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not gate.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


def stream(request: HttpRequest) -> StreamingHttpResponse:
    """One line now, one once the file exists."""

    def lines() -> Iterator[bytes]:
        yield b"first\n"
        wait_for(Path(request.GET["gate"]))
        yield b"second\n"

    return StreamingHttpResponse(lines())


def broken(request: HttpRequest) -> StreamingHttpResponse:
    """A stream whose source fails half-way, with more announced than was sent."""

    def parts() -> Iterator[bytes]:
        yield b"half of it"
        raise OSError("The source is gone")

    return StreamingHttpResponse(parts(), headers={"Content-Length": "20"})


def download(request: HttpRequest) -> FileResponse:
    return FileResponse(Path(request.GET["file"]).open("rb"))


def backend(request: HttpRequest) -> JsonResponse:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid(), current_setting('statement_timeout')")
        pid, timeout = cursor.fetchone()
    return JsonResponse({"pid": pid, "statement_timeout": timeout})


def fault(request: HttpRequest) -> HttpResponse:
    raise RuntimeError("a fault of ours")


urlpatterns = [
    path("echo", echo),
    re_path("^echo/(?P<rest>.*)$", echo),
    path("status/<int:status>", lambda request, status: HttpResponse(status=status)),
    path("upload", upload),
    path("wait", wait),
    path("stream", stream),
    path("broken", broken),
    path("download", download),
    path("backend", backend),
    path("api/fault", fault),
]


class Greeter(AsyncJsonWebsocketConsumer):  # type: ignore[misc]  # channels ships no types
    """Says who came, then repeats."""

    async def connect(self) -> None:
        cookies = [value.decode() for name, value in self.scope["headers"] if name == b"cookie"]
        await self.accept()
        root = self.scope.get("root_path", "")
        await self.send_json({"cookies": cookies, "request_id": self.scope["request_id"], "root": root})

    async def receive_json(self, content: object) -> None:
        await self.send_json(content)


async def ticks(scope: Scope, receive: Receive, send: Send) -> None:
    """An event stream without end."""
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"data: tick\n\n", "more_body": True})
    await asyncio.Event().wait()


async def repeat(scope: Scope, receive: Receive, send: Send) -> None:
    """Sends back the body that it was given."""
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message["body"], "more_body": False})


HTTP_ROUTES += [
    AsyncRoute("GET", re.compile("/ticks"), lambda headers: True, ticks),
    AsyncRoute("POST", re.compile("/repeat"), lambda headers: b"x-async" in headers, repeat),
]
WEBSOCKET_ROUTES.insert(0, path("ws/greeter", Greeter.as_asgi()))  # before the one that refuses all others
