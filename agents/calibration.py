"""Whether an agent fits, told from how the shipped background tasks score in the same registry.

A fixed cut on the cosine does not carry over from one registry to the next (measured: it refuses 0 to 21 % of
the tasks that no agent fits); a task's place among unfitting tasks does.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean, pstdev
from typing import Any

from django.db import connection, transaction
from django.db.models import Max, QuerySet

from agents import background_ranking, large, queries, vector_index
from agents.background import Background, tasks
from agents.large import Survey
from agents.models import Agent, Calibration
from agents.queries import Ranked
from apikeys.callers import Caller

# A registry is measured again once this share of its agents has changed. It takes one pass over all vectors and words.
STALE_SHARE = 0.05
# Above this a request does not wait for it: `manage.py calibrate_agents` measures.
MAX_AGENTS_ON_REQUEST = 20_000

# How much the words that agree, and the task's likeness to ordinary requests, count beside the meaning.
COVERAGE_WEIGHT = 0.5
NOVELTY_WEIGHT = 0.5
# Gibberish resembles no ordinary request either: beyond this many deviations novelty says nothing more.
MAX_NOVELTY = 2.0
# In a registry of a few agents most background tasks share no word with any: no spread to divide by.
LEAST_SPREAD = {"cosine": 0.04, "coverage": 0.25, "novelty": 0.02}


@dataclass(frozen=True)
class Evidence:
    """What speaks for the best agent of a task."""

    cosine: float  # its meaning; 0 where there are no vectors
    coverage: float  # summed idf of the words that agree, over the root of all the task's
    novelty: float  # how little the task resembles ordinary requests; 0 where there are no vectors

    @classmethod
    def of(cls, ranked: Ranked, familiarity: float) -> Evidence:
        """The evidence in one ranking."""
        return cls.made_of(ranked.cosine or 0.0, ranked.covered, ranked.asked, familiarity)

    @classmethod
    def made_of(cls, cosine: float, covered: float, asked: float, familiarity: float) -> Evidence:
        """The evidence in these figures of a ranking."""
        return cls(cosine, covered / math.sqrt(max(1.0, asked)), -familiarity)


@dataclass(frozen=True)
class Yardstick:
    """Mean and spread of each kind of evidence over the background tasks, and their signals in order."""

    average_length: float
    means: dict[str, float]
    spreads: dict[str, float]
    signals: list[float]
    # Of a registry that is too large to compare each agent; empty for others.
    common: dict[str, int] = field(default_factory=dict)
    sample: list[str] = field(default_factory=list)
    agents: int = 0
    cards: int = 0

    @property
    def survey(self) -> Survey | None:
        """What a ranking in a large registry needs to know of it; None in any other."""
        return Survey(self.agents, self.common, self.sample, self.cards) if self.sample else None

    @classmethod
    def over(cls, evidence: list[Evidence], average_length: float, survey: Survey | None = None) -> Yardstick:
        """The yardstick that these background tasks make."""
        columns = {name: [getattr(one, name) for one in evidence] for name in LEAST_SPREAD}
        means = {name: fmean(values) for name, values in columns.items()}
        spreads = {name: max(LEAST_SPREAD[name], pstdev(values)) for name, values in columns.items()}
        blank = cls(average_length, means, spreads, [])
        signals = sorted(blank.signal(one) for one in evidence)
        if survey is None:
            return cls(average_length, means, spreads, signals)
        return replace(
            blank,
            signals=signals,
            common=dict(survey.common),
            sample=survey.sample,
            agents=survey.agents,
            cards=survey.cards,
        )

    def signal(self, evidence: Evidence) -> float:
        """All evidence in one number."""
        deviation = {
            name: (getattr(evidence, name) - mean) / self.spreads[name] for name, mean in self.means.items()
        }
        return float(
            deviation["cosine"]
            + COVERAGE_WEIGHT * deviation["coverage"]
            + NOVELTY_WEIGHT * min(MAX_NOVELTY, deviation["novelty"])
        )

    def confidence(self, evidence: Evidence) -> float:
        """Share of the background tasks with a weaker signal, 0 to 1: it means the same in every registry."""
        return bisect_left(self.signals, self.signal(evidence)) / len(self.signals)


def yardstick(
    by: Caller, registry: QuerySet[Agent, Any], space: str, background: Background | None
) -> Yardstick:
    """The yardstick of what a caller sees in a space; measured anew when the registry has changed enough.

    `registry` is what the caller sees, unfiltered; `space` is empty and `background` None where words alone decide.
    """
    stored = Calibration.objects.filter(project=by.project, space=space)
    row = stored.values_list("id", "revision", "agents").first()
    if row is not None and (row[2] > MAX_AGENTS_ON_REQUEST or not _is_stale(by, *row[1:])):
        return _read(*row[:2])
    with transaction.atomic():
        if _takes_the_turn(by, space) or row is None:
            return measure(by, registry, space, background)
    return _read(*row[:2])  # another process is at it: the old one will do meanwhile


def _is_stale(by: Caller, revision: int, agents: int) -> bool:
    changed = Agent.objects.visible_to(by).filter(revision__gt=revision).count()
    return changed > agents * STALE_SHARE


def _takes_the_turn(by: Caller, space: str) -> bool:
    owner = by.project.id if by.project else ""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 0))", [f"calibration {owner} {space}"]
        )
        (is_mine,) = cursor.fetchone() or (False,)
    return bool(is_mine)


def measure(
    by: Caller, registry: QuerySet[Agent, Any], space: str, background: Background | None
) -> Yardstick:
    """Rank every background task of the yardstick in this registry, and keep what comes out."""
    # Before the rankings: a change that comes in between makes the yardstick stale, not wrong.
    revision = Agent.objects.visible_to(by).aggregate(highest=Max("revision"))["highest"] or 0
    average_length = queries.average_length(registry)
    agents = registry.count()
    survey = None if background is None or not _is_indexed(space, agents) else large.survey(registry, agents)
    all_tasks, size = tasks()
    yardstick_tasks = all_tasks[:size]
    familiar = [background.own_familiarity(index) if background else 0.0 for index in range(size)]
    if survey is None or background is None:
        vectors = None if background is None else background.vectors[:size]
        first = background_ranking.best(
            registry, yardstick_tasks, vectors, space=space, average_length=average_length
        )
        evidence = [
            Evidence.made_of(best.cosine, best.covered, best.asked, familiarity)
            for best, familiarity in zip(first, familiar, strict=False)
        ]
    else:
        evidence = []
        for task, vector, familiarity in zip(yardstick_tasks, background.vectors, familiar, strict=False):
            ranked = large.rank(
                registry, task, vector, survey, space=space, average_length=average_length, limit=1
            )
            evidence += [Evidence.of(best, familiarity) for best in ranked]
    evidence = evidence or [Evidence(0.0, 0.0, -familiarity) for familiarity in familiar]
    found = Yardstick.over(evidence, average_length, survey)
    row, _ = Calibration.objects.update_or_create(
        project=by.project,
        space=space,
        defaults={"revision": revision, "agents": agents, "values": asdict(found)},
    )
    _kept[row.id] = (revision, found)
    return found


def _is_indexed(space: str, agents: int) -> bool:
    return agents > vector_index.LEAST_AGENTS and vector_index.is_there(space)


# By row, the newest only. A row that was rolled back is never asked for again.
_kept: dict[int, tuple[int, Yardstick]] = {}


def _read(row_id: int, revision: int) -> Yardstick:
    kept = _kept.get(row_id)
    if kept is None or kept[0] != revision:
        row = Calibration.objects.get(id=row_id)
        kept = _kept[row_id] = (row.revision, Yardstick(**row.values))
    return kept[1]
