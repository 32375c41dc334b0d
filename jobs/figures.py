"""Figures about the installation as it is now and in the last hour, day or week. Nothing here counts history.

Numbers over time come from the minute buckets and the hours that these are added up to; states now from indexes that
hold unfinished jobs, each count capped, so that a million queued jobs cost what ten thousand do.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.core.files.storage import FileSystemStorage, storages
from django.db import connection

from jobs import listing, usage
from jobs.execution.outcomes import Used
from jobs.models import Job, MinuteStat, Question

UNFINISHED = (
    Job.Status.QUEUED,
    Job.Status.RUNNING,
    Job.Status.WAITING_FOR_INPUT,
    Job.Status.SCHEDULED,
)
# A count that reaches this is shown as "10,000+".
MOST_COUNTED = 10_000

OLDEST_QUEUED = """
SELECT first.id, greatest(first.created_at, first.run_at)
  FROM apikeys_project AS project
 CROSS JOIN LATERAL (
    SELECT id, created_at, run_at FROM jobs_job AS job
     WHERE job.project_id = project.id AND job.status = 'queued'
     ORDER BY id LIMIT 1
 ) AS first
 ORDER BY 2 LIMIT 1
"""

# What the figures of a window are summed from: its minutes, or its hours and the minutes that are in none yet.
BY_MINUTE = """
WITH stats AS (
    SELECT minute AS at, outcome, error_code, count, wait_histogram AS waits, run_histogram AS runs
      FROM jobs_minutestat WHERE minute >= %(since)s
)
"""
BY_HOUR = """
WITH stats AS (
    SELECT hour AS at, outcome, error_code, count, wait_histogram AS waits, run_histogram AS runs
      FROM jobs_hourstat WHERE hour >= %(since)s
    UNION ALL
    SELECT date_trunc('hour', minute), outcome, error_code, count, wait_histogram, run_histogram
      FROM jobs_minutestat
     WHERE minute >= greatest(%(since)s, (SELECT max(hour) + interval '1 hour' FROM jobs_hourstat))
)
"""

COUNTS = "SELECT at, outcome, error_code <> '', sum(count) FROM stats GROUP BY 1, 2, 3"

HISTOGRAMS = """
SELECT place, sum(wait), sum(run)
  FROM stats, unnest(waits, runs) WITH ORDINALITY AS bucket (wait, run, place)
 GROUP BY place ORDER BY place
"""

ERROR_CODES = """
SELECT error_code, sum(count) FROM stats WHERE error_code <> '' GROUP BY error_code ORDER BY 2 DESC, 1 LIMIT 5
"""

WORKERS = """
SELECT count(*), coalesce(sum(slots), 0), coalesce(sum(running), 0),
       count(*) FILTER (WHERE NOT can_run), count(*) FILTER (WHERE drain_requested_at IS NOT NULL)
  FROM jobs_worker
 WHERE stopped_at IS NULL AND lease_until > statement_timestamp()
"""


@dataclass(frozen=True)
class Window:
    """A length of time to look back on, and the slots that it is drawn in."""

    name: str  # as `ended` of the list of jobs has it
    words: str
    slot: timedelta
    slots: int
    source: str

    def first(self, now: datetime) -> datetime:
        """The beginning of the oldest slot; the newest one has begun and goes on."""
        fields = {"second": 0, "microsecond": 0} | ({"minute": 0} if self.slot >= timedelta(hours=1) else {})
        return now.replace(**fields) - self.slot * (self.slots - 1)  # type: ignore[arg-type]  # numbers all


WINDOWS = {
    window.name: window
    for window in (
        Window("1h", "hour", timedelta(minutes=1), 60, BY_MINUTE),
        Window("24h", "day", timedelta(hours=1), 24, BY_HOUR),
        Window("7d", "week", timedelta(hours=1), 7 * 24, BY_HOUR),
    )
}
HOUR = WINDOWS["1h"]


@dataclass(frozen=True)
class Slot:
    """What ended in one minute or hour."""

    at: datetime
    completed: int = 0
    failed: int = 0

    @property
    def total(self) -> int:
        """All that ended."""
        return self.completed + self.failed


@dataclass(frozen=True)
class Past:
    """A window, slot by slot, oldest first. Times in milliseconds, None where nothing ran."""

    window: Window
    slots: Sequence[Slot]
    retried: int
    lost: int
    wait_p50: float | None
    wait_p95: float | None
    run_p50: float | None
    run_p95: float | None
    error_codes: Sequence[tuple[str, int]]

    @property
    def completed(self) -> int:
        """Jobs that reached their result."""
        return sum(slot.completed for slot in self.slots)

    @property
    def failed(self) -> int:
        """Jobs that failed for good."""
        return sum(slot.failed for slot in self.slots)

    @property
    def success(self) -> float | None:
        """Completed out of those that ended, 0..1."""
        ended = self.completed + self.failed
        return self.completed / ended if ended else None


@dataclass(frozen=True)
class Workers:
    """The workers that hold their lease now."""

    alive: int
    slots: int
    running: int
    unable: int  # alive, but their sandbox does not work
    draining: int


@dataclass(frozen=True)
class Room:
    """Bytes: what the database takes, and the disk that the files lie on; None where they lie elsewhere."""

    database: int
    disk_free: int | None = None
    disk_size: int | None = None

    @property
    def is_short(self) -> bool:
        """Whether less than a tenth of the disk is free."""
        return (
            self.disk_free is not None and self.disk_size is not None and self.disk_free * 10 < self.disk_size
        )


@dataclass(frozen=True)
class Figures:
    """What the overview shows."""

    now: datetime
    states: dict[str, int]
    oldest_queued: tuple[UUID, datetime] | None
    open_questions: int
    oldest_question: datetime | None
    past: Past
    workers: Workers
    today: Used
    room: Room
    failures: Sequence[Job] = field(default_factory=list)


def figures(window: Window = HOUR) -> Figures:
    """All of it, as of now, and looking back on `window`."""
    now = _row("SELECT statement_timestamp()")[0]
    oldest = _rows(OLDEST_QUEUED)
    questions = Question.objects.open()
    first = questions.order_by("id").values_list("created_at", flat=True).first()
    return Figures(
        now=now,
        states=states(),
        oldest_queued=oldest[0] if oldest else None,
        open_questions=open_questions(),
        oldest_question=first,
        past=past(window, now),
        workers=Workers(*_row(WORKERS)),
        today=usage.of_today(),
        room=room(),
        failures=newest_in(Job.Status.FAILED, limit=6),
    )


def room() -> Room:
    """Sizes that the system knows without adding up files."""
    database = int(_row("SELECT pg_database_size(current_database())")[0])
    files = storages["artifacts"]
    if not isinstance(files, FileSystemStorage):
        return Room(database)
    try:
        disk = shutil.disk_usage(files.location)
    except OSError:
        return Room(database)  # no file has been stored yet
    return Room(database, disk.free, disk.total)


def states(statuses: Sequence[str] = UNFINISHED) -> dict[str, int]:
    """How many jobs are in each of these states now, counted up to MOST_COUNTED + 1."""
    return listing.counts(statuses, most=MOST_COUNTED)


def open_questions() -> int:
    """Questions that wait for an answer, counted up to MOST_COUNTED + 1."""
    return Question.objects.open().order_by()[: MOST_COUNTED + 1].count()


def newest_in(status: str, *, limit: int) -> list[Job]:
    """The newest jobs in one state, over all projects."""
    ids = listing.newest(listing.Wanted(status=status), reach=limit)
    return list(
        Job.objects.filter(id__in=ids).select_related("agent_version__agent", "project").order_by("-id")
    )


def past(window: Window, now: datetime) -> Past:
    """A window from its buckets."""
    first = window.first(now)
    completed: dict[datetime, int] = {}
    failed: dict[datetime, int] = {}
    retried = lost = 0
    for at, outcome, is_final_failure, count in _rows(window.source + COUNTS, since=first):
        if outcome == "completed":
            completed[at] = completed.get(at, 0) + int(count)
        elif is_final_failure:
            failed[at] = failed.get(at, 0) + int(count)
        elif outcome == "failed":
            retried += int(count)
        elif outcome == "lost":
            lost += int(count)
    moments = [first + window.slot * n for n in range(window.slots)]
    histograms = _rows(window.source + HISTOGRAMS, since=first)
    waits, runs = [int(row[1]) for row in histograms], [int(row[2]) for row in histograms]
    errors = _rows(window.source + ERROR_CODES, since=first)
    return Past(
        window=window,
        slots=[Slot(at, completed.get(at, 0), failed.get(at, 0)) for at in moments],
        retried=retried,
        lost=lost,
        wait_p50=quantile(waits, 0.5),
        wait_p95=quantile(waits, 0.95),
        run_p50=quantile(runs, 0.5),
        run_p95=quantile(runs, 0.95),
        error_codes=[(code, int(count)) for code, count in errors],
    )


def quantile(counts: Sequence[int], share: float) -> float | None:
    """Milliseconds below which `share` of the values lie, linear within a bucket of HISTOGRAM_MS. None: no values."""
    wanted = sum(counts) * share
    if not wanted:
        return None
    bounds, seen = MinuteStat.HISTOGRAM_MS, 0
    for index, count in enumerate(counts):
        if count and seen + count >= wanted:
            low = bounds[index - 1] if index else 0
            high = bounds[index] if index < len(bounds) else low  # the open last bucket: its lower bound
            return low + (high - low) * (wanted - seen) / count
        seen += count
    return float(bounds[-1])


def _rows(sql: str, **params: Any) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        found: list[Any] = cursor.fetchall()
    return found


def _row(sql: str, **params: Any) -> Any:
    return _rows(sql, **params)[0]
