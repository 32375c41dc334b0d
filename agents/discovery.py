"""Finds the agent for a task by meaning and words, says why, and knows when there is none."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from django.conf import settings
from django.db.models import BooleanField, Case, ExpressionWrapper, F, Q, QuerySet, Value, When

from agents import background, calibration, embeddings, indexing, large, queries, vector_index
from agents.background import Background
from agents.calibration import Evidence, Yardstick
from agents.embeddings import EmbedderUnavailable, Vector
from agents.health import (
    Health,
    health,
    provider_problem,
    success_rate,
    typical_duration,
    unavailable_kinds,
)
from agents.models import Agent, AgentStats, AgentVersion
from agents.queries import Ranked
from apikeys.callers import Caller
from engine.meters import DISCOVERY_SECONDS

logger = logging.getLogger(__name__)
_degraded: list[str] = []  # why, while it is

# What stands after this is not read: the model takes 256 tokens, and a task says early what it wants.
MAX_TASK_CHARS = 8000
MAX_LIMIT = 50
# What past success may add to a score or take from it, in standard deviations of the candidates: it decides
# between equals, and never lifts an agent over one that fits better.
SUCCESS_PRIOR = 0.1
# Below the project's cut nothing fits; from here on a match is sure.
SURE = 0.95
CUTS = {"off": 0.0, "q80": 0.80, "q90": 0.90, "q95": SURE}


@dataclass(frozen=True)
class Filters:
    """Hard conditions on which agents are ranked at all."""

    tags: Collection[str] = ()  # all of them
    kinds: Collection[str] = ()  # one of them; empty: any
    # The only slugs to choose from, for keys that may run single agents; None: any.
    slugs: Collection[str] | None = None
    # Only agents that can run now, as jobs want them; others are told apart by their health.
    available_only: bool = False


@dataclass(frozen=True)
class Matched:
    """What of an agent agreed with the task."""

    part: str | None  # description, skill or example; None where words alone decided
    text: str | None
    terms: list[str]  # lexemes, rarest first

    def as_json(self) -> dict[str, Any]:
        """As the API shows it."""
        return {"part": self.part, "text": self.text, "terms": self.terms}


@dataclass(frozen=True)
class Parts:
    """What a score is the sum of, in standard deviations over the candidates; and the cosine behind the first."""

    meaning: float
    words: float
    success: float
    ownership: float
    cosine: float | None  # None: ranked by its words alone


@dataclass(frozen=True)
class Result:
    """One agent that was found."""

    version: AgentVersion
    score: float  # only comparable within one answer
    confidence: float  # share of unfitting tasks that match their best agent less, 0 to 1
    matched: Matched
    health: Health
    stats: AgentStats | None
    parts: Parts

    def as_json(self) -> dict[str, Any]:
        """As the API shows it."""
        return {
            "agent": self.version.agent.slug,
            "version": self.version.number,
            "name": self.version.name,
            "score": round(self.score, 4),
            "confidence": round(self.confidence, 3),
            "matched": self.matched.as_json(),
            "health": self.health.as_json(),
            "success_rate": success_rate(self.stats),
            "typical_duration_s": typical_duration(self.stats),
        }


@dataclass(frozen=True)
class Discovery:
    """The answer to "who can do this?"."""

    decision: str  # match, weak_match or none
    results: list[Result]  # best first; empty if the decision is none
    nearest: list[Result] = field(
        default_factory=list
    )  # if it is none: who came closest, whatever their health
    degraded: bool = False  # the embedding model was not there: ranked by words alone
    space: str = ""  # the embedding space that was asked; empty if degraded
    # Whoever would do it, had only available ones not been asked for. Not in the JSON: it is the first of `nearest`.
    unavailable: Result | None = None

    def as_json(self) -> dict[str, Any]:
        """As the API shows it and jobs store it."""
        return {
            "decision": self.decision,
            "results": [result.as_json() for result in self.results],
            "nearest": [result.as_json() for result in self.nearest],
            "degraded": self.degraded,
            "space": self.space,
        }


@DISCOVERY_SECONDS.time()
def discover(by: Caller, task: str, *, limit: int = 5, filters: Filters | None = None) -> Discovery:
    """Rank the agents that the caller sees for a task. Writes nothing but a calibration; any transaction will do.

    Never fails for want of the embedding model: then words alone decide, and the answer says `degraded`.
    """
    task = task[:MAX_TASK_CHARS]
    filters = filters or Filters()
    view = _View.of(task)
    yardstick = calibration.yardstick(by, _registry(by, Q()), view.space, view.background)

    def ranked(eligible: Q) -> list[Result]:
        found = _rank(_registry(by, eligible), task, view, yardstick, limit=min(limit, MAX_LIMIT))
        confidences = [yardstick.confidence(Evidence.of(one, view.familiarity)) for one in found]
        return _results(found, confidences)

    conditions, wider = _conditions(filters), _conditions(replace(filters, available_only=False))
    results = ranked(conditions)
    decision = _decision(results, by)
    nearest: list[Result] = []
    unavailable = None
    if decision == "none":
        results, nearest = [], results if wider == conditions else ranked(wider)
        unavailable = nearest[0] if _decision(nearest, by) != "none" else None
    return Discovery(decision, results, nearest, view.vector is None, view.space, unavailable)


def prepare(by: Caller) -> None:
    """Calibrate now if the registry has changed enough for the next task to wait for it."""
    view = _View.of("Is the embedding model there?")
    calibration.yardstick(by, _registry(by, Q()), view.space, view.background)


def calibrate(by: Caller) -> tuple[int, bool]:
    """Measure what a match is in the caller's registry, now; gives its size and whether only words could be used."""
    view = _View.of("Is the embedding model there?")
    registry = _registry(by, Q())
    calibration.measure(by, registry, view.space, view.background)
    return registry.count(), view.vector is None


def _rank(
    registry: QuerySet[Agent, Any], task: str, view: _View, yardstick: Yardstick, *, limit: int
) -> list[Ranked]:
    """Each agent compared with the task or, where they are too many and none of a few is asked for, the likely ones."""
    prior = SUCCESS_PRIOR if settings.ENGINE_SUCCESS_PRIOR else 0.0
    length, survey = yardstick.average_length, yardstick.survey
    if (
        survey is None
        or view.vector is None
        or not vector_index.is_there(view.space)
        or large.is_selective(registry)
    ):
        return queries.rank(
            registry,
            task,
            view.vector,
            space=view.space,
            average_length=length,
            limit=limit,
            prior=prior,
        )
    return large.rank(
        registry,
        task,
        view.vector,
        survey,
        space=view.space,
        average_length=length,
        limit=limit,
        prior=prior,
    )


def degraded() -> str:
    """Why this process had nothing but words to go by for the last task; empty if the model was there."""
    return _degraded[0] if _degraded else ""


def warm_up() -> None:
    """Load the model before the first task comes."""
    _View.of("Is the embedding model there?")


@dataclass(frozen=True)
class _View:
    """A task as one space sees it; without a space, by its words alone."""

    space: str = ""
    vector: Vector | None = None
    background: Background | None = None
    familiarity: float = 0.0

    @classmethod
    def of(cls, task: str) -> _View:
        space = indexing.active_space()
        if space is None and not Agent.objects.active().exists():
            return cls()
        if space is None:
            return cls._by_words("No agent has been embedded: run manage.py embed_agents --activate")
        try:
            vector = _embed(space.name, task)
            known = background.in_space(space.name, embeddings.of_space(space.name))
        except EmbedderUnavailable as error:
            return cls._by_words(str(error.detail))
        if vector.size != space.dims:
            return cls._by_words(f"{space.name} has {vector.size} dimensions in place of {space.dims}")
        _degraded.clear()
        return cls(space.name, vector, known, known.familiarity(vector))

    @classmethod
    def _by_words(cls, why: str) -> _View:
        logger.warning("Discovery is degraded: %s", why)
        _degraded[:] = [why]
        return cls()


@lru_cache(maxsize=1024)
def _embed(space: str, task: str) -> Vector:
    """The vector of a task, kept: the same task is often discovered and then submitted."""
    vector = embeddings.of_space(space).embed_query(task)
    vector.setflags(write=False)
    return vector


def _registry(by: Caller, eligible: Q) -> QuerySet[Agent, Any]:
    """What the caller sees, in the columns that `queries.rank` wants."""
    condition = ExpressionWrapper(eligible, output_field=BooleanField()) if eligible else Value(True)
    agents = Agent.objects.visible_to(by).active().filter(current_version__isnull=False)
    own = Case(When(project=by.project, then=True), default=False) if by.project else Value(False)
    return agents.order_by().values(
        version=F("current_version"),
        eligible=condition,
        own=own,
        ok=F("stats__ok"),
        failed=F("stats__failed"),
    )


def _conditions(filters: Filters) -> Q:
    conditions = Q()
    if filters.tags:
        conditions &= Q(current_version__tags__contains=list(filters.tags))
    if filters.kinds:
        conditions &= Q(current_version__kind__in=list(filters.kinds))
    if filters.slugs is not None:
        # An empty list would compile to no condition at all; no agent has an empty slug.
        conditions &= Q(slug__in=list(filters.slugs) or [""])
    if filters.available_only and (kinds := unavailable_kinds()):
        conditions &= ~Q(current_version__kind__in=kinds)
    return conditions


def cut_of(by: Caller) -> float:
    """The confidence from which on an agent fits, as the caller's project wants it."""
    return CUTS.get(by.project.discovery_cut, CUTS["q80"]) if by.project else CUTS["q80"]


def _decision(results: list[Result], by: Caller) -> str:
    if not results or results[0].confidence < cut_of(by):
        return "none"
    return "match" if results[0].confidence >= SURE else "weak_match"


def _results(found: list[Ranked], confidences: list[float]) -> list[Result]:
    versions = AgentVersion.objects.select_related("agent", "agent__stats").in_bulk(
        [one.version for one in found]
    )
    results, provider = [], provider_problem()
    for one, confidence in zip(found, confidences, strict=True):
        version = versions[one.version]
        stats = getattr(version.agent, "stats", None)
        matched = Matched(one.part, one.text, one.terms or [])
        parts = Parts(one.by_meaning, one.by_words, one.by_success, one.by_ownership, one.cosine)
        state = health(version, stats, provider=provider)
        results.append(Result(version, one.score, confidence, matched, state, stats, parts))
    return results
