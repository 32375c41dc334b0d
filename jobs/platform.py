"""The platform as a running model sees it: database calls in the worker's threads, for one job."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from engine import tracing
from jobs import delegation, usage
from jobs.execution.outcomes import ChildSpec
from jobs.execution.ports import ChildRefused, ChildRequest, KeySpending


@dataclass(frozen=True)
class JobPlatform:
    """Satisfies `execution.ports.Platform`."""

    job_id: UUID
    in_database: Callable[..., Awaitable[Any]]

    async def key_spending(self) -> KeySpending | None:
        """What the key of the job has used of its budget this month."""
        spending: KeySpending | None = await self.in_database(usage.key_spending, self.job_id)
        return spending

    async def find_agents(self, task: str) -> list[dict[str, Any]]:
        """The agents that the job's caller may run and that fit."""
        try:
            found: list[dict[str, Any]] = await self.in_database(delegation.find, self.job_id, task)
        except ChildRefused:
            return []
        return found

    async def prepare_child(self, request: ChildRequest) -> ChildSpec:
        """Find the agent and check the request. Raises ChildRefused."""
        spec: ChildSpec = await self.in_database(delegation.prepare, self.job_id, request)
        about = {"engine.job.id": str(spec.id), "engine.job.parent": str(self.job_id)}
        with tracing.span("job", about, kind="producer") as span:
            return replace(spec, traceparent=span.traceparent)

    async def child_ending(self, child_id: UUID) -> dict[str, Any] | None:
        """How a child has ended."""
        ended: dict[str, Any] | None = await self.in_database(delegation.ending, self.job_id, child_id)
        return ended
