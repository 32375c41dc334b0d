"""What became of the jobs of a drill, read from outside once all is quiet."""

import re
from dataclasses import dataclass
from typing import Any

import psycopg

from drills.faults import Fault
from drills.field import Field
from drills.load import Load
from tests.history import faults

# A fault is noted just before it is done; a job that starts in between is hit by it, too.
SLACK_SECONDS = 0.5

# Kinds that every worker feels; they explain a loss where nothing hit the worker itself.
EVERYWHERE = ("PostgreSQL restart", "terminated backends")

LOST_ATTEMPTS = """
SELECT attempt.job_id, worker.pid, extract(epoch FROM attempt.started_at)::float8,
       extract(epoch FROM attempt.ended_at)::float8, extract(epoch FROM again.at)::float8
  FROM jobs_attempt AS attempt JOIN jobs_worker AS worker ON worker.id = attempt.worker_id
  LEFT JOIN jobs_event AS again ON again.job_id = attempt.job_id AND again.type = 'job.started'
       AND again.attempt = attempt.number + 1
 WHERE attempt.outcome = 'lost'
"""

HANDED_BACK = """
SELECT extract(epoch FROM again.at - attempt.ended_at)::float8
  FROM jobs_attempt AS attempt JOIN jobs_event AS again ON again.job_id = attempt.job_id
       AND again.type = 'job.started' AND again.attempt = attempt.number + 1
 WHERE attempt.outcome = 'handed_back'
"""

CHARGED = """
SELECT job_id, outcome FROM jobs_attempt WHERE outcome NOT IN ('completed', 'suspended', 'cancelled', 'handed_back')
UNION ALL
SELECT id, format('failed_count %s, lost_count %s', failed_count, lost_count) FROM jobs_job
 WHERE failed_count > 0 OR lost_count > 0
"""


@dataclass(frozen=True)
class Recovery:
    """One attempt that a fault took, and how long its job then waited."""

    job_id: str
    kind: str
    seconds: float
    in_outage: (
        bool  # PostgreSQL was started while it lay: counted from then, since sweeps wait one lease after that
    )


@dataclass(frozen=True)
class Findings:
    """Everything that is judged."""

    by_status: dict[str, int]
    missing: list[str]  # acknowledged, but not stored
    lost: list[str]  # acknowledged, and ended as nobody asked
    attempts: int
    late_accepted: list[str]
    late_refused: int
    broken_rules: list[str]
    unexplained_results: list[str]
    recoveries: list[Recovery]
    unexplained_losses: int
    handed_back: list[float]  # seconds from each hand-back to the job's next start
    charged: list[str]  # jobs that a budget was charged for: in a drain there may be none


def read(field: Field, load: Load, done: list[Fault]) -> Findings:
    """Look at the database, the effects, and the workers' logs."""
    with field.link() as link:
        jobs = {
            str(row[0]): row[1:]
            for row in _all(link, "SELECT id, status, status_reason, input, result FROM jobs_job")
        }
        statuses = {
            str(row[0]): row[1] for row in _all(link, "SELECT status, count(*) FROM jobs_job GROUP BY 1")
        }
        ended = {"completed"}
        lost = [
            f"{job_id} {jobs[job_id][0]} ({jobs[job_id][1]})"
            for job_id in load.client.acknowledged & jobs.keys()
            if jobs[job_id][0] not in (ended | {"cancelled"} if job_id in load.cancelled else ended)
        ]
        results = [
            (row[2]["drill"], row[3]) for row in jobs.values() if row[0] == "completed" and "drill" in row[2]
        ]
        recoveries, unexplained = _recoveries(_all(link, LOST_ATTEMPTS), done, field.server_starts)
        return Findings(
            by_status=statuses,
            missing=sorted(load.client.acknowledged - jobs.keys()),
            lost=lost,
            attempts=_all(link, "SELECT coalesce(sum(attempt), 0) FROM jobs_job")[0][0],
            late_accepted=[
                f"{row[0]} {row[1]} of attempt {row[2]}"
                for row in _all(link, "SELECT job_id, what, attempt FROM drill_late")
            ],
            late_refused=_sum(field, r"Late writes of (\d+) attempts were refused"),
            broken_rules=faults(link.cursor(), at_rest=True),
            unexplained_results=field.effects.unexplained(results),
            recoveries=recoveries,
            unexplained_losses=unexplained,
            handed_back=[row[0] for row in _all(link, HANDED_BACK)],
            charged=[f"{job_id}: {what}" for job_id, what in _all(link, CHARGED)],
        )


def _all(link: "psycopg.Connection[Any]", query: str) -> list[tuple[Any, ...]]:
    return link.execute(query).fetchall()


def _sum(field: Field, pattern: str) -> int:
    return sum(
        int(number) for program in field.instance.programs for number in re.findall(pattern, program.output())
    )


def _recoveries(
    lost: list[tuple[Any, ...]], done: list[Fault], server_starts: list[float]
) -> tuple[list[Recovery], int]:
    """For each lost attempt the time from the last fault that hit its worker to the job's next start."""
    recoveries, unexplained = [], 0
    for job_id, pid, started, ended, again in lost:
        near = [fault for fault in done if started - SLACK_SECONDS <= fault.at <= ended]
        hits = [fault for fault in near if fault.pid == pid] or [
            fault for fault in near if fault.kind in EVERYWHERE
        ]
        if not hits:
            unexplained += 1
        elif again is not None:
            hit = next((fault for fault in hits if fault.kind == "SIGKILL"), hits[0])
            starts = [at for at in server_starts if hit.at < at < again]
            recoveries.append(Recovery(str(job_id), hit.kind, again - max([hit.at, *starts]), bool(starts)))
    return recoveries, unexplained


def percentile(values: list[float], share: float) -> float:
    """By rank, without interpolation; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
