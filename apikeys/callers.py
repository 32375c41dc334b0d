"""Who asks: the one value that services take to decide what may be seen and done."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from django.core.exceptions import PermissionDenied
from rest_framework.exceptions import NotAuthenticated

from apikeys.models import ApiKey, Project
from apikeys.scopes import Scope, agent_of, holds, run_scope

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractUser, AnonymousUser
    from rest_framework.request import Request

# What a member of staff who is no superuser may do, by the permissions Django's admin gives out.
STAFF_PERMISSIONS = {
    Scope.JOBS_READ: "jobs.view_job",
    Scope.JOBS_WRITE: "jobs.add_job",
    Scope.JOBS_RESPOND: "jobs.change_question",
    Scope.AGENTS_READ: "agents.view_agent",
    Scope.AGENTS_WRITE: "agents.change_agent",
    Scope.ADMIN_KEYS: "apikeys.change_apikey",
    Scope.ADMIN_WEBHOOKS: "jobs.change_webhookendpoint",
    Scope.ADMIN_WORKERS: "jobs.view_worker",
    Scope.ADMIN_METRICS: "jobs.view_worker",
    # Whoever may lift every project's limits runs the installation.
    Scope.ADMIN: "apikeys.change_project",
}


@dataclass(frozen=True)
class Caller:
    """An API key, a member of staff in the dashboard, or whoever holds a signed link."""

    # None: staff, who see every project.
    project: Project | None
    scopes: frozenset[str]
    key: ApiKey | None = None
    # Set for staff.
    user_name: str = ""
    # Set for the holder of a link: who it was made for, or by.
    link_holder: str = ""
    # The door: api_key, dashboard, link, mcp, cli.
    via: str = "api_key"
    # Where the request came from, for audit rows.
    ip: str | None = None
    request_id: str = ""
    # Rights that `may` has confirmed, so that an idempotent replay can ask for the same ones again.
    confirmed: set[tuple[str, str | None]] = field(default_factory=set, compare=False, repr=False)

    @property
    def label(self) -> str:
        """How answers and audit rows name this caller."""
        if self.key is not None:
            return f"key:{self.key.name}"
        if self.link_holder:
            return f"link:{self.link_holder}"
        return f"user:{self.user_name}" if self.user_name else self.via

    def may(self, scope: str, *, agent_slug: str | None = None) -> bool:
        """Whether this caller has the right; with `agent_slug`, the right to run that agent is enough."""
        if not (holds(self.scopes, scope) or (agent_slug and self._runs(scope, agent_slug))):
            return False
        self.confirmed.add((scope, agent_slug))
        return True

    def runs_only(self) -> frozenset[str] | None:
        """The slugs of the only agents this caller may run, or None if it may run all it sees."""
        if holds(self.scopes, Scope.JOBS_WRITE):
            return None
        return frozenset(slug for scope in self.scopes if (slug := agent_of(scope)))

    def _runs(self, scope: str, agent_slug: str) -> bool:
        return scope == Scope.JOBS_WRITE and run_scope(agent_slug) in self.scopes


def caller(request: "Request") -> Caller:
    """Who sent this DRF request. Raises NotAuthenticated if nobody did."""
    if isinstance(request.auth, Caller):
        return request.auth
    raise NotAuthenticated


def staff_caller(user: "AbstractUser | AnonymousUser") -> Caller:
    """A member of staff in the dashboard, who sees every project. PermissionDenied for anybody else."""
    if not (user.is_active and user.is_staff):
        raise PermissionDenied
    if user.is_superuser:
        scopes = frozenset[str]({Scope.ADMIN})
    else:
        scopes = frozenset(
            scope for scope, permission in STAFF_PERMISSIONS.items() if user.has_perm(permission)
        )
    return Caller(project=None, scopes=scopes, user_name=user.get_username(), via="dashboard")
