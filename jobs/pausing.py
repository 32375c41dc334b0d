"""Queues, agents and workers that take no work for a while. Their jobs stay queued, at their place."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from agents import services as agents
from agents.models import Agent
from apikeys import services as keys
from apikeys.callers import Caller
from apikeys.errors import ScopeMissing
from apikeys.scopes import Scope
from jobs import claiming, failpoints, wakeups
from jobs.errors import WorkerNotFound
from jobs.models import Job, PausedAgent, Queue, Worker
from jobs.services import database_time

# A longer queue is told as "so many at least": counting more would cost more than it tells.
MOST_COUNTED = 10_000


@dataclass(frozen=True)
class QueueState:
    """A queue as an operator sees it."""

    name: str
    queued: int  # MOST_COUNTED: at least so many
    oldest_at: datetime | None  # when the first in line was submitted
    paused_at: datetime | None
    paused_by: str


def queues(by: Caller) -> list[QueueState]:
    """Queues that hold jobs of the caller, and those that are paused."""
    paused = {queue.name: queue for queue in Queue.objects.filter(paused_at__isnull=False)}
    surveys, _ = claiming.survey_all(None)
    return [_state(name, paused.get(name), by) for name in sorted({"default", *surveys, *paused})]


def _state(name: str, paused: Queue | None, by: Caller) -> QueueState:
    queued = Job.objects.visible_to(by).filter(queue=name, status=Job.Status.QUEUED)
    first = queued.order_by("sort_at").only("created_at").first()
    return QueueState(
        name=name,
        queued=queued[:MOST_COUNTED].count(),
        oldest_at=first.created_at if first else None,
        paused_at=paused.paused_at if paused else None,
        paused_by=paused.paused_by if paused else "",
    )


@failpoints.commit("pause_queue")
def pause_queue(name: str, *, by: Caller) -> None:
    """Let no worker claim from this queue until it is resumed; running jobs go on."""
    Queue.objects.update_or_create(name=name, defaults={"paused_at": database_time(), "paused_by": by.label})
    keys.audit(by, "queue.pause", name)


@failpoints.commit("resume_queue")
def resume_queue(name: str, *, by: Caller) -> None:
    """Open the queue again. Does nothing to one that is open."""
    Queue.objects.filter(name=name).update(paused_at=None, paused_by="")
    keys.audit(by, "queue.resume", name)
    wakeups.queues_filled(name)


@failpoints.commit("drain_worker")
def drain_worker(worker_id: UUID, *, by: Caller) -> Worker:
    """Ask a worker to take no more jobs, finish or hand back what it runs, and end; it hears it with its next beat.

    Asking twice changes nothing. Raises WorkerNotFound for one that is not there or has ended.
    """
    worker = Worker.objects.select_for_update(no_key=True).filter(id=worker_id, stopped_at=None).first()
    if worker is None:
        raise WorkerNotFound
    if worker.drain_requested_at is None:
        worker.drain_requested_at = database_time()
        worker.save(update_fields=["drain_requested_at"])
        keys.audit(by, "worker.drain", f"worker:{worker.id}", host=worker.host, pid=worker.pid)
    return worker


@failpoints.commit("pause_agent")
def pause_agent(slug: str, *, by: Caller) -> None:
    """Let no worker claim this agent's jobs, of any version. Raises AgentNotFound, ScopeMissing."""
    agent = _holdable(slug, by)
    PausedAgent.objects.get_or_create(agent=agent, defaults={"paused_by": by.label})
    keys.audit(by, "agent.pause", slug)


@failpoints.commit("resume_agent")
def resume_agent(slug: str, *, by: Caller) -> None:
    """Give the agent work again. Raises AgentNotFound, ScopeMissing."""
    agent = _holdable(slug, by)
    PausedAgent.objects.filter(agent=agent).delete()
    keys.audit(by, "agent.resume", slug)
    wakeups.queues_filled(*claiming.survey_all(None)[0])


def _holdable(slug: str, by: Caller) -> Agent:
    """The agent, if this caller may hold it back: a shared one works for every project."""
    agent = agents.resolve(by, slug).agent
    if agent.is_shared and not by.may(Scope.ADMIN):
        raise ScopeMissing("Only an operator pauses a shared agent", missing_scope=Scope.ADMIN)
    return agent
