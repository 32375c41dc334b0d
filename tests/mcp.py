"""An MCP client of our own, which also sends what no official client would."""

import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from django.test import Client as DjangoClient
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client

STATELESS = "2026-07-28"
META = "io.modelcontextprotocol"
NAMED = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}


@dataclass
class RawClient:
    """Sends frames of either era to one server with one key."""

    http: Any  # httpx.Client, or REST framework's test client behind `InProcess`
    secret: str
    capabilities: dict[str, Any] | None = None  # None: the era of `initialize`
    notices: list[dict[str, Any]] = field(default_factory=list)
    ids: Any = field(default_factory=lambda: itertools.count(1))

    def post(self, body: Any, **headers: str) -> httpx.Response:
        """One POST of anything."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {
            "Authorization": f"Bearer {self.secret}",
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        answer: httpx.Response = self.http.post("/mcp", content=content, headers=sent)
        return answer

    def request(self, method: str, **params: Any) -> dict[str, Any]:
        """The frame that answers a request."""
        return self.read(self.send(method, **params))

    def send(self, method: str, **params: Any) -> httpx.Response:
        """A request as its era writes it."""
        headers = {}
        if self.capabilities is not None:
            meta = {
                f"{META}/protocolVersion": STATELESS,
                f"{META}/clientCapabilities": self.capabilities,
                f"{META}/clientInfo": {"name": "raw", "version": "1"},
            }
            params["_meta"] = {**meta, **params.get("_meta", {})}
            headers = {"MCP-Protocol-Version": STATELESS, "Mcp-Method": method}
            named = NAMED.get(method, "taskId")
            if named in params:
                headers["Mcp-Name"] = params[named]
        frame = {"jsonrpc": "2.0", "id": next(self.ids), "method": method, "params": params}
        return self.post(frame, **headers)

    def read(self, answer: httpx.Response) -> dict[str, Any]:
        """The last frame of an answer; those before it are notices."""
        if answer.headers["content-type"].startswith("text/event-stream"):
            lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
            *notices, frame = map(json.loads, lines)
            self.notices += notices
        else:
            frame = answer.json()
        assert frame["jsonrpc"] == "2.0"
        return dict(frame)

    def result(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a request that succeeds."""
        frame = self.request(method, **params)
        assert "result" in frame, frame
        return dict(frame["result"])

    def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """The structured result of a tool that does what it should."""
        result = self.result("tools/call", name=tool, arguments=arguments)
        assert not result["isError"], result
        return dict(result["structuredContent"])

    def refused(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """The problem document of a tool that refuses."""
        result = self.result("tools/call", name=tool, arguments=arguments)
        assert result["isError"], result
        assert json.loads(result["content"][0]["text"]) == result["structuredContent"]
        return dict(result["structuredContent"])


class InProcess:
    """Posts to Django itself, without a server: nothing waits then."""

    def __init__(self) -> None:
        self.client = DjangoClient(raise_request_exception=False)

    def post(self, url: str, *, content: bytes, headers: dict[str, str]) -> httpx.Response:
        """As httpx posts."""
        given = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()}
        content_type = given.pop("HTTP_CONTENT_TYPE")
        answer = self.client.generic("POST", url, content, content_type, **given)  # type: ignore[arg-type]
        return httpx.Response(answer.status_code, headers=dict(answer.items()), content=answer.content)


@asynccontextmanager
async def official(url: str, secret: str, mode: str, **options: Any) -> AsyncIterator[Client]:
    """The protocol's own client; `legacy` begins with `initialize`, `auto` finds the stateless era."""
    headers = {"Authorization": f"Bearer {secret}"}
    async with create_mcp_http_client(headers=headers) as http:
        transport = streamable_http_client(f"{url}/mcp", http_client=http)
        async with Client(transport, mode=mode, **options) as client:
            yield client
