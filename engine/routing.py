"""What does not go over the bridge: requests that wait or stream, and WebSockets. This is the one list of them.

A route takes a request when its method and path match and `wants` says yes to its headers (the same address may
answer plain JSON over the bridge). Its application is asynchronous: it holds no thread while it waits.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine.bridge import ASGIApplication, Scope

RequestHeaders = dict[bytes, bytes]


@dataclass(frozen=True)
class AsyncRoute:
    """One kind of request that `app` answers. The path's named groups become scope["url_route"]["kwargs"]."""

    method: str
    path: re.Pattern[str]
    wants: Callable[[RequestHeaders], bool]
    app: ASGIApplication


HTTP_ROUTES: list[AsyncRoute] = []

WEBSOCKET_ROUTES: list[Any] = []


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
