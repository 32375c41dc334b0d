"""The installation in numbers, for dashboards and autoscalers: now, and over the last hour."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connection

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
    hour = now.hour
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
                for minute in hour.minutes[-15:]
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
    hour = numbers["last_hour"]
    ended = {outcome: hour[outcome] for outcome in ("completed", "failed", "retried", "lost")}
    gauges: list[tuple[str, str, dict[str, Any]]] = [
        ("engine_jobs", "status", numbers["jobs"]),
        ("engine_oldest_queued_seconds", "", {"": numbers["oldest_queued_s"]}),
        ("engine_open_questions", "", {"": numbers["questions"]["open"]}),
        ("engine_oldest_question_seconds", "", {"": numbers["questions"]["oldest_s"]}),
        (
            "engine_workers",
            "kind",
            {kind: numbers["workers"][kind] for kind in ("alive", "draining", "unable")},
        ),
        ("engine_slots", "kind", {kind: numbers["workers"][kind] for kind in ("slots", "running")}),
        ("engine_last_hour_attempts", "outcome", ended),
        ("engine_last_hour_wait_milliseconds", "quantile", hour["wait_ms"]),
        ("engine_last_hour_run_milliseconds", "quantile", hour["run_ms"]),
    ]
    return "".join(f"# TYPE {name} gauge\n{_samples(name, label, values)}" for name, label, values in gauges)


def _samples(name: str, label: str, values: dict[str, Any]) -> str:
    return "".join(
        f'{name}{{{label}="{value}"}} {number}\n' if label else f"{name} {number}\n"
        for value, number in values.items()
        if number is not None
    )


def _age(now: datetime, since: datetime | None) -> float | None:
    """Seconds, or None where there is nothing."""
    return round((now - since).total_seconds(), 3) if since else None
