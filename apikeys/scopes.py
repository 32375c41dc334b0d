"""What a key may be allowed to do, and when one set of scopes covers another."""

import re
from collections.abc import Collection
from enum import StrEnum


class Scope(StrEnum):
    """One right each. `agents:SLUG:run` beside these lets a key run that agent alone (`run_scope`)."""

    JOBS_READ = "jobs:read"
    JOBS_WRITE = "jobs:write"
    JOBS_RESPOND = "jobs:respond"
    AGENTS_READ = "agents:read"
    AGENTS_WRITE = "agents:write"
    # The keys of the own project, never with more than the own scopes.
    ADMIN_KEYS = "admin:keys"
    # Where the own project's events are sent, which is as much as reading all its jobs.
    ADMIN_WEBHOOKS = "admin:webhooks"
    # Workers and metrics of the whole installation.
    ADMIN_WORKERS = "admin:workers"
    ADMIN_METRICS = "admin:metrics"
    # Every right, and besides them new projects and the own project's limits: for whoever runs Engine.
    ADMIN = "admin"


# What a tenant's own first key gets: everything that ends at the walls of the project.
PROJECT_SCOPES = (
    Scope.JOBS_READ,
    Scope.JOBS_WRITE,
    Scope.JOBS_RESPOND,
    Scope.AGENTS_READ,
    Scope.AGENTS_WRITE,
    Scope.ADMIN_KEYS,
    Scope.ADMIN_WEBHOOKS,
)

_NAMES = frozenset(scope.value for scope in Scope)
_RUN = re.compile(r"agents:([a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?):run")


def run_scope(agent_slug: str) -> str:
    """The scope that lets a key run this one agent."""
    return f"agents:{agent_slug}:run"


def agent_of(scope: str) -> str | None:
    """The slug in `agents:SLUG:run`, or None for any other scope."""
    found = _RUN.fullmatch(scope)
    return found[1] if found else None


def is_scope(text: str) -> bool:
    """Whether this is a scope at all."""
    return text in _NAMES or agent_of(text) is not None


def holds(held: Collection[str], wanted: str) -> bool:
    """Whether `held` gives the right `wanted`: by name, as admin, or because it runs every agent."""
    if wanted in held or Scope.ADMIN in held:
        return True
    return agent_of(wanted) is not None and Scope.JOBS_WRITE in held
