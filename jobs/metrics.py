"""The installation in numbers, for dashboards and autoscalers: now, and over the last hour."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connection
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from jobs import figures
from jobs.models import Worker
from jobs.texts import instant

# Exact, unlike the overview's: one index range for each project and state.
UNFINISHED = """
SELECT wanted.status, sum(found)::bigint
  FROM unnest(%(statuses)s::text[]) AS wanted (status)
 CROSS JOIN apikeys_project AS project
 CROSS JOIN LATERAL (
    SELECT count(*) AS found FROM jobs_job AS job
     WHERE job.project_id = project.id AND job.status = wanted.status
 ) AS counted
 GROUP BY wanted.status
"""

WORKER_STATES = """
SELECT worker.id,
       CASE WHEN stopped_at IS NOT NULL THEN 'stopped'
            WHEN lease_until <= statement_timestamp() THEN 'lost'
            WHEN drain_requested_at IS NOT NULL THEN 'draining'
            ELSE 'alive' END,
       extract(epoch FROM statement_timestamp() - heartbeat_at)::float8
  FROM jobs_worker AS worker
 WHERE heartbeat_at > statement_timestamp() - make_interval(hours => %(hours)s)
 ORDER BY started_at DESC, id LIMIT %(most)s
"""
# Workers that ended longer ago are not listed: each start makes a new row.
LISTED_HOURS, MOST_LISTED = 24, 500


@dataclass(frozen=True)
class ListedWorker:
    """A worker and how it stood by the database's clock."""

    worker: Worker
    state: str  # alive | draining | stopped | lost
    heartbeat_age_s: float


def workers(state: str | None = None) -> list[ListedWorker]:
    """Workers that gave a sign in the last day, the youngest first."""
    with connection.cursor() as cursor:
        cursor.execute(WORKER_STATES, {"hours": LISTED_HOURS, "most": MOST_LISTED})
        found = [row for row in cursor.fetchall() if state is None or row[1] == state]
    rows = Worker.objects.in_bulk([row[0] for row in found])
    return [ListedWorker(rows[row[0]], row[1], round(row[2], 3)) for row in found if row[0] in rows]


def metrics() -> dict[str, Any]:
    """What `GET /api/v1/admin/metrics` answers. Times in milliseconds or, where the name ends in _s, seconds."""
    with connection.cursor() as cursor:
        cursor.execute(UNFINISHED, {"statuses": list(figures.UNFINISHED)})
        counts = dict(cursor.fetchall())
    now = figures.figures()
    hour = now.past
    return {
        "at": instant(now.now),
        "jobs": {status.value: counts.get(status.value, 0) for status in figures.UNFINISHED},
        "oldest_queued_s": _age(now.now, now.oldest_queued and now.oldest_queued[1]),
        "questions": {"open": now.open_questions, "oldest_s": _age(now.now, now.oldest_question)},
        "workers": {
            "alive": now.workers.alive,
            "draining": now.workers.draining,
            "unable": now.workers.unable,
            "slots": now.workers.slots,
            "running": now.workers.running,
        },
        "last_hour": {
            "completed": hour.completed,
            "failed": hour.failed,
            "retried": hour.retried,
            "lost": hour.lost,
            "success": hour.success,
            "last_minutes": [
                {"at": instant(minute.at), "completed": minute.completed, "failed": minute.failed}
                for minute in hour.slots[-15:]
            ],
            "wait_ms": {"p50": hour.wait_p50, "p95": hour.wait_p95},
            "run_ms": {"p50": hour.run_p50, "p95": hour.run_p95},
            "errors": [{"code": code, "count": count} for code, count in hour.error_codes],
        },
    }


# --- Prometheus' text format ---

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def as_prometheus(numbers: dict[str, Any]) -> str:
    """The same numbers as gauges. What is not known now is left out."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Gauges(numbers))
    return generate_latest(registry).decode()


class _Gauges(Collector):
    """One reading of the database, as Prometheus' client wants it."""

    def __init__(self, numbers: dict[str, Any]) -> None:
        self._numbers = numbers

    def describe(self) -> list[Metric]:
        """Nothing: asked for at registration, before there is a reader."""
        return []

    def collect(self) -> Iterator[Metric]:
        """A family for each kind of number."""
        for name, about, label, values in _families(self._numbers):
            family = GaugeMetricFamily(name, about, labels=[label] if label else [])
            for value, number in values.items():
                if number is not None:
                    family.add_metric([value] if label else [], number)
            yield family


def _families(numbers: dict[str, Any]) -> list[tuple[str, str, str, dict[str, Any]]]:
    hour, workers, questions = numbers["last_hour"], numbers["workers"], numbers["questions"]
    ended = {outcome: hour[outcome] for outcome in ("completed", "failed", "retried", "lost")}
    alive = {kind: workers[kind] for kind in ("alive", "draining", "unable")}
    slots = {kind: workers[kind] for kind in ("slots", "running")}
    wait, run = hour["wait_ms"], hour["run_ms"]
    return [
        ("engine_jobs", "Jobs that have not ended, by state.", "status", numbers["jobs"]),
        (
            "engine_oldest_queued_seconds",
            "Age of the job that waits longest.",
            "",
            {"": numbers["oldest_queued_s"]},
        ),
        ("engine_open_questions", "Questions that nobody has answered.", "", {"": questions["open"]}),
        ("engine_oldest_question_seconds", "Age of the oldest of them.", "", {"": questions["oldest_s"]}),
        ("engine_workers", "Workers that hold their lease.", "kind", alive),
        ("engine_slots", "Jobs that workers can run, and do.", "kind", slots),
        ("engine_last_hour_attempts", "Attempts that ended in the last hour.", "outcome", ended),
        ("engine_last_hour_wait_milliseconds", "From due to started, in the last hour.", "quantile", wait),
        ("engine_last_hour_run_milliseconds", "From started to ended, in the last hour.", "quantile", run),
    ]


def _age(now: datetime, since: datetime | None) -> float | None:
    """Seconds, or None where there is nothing."""
    return round((now - since).total_seconds(), 3) if since else None
