"""Whether this process lives, and whether Engine can run jobs: `/health/live` and `/health/ready`."""

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

from django.http import HttpRequest, HttpResponseBase, JsonResponse

from engine import readiness
from engine.diagnosis import State
from engine.readiness import Reading


class HealthMiddleware:
    """Answers `/health/live` and `/health/ready` before hosts, TLS redirects and sessions are looked at.

    A probe calls a container by its address, which is no host of ours.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer a probe, or pass the request on."""
        if not request.path_info.startswith("/health/") or request.method not in ("GET", "HEAD"):
            return self.get_response(request)
        match request.path_info:
            case "/health/live":
                return answer([])
            case "/health/ready":
                # A balancer's question: a web process takes jobs while no worker is there to run them.
                without = request.GET.get("without", "").split(",")
                return answer(readiness.readings(without=without))
            case _:
                return self.get_response(request)


def answer(parts: Sequence[Reading]) -> JsonResponse:
    """200 with the parts if none that is needed has failed, else 503."""
    ready = all(part.is_ready for part in parts)
    body: dict[str, Any] = {"status": "ok" if ready else "unavailable"}
    if any(part.state == State.DEGRADED for part in parts):
        body["degraded"] = True
    body["parts"] = {part.name: part.public() for part in parts}
    response = JsonResponse(body, status=HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE)
    response["Cache-Control"] = "no-store"
    response._has_been_logged = True  # type: ignore[attr-defined]  # Django's flag: a probe each second is no news
    return response


def silence() -> JsonResponse:
    """What a probe is told when the database keeps it waiting."""
    return answer(readiness.last_known())
