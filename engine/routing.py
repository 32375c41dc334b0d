"""What does not go over the bridge: requests that wait or stream, and WebSockets. This is the one list of them.

A route takes a request when its method and path match and `wants` says yes to its headers (the same address may
answer plain JSON over the bridge). Its application is asynchronous: it holds no thread while it waits.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.urls import path, re_path

from engine.bridge import ASGIApplication, Receive, Scope, Send
from jobs import streams
from jobs.consumers import JobEventsConsumer
from jobs.mcp.waiting import mcp

RequestHeaders = dict[bytes, bytes]


@dataclass(frozen=True)
class AsyncRoute:
    """One kind of request that `app` answers. The path's named groups become scope["url_route"]["kwargs"]."""

    method: str
    path: re.Pattern[str]
    wants: Callable[[RequestHeaders], bool]
    app: ASGIApplication


JOB = r"(?P<job_id>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"

HTTP_ROUTES: list[AsyncRoute] = [
    AsyncRoute("GET", re.compile(f"/api/v1/jobs/{JOB}/logs"), streams.wants_stream, streams.job_events),
    AsyncRoute("POST", re.compile("/api/v1/jobs"), streams.wants_wait, streams.answer_later),
    AsyncRoute("GET", re.compile(f"/api/v1/jobs/{JOB}"), streams.wants_wait, streams.answer_later),
    AsyncRoute("POST", re.compile(f"/api/v1/jobs/{JOB}/respond"), streams.wants_wait, streams.answer_later),
    AsyncRoute("POST", re.compile("/mcp"), lambda headers: True, mcp),
]


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a handshake for an address that does not exist."""
    await send({"type": "websocket.close"})


WEBSOCKET_ROUTES: list[Any] = [
    path("ws/v1/jobs/<uuid:job_id>", JobEventsConsumer.as_asgi()),
    # Last: for an address that it does not know, the router would raise. (Django's stubs know no ASGI.)
    re_path("", refuse),  # type: ignore[arg-type]
]


def async_app_for(scope: Scope) -> ASGIApplication | None:
    """The asynchronous application that takes this HTTP request, or None: then Django does, over the bridge."""
    headers = dict(scope["headers"])
    for route in HTTP_ROUTES:
        if route.method == scope["method"] and route.wants(headers):
            match = route.path.fullmatch(scope["path"])
            if match:
                scope["url_route"] = {"args": (), "kwargs": match.groupdict()}
                return route.app
    return None
