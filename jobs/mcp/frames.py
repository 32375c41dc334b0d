"""JSON-RPC frames of both eras of MCP: what comes in is checked here, and what goes out is shaped here.

Up to 2025-11-25 a client begins with `initialize`; from 2026-07-28 on each request says in `_meta` who sends it, and
headers repeat what proxies route by. We hold no session for either.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder

from engine import __version__
from engine.errors import EngineError
from engine.gate import parse_json
from engine.problems import BodyTooLarge

HANDSHAKE_VERSIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
STATELESS_VERSIONS = ("2026-07-28",)

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS = -32700, -32600, -32601, -32602
INTERNAL_ERROR, REFUSED, RESOURCE_NOT_FOUND = -32603, -32000, -32002
HEADER_MISMATCH, MISSING_CAPABILITY, UNSUPPORTED_VERSION = -32020, -32021, -32022

_META = "io.modelcontextprotocol/"
VERSION_KEY, CAPABILITIES_KEY, SERVER_KEY = (
    f"{_META}{name}" for name in ("protocolVersion", "clientCapabilities", "serverInfo")
)
TASKS_EXTENSION = f"{_META}tasks"
SERVER_INFO = {"name": "engine", "title": "Engine", "version": __version__}

# Both travel in a header of ours while a call waits, and come back with every notice.
MOST_ID_CHARS = 200

# What the `Mcp-Name` header repeats of a request's params.
NAMED_BY = {
    "tools/call": "name",
    "prompts/get": "name",
    "resources/read": "uri",
    "tasks/get": "taskId",
    "tasks/update": "taskId",
    "tasks/cancel": "taskId",
}
# The status of an error in the stateless era. In the older one only frames that cannot be read have one of their own.
_STATUS = {
    PARSE_ERROR: HTTPStatus.BAD_REQUEST,
    INVALID_REQUEST: HTTPStatus.BAD_REQUEST,
    INVALID_PARAMS: HTTPStatus.BAD_REQUEST,
    HEADER_MISMATCH: HTTPStatus.BAD_REQUEST,
    MISSING_CAPABILITY: HTTPStatus.BAD_REQUEST,
    UNSUPPORTED_VERSION: HTTPStatus.BAD_REQUEST,
    METHOD_NOT_FOUND: HTTPStatus.NOT_FOUND,
}
_UNREADABLE = (PARSE_ERROR, INVALID_REQUEST, HEADER_MISMATCH, UNSUPPORTED_VERSION)

RequestId = str | int


class Refusal(Exception):
    """An error of the protocol. What a tool cannot do is no such error but the tool's result."""

    def __init__(
        self, code: int, message: str, data: Any = None, *, status: HTTPStatus | None = None
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.data, self.status = code, message, data, status
        self.frame: Frame | None = None  # the request that is refused, as far as it could be read


@dataclass(frozen=True)
class Frame:
    """One request or, without an id, one notification."""

    method: str
    id: RequestId | None = None
    params: dict[str, Any] = field(default_factory=dict)
    is_stateless: bool = False
    capabilities: dict[str, Any] = field(default_factory=dict)

    @property
    def progress_token(self) -> RequestId | None:
        """What the client wants progress notices to carry, or None if it wants none."""
        token = self.params.get("_meta", {}).get("progressToken")
        return token if _is_id(token) else None

    @property
    def can_be_asked(self) -> bool:
        """Whether a question can be put to the person behind the client, as a form in an answer of ours."""
        asked = self.capabilities.get("elicitation")
        # An empty object stands for forms, as it did before there was another mode.
        return isinstance(asked, dict) and ("form" in asked or not asked)

    @property
    def has_tasks(self) -> bool:
        """Whether the client takes a task for an answer, and asks for it later."""
        extensions = self.capabilities.get("extensions")
        return isinstance(extensions, dict) and TASKS_EXTENSION in extensions


def read(body: bytes, headers: Mapping[str, str]) -> Frame:
    """The frame of a POST. Raises Refusal."""
    try:
        value = parse_json(body)
    except BodyTooLarge as error:
        raise Refusal(INVALID_REQUEST, error.detail, status=error.status) from error
    except EngineError as error:
        data = {"code": error.code, "errors": error.errors}
        raise Refusal(PARSE_ERROR, f"Parse error: {error.detail}", data) from error
    if not isinstance(value, dict):
        raise Refusal(INVALID_REQUEST, "Send one JSON-RPC request or notification; batches are not taken")
    frame = Frame(method="", id=_id(value))
    try:
        frame = _frame(value, frame.id)
        return _of_its_era(frame, headers)
    except Refusal as refusal:
        refusal.frame = frame
        raise


def _is_id(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (isinstance(value, str) and len(value) <= MOST_ID_CHARS)


def _id(value: dict[str, Any]) -> RequestId | None:
    if "id" not in value:
        return None
    given: RequestId = value["id"]
    if not _is_id(given):
        raise Refusal(
            INVALID_REQUEST, f"`id` is an integer or a string of at most {MOST_ID_CHARS} characters"
        )
    return given


def _frame(value: dict[str, Any], request_id: RequestId | None) -> Frame:
    if value.get("jsonrpc") != "2.0":
        raise Refusal(INVALID_REQUEST, '`jsonrpc` must be "2.0"')
    method = value.get("method")
    if not isinstance(method, str):
        raise Refusal(INVALID_REQUEST, "`method` must be a string; we ask nothing, so there are no responses")
    params = value.get("params", {})
    if not isinstance(params, dict):
        raise Refusal(INVALID_PARAMS, "`params` must be an object")
    if not isinstance(params.get("_meta", {}), dict):
        raise Refusal(INVALID_PARAMS, "`params._meta` must be an object")
    return Frame(method, request_id, params)


def _of_its_era(frame: Frame, headers: Mapping[str, str]) -> Frame:
    """The frame with what its era says about the client. Raises Refusal."""
    header = headers.get("Mcp-Protocol-Version")
    meta = frame.params.get("_meta", {})
    if header in HANDSHAKE_VERSIONS or (header is None and VERSION_KEY not in meta):
        return frame
    if frame.id is None:
        if header not in STATELESS_VERSIONS:
            raise _unsupported(header)
        return Frame(frame.method, None, frame.params, is_stateless=True)
    if header is not None and header not in STATELESS_VERSIONS and VERSION_KEY not in meta:
        raise _unsupported(header)
    missing = [key for key in (VERSION_KEY, CAPABILITIES_KEY) if key not in meta]
    if missing:
        raise Refusal(INVALID_PARAMS, f"`params._meta` lacks {', '.join(missing)}")
    _check_headers(frame, headers)
    if meta[VERSION_KEY] not in STATELESS_VERSIONS:
        raise _unsupported(meta[VERSION_KEY])
    capabilities = meta[CAPABILITIES_KEY]
    if not isinstance(capabilities, dict):
        raise Refusal(INVALID_PARAMS, f"`params._meta` must have an object as {CAPABILITIES_KEY}")
    return Frame(frame.method, frame.id, frame.params, is_stateless=True, capabilities=capabilities)


def _check_headers(frame: Frame, headers: Mapping[str, str]) -> None:
    """Headers that a proxy routes by must say what the body says."""
    expected = {"Mcp-Protocol-Version": frame.params["_meta"][VERSION_KEY], "Mcp-Method": frame.method}
    named = NAMED_BY.get(frame.method)
    if named and frame.params.get(named) is not None:
        expected["Mcp-Name"] = frame.params[named]
    for name, value in expected.items():
        if decoded(headers.get(name)) != value:
            raise Refusal(HEADER_MISMATCH, f"The header {name} does not say what the body says")


def decoded(header: str | None) -> str | None:
    """A header's value; what is not plain ASCII comes as `=?base64?…?=`. None where that is broken."""
    if header is None or not (header.startswith("=?base64?") and header.endswith("?=")):
        return header
    try:
        return base64.b64decode(header[9:-2], validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None


def _unsupported(requested: Any) -> Refusal:
    versions = {"supported": [*HANDSHAKE_VERSIONS, *STATELESS_VERSIONS], "requested": str(requested)[:100]}
    return Refusal(UNSUPPORTED_VERSION, "Unsupported protocol version", versions)


# --- what goes out ---


def dumps(document: dict[str, Any]) -> bytes:
    """A frame as bytes: in ASCII, so that it can also stand on one line of an event stream."""
    return json.dumps(document, cls=DjangoJSONEncoder, separators=(",", ":")).encode()


def success(request_id: RequestId | None, result: dict[str, Any], *, is_stateless: bool) -> dict[str, Any]:
    """The answer to a request, with what each result of its era carries."""
    if is_stateless:
        meta = {**result.get("_meta", {}), SERVER_KEY: SERVER_INFO}
        result = {"resultType": "complete", **result, "_meta": meta}
    return {"jsonrpc": "2.0", "id": request_id, "result": result}


def failure(refusal: Refusal) -> tuple[HTTPStatus, dict[str, Any]]:
    """The status and the body that say why a frame was refused."""
    error: dict[str, Any] = {"code": refusal.code, "message": refusal.message}
    if refusal.data is not None:
        error["data"] = refusal.data
    frame = refusal.frame
    speaks_status = refusal.code in _UNREADABLE or (frame is not None and frame.is_stateless)
    status = refusal.status or (_STATUS.get(refusal.code) if speaks_status else None) or HTTPStatus.OK
    return status, {"jsonrpc": "2.0", "id": frame.id if frame else None, "error": error}
