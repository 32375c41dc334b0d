"""From an `Authorization` header to a Caller: one SELECT, nothing cached, so a revocation holds at once."""

import hmac
import logging

from django.db import DatabaseError, transaction
from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

from apikeys import queries, services
from apikeys.addresses import client_ip, is_inside
from apikeys.callers import Caller
from apikeys.errors import (
    AddressNotAllowed,
    InvalidKey,
    KeyDisabled,
    KeyExpired,
    KeyRevoked,
    ProjectArchived,
)
from apikeys.models import ApiKey
from apikeys.queries import FoundKey
from apikeys.secret import digest, is_well_formed
from engine.problems import NotAuthenticated

logger = logging.getLogger(__name__)


class KeyAuthentication(BaseAuthentication):
    """`Authorization: Bearer engine_live_…`; afterwards `caller(request)` says who it is."""

    def authenticate(self, request: Request) -> tuple[None, Caller] | None:
        """The caller, or None without a header. Raises a NotAuthenticated of some kind for a bad one."""
        header = request.META.get("HTTP_AUTHORIZATION", "")
        if not header:
            return None
        request_id = getattr(request._request, "request_id", "")
        return None, authenticate_bearer(header, client_ip(request._request), request_id=request_id)

    def authenticate_header(self, request: Request) -> str:
        """What a 401 names as the way in."""
        return "Bearer"


def authenticate_bearer(header_value: str, ip: str, *, request_id: str = "", via: str = "api_key") -> Caller:
    """Who holds the key in this header value ("Bearer engine_live_…").

    Raises NotAuthenticated or one of its kinds where the key is not accepted, AddressNotAllowed where it is
    not accepted from `ip`. Notes the use, at most once a minute.
    """
    scheme, _, secret = header_value.strip().partition(" ")
    secret = secret.strip()
    if scheme.lower() != "bearer":
        raise NotAuthenticated("Send the key as `Authorization: Bearer engine_live_…`")
    found = _find(secret)
    key = found.key
    _check_usable(found, ip, request_id)
    if found.is_use_unnoted:
        _note_use(key)
    return Caller(key.project, frozenset(key.scopes), key, via=via, ip=ip or None, request_id=request_id)


def _find(secret: str) -> FoundKey:
    if not is_well_formed(secret):
        raise InvalidKey  # noise costs no query
    hashed = digest(secret)
    found = queries.find_key(hashed)
    if found is None or not hmac.compare_digest(bytes(found.key.secret_hash), hashed):
        raise InvalidKey
    return found


def _check_usable(found: FoundKey, ip: str, request_id: str) -> None:
    key = found.key
    if key.revoked_at is not None:
        services.note_refused_use(key, ip=ip, request_id=request_id)
        raise KeyRevoked
    if found.is_expired:
        raise KeyExpired
    if key.disabled_at is not None:
        raise KeyDisabled
    if key.project.archived_at is not None:
        raise ProjectArchived
    if key.allowed_cidrs and not is_inside(ip, key.allowed_cidrs):
        raise AddressNotAllowed


def _note_use(key: ApiKey) -> None:
    try:
        with transaction.atomic():  # a savepoint where the caller has a transaction of its own
            queries.touch_key(key.id)
    except DatabaseError as exc:
        # Good to know, never a reason to refuse the request: a read-only session, or a row that is locked.
        logger.warning("The use of key %s could not be noted: %s", key.id, exc)
