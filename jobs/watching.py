"""Who may watch a job's events, and by which right: an API key, a one-time ticket, or a session of the dashboard."""

import secrets
from collections.abc import Hashable
from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib.auth import get_user
from django.core import signing
from django.core.exceptions import PermissionDenied
from django.db.models import Max
from django.db.models.functions import Now

from apikeys.addresses import is_inside
from apikeys.auth import authenticate_bearer
from apikeys.callers import Caller, staff_caller
from apikeys.errors import ScopeMissing
from apikeys.models import ApiKey
from apikeys.queries import count_request
from apikeys.scopes import Scope
from apikeys.throttling import count_key
from engine.problems import NotAuthenticated
from jobs import services
from jobs.models import Event, Job

# A ticket is fetched and used at once; the network between takes its time.
TICKET_SECONDS = 30
TICKET_SALT = "jobs.stream-ticket"


@dataclass(frozen=True)
class KeyAccess:
    """The right of an API key, as long as it would be accepted for a new request."""

    key_id: UUID
    ip: str

    @property
    def name(self) -> Hashable:
        """One for all streams of the key."""
        return ("key", self.key_id)

    def holds(self) -> bool:
        """Whether the key is still accepted, and may still read jobs."""
        by = self.caller()
        return by is not None and by.may(Scope.JOBS_READ)

    def caller(self) -> Caller | None:
        """Who that is now, or None if the key is no longer accepted."""
        key = (
            ApiKey.objects.select_related("project")
            .filter(id=self.key_id, revoked_at=None, disabled_at=None, project__archived_at=None)
            .exclude(expires_at__lte=Now())
            .first()
        )
        if key is None or (key.allowed_cidrs and not is_inside(self.ip, key.allowed_cidrs)):
            return None
        return Caller(project=key.project, scopes=frozenset(key.scopes), key=key, ip=self.ip)


@dataclass(frozen=True)
class SessionAccess:
    """The right of a member of staff, as long as the session lasts."""

    session_key: str

    @property
    def name(self) -> Hashable:
        """One for all streams of the session."""
        return ("session", self.session_key)

    def holds(self) -> bool:
        """Whether the session still belongs to somebody who may read jobs."""
        by = self.caller()
        return by is not None and by.may(Scope.JOBS_READ)

    def caller(self) -> Caller | None:
        """Who that is now, or None if the session has ended."""
        store = import_module(settings.SESSION_ENGINE).SessionStore(self.session_key)
        request: Any = SimpleNamespace(session=store)  # all that get_user looks at
        try:
            return staff_caller(get_user(request))
        except PermissionDenied:
            return None


Access = KeyAccess | SessionAccess


@dataclass(frozen=True)
class View:
    """A job that may be watched, as it stood when it was looked at."""

    job: Job
    head: int  # number of its last event, read before the job: what changes after it, changes after `head`
    access: Access


def address(scope: dict[str, Any]) -> str:
    """Where an ASGI connection comes from; what proxies say about it was settled before (`engine/proxies.py`)."""
    return str((scope.get("client") or ("", 0))[0])


def view(job_id: UUID, access: Access, *, needs: str = Scope.JOBS_READ) -> View:
    """Look at a job. Raises NotAuthenticated, ScopeMissing or JobNotFound."""
    by = access.caller()
    if by is None:
        raise NotAuthenticated
    if not by.may(needs):
        raise ScopeMissing(f"This needs the scope {needs}", missing_scope=needs)
    head = Event.objects.filter(job_id=job_id).aggregate(last=Max("seq"))["last"] or 0
    return View(services.get(job_id, by=by), head, access)


def key_access(authorization: str, ip: str) -> KeyAccess:
    """The right of whoever sent this `Authorization` header. Raises what `authenticate_bearer` raises."""
    by = authenticate_bearer(authorization, ip)
    if by.key is None:
        raise NotAuthenticated
    return KeyAccess(by.key.id, ip)


# --- sockets ---

PROTOCOL = "engine.v1"
BEARER_PROTOCOL = "bearer."


def socket_view(scope: dict[str, Any], job_id: UUID, *, ticket: str) -> View:
    """What a WebSocket may watch: by its `Authorization` header, subprotocol `bearer.KEY`, ticket or session.

    Never by a key in the address, which ends up in logs and histories. Raises as `view` does.
    """
    return view(job_id, _socket_access(scope, job_id, ticket))


def _socket_access(scope: dict[str, Any], job_id: UUID, ticket: str) -> Access:
    ip = address(scope)
    authorization = _header(scope, b"authorization")
    offered = [name for name in scope.get("subprotocols", []) if name.startswith(BEARER_PROTOCOL)]
    if offered and not authorization:
        authorization = f"Bearer {offered[0].removeprefix(BEARER_PROTOCOL)}"
    if authorization:
        return _counted(authenticate_bearer(authorization, ip), ip)
    if ticket:
        return redeem_ticket(ticket, job_id, ip)
    session_key = getattr(scope.get("session"), "session_key", None)
    if session_key:
        return SessionAccess(session_key)
    raise NotAuthenticated


def _counted(by: Caller, ip: str) -> KeyAccess:
    """A handshake counts as a request. Raises RateLimited."""
    if by.key is None:
        raise NotAuthenticated
    count_key(by.key, [])
    return KeyAccess(by.key.id, ip)


def _header(scope: dict[str, Any], name: bytes) -> str:
    return b",".join(value for key, value in scope["headers"] if key == name).decode("latin-1")


# --- tickets ---


def issue_ticket(job_id: UUID, *, by: Caller) -> str:
    """A ticket that opens one stream of one job once, within TICKET_SECONDS, by the right of the caller's key.

    Raises JobNotFound.
    """
    services.get(job_id, by=by)
    if by.key is None:
        raise NotAuthenticated
    claims = {"job": str(job_id), "key": str(by.key.id), "nonce": secrets.token_urlsafe(16)}
    return signing.dumps(claims, salt=TICKET_SALT)


def redeem_ticket(ticket: str, job_id: UUID, ip: str) -> KeyAccess:
    """The right that a ticket stands for. Raises NotAuthenticated when it is false, late, used, or for another job."""
    try:
        claims = signing.loads(ticket, salt=TICKET_SALT, max_age=TICKET_SECONDS)
    except signing.BadSignature:
        raise NotAuthenticated("The ticket is not valid, or too old") from None
    if claims["job"] != str(job_id):
        raise NotAuthenticated("The ticket is for another job")
    # Counted where requests are: exact over all processes, and swept with the other counters.
    if count_request(f"ticket:{claims['nonce']}", limit=1, seconds=2 * TICKET_SECONDS).is_over:
        raise NotAuthenticated("The ticket was used before")
    return KeyAccess(UUID(claims["key"]), ip)
