"""Agents in the dashboard: who can work, and what each version says and holds."""

from typing import Any
from uuid import UUID

from django.contrib import admin
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.views.decorators.http import require_GET

from agents import services
from agents.admin import editor, lab
from agents.admin.acting_for import agent_of
from agents.health import health, provider_problem, success_rate, typical_duration
from agents.models import Agent, AgentStats, AgentVersion
from apikeys.scopes import Scope
from engine.dashboard.access import acting
from engine.dashboard.lists import ListAdmin, ParameterFilter

MOST_VERSIONS = 100


class ByStatus(ParameterFilter):
    """Agents that may be given work; with `?status=archived`, those that no longer may."""

    title, parameter_name = "state", "status"

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Narrow the list."""
        return queryset.filter(status=self.value() or Agent.Status.ACTIVE)


@admin.register(Agent)
class AgentAdmin(ListAdmin):
    """All agents of all projects, by slug."""

    change_list_template = "agents/list.html"
    list_title = "Agents"
    list_select_related = ("project", "current_version", "stats")
    list_filter = (ByStatus,)
    search_fields = ("slug", "current_version__name", "current_version__description")
    ordering = ("slug", "id")

    def get_urls(self) -> list[URLPattern]:
        """The list, and a page for each agent."""
        own = self.admin_site.admin_view
        return [
            path("new/", own(editor.new_agent), name="agents_agent_new"),
            path("discover/", own(lab.lab), name="agents_agent_discover"),
            path("check/", own(editor.check_agent), name="agents_agent_check"),
            path("<uuid:agent_id>/", own(agent_page), name="agents_agent_change"),
            path("<uuid:agent_id>/edit/", own(editor.edit_agent), name="agents_agent_edit"),
            path("<uuid:agent_id>/diff/", own(diff_page), name="agents_agent_diff"),
            *(
                path(
                    f"<uuid:agent_id>/{action}/",
                    own(editor.archive_agent),
                    {"action": action},
                    f"agents_agent_{action}",
                )
                for action in ("archive", "restore")
            ),
            path("", own(self.changelist_view), name="agents_agent_changelist"),
        ]

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The list with each agent's health."""
        shows_archived = request.GET.get("status") == Agent.Status.ARCHIVED
        may_change = request.user.has_perm("agents.change_agent")
        shown = {"shows_archived": shows_archived, "may_change": may_change, **(extra_context or {})}
        response = super().changelist_view(request, shown)
        if isinstance(response, TemplateResponse) and response.context_data:
            rows = response.context_data["cl"].result_list
            provider = provider_problem()
            response.context_data["rows"] = [_about(agent, provider) for agent in rows]
        return response


def _about(agent: Agent, provider: str) -> dict[str, Any]:
    """An agent with how its runs have gone."""
    stats: AgentStats | None = getattr(agent, "stats", None)
    version = agent.current_version
    seconds = typical_duration(stats)
    return {
        "agent": agent,
        "version": version,
        "health": health(version, stats, provider=provider) if version else None,
        "success": success_rate(stats),
        "duration_ms": seconds * 1000 if seconds is not None else None,
        "runs": stats.ok + stats.failed if stats else 0,
        "durations": stats.durations if stats and sum(stats.durations) else [],
    }


@require_GET
def agent_page(request: HttpRequest, agent_id: UUID) -> HttpResponse:
    """One agent: its card, its source, its versions. `?version=N` shows an earlier one."""
    by = acting(request, Scope.AGENTS_READ)
    agent = agent_of(by, agent_id)
    version = _version(agent, request.GET.get("version", "")) or agent.current_version
    context = {
        **admin.site.each_context(request),
        **_about(agent, provider_problem()),
        "title": "Agent",
        "version": version,
        "versions": agent.versions.order_by("-number")[:MOST_VERSIONS],
        "may_run": by.may(Scope.JOBS_WRITE) and agent.status == Agent.Status.ACTIVE,
        "may_change": by.may(Scope.AGENTS_WRITE),
        "is_editable": version is not None and version.kind == AgentVersion.Kind.PYTHON,
    }
    return TemplateResponse(request, "agents/page.html", context)


@require_GET
def diff_page(request: HttpRequest, agent_id: UUID) -> HttpResponse:
    """What changed from one version to another: `?older=1&newer=2`; without them, by the current version."""
    agent = agent_of(acting(request, Scope.AGENTS_READ), agent_id)
    newer = _version(agent, request.GET.get("newer", "")) or agent.current_version
    if newer is None:
        raise Http404
    earlier = agent.versions.filter(number__lt=newer.number).order_by("-number").first()
    older = _version(agent, request.GET.get("older", "")) or earlier or newer
    older.agent = newer.agent = agent
    found = services.diff(older, newer)
    context = {
        **admin.site.each_context(request),
        "title": "Versions compared",
        "agent": agent,
        "older": older,
        "newer": newer,
        "versions": agent.versions.order_by("-number")[:MOST_VERSIONS],
        "fields": found["fields_changed"],
        "files": [
            {"file": one["file"], "lines": [(_kind_of(line), line) for line in one["diff"].splitlines()]}
            for one in found["files_changed"]
        ],
    }
    return TemplateResponse(request, "agents/diff.html", context)


def _kind_of(line: str) -> str:
    """How a line of a unified diff is shown."""
    if line.startswith(("+++", "---", "@@")):
        return "at"
    return {"+": "new", "-": "old"}.get(line[:1], "same")


def _version(agent: Agent, number: str) -> AgentVersion | None:
    """The version of this number; None where none is asked for. Raises Http404."""
    if not number:
        return None
    is_number = number.isdecimal() and number.isascii() and len(number) < 10
    version = agent.versions.filter(number=number).first() if is_number else None
    if version is None:
        raise Http404
    return version
