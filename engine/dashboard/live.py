"""Parts of a page that refresh themselves without a reload (static/engine/live.js)."""

from collections.abc import Mapping
from typing import Any

from django.http import HttpRequest, JsonResponse
from django.template.loader import render_to_string
from django.utils import timezone


def wants_parts(request: HttpRequest) -> bool:
    """Whether the script asks, not a person."""
    return request.headers.get("Accept", "") == "application/json"


def parts(
    request: HttpRequest, templates: Mapping[str, str], context: dict[str, Any], *, final: bool = False
) -> JsonResponse:
    """Each part of the page by its element id, as HTML. `final`: nothing will change any more, stop asking.

    HTML, not figures: a part looks the same whether it came with the page or after it, and has one template.
    """
    rendered = {name: render_to_string(template, context, request) for name, template in templates.items()}
    now = context.get("now") or timezone.now()
    response = JsonResponse({"now": now.isoformat(), "final": final, "parts": rendered})
    response["Cache-Control"] = "no-store"
    return response
