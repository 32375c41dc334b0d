"""envd, the daemon in each sandbox: `/files`, `/health`, and Connect calls in JSON for processes and files."""

import asyncio
import base64
import contextlib
import json
import os
import signal
import struct
from collections.abc import AsyncIterator
from email import message_from_bytes, policy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from tests.e2b_server.faults import read_json
from tests.e2b_server.machine import CHUNK, USER_ID, Machine, Process

if TYPE_CHECKING:
    from tests.e2b_server.server import E2BServer

SIGNALS = {"SIGNAL_SIGKILL": signal.SIGKILL, "SIGNAL_SIGTERM": signal.SIGTERM}
STATUS = {
    "not_found": 404,
    "invalid_argument": 400,
    "unauthenticated": 401,
    "already_exists": 409,
    "internal": 500,
}


class ConnectError(Exception):
    """An error with one of Connect's codes."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def body(self) -> dict[str, str]:
        return {"code": self.code, "message": str(self)}


async def serve(server: "E2BServer", machine: Machine, request: Request) -> Response:
    """Answer one request for this machine."""
    path = request.url.path
    if path == "/health":
        return Response(status_code=204)
    if request.headers.get("X-Access-Token") != machine.token:
        return failed(401, "access token mismatch")
    if path == "/files":
        return await (upload if request.method == "POST" else download)(machine, request)
    service, _, method = path.removeprefix("/").partition("/")
    try:
        user = rpc_user(machine, request)
        if (service, method) in (("process.Process", "Start"), ("process.Process", "Connect")):
            return await stream(machine, request, method, user, server.hastens)
        body = read_json(await request.body())
        answer = await UNARY[service, method](machine, body, user)
        return Response(json.dumps(answer), media_type="application/json")
    except ConnectError as error:
        return Response(json.dumps(error.body()), STATUS[error.code], media_type="application/json")


def rpc_user(machine: Machine, request: Request) -> str:
    given = request.headers.get("Authorization", "").removeprefix("Basic ")
    return known_user(machine, base64.b64decode(given).decode().partition(":")[0] if given else "user")


def known_user(machine: Machine, name: str) -> str:
    if name not in ("user", "root") or (name == "root" and not machine.has_root):
        raise ConnectError("unauthenticated", f"invalid username: '{name}'")
    return name


# --- files over HTTP ---


async def upload(machine: Machine, request: Request) -> Response:
    try:
        user = known_user(machine, request.query_params.get("username") or "user")
    except ConnectError as error:
        return failed(401, str(error))
    kind = request.headers.get("content-type", "")
    named = request.query_params.get("path")
    written = []
    if kind.startswith("multipart/"):
        head = f"Content-Type: {kind}\r\n\r\n".encode()
        for part in message_from_bytes(head + await request.body(), policy=policy.HTTP).iter_parts():
            target = machine.path(named or str(part.get_filename()), user)
            pieces = as_pieces(part.get_payload(decode=True))
            written.append(await write(machine, target, user, pieces))
    elif kind == "application/octet-stream" and named:
        written.append(await write(machine, machine.path(named, user), user, request.stream()))
    else:
        return failed(400, f"unsupported content type: {kind}")
    for answer in written:
        if isinstance(answer, Response):
            return answer
    return Response(json.dumps(written), media_type="application/json")


async def as_pieces(data: Any) -> AsyncIterator[bytes]:
    yield data


async def write(
    machine: Machine, target: Path, user: str, pieces: AsyncIterator[bytes]
) -> dict[str, str] | Response:
    make_folders(target.parent, user)
    if target.is_dir():
        return failed(400, f"path is a directory: {target}")
    size = 0
    with target.open("wb") as file:
        async for piece in pieces:
            size += len(piece)
            if size > machine.disk_bytes:
                return failed(507, "not enough disk space available")
            file.write(piece)
    give_to(target, user)
    return {"path": str(target), "name": target.name, "type": "file"}


def make_folders(folder: Path, user: str) -> None:
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir()
        give_to(path, user)


def give_to(path: Path, user: str) -> None:
    if os.geteuid() == 0:
        owner = 0 if user == "root" else USER_ID
        os.chown(path, owner, owner)


async def download(machine: Machine, request: Request) -> Response:
    try:
        user = known_user(machine, request.query_params.get("username") or "user")
    except ConnectError as error:
        return failed(401, str(error))
    path = machine.path(request.query_params.get("path", ""), user)
    if not path.exists():
        return failed(404, f"path '{path}' does not exist")
    if path.is_dir():
        return failed(400, f"path '{path}' is a directory")
    file = path.open("rb")
    size = os.fstat(file.fileno()).st_size

    async def body() -> AsyncIterator[bytes]:
        with file:
            while piece := file.read(CHUNK):
                yield piece

    headers = {"content-length": str(size), "vary": "Accept-Encoding"}
    return StreamingResponse(body(), 200, headers, "application/octet-stream")


def failed(status: int, message: str) -> Response:
    return Response(json.dumps({"code": status, "message": message}), status, media_type="application/json")


# --- calls with one answer ---


async def stat(machine: Machine, body: dict[str, Any], user: str) -> dict[str, Any]:
    return {"entry": entry(machine.path(body["path"], user))}


async def move(machine: Machine, body: dict[str, Any], user: str) -> dict[str, Any]:
    source, target = (machine.path(body[name], user) for name in ("source", "destination"))
    make_folders(target.parent, user)
    if not source.exists():
        raise ConnectError("not_found", f"source file not found: {source}")
    source.replace(target)
    return {"entry": {"name": target.name, "type": "FILE_TYPE_FILE", "path": str(target)}}


async def remove(machine: Machine, body: dict[str, Any], user: str) -> dict[str, Any]:
    with contextlib.suppress(FileNotFoundError):
        machine.path(body["path"], user).unlink()
    return {}


async def list_processes(machine: Machine, body: dict[str, Any], user: str) -> dict[str, Any]:
    running = [process for process in machine.processes.values() if process.ended is None]
    return {"processes": [{"config": process.spec, "pid": process.pid} for process in running]}


async def send_signal(machine: Machine, body: dict[str, Any], user: str) -> dict[str, Any]:
    process = machine.processes.get(body["process"].get("pid", 0))
    if process is None or process.ended is not None:
        raise ConnectError("not_found", "process with that pid not found")
    process.process.send_signal(SIGNALS[body["signal"]])
    return {}


def entry(path: Path) -> dict[str, Any]:
    try:
        info = path.lstat()
    except FileNotFoundError:
        raise ConnectError("not_found", f"file not found: {path}") from None
    return {
        "name": path.name,
        "type": "FILE_TYPE_DIRECTORY" if path.is_dir() else "FILE_TYPE_FILE",
        "path": str(path),
        "size": str(info.st_size),
        "mode": info.st_mode & 0o777,
        "permissions": "-rw-r--r--",
        "owner": "user",
        "group": "user",
        "modifiedTime": "2026-01-01T00:00:00Z",
    }


UNARY = {
    ("filesystem.Filesystem", "Stat"): stat,
    ("filesystem.Filesystem", "Move"): move,
    ("filesystem.Filesystem", "Remove"): remove,
    ("process.Process", "List"): list_processes,
    ("process.Process", "SendSignal"): send_signal,
}


# --- streams ---


async def stream(machine: Machine, request: Request, method: str, user: str, hastens: float) -> Response:
    """Frames of five bytes and JSON; the last has flag 2 and tells of an error, if there was one."""
    raw = await request.body()
    body = json.loads(raw[5 : 5 + struct.unpack(">I", raw[1:5])[0]])
    seconds = int(request.headers.get("Connect-Timeout-Ms") or 0) / 1000 / hastens
    keepalive = float(request.headers.get("Keepalive-Ping-Interval") or 90)

    async def frames() -> AsyncIterator[bytes]:
        try:
            if method == "Start":
                cwd = machine.path(body["process"].get("cwd", ""), user)
                if not cwd.exists():
                    raise ConnectError("invalid_argument", f"cwd '{cwd}' does not exist")
                process = Process(machine, body["process"])
                await process.start(user)
                machine.processes[process.pid] = process
            else:
                found = machine.processes.get(body["process"].get("pid", 0))
                if found is None:
                    raise ConnectError("not_found", "process with that pid not found")
                process = found
            async for event in events(machine, process, seconds, keepalive):
                yield frame({"event": event})
            yield frame({}, last=True)
        except ConnectError as error:
            yield frame({"error": error.body()}, last=True)

    return StreamingResponse(frames(), media_type="application/connect+json")


async def events(
    machine: Machine, process: Process, seconds: float, keepalive: float
) -> AsyncIterator[dict[str, Any]]:
    queue = process.subscribe()
    cut = asyncio.Event()
    machine.cuts.add(cut)
    clock = asyncio.get_running_loop().time
    deadline = clock() + seconds if seconds else float("inf")
    getting = asyncio.create_task(queue.get())
    cutting = asyncio.create_task(cut.wait())
    try:
        yield {"start": {"pid": process.pid}}
        if process.ended is not None and queue.empty():
            yield {"end": process.ended}
            return
        while True:
            left = deadline - clock()
            await asyncio.wait(
                [getting, cutting],
                timeout=max(0, min(keepalive, left)),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if cutting.done():
                raise ConnectionResetError("cut on purpose")
            if getting.done():
                event = getting.result()
                yield event
                if "end" in event:
                    return
                getting = asyncio.create_task(queue.get())
            elif clock() >= deadline:
                process.process.kill()
                raise ConnectError("invalid_argument", "deadline exceeded")
            else:
                yield {"keepalive": {}}
    finally:
        if queue in process.subscribers:
            process.subscribers.remove(queue)
        machine.cuts.discard(cut)
        getting.cancel()
        cutting.cancel()
        await asyncio.gather(getting, cutting, return_exceptions=True)


def frame(message: dict[str, Any], *, last: bool = False) -> bytes:
    data = json.dumps(message).encode()
    return struct.pack(">BI", 2 if last else 0, len(data)) + data
