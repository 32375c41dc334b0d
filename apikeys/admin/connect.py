"""Ready lines that submit a job to this very server, and a button that tries a key."""

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string
from django.template.response import TemplateResponse
from django.urls import Resolver404, resolve
from django.views.decorators.http import require_GET

from engine.dashboard.access import acting_as

# What is shown, in this order; each is a template of its own text.
CLIENTS = [
    ("curl", "curl", "In a shell."),
    ("python", "Python", "With httpx: pip install httpx."),
    ("javascript", "JavaScript", "In Node 18 or later, or any browser that this server allows as an origin."),
]
MCP = ("mcp", "Claude Code", "As tools of an assistant that speaks MCP.")


@require_GET
def connect(request: HttpRequest) -> HttpResponse:
    """The page, for whoever may see jobs."""
    acting_as(request)
    if not request.user.has_perm("jobs.view_job"):
        raise PermissionDenied
    address = request.build_absolute_uri("/")[:-1]
    clients = CLIENTS + ([MCP] if _speaks_mcp() else [])
    context = {
        **admin.site.each_context(request),
        "title": "Connect",
        "address": address,
        "clients": [
            {
                "id": name,
                "label": label,
                "about": about,
                "lines": render_to_string(f"apikeys/connect/{name}.txt", {"address": address}).strip(),
            }
            for name, label, about in clients
        ],
        "may_make_keys": request.user.has_perm("apikeys.change_apikey"),
    }
    return TemplateResponse(request, "apikeys/connect.html", context)


def _speaks_mcp() -> bool:
    """Whether this server has the door that MCP clients come through."""
    try:
        resolve("/mcp")
    except Resolver404:
        return False
    return True
