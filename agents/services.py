"""What callers may ask of the registry: register, change, archive, look. One function, one transaction."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import unified_diff
from functools import lru_cache
from typing import Any
from uuid import UUID

from django.db import IntegrityError, transaction
from django.db.models import F
from django.db.models.functions import Now

from agents import indexing
from agents.cards import MAX_FAULTS, Card
from agents.embeddings import Progress
from agents.errors import AgentArchived, AgentIsShared, AgentNotFound, InvalidCard
from agents.indexing import Vectors
from agents.models import Agent, AgentQuerySet, AgentVersion, find_version
from apikeys.callers import Caller
from apikeys.services import audit
from engine.errors import FieldError

# Cards per embedding call of a bulk registration: what progress counts in.
BULK_BATCH = 20
MAX_VERSION = 2**31 - 1


def register(by: Caller, card: Any) -> AgentVersion:
    """Register an agent, or a new version of one that the caller's project owns; staff register shared ones.

    Equal content makes no new version. Raises InvalidCard, and AgentArchived for a slug that is archived.
    """
    return put(by, card)[0]


def put(by: Caller, card: Any) -> tuple[AgentVersion, bool]:
    """As `register`; also says whether a version was made."""
    checked = Card.parse(card)
    unchanged = _unchanged(by, checked)
    if unchanged is not None:
        return unchanged, False
    # Before the transaction: the model takes its time, and a row lock should not.
    return _store(by, checked, indexing.prepare([checked]))


def put_many(by: Caller, cards: Sequence[Any], progress: Progress) -> list[AgentVersion]:
    """Register many cards; a bad one stops all before anything is stored, with pointers that begin with its index.

    Raises as `register` does.
    """
    checked = _parse_all(cards)
    # In one order, whatever they came in: two registrations at once would wait for each other's agents for ever.
    different = [card for _, card in sorted({card.slug: card for card in checked}.items())]
    versions: dict[str, AgentVersion] = {}
    progress(0, len(different))
    for start in range(0, len(different), BULK_BATCH):
        batch = different[start : start + BULK_BATCH]
        vectors = indexing.prepare(batch)
        with transaction.atomic():
            versions |= {card.slug: _store(by, card, vectors)[0] for card in batch}
        progress(len(versions), len(different))
    return [versions[card.slug] for card in checked]


def resolve(by: Caller, ref: str) -> AgentVersion:
    """The version that "slug" (the current one) or "slug@3" names.

    Raises AgentNotFound, also for what the caller may not see, and AgentArchived.
    """
    found = re.fullmatch(r"(?P<slug>[a-z0-9-]{1,63})(@(?P<number>[0-9]{1,10}))?", ref)
    if found is None:
        raise AgentNotFound(f"{ref[:100]!r} is not of the form slug or slug@version")
    if by.project is not None:
        return _resolve_for_project(by.project.id, found["slug"], found["number"])
    agent = get(by, found["slug"])
    if agent.status == Agent.Status.ARCHIVED:
        raise AgentArchived(f"The agent {agent.slug} is archived", agent=agent.slug)
    return version_of(agent, int(found["number"])) if found["number"] else current(agent)


def _resolve_for_project(project: UUID, slug: str, number: str | None) -> AgentVersion:
    """The usual case, which each submission goes through: one query, and versions, which never change, are kept."""
    given = int(number) if number else None
    if given is not None and not 1 <= given <= MAX_VERSION:
        raise AgentNotFound(f"The agent {slug} has no version {number}")
    found = find_version(project, slug, given)
    if found is None:
        raise AgentNotFound(f"There is no agent {slug[:100]!r}")
    status, version = found
    if status == Agent.Status.ARCHIVED:
        raise AgentArchived(f"The agent {slug} is archived", agent=slug)
    if version is None:
        raise AgentNotFound(f"The agent {slug} has no version {number}")
    return _kept_version(version)


@lru_cache(maxsize=512)
def _kept_version(version_id: UUID) -> AgentVersion:
    return AgentVersion.objects.select_related("agent").get(id=version_id)


def agents(by: Caller) -> AgentQuerySet:
    """Every agent the caller sees, with what its JSON needs."""
    registered = Agent.objects.visible_to(by).filter(current_version__isnull=False)
    return registered.select_related("current_version", "stats", "project")


def get(by: Caller, slug: str) -> Agent:
    """One agent; for staff the shared one goes before projects'. Raises AgentNotFound."""
    first = F("project").asc(nulls_first=True)
    agent = agents(by).filter(slug=slug).order_by(first, "id").first()
    if agent is None:
        raise AgentNotFound(f"There is no agent {slug[:100]!r}")
    return agent


def version_of(agent: Agent, number: int) -> AgentVersion:
    """One version of an agent. Raises AgentNotFound."""
    versions = agent.versions.select_related("agent", "agent__stats", "agent__project")
    version = versions.filter(number=number).first() if 1 <= number <= MAX_VERSION else None
    if version is None:
        raise AgentNotFound(f"The agent {agent.slug} has no version {number}")
    return version


def patch(by: Caller, slug: str, changes: Any) -> tuple[AgentVersion, bool]:
    """A new version with some fields of the card replaced. Raises as `put` does, AgentNotFound and AgentIsShared."""
    agent = _own(by, slug)
    if not isinstance(changes, dict):
        raise InvalidCard(
            errors=[{"pointer": "", "detail": "This must be an object with the fields to replace"}]
        )
    if changes.get("slug", slug) != slug:
        raise InvalidCard(errors=[{"pointer": "/slug", "detail": "A slug cannot be changed"}])
    checked = Card.parse({**Card.of(current(agent)).as_json(), **changes})
    if checked.content_hash() == current(agent).content_hash:
        return current(agent), False
    return _store(by, checked, indexing.prepare([checked]), agent=agent)


@transaction.atomic
def draft(by: Caller, slug: str, card: Any) -> AgentVersion:
    """A version to try out: a job may name it by its number, and the agent keeps its current one.

    Registering the same content next makes this version current. Raises as `put` does, AgentNotFound, AgentIsShared.
    """
    checked = Card.parse({**card, "slug": slug})
    agent = _lock(_own(by, slug))
    if agent.status == Agent.Status.ARCHIVED:
        raise AgentArchived(f"The agent {agent.slug} is archived: restore it first", agent=agent.slug)
    version = _version(by, agent, checked)
    audit(by, "agent.tried", f"agent:{agent.slug}", project=agent.project, version=version.number)
    return version


@transaction.atomic
def archive(by: Caller, slug: str) -> Agent:
    """Give the agent no more work and hide it from discovery; running jobs go on. Repeating it changes nothing.

    Raises AgentNotFound, AgentIsShared.
    """
    agent = _lock(_own(by, slug))
    if agent.status == Agent.Status.ACTIVE:
        Agent.objects.filter(id=agent.id).update(status=Agent.Status.ARCHIVED, archived_at=Now())
        audit(by, "agent.archived", f"agent:{agent.slug}", project=agent.project)
    return get(by, slug)


@transaction.atomic
def restore(by: Caller, slug: str) -> Agent:
    """Undo `archive`. Raises AgentNotFound, AgentIsShared."""
    agent = _lock(_own(by, slug))
    if agent.status == Agent.Status.ARCHIVED:
        Agent.objects.filter(id=agent.id).update(status=Agent.Status.ACTIVE, archived_at=None)
        audit(by, "agent.restored", f"agent:{agent.slug}", project=agent.project)
    return get(by, slug)


def diff(older: AgentVersion, newer: AgentVersion) -> dict[str, Any]:
    """What changed between two versions: each field with both values, and source files as unified diffs."""
    before, after = Card.of(older), Card.of(newer)
    fields = [name for name in after.version_fields() if getattr(before, name) != getattr(after, name)]
    return {
        "older": older.number,
        "newer": newer.number,
        "fields_changed": [
            {"field": name, "before": getattr(before, name), "after": getattr(after, name)}
            for name in fields
            if name != "source"
        ],
        "files_changed": _source_diff(before.source, after.source),
    }


def export(by: Caller) -> list[dict[str, Any]]:
    """The cards of the caller's own active agents (of the shared ones for staff), as `put_many` takes them."""
    own = agents(by).active().filter(project=by.project).order_by("slug")
    return [Card.of(current(agent)).as_json() for agent in own.iterator(chunk_size=200)]


def _parse_all(cards: Sequence[Any]) -> list[Card]:
    checked: list[Card] = []
    faults: list[FieldError] = []
    first: dict[str, tuple[int, Card]] = {}  # by slug
    for index, given in enumerate(cards):
        try:
            card = Card.parse(given)
        except InvalidCard as error:
            faults += [
                FieldError(pointer=f"/{index}{one['pointer']}", detail=one["detail"]) for one in error.errors
            ]
            continue
        place, other = first.setdefault(card.slug, (index, card))
        # Each would become a version of its own, and again with every repetition.
        if other.content_hash() != card.content_hash():
            faults.append(
                FieldError(pointer=f"/{index}/slug", detail=f"Another card with this slug is at /{place}")
            )
        checked.append(card)
    if faults:
        raise InvalidCard(errors=faults[:MAX_FAULTS])
    return checked


def _unchanged(by: Caller, card: Card) -> AgentVersion | None:
    owned = Agent.objects.filter(project=by.project, slug=card.slug, status=Agent.Status.ACTIVE)
    agent = owned.select_related("current_version", "stats", "project").first()
    if agent is None or agent.current_version is None:
        return None
    return current(agent) if agent.current_version.content_hash == card.content_hash() else None


@transaction.atomic
def _store(
    by: Caller, card: Card, vectors: Vectors, *, agent: Agent | None = None
) -> tuple[AgentVersion, bool]:
    agent = _lock(agent or _get_or_create(by, card.slug))
    if agent.status == Agent.Status.ARCHIVED:
        raise AgentArchived(f"The agent {agent.slug} is archived: restore it first", agent=agent.slug)
    if agent.current_version is not None and agent.current_version.content_hash == card.content_hash():
        return current(agent), False
    version = _version(by, agent, card)
    agent.current_version = version
    agent.save(update_fields=["current_version"])
    indexing.index(version, card, vectors)
    audit(by, "agent.registered", f"agent:{agent.slug}", project=agent.project, version=version.number)
    return version, True


def _version(by: Caller, agent: Agent, card: Card) -> AgentVersion:
    """The agent's newest version if it says just this (it was tried before), else a new one. The agent is locked."""
    newest = agent.versions.order_by("-number").first()
    if newest is not None and newest.content_hash == card.content_hash():
        newest.agent = agent
        return newest
    return AgentVersion.objects.create(
        agent=agent,
        number=newest.number + 1 if newest else 1,
        content_hash=card.content_hash(),
        created_by=by.label[:160],
        **card.version_fields(),
    )


def _get_or_create(by: Caller, slug: str) -> Agent:
    owned = Agent.objects.filter(project=by.project, slug=slug)
    if (agent := owned.first()) is not None:
        return agent
    try:
        with transaction.atomic():
            return Agent.objects.create(project=by.project, slug=slug)
    except IntegrityError:
        return owned.get()  # a registration of the same slug was faster


def _lock(agent: Agent) -> Agent:
    """The agent as it is now, kept from changing until the transaction ends.

    Its version is read by a statement of its own: a join would give the one from before the wait for the lock.
    """
    return Agent.objects.select_for_update().get(id=agent.id)


def _own(by: Caller, slug: str) -> Agent:
    agent = get(by, slug)
    if by.project is not None and agent.project_id != by.project.id:
        raise AgentIsShared(
            f"The agent {slug} is shared: register one under the same slug, and your project sees that one instead"
        )
    return agent


def current(agent: Agent) -> AgentVersion:
    """The agent's current version, with the agent itself at hand."""
    version = agent.current_version
    if version is None:
        raise AgentNotFound(f"The agent {agent.slug} has no version yet")
    version.agent = agent
    return version


def _source_diff(before: dict[str, str], after: dict[str, str]) -> list[dict[str, str]]:
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return [{"file": name, "diff": _file_diff(name, before.get(name), after.get(name))} for name in names]


def _file_diff(name: str, before: str | None, after: str | None) -> str:
    return "\n".join(
        unified_diff(
            (before or "").splitlines(),
            (after or "").splitlines(),
            f"a/{name}" if before is not None else "/dev/null",
            f"b/{name}" if after is not None else "/dev/null",
            lineterm="",
        )
    )
