"""The discovery lab: what would be picked for a task, by what, and why not the others."""

from dataclasses import dataclass, replace
from typing import Any

from django import forms
from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.views.decorators.http import require_GET

from agents import discovery
from agents.discovery import MAX_TASK_CHARS, Discovery, Result
from agents.models import Agent
from apikeys.callers import Caller
from apikeys.models import Project
from apikeys.scopes import Scope
from engine.dashboard.access import acting

MOST_RANKED = 20
MOST_LEFT_OUT = 20
DECISIONS = {
    "match": "This agent is sure to fit",
    "weak_match": "This agent fits weakly: the project’s settings say whether it runs, a person is asked, or the job "
    "is rejected",
    "none": "No agent fits: a job of this task is rejected",
}


class LabForm(forms.Form):
    """A task, and whose eyes look at the agents."""

    task = forms.CharField(max_length=MAX_TASK_CHARS, widget=forms.Textarea({"rows": 3}))
    project = forms.ModelChoiceField(
        Project.objects.filter(archived_at=None).order_by("slug"),
        to_field_name="slug",
        required=False,
        empty_label="All projects",
        help_text="A project sees the shared agents and its own, and has its own threshold.",
    )


@dataclass(frozen=True)
class Row:
    """One ranked agent as the page shows it."""

    place: int
    result: Result
    is_above: bool  # the project's threshold
    is_last_above: bool  # the line goes below it
    why_not: str  # empty for the one that is picked


@require_GET
def lab(request: HttpRequest) -> HttpResponse:
    """The form, and what discovery answers to it."""
    by = acting(request, Scope.AGENTS_READ)
    form = LabForm(request.GET if "task" in request.GET else None)
    context: dict[str, Any] = {
        **admin.site.each_context(request),
        "title": "Discovery lab",
        "form": form,
        "may_run": by.may(Scope.JOBS_WRITE),
        "has_agents": Agent.objects.active().exists(),
    }
    if form.is_valid():
        viewer = replace(by, project=form.cleaned_data["project"])
        found = discovery.discover(viewer, form.cleaned_data["task"], limit=MOST_RANKED)
        context |= {
            "found": found,
            "decided": _decided(found, discovery.cut_of(viewer)),
            "cut": discovery.cut_of(viewer),
            "rows": _rows(found, discovery.cut_of(viewer)),
            "left_out": _left_out(viewer, found),
        }
    return TemplateResponse(request, "agents/lab.html", context, status=422 if form.errors else 200)


def _decided(found: Discovery, cut: float) -> str:
    if not found.results or found.results[0].health.status != "unavailable":
        return DECISIONS[found.decision]
    others = (one for one in found.results if one.health.status != "unavailable" and one.confidence >= cut)
    other = next(others, None)
    becomes = f"goes to {other.version.agent.slug}" if other else "is rejected"
    return f"It fits and cannot run now, so that a job of this task {becomes}"


def _rows(found: Discovery, cut: float) -> list[Row]:
    ranked = found.results or found.nearest
    above = [found.decision != "none" and result.confidence >= cut for result in ranked]
    return [
        Row(
            place=index + 1,
            result=result,
            is_above=above[index],
            is_last_above=above[index] and not any(above[index + 1 :]),
            why_not=_why_not(result, index, above[index], ranked, found),
        )
        for index, result in enumerate(ranked)
    ]


def _why_not(result: Result, index: int, is_above: bool, ranked: list[Result], found: Discovery) -> str:
    if result.health.status == "unavailable":
        return result.health.reason
    if not is_above:
        return "Unrelated tasks match their nearest agent as well as this task matches it."
    if index == 0:
        return ""
    best = ranked[0]
    parts = [
        ("meaning", best.parts.meaning - result.parts.meaning),
        ("words", best.parts.words - result.parts.words),
        ("past success", best.parts.success - result.parts.success),
        ("being the project's own", best.parts.ownership - result.parts.ownership),
    ]
    name, _ = max(parts, key=lambda part: part[1])
    return f"{best.version.agent.slug} is ahead by {best.score - result.score:.2f}, most of it by {name}."


def _left_out(viewer: Caller, found: Discovery) -> list[dict[str, str]]:
    """Agents that were not ranked at all, and what keeps them out."""
    ranked = {result.version.agent_id for result in found.results + found.nearest}
    others = Agent.objects.visible_to(viewer).select_related("current_version").exclude(id__in=ranked)
    archived = others.filter(status=Agent.Status.ARCHIVED).order_by("slug", "id")[:MOST_LEFT_OUT]
    return [{"id": str(agent.id), "slug": agent.slug, "why": "It is archived."} for agent in archived]
