"""Counts of all processes, through the database: whichever web process is scraped knows all of them.

Why not prometheus_client's files for several processes: they serve the processes of one host that share a folder, and
what a host that is gone had counted is gone with it. Why not a port for each worker: it has to be found, and opened in
firewalls. Here each process writes its own row (nobody waits for another), and what it writes is its total, so that
writing it twice changes nothing. A process that is dead keeps its row until its totals go over to the row `past`: sums
never fall. A kill loses what was counted since the last report, at most REPORT_SECONDS.
"""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, Final
from uuid import UUID, uuid4

from django.db import DatabaseError, InterfaceError, connection, transaction
from prometheus_client import Metric

from engine import meters
from engine.meters import Sample

log = logging.getLogger("engine.metrics")

REPORT_SECONDS = 5.0
# A process that said nothing for so long is added to the past. Should it live after all, it begins a new row.
PAST_SECONDS = 900.0
PAST: Final = UUID(int=0)

Series = tuple[str, tuple[tuple[str, str], ...]]
Totals = dict[Series, float]

UPDATE = """
UPDATE jobs_processmeter SET at = statement_timestamp(), totals = %(totals)s, events_per_second = %(pace)s
 WHERE id = %(id)s
"""
INSERT = """
INSERT INTO jobs_processmeter (id, kind, host, pid, at, totals, events_per_second)
VALUES (%(id)s, %(kind)s, %(host)s, %(pid)s, statement_timestamp(), %(totals)s, %(pace)s)
"""


class Report:
    """What this process tells. One for each process; safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._row: UUID | None = None
        self._before: Totals = {}  # told in earlier rows of this process, which others own by now
        self._told: Totals = {}  # since this process began
        self._told_at = time.monotonic()

    def write(self, kind: str) -> None:
        """Bring this process's row up to date. Raises DatabaseError, InterfaceError."""
        with self._lock:
            now = {(name, labels): value for name, labels, value in meters.samples()}
            seconds = time.monotonic() - self._told_at
            pace = max(0.0, _events(now) - _events(self._told)) / max(seconds, 0.001)
            with transaction.atomic(), connection.cursor() as cursor:
                # As good as told: a crash of the server costs some seconds of counts, not each report a flush.
                cursor.execute("SET LOCAL synchronous_commit = off")
                if self._row is not None:
                    cursor.execute(UPDATE, self._params(self._row, kind, now, self._before, pace))
                if self._row is None or not cursor.rowcount:
                    row, before = uuid4(), self._told if self._row else self._before
                    cursor.execute(INSERT, self._params(row, kind, now, before, pace))
                    self._row, self._before = row, before
            self._told, self._told_at = now, time.monotonic()

    @staticmethod
    def _params(row: UUID, kind: str, now: Totals, before: Totals, pace: float) -> dict[str, Any]:
        rest = {series: value - before.get(series, 0.0) for series, value in now.items()}
        return {
            "id": row,
            "kind": kind,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "totals": _as_json(rest),
            "pace": pace,
        }


report = Report()


def tell(kind: str) -> None:
    """Report, or leave it for the next time: counting stops nothing."""
    try:
        report.write(kind)
    except (DatabaseError, InterfaceError) as error:
        log.debug("Counts are reported another time: %s", error)


def fold() -> None:
    """Add what dead processes had counted to the past."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO jobs_processmeter (id, kind, host, pid, at, totals, events_per_second)"
            " VALUES (%s, 'past', '', 0, statement_timestamp(), '[]', 0) ON CONFLICT DO NOTHING",
            [PAST],
        )
        cursor.execute("SELECT totals FROM jobs_processmeter WHERE id = %s FOR UPDATE", [PAST])
        past = cursor.fetchone()[0]
        cursor.execute(
            "DELETE FROM jobs_processmeter WHERE id <> %s"
            " AND at < statement_timestamp() - make_interval(secs => %s) RETURNING totals",
            [PAST, PAST_SECONDS],
        )
        gone = [row[0] for row in cursor.fetchall()]
        if gone:
            cursor.execute(
                "UPDATE jobs_processmeter SET totals = %s, at = statement_timestamp() WHERE id = %s",
                [_as_json(_sum([past, *gone])), PAST],
            )


def read() -> tuple[Totals, float]:
    """The sums over all processes that ever were, and the events stored a second now."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT totals, CASE WHEN at > statement_timestamp() - make_interval(secs => %s)"
            " THEN events_per_second ELSE 0 END FROM jobs_processmeter",
            [3 * REPORT_SECONDS],
        )
        rows = cursor.fetchall()
    return _sum(row[0] for row in rows), sum(row[1] for row in rows)


def families(totals: Totals) -> Iterator[Metric]:
    """The sums as Prometheus' client writes them; buckets in their order, which JSON does not keep."""
    by_name: dict[str, list[Sample]] = {}
    for (name, labels), value in totals.items():
        by_name.setdefault(name, []).append(Sample(name, labels, value))
    for known in meters.REGISTRY.collect():
        family = Metric(known.name, known.documentation, known.type)
        suffixes = ("_bucket", "_count", "_sum") if known.type == "histogram" else ("_total",)
        found = [sample for suffix in suffixes for sample in by_name.get(known.name + suffix, ())]
        for sample in sorted(found, key=_place):
            family.add_sample(sample.name, dict(sample.labels), sample.value)
        yield family


def _place(sample: Sample) -> tuple[Any, ...]:
    labels = dict(sample.labels)
    limit = float(labels.pop("le", "inf"))
    return (sorted(labels.items()), sample.name, limit)


def _sum(rows: Iterable[Any]) -> Totals:
    sums: Totals = {}
    for row in rows:
        for name, labels, value in json.loads(row) if isinstance(row, str) else row:
            series = (name, tuple((label, text) for label, text in labels))
            sums[series] = sums.get(series, 0.0) + value
    return sums


def _as_json(totals: Totals) -> str:
    return json.dumps([[name, labels, value] for (name, labels), value in totals.items()])


def _events(totals: Totals) -> float:
    return totals.get(("engine_events_total", ()), 0.0)


def as_json(totals: Totals) -> dict[str, Any]:
    """The sums for people: a number, or numbers by label; of histograms the count and the mean."""
    told: dict[str, Any] = {}
    for family in families(totals):
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                continue
            key = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            if key:
                told.setdefault(sample.name, {})[key] = sample.value
            else:
                told[sample.name] = sample.value
    return told


class Reporter(threading.Thread):
    """Reports for a web process, until it is stopped."""

    def __init__(self) -> None:
        super().__init__(name="metrics", daemon=True)
        self._stopped = threading.Event()

    def run(self) -> None:
        """Each REPORT_SECONDS, and once at the end; the connection is kept only while it is used."""
        while True:
            stopped = self._stopped.wait(REPORT_SECONDS)
            tell("web")
            connection.close()
            if stopped:
                return

    def stop(self) -> None:
        """Say the last, and end."""
        self._stopped.set()
        self.join(timeout=2.0)
