"""What waits in the queues, by priority and by project. Counts are capped, so that a million jobs cost what ten
thousand do, and each is a range of one index."""

from dataclasses import dataclass, field
from typing import Any

from django.db import connection

from apikeys.callers import Caller
from jobs import pausing
from jobs.figures import MOST_COUNTED
from jobs.models import Job
from jobs.pausing import QueueState

# New ones stand in job_new_idx, those that come back after an attempt in job_back_idx.
BY_PRIORITY = """
SELECT queue, priority, found
  FROM unnest(%(queues)s::text[]) AS queue CROSS JOIN unnest(%(priorities)s::text[]) AS priority
 CROSS JOIN LATERAL (
    SELECT count(*) AS found FROM (
        SELECT 1 FROM jobs_job AS job
         WHERE job.status = 'queued' AND job.attempt = 0 AND job.queue = queue.queue
           AND job.priority = priority.priority LIMIT %(most)s + 1) AS capped
 ) AS counted
 UNION ALL
SELECT queue, 'returning', found
  FROM unnest(%(queues)s::text[]) AS queue
 CROSS JOIN LATERAL (
    SELECT count(*) AS found FROM (
        SELECT 1 FROM jobs_job AS job
         WHERE job.status = 'queued' AND job.attempt > 0 AND job.queue = queue.queue LIMIT %(most)s + 1) AS capped
 ) AS counted
"""

# Queued jobs stand in job_share_idx, running ones in job_running_idx.
BY_PROJECT = """
SELECT project.slug, project.name, project.max_running, sum(waiting.found)::bigint, sum(running.found)::bigint
  FROM apikeys_project AS project CROSS JOIN unnest(%(queues)s::text[]) AS queue
 CROSS JOIN LATERAL (
    SELECT count(*) AS found FROM (
        SELECT 1 FROM jobs_job AS job
         WHERE job.status = 'queued' AND job.queue = queue.queue AND job.project_id = project.id
         LIMIT %(most)s + 1) AS capped
 ) AS waiting
 CROSS JOIN LATERAL (
    SELECT count(*) AS found FROM jobs_job AS job
     WHERE job.status = 'running' AND job.queue = queue.queue AND job.project_id = project.id
 ) AS running
 WHERE project.archived_at IS NULL
 GROUP BY project.id HAVING sum(waiting.found) + sum(running.found) > 0
 ORDER BY 4 DESC, 5 DESC, 1 LIMIT 100
"""


@dataclass(frozen=True)
class QueueDepth:
    """A queue, with what waits in it by priority; `returning` are those that have run before."""

    state: QueueState
    by_priority: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ProjectDepth:
    """What a project has waiting and running over all queues."""

    slug: str
    name: str
    max_running: int | None
    queued: int
    running: int


def queues(by: Caller) -> list[QueueDepth]:
    """All queues that hold something or are paused; the default one always."""
    states = pausing.queues(by)
    names = [state.name for state in states]
    priorities = list(Job.Priority.values)
    found: dict[str, dict[str, int]] = {name: {} for name in names}
    for queue, priority, count in _rows(BY_PRIORITY, queues=names, priorities=priorities):
        found[queue][priority] = count
    return [QueueDepth(state, found[state.name]) for state in states]


def projects(queue_names: list[str]) -> list[ProjectDepth]:
    """Projects that have something waiting or running, the most waiting first."""
    return [ProjectDepth(*row) for row in _rows(BY_PROJECT, queues=queue_names)]


def _rows(sql: str, **params: Any) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(sql, {**params, "most": MOST_COUNTED})
        found: list[Any] = cursor.fetchall()
    return found
