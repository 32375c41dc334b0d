"""The installation in numbers, for dashboards and autoscalers: now, and over the last hour."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connection
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_text
from prometheus_client.registry import Collector

from jobs import figures
from jobs.metering import totals
from jobs.models import Worker
from jobs.texts import instant

# Exact, unlike the overview's. Each state by name in the text: the indexes hold some states and not others, and of a
# state that comes out of a table or a parameter PostgreSQL cannot prove that it is one of them.
UNFINISHED = " UNION ALL ".join(
    f"""
SELECT '{status.value}', coalesce(sum(found), 0)::bigint
  FROM apikeys_project AS project
 CROSS JOIN LATERAL (
    SELECT count(*) AS found FROM jobs_job AS job
     WHERE job.project_id = project.id AND job.status = '{status.value}'
 ) AS counted
"""  # noqa: S608 (constants)
    for status in figures.UNFINISHED
)

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


# Sessions of other roles are seen by a role with pg_monitor; Engine's own always.
DATABASE = """
SELECT current_setting('max_connections')::int, pg_database_size(current_database()),
       (SELECT jsonb_object_agg(state, number) FROM (
            SELECT coalesce(replace(state, ' ', '_'), 'unknown') AS state, count(*) AS number FROM pg_stat_activity
             WHERE datname = current_database() GROUP BY 1) AS states),
       greatest((SELECT max(age(backend_xmin)) FROM pg_stat_activity),
                (SELECT max(greatest(age(xmin), age(catalog_xmin))) FROM pg_replication_slots),
                (SELECT max(age(transaction)) FROM pg_prepared_xacts), 0),
       coalesce((SELECT extract(epoch FROM statement_timestamp() - min(xact_start))::float8 FROM pg_stat_activity
                  WHERE datname = current_database() AND backend_type = 'client backend'), 0)
"""

# Partitions count as the table that they are parts of. The smallest tables are of no interest here.
TUPLES = r"""
SELECT coalesce(inhparent::regclass::text, relname), sum(n_live_tup)::bigint, sum(n_dead_tup)::bigint
  FROM pg_stat_user_tables LEFT JOIN pg_inherits ON inhrelid = relid
 WHERE relname LIKE ANY(ARRAY['jobs\_%%', 'agents\_%%', 'apikeys\_%%'])
 GROUP BY 1 ORDER BY 1
"""

WARM = """
SELECT coalesce(sum((health->>'warm_sandboxes')::int), 0) FROM jobs_worker
 WHERE stopped_at IS NULL AND lease_until > statement_timestamp()
"""

OVERDUE = "SELECT count(*) FROM jobs_question WHERE status = 'open' AND expires_at < statement_timestamp()"


def _database() -> dict[str, Any]:
    """Connections, size, how far back the oldest snapshot reaches, and what vacuum has left to do."""
    with connection.cursor() as cursor:
        cursor.execute(DATABASE)
        limit, size, states, xmin, oldest = cursor.fetchone()
        cursor.execute(TUPLES, [])
        tables = cursor.fetchall()
    return {
        "connections": json.loads(states) if isinstance(states, str) else states,
        "connections_limit": limit,
        "bytes": size,
        "oldest_xmin_age": xmin,
        "oldest_transaction_s": round(oldest, 3),
        "live_tuples": {name: live for name, live, _ in tables},
        "dead_tuples": {name: dead for name, _, dead in tables},
    }


def metrics() -> dict[str, Any]:
    """What `GET /api/v1/admin/metrics` answers. Times in milliseconds or, where the name ends in _s, seconds."""
    return _now() | {"totals": totals.as_json(totals.read()[0])}


def exposition(*, openmetrics: bool) -> tuple[str, str]:
    """The same in Prometheus' text format or as OpenMetrics, and its type. What is not known now is left out."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(_now(), totals.read()[0]))
    if openmetrics:
        text: bytes = openmetrics_text(registry)  # type: ignore[no-untyped-call]  # theirs
        return text.decode(), OPENMETRICS
    return generate_latest(registry).decode(), PROMETHEUS


def _now() -> dict[str, Any]:
    with connection.cursor() as cursor:
        cursor.execute(UNFINISHED)
        counts = dict(cursor.fetchall())
        cursor.execute(WARM)
        warm = cursor.fetchone()[0]
        cursor.execute(OVERDUE)
        overdue = cursor.fetchone()[0]
    totals.tell("web")  # what this process has counted is in what it shows
    now = figures.figures()
    hour = now.past
    return {
        "at": instant(now.now),
        "jobs": {status.value: counts.get(status.value, 0) for status in figures.UNFINISHED},
        "oldest_queued_s": _age(now.now, now.oldest_queued and now.oldest_queued[1]),
        "events_per_s": round(totals.read()[1], 1),
        "questions": {
            "open": now.open_questions,
            "overdue": overdue,
            "oldest_s": _age(now.now, now.oldest_question),
        },
        "workers": {
            "alive": now.workers.alive,
            "draining": now.workers.draining,
            "unable": now.workers.unable,
            "slots": now.workers.slots,
            "running": now.workers.running,
            "warm_sandboxes": warm,
        },
        "database": _database(),
        "disk": {"free_bytes": now.room.disk_free, "size_bytes": now.room.disk_size},
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
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class _Families(Collector):
    """One reading of the database, as Prometheus' client wants it."""

    def __init__(self, numbers: dict[str, Any], counted: totals.Totals) -> None:
        self._numbers, self._counted = numbers, counted

    def describe(self) -> list[Metric]:
        """Nothing: asked for at registration, before there is a reader."""
        return []

    def collect(self) -> Iterator[Metric]:
        """A gauge for each kind of number, then what all processes have counted."""
        for name, about, label, values in _families(self._numbers):
            family = GaugeMetricFamily(name, about, labels=[label] if label else [])
            for value, number in values.items():
                if number is not None:
                    family.add_metric([value] if label else [], number)
            yield family
        yield from totals.families(self._counted)


def gauges() -> list[tuple[str, str, str, dict[str, Any]]]:
    """Name, meaning, label and values of everything that is read at each scrape."""
    return _families(_now())


def _families(numbers: dict[str, Any]) -> list[tuple[str, str, str, dict[str, Any]]]:
    hour, workers, questions = numbers["last_hour"], numbers["workers"], numbers["questions"]
    database, disk = numbers["database"], numbers["disk"]
    ended = {outcome: hour[outcome] for outcome in ("completed", "failed", "retried", "lost")}
    alive = {kind: workers[kind] for kind in ("alive", "draining", "unable")}
    slots = {kind: workers[kind] for kind in ("slots", "running")}
    wait, run = _quantiles(hour["wait_ms"]), _quantiles(hour["run_ms"])
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
        ("engine_questions_overdue", "Open questions whose time is over.", "", {"": questions["overdue"]}),
        ("engine_events_per_second", "Events that workers store now.", "", {"": numbers["events_per_s"]}),
        ("engine_warm_sandboxes", "Sandboxes that stand ready.", "", {"": workers["warm_sandboxes"]}),
        (
            "engine_database_connections",
            "Sessions of the database, by state.",
            "state",
            database["connections"],
        ),
        (
            "engine_database_connections_limit",
            "Sessions that the database allows.",
            "",
            {"": database["connections_limit"]},
        ),
        ("engine_database_bytes", "What the database takes.", "", {"": database["bytes"]}),
        (
            "engine_oldest_xmin_age",
            "Transactions since the oldest snapshot that vacuum has to respect.",
            "",
            {"": database["oldest_xmin_age"]},
        ),
        (
            "engine_oldest_transaction_seconds",
            "Age of the oldest transaction.",
            "",
            {"": database["oldest_transaction_s"]},
        ),
        ("engine_live_tuples", "Rows, as statistics have them.", "table", database["live_tuples"]),
        ("engine_dead_tuples", "Rows that vacuum has yet to remove.", "table", database["dead_tuples"]),
        ("engine_disk_free_bytes", "Room where files are kept.", "", {"": disk["free_bytes"]}),
        ("engine_disk_size_bytes", "Size of that disk.", "", {"": disk["size_bytes"]}),
        ("engine_workers", "Workers that hold their lease.", "kind", alive),
        ("engine_slots", "Jobs that workers can run, and do.", "kind", slots),
        ("engine_last_hour_attempts", "Attempts that ended in the last hour.", "outcome", ended),
        ("engine_last_hour_wait_seconds", "From due to started, in the last hour.", "quantile", wait),
        ("engine_last_hour_run_seconds", "From started to ended, in the last hour.", "quantile", run),
    ]


def _quantiles(milliseconds: dict[str, float | None]) -> dict[str, float | None]:
    """As Prometheus names and counts them: `p95` in milliseconds is `0.95` in seconds."""
    return {
        str(int(name[1:]) / 100): None if value is None else value / 1000
        for name, value in milliseconds.items()
    }


def _age(now: datetime, since: datetime | None) -> float | None:
    """Seconds, or None where there is nothing."""
    return round((now - since).total_seconds(), 3) if since else None
