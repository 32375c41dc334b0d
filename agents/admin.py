"""Agents in the dashboard: who can work, and what each version says and holds."""

from typing import Any
from uuid import UUID

from django.contrib import admin
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.views.decorators.http import require_GET

from agents.health import health, success_rate, typical_duration
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
            path("<uuid:agent_id>/", own(agent_page), name="agents_agent_change"),
            path("", own(self.changelist_view), name="agents_agent_changelist"),
        ]

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The list with each agent's health."""
        shows_archived = request.GET.get("status") == Agent.Status.ARCHIVED
        response = super().changelist_view(
            request, {"shows_archived": shows_archived, **(extra_context or {})}
        )
        if isinstance(response, TemplateResponse) and response.context_data:
            rows = response.context_data["cl"].result_list
            response.context_data["rows"] = [_about(agent) for agent in rows]
        return response


def _about(agent: Agent) -> dict[str, Any]:
    """An agent with how its runs have gone."""
    stats: AgentStats | None = getattr(agent, "stats", None)
    version = agent.current_version
    seconds = typical_duration(stats)
    return {
        "agent": agent,
        "version": version,
        "health": health(version, stats) if version else None,
        "success": success_rate(stats),
        "duration_ms": seconds * 1000 if seconds is not None else None,
        "runs": stats.ok + stats.failed if stats else 0,
    }


@require_GET
def agent_page(request: HttpRequest, agent_id: UUID) -> HttpResponse:
    """One agent: its card, its source, its versions. `?version=N` shows an earlier one."""
    by = acting(request, Scope.AGENTS_READ)
    found = Agent.objects.visible_to(by).select_related("project", "current_version", "stats")
    agent = found.filter(id=agent_id).first()
    if agent is None:
        raise Http404
    version = _version(agent, request.GET.get("version", ""))
    context = {
        **admin.site.each_context(request),
        **_about(agent),
        "title": "Agent",
        "version": version,
        "versions": agent.versions.order_by("-number")[:MOST_VERSIONS],
        "may_run": by.may(Scope.JOBS_WRITE) and agent.status == Agent.Status.ACTIVE,
    }
    return TemplateResponse(request, "agents/page.html", context)


def _version(agent: Agent, number: str) -> AgentVersion | None:
    if not number:
        return agent.current_version
    version = agent.versions.filter(number=number).first() if number.isdigit() and len(number) < 10 else None
    if version is None:
        raise Http404
    return version
