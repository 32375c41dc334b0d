"""What a caller may ask for about projects and keys. One function, one transaction, one audit row."""

from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_network
from typing import Any
from uuid import UUID

from django.db import IntegrityError, transaction
from django.db.models import F
from django.db.models.functions import Least, Now

from apikeys import queries
from apikeys.callers import Caller
from apikeys.errors import (
    BeyondOwnRights,
    KeyNotActive,
    KeyNotFound,
    ProjectExists,
    ProjectNotFound,
    ScopeMissing,
)
from apikeys.models import ApiKey, AuditRow, Project
from apikeys.scopes import PROJECT_SCOPES, Scope, holds
from apikeys.secret import digest, new_secret, prefix

# A key that replaces another takes over within this time unless the caller says otherwise.
DEFAULT_OVERLAP = timedelta(hours=24)
# A revoked key in use is worth a row, not one for each of a thousand tries.
REFUSED_USE_NOTED_EVERY = timedelta(hours=1)

# What the holder of `admin:keys` may change about the own project; the rest are limits, which need `admin`.
PROJECT_PREFERENCES = frozenset({"name", "on_weak_match", "discovery_cut"})


# --- keys ---


@transaction.atomic
def create_key(
    by: Caller,
    *,
    name: str,
    scopes: list[str],
    project: Project | None = None,
    mode: str = "live",
    **settings: Any,
) -> tuple[ApiKey, str]:
    """A new key of the caller's project, or for staff of `project`, and its secret, which is stored nowhere.

    `settings` are columns of ApiKey. What a limited creator leaves out, the new key inherits.
    Raises BeyondOwnRights where the key would hold more, last longer or reach further than its creator.
    """
    owner = by.project or project
    if owner is None:
        raise ProjectNotFound
    key = ApiKey(
        project=owner, name=name, scopes=list(dict.fromkeys(scopes)), created_by=by.label, **settings
    )
    if by.key is not None:
        key.expires_at = key.expires_at or by.key.expires_at
        key.allowed_cidrs = key.allowed_cidrs or by.key.allowed_cidrs
    _check_within_own_rights(by, key)
    secret = _save_with_new_secret(key, mode)
    audit(by, "key.created", key, name=name, scopes=key.scopes, expires_at=key.expires_at)
    return key, secret


@transaction.atomic
def change_key(by: Caller, key_id: UUID, **changes: Any) -> ApiKey:
    """Set columns of a key that is not revoked. Raises KeyNotFound, KeyNotActive, BeyondOwnRights."""
    key = _locked(by, key_id)
    if key.revoked_at is not None:
        raise KeyNotActive("The key is revoked")
    _check_within_own_rights(by, key)
    for column, value in changes.items():
        setattr(key, column, value)
    _check_within_own_rights(by, key)
    if changes:
        key.save(update_fields=list(changes))
        audit(by, "key.changed", key, **changes)
    return key


@transaction.atomic
def rotate_key(by: Caller, key_id: UUID, *, overlap: timedelta = DEFAULT_OVERLAP) -> tuple[ApiKey, str]:
    """A successor with the same powers, and its secret; the old key is accepted for `overlap` longer.

    Raises KeyNotFound, KeyNotActive for a key that is revoked, expired or rotated, BeyondOwnRights.
    """
    old = _locked(by, key_id)
    if old.revoked_at is not None or old.replaced_by_id is not None or has_expired(old):
        raise KeyNotActive("Only an active key that was not rotated before can be rotated")
    _check_within_own_rights(by, old)
    copied = (
        "project",
        "name",
        "scopes",
        "windows",
        "max_concurrent_jobs",
        "budget",
        "allowed_cidrs",
        "expires_at",
        "disabled_at",
    )
    key = ApiKey(created_by=by.label, **{column: getattr(old, column) for column in copied})
    secret = _save_with_new_secret(key, old.prefix.split("_")[1])
    old.expires_at = Least(Now() + overlap, F("expires_at"))  # LEAST passes over a null
    old.replaced_by = key
    _save(old, "expires_at", "replaced_by")
    audit(by, "key.rotated", old, replaced_by=str(key.id), expires_at=old.expires_at)
    return key, secret


@transaction.atomic
def revoke_key(by: Caller, key_id: UUID) -> ApiKey:
    """Refuse the key for good, from the next request on. Revoking twice changes nothing."""
    key = _locked(by, key_id)
    if key.revoked_at is None:
        key.revoked_at = Now()
        _save(key, "revoked_at")
        audit(by, "key.revoked", key)
    return key


@transaction.atomic
def disable_key(by: Caller, key_id: UUID) -> ApiKey:
    """Refuse the key until it is enabled, from the next request on."""
    key = _locked(by, key_id)
    if key.disabled_at is None:
        key.disabled_at = Now()
        _save(key, "disabled_at")
        audit(by, "key.disabled", key)
    return key


@transaction.atomic
def enable_key(by: Caller, key_id: UUID) -> ApiKey:
    """Accept a disabled key again. Raises BeyondOwnRights where the key holds more than the caller."""
    key = _locked(by, key_id)
    _check_within_own_rights(by, key)
    if key.disabled_at is not None:
        key.disabled_at = None
        key.save(update_fields=["disabled_at"])
        audit(by, "key.enabled", key)
    return key


def get_key(by: Caller, key_id: UUID) -> ApiKey:
    """A key that the caller may see. Raises KeyNotFound."""
    key = ApiKey.objects.visible_to(by).filter(id=key_id).first()
    if key is None:
        raise KeyNotFound
    return key


# --- projects ---


@transaction.atomic
def create_project(by: Caller, *, slug: str, **settings: Any) -> Project:
    """A new project, without keys. Raises ScopeMissing without `admin`, ProjectExists."""
    _require(by, Scope.ADMIN)
    try:
        with transaction.atomic():
            project = Project.objects.create(slug=slug, **{"name": slug, **settings})
    except IntegrityError as exc:
        raise ProjectExists(slug=slug) from exc
    audit(by, "project.created", project, **settings)
    return project


def first_key(by: Caller, project: Project, *, name: str) -> tuple[ApiKey, str]:
    """The key that a new project begins with: everything inside the project, nothing outside it."""
    return create_key(_inside(by, project), name=name, scopes=list(PROJECT_SCOPES))


@transaction.atomic
def change_project(by: Caller, slug: str, **changes: Any) -> Project:
    """Set columns of a project. Raises ProjectNotFound, and ScopeMissing for limits without `admin`."""
    project = Project.objects.visible_to(by).select_for_update(no_key=True).filter(slug=slug).first()
    if project is None:
        raise ProjectNotFound
    if not PROJECT_PREFERENCES.issuperset(changes):
        _require(by, Scope.ADMIN)
    for column, value in changes.items():
        setattr(project, column, value)
    if changes:
        project.month = project.stored_at = None  # counted anew: without a limit nothing was
        project.save(update_fields=[*changes, "month", "stored_at"])
        audit(by, "project.changed", project, **changes)
    return project


def get_project(by: Caller, slug: str) -> Project:
    """A project that the caller may see. Raises ProjectNotFound."""
    project = Project.objects.visible_to(by).filter(slug=slug).first()
    if project is None:
        raise ProjectNotFound
    return project


# --- records ---


def audit(
    by: Caller, action: str, thing: ApiKey | Project | str, *, project: Project | None = None, **data: Any
) -> None:
    """Record what was done, in the transaction that does it. `data` must hold no secret.

    `thing` may be text such as "job:UUID"; its project is then `project`, or the caller's.
    """
    owner: Project | None
    match thing:
        case ApiKey():
            label, owner = f"key:{thing.id}", thing.project
        case Project():
            label, owner = f"project:{thing.slug}", thing
        case _:
            label, owner = thing, project or by.project
    AuditRow.objects.create(
        actor=by.label,
        via=by.via,
        action=action,
        object=label,
        data=data,
        ip=by.ip,
        request_id=by.request_id,
        project=owner,
    )


def note_refused_use(key: ApiKey, *, ip: str, request_id: str) -> None:
    """Record that somebody tried a revoked key, at most once an hour for each key."""
    seconds = int(REFUSED_USE_NOTED_EVERY.total_seconds())
    if queries.count_request(f"refused:{key.id}", limit=1, seconds=seconds).is_over:
        return
    by = Caller(key.project, frozenset(), key, ip=ip or None, request_id=request_id)
    audit(by, "key.refused", key, reason="revoked")


def sweep(*, limit: int = 1000) -> int:
    """Delete what has had its time: answers older than their 24 hours, counters of keys long silent."""
    return queries.sweep(limit=limit)


def has_expired(key: ApiKey) -> bool:
    """Whether the key's time is over, by the database's clock."""
    return ApiKey.objects.filter(id=key.id, expires_at__lte=Now()).exists()


def _locked(by: Caller, key_id: UUID) -> ApiKey:
    """The key with its row locked; `of`, because the project's row is not ours to hold."""
    rows = (
        ApiKey.objects.visible_to(by).select_related("project").select_for_update(of=("self",), no_key=True)
    )
    key = rows.filter(id=key_id).first()
    if key is None:
        raise KeyNotFound
    return key


def _save_with_new_secret(key: ApiKey, mode: str) -> str:
    secret = new_secret(mode)
    key.prefix, key.secret_hash = prefix(secret), digest(secret)
    key.save(force_insert=True)
    return secret


def _require(by: Caller, scope: Scope) -> None:
    if not by.may(scope):
        raise ScopeMissing(f"This needs the scope {scope}", missing_scope=scope)


def _check_within_own_rights(by: Caller, key: ApiKey) -> None:
    """No key may be given, by making or changing it, what its giver does not have."""
    beyond = [scope for scope in key.scopes if not holds(by.scopes, scope)]
    if beyond:
        raise BeyondOwnRights(f"Only a key that holds {beyond[0]} may give it", scopes=beyond)
    own = by.key
    if own is None:
        return
    if own.expires_at and (key.expires_at is None or key.expires_at > own.expires_at):
        raise BeyondOwnRights("The key would last longer than the one that makes or changes it")
    if own.allowed_cidrs and not _all_inside(key.allowed_cidrs, own.allowed_cidrs):
        raise BeyondOwnRights("The key would be accepted from networks that its maker's is not")


def _all_inside(inner: list[str], outer: list[str]) -> bool:
    networks = [ip_network(cidr) for cidr in inner]
    return bool(networks) and all(
        any(one.version == other.version and one.subnet_of(other) for other in map(ip_network, outer))  # type: ignore[arg-type]  # versions match
        for one in networks
    )


def _inside(by: Caller, project: Project) -> Caller:
    """The same caller, acting on a project that was made a moment ago."""
    return replace(by, project=project)


def _save(key: ApiKey, *columns: str) -> None:
    """Write the columns, and read back what the database made of them."""
    key.save(update_fields=columns)
    key.refresh_from_db(fields=columns)
