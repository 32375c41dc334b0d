"""Which agent a page is about, and in whose place a member of staff acts on it."""

from dataclasses import replace
from uuid import UUID

from django.http import Http404

from agents.models import Agent
from apikeys.callers import Caller


def agent_of(by: Caller, agent_id: UUID) -> Agent:
    """The agent with what its pages show. Raises Http404."""
    found = Agent.objects.visible_to(by).select_related("project", "current_version", "stats")
    agent = found.filter(id=agent_id).first()
    if agent is None:
        raise Http404
    return agent


def in_place(by: Caller, agent: Agent) -> Caller:
    """The same person, for services that find agents by slug: the slug then means this agent and no other."""
    return replace(by, project=agent.project)
