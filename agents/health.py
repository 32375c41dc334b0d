"""Whether an agent can be given work now, and how its runs have ended lately."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from django.conf import settings

from agents.models import AgentStats, AgentVersion

# Below this many runs an error rate says nothing.
LEAST_RUNS = 5
FAILING_SHARE = 0.5

NO_MODEL = "No model is configured: set OPENAI_API_KEY, or OPENAI_BASE_URL for a compatible server"


@dataclass(frozen=True)
class Health:
    """`ok`, `failing` (most of its last runs failed) or `unavailable` (it cannot run at all), and why."""

    status: str
    reason: str = ""

    def as_json(self) -> dict[str, Any]:
        """The reason only where there is one."""
        return {"status": self.status} | ({"reason": self.reason} if self.reason else {})


def unavailable_kinds() -> list[str]:
    """Kinds of agents that cannot run on this installation; no job is routed to them."""
    return [] if settings.OPENAI_API_KEY or settings.OPENAI_BASE_URL else [AgentVersion.Kind.LLM.value]


def set_provider(problem: Callable[[], str]) -> None:
    """Say how to learn why no sandbox can be had: this app knows no workers, and the one that does knows this app."""
    global _provider_problem
    _provider_problem = problem


def provider_problem() -> str:
    """Why no worker can open a sandbox now; empty while one can, and while nobody knows. Asks the database."""
    return _provider_problem()


_provider_problem: Callable[[], str] = str


def health(version: AgentVersion, stats: AgentStats | None, *, provider: str | None = None) -> Health:
    """The state of a version. `stats` is None before its agent's first run.

    `provider`: what `provider_problem` says, from whoever shows many agents.
    """
    if version.kind in unavailable_kinds():
        return Health("unavailable", NO_MODEL)
    if problem := provider_problem() if provider is None else provider:
        return Health("unavailable", problem)
    runs = stats.ok + stats.failed if stats else 0
    if stats and runs >= LEAST_RUNS and stats.failed > runs * FAILING_SHARE:
        return Health("failing", f"{stats.failed} of its last {runs} runs failed")
    return Health("ok")


def success_rate(stats: AgentStats | None) -> float | None:
    """Share of runs that ended well, or None before the first."""
    runs = stats.ok + stats.failed if stats else 0
    return round(stats.ok / runs, 3) if stats and runs else None


def typical_duration(stats: AgentStats | None) -> float | None:
    """Median duration of a run in seconds, as exact as its bucket, or None before the first."""
    if stats is None or not sum(stats.durations):
        return None
    half = sum(stats.durations) / 2
    bucket = next(number for number, seen in enumerate(accumulate(stats.durations)) if seen >= half)
    return 0.75 * 2.0**bucket  # the middle of 2^(n-1) to 2^n
