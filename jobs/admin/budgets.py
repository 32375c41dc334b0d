"""What a job has used of its budget, and its key's jobs of the key's in this month."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs import usage
from jobs.execution.outcomes import Used
from jobs.models import Job


@dataclass(frozen=True)
class Line:
    """One limit and what is used of it."""

    title: str
    used: float
    limit: float
    is_money: bool

    @property
    def share(self) -> float:
        """0..1, however much more was used."""
        return min(1.0, self.used / self.limit) if self.limit else 1.0


def spent(job: Job) -> list[Line]:
    """A line for each limit that holds for this job; none where nothing is limited."""
    lines = _lines("This job", job.budget, usage.of_family(job.id)) if job.budget else []
    of_key = usage.key_spending(job.id) if job.created_by_key else None
    return lines + (_lines("Its key, this month", of_key.budget, of_key.used) if of_key else [])


def _lines(title: str, budget: Mapping[str, Any] | None, used: Used) -> list[Line]:
    limits = budget or {}
    lines = []
    if limits.get("tokens"):
        lines.append(Line(f"{title}: tokens", used.tokens, limits["tokens"], is_money=False))
    if limits.get("cost_usd") is not None:
        lines.append(Line(f"{title}: cost", used.cost_usd, limits["cost_usd"], is_money=True))
    return lines
