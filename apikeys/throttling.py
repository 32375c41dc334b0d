"""A key's rate windows, and the headers that tell a client where it stands.

Counted in PostgreSQL, or in Redis where there is one, and exact over all processes. `RateLimit` and
`RateLimit-Policy` follow draft-ietf-httpapi-ratelimit-headers-11, `X-RateLimit-*` the older custom.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from django.http import HttpRequest, HttpResponseBase
from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle

from apikeys.callers import Caller
from apikeys.errors import RateLimited
from apikeys.models import ApiKey
from apikeys.queries import Count, count_request
from apikeys.redis_counters import count_in_redis
from engine.meters import RATE_LIMIT_REFUSALS

if TYPE_CHECKING:
    from rest_framework.views import APIView  # it imports this module: DEFAULT_..._CLASSES


class KeyRateThrottle(BaseThrottle):
    """Counts each request of a key in all its windows."""

    def allow_request(self, request: Request, view: "APIView") -> bool:
        """True, or RateLimited."""
        count(request)
        return True


def count(request: Request) -> None:
    """Count this request of a key, shortest window first. Raises RateLimited at the first that is used up.

    In this order a request that a short window refuses takes nothing from the longer ones.
    """
    by = request.auth
    if not isinstance(by, Caller) or by.key is None:
        return
    counts: list[Count] = []
    request._request.rate_counts = counts  # type: ignore[attr-defined]  # for rate_headers below
    count_key(by.key, counts)


def count_key(key: ApiKey, counts: list[Count]) -> None:
    """Count a request, or a WebSocket's handshake, of the key into `counts`. Raises RateLimited."""
    for window in sorted(key.windows, key=lambda window: int(window["seconds"])):
        subject, limit, seconds = f"key:{key.id}", window["limit"], window["seconds"]
        counted = count_in_redis(subject, limit=limit, seconds=seconds) or count_request(
            subject, limit=limit, seconds=seconds
        )
        counts.append(counted)
        if counted.is_over:
            RATE_LIMIT_REFUSALS.inc()
            raise RateLimited(
                f"The key may send {counted.limit} requests in {counted.seconds} seconds",
                headers={"Retry-After": str(max(1, math.ceil(counted.resets_in)))},
            )


def rate_headers(
    get_response: Callable[[HttpRequest], HttpResponseBase],
) -> Callable[[HttpRequest], HttpResponseBase]:
    """Middleware: where the key stands, on every answer to a request that was counted."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        response = get_response(request)
        counts: list[Count] = getattr(request, "rate_counts", [])
        if counts:
            tightest = min(counts, key=lambda counted: (counted.remaining, -counted.resets_in))
            response["RateLimit-Policy"] = ", ".join(
                f'"{c.seconds}s";q={c.limit};w={c.seconds}' for c in counts
            )
            response["RateLimit"] = ", ".join(
                f'"{c.seconds}s";r={c.remaining};t={max(0, math.ceil(c.resets_in))}' for c in counts
            )
            response["X-RateLimit-Limit"] = str(tightest.limit)
            response["X-RateLimit-Remaining"] = str(tightest.remaining)
            response["X-RateLimit-Reset"] = str(math.ceil(tightest.resets_at.timestamp()))
        return response

    return middleware
