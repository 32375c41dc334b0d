"""Jobs that jobs start: begun in the transaction that suspends their parent, they wake it in the one that ends them.

Locks go parent before child: whoever ends a child locks its parent first (`lock_parents`), then the child. The wake-up
itself is `queries.requeue_if_free`.
"""

import json
from collections.abc import Collection, Sequence
from typing import Any
from uuid import UUID

from django.db.backends.utils import CursorWrapper

from jobs.execution.outcomes import ChildSpec
from jobs.models import Job


def lock_parents(cursor: CursorWrapper, parents: Collection[UUID]) -> None:
    """Lock the parents of jobs that are about to end. Of two children that end at once, the second sees the first."""
    if parents:
        cursor.execute(
            "SELECT 1 FROM jobs_job WHERE id = ANY(%s) ORDER BY id FOR NO KEY UPDATE", [list(parents)]
        )


# The child goes to the back of its parent's queue, behind nobody with more right: its place is its own.
INSERT = """
INSERT INTO jobs_job (id, project_id, agent_version_id, queue, task, input, status, status_reason, priority, sort_at,
    attempt, failed_count, lost_count, max_attempts, last_seq, deadline_at, parent_id, cancel_requested_by, tags,
    metadata, webhook_url, budget, discovery, progress_message, created_by, created_by_key, created_at, traceparent)
SELECT %(id)s, project_id, %(version)s, queue, %(task)s, %(input)s::jsonb, 'queued', '', priority,
    statement_timestamp() - make_interval(secs => %(credit)s), 0, 0, 0, max_attempts, 1, deadline_at, id, '', tags,
    '{}', '', %(budget)s::jsonb, %(discovery)s::jsonb, '', created_by, created_by_key, statement_timestamp(),
    %(traceparent)s
  FROM jobs_job WHERE id = %(parent)s
ON CONFLICT (id) DO NOTHING
"""
INSERT_FILES = """
INSERT INTO jobs_inputfile (id, job_id, name, media_type, size, sha256, storage_key)
SELECT gen_random_uuid(), %(id)s, name, media_type, size, sha256, storage_key
  FROM jobs_inputfile WHERE job_id = %(parent)s AND name = ANY(%(files)s)
ON CONFLICT (job_id, name) DO NOTHING
"""
INSERT_EVENT = """
INSERT INTO jobs_event (job_id, seq, attempt, at, type, source, level, message, data)
VALUES (%(id)s, 1, 0, statement_timestamp(), 'job.queued', 'system', 'info', '',
        jsonb_build_object('parent', %(parent)s::text))
"""


def start(cursor: CursorWrapper, parent_id: UUID, children: Sequence[ChildSpec]) -> None:
    """Insert the jobs that a suspending one starts. The caller holds the parent's row lock."""
    for child in children:
        cursor.execute("SELECT priority FROM jobs_job WHERE id = %s", [parent_id])
        params: dict[str, Any] = {
            "id": child.id,
            "parent": parent_id,
            "version": child.agent_version_id,
            "task": child.task,
            "input": json.dumps(child.input),
            "credit": float(Job.CREDIT_SECONDS[cursor.fetchone()[0]]),
            "budget": None if child.budget is None else json.dumps(child.budget),
            "discovery": json.dumps(child.explanation),
            "files": list(child.files),
            "traceparent": child.traceparent,
        }
        cursor.execute(INSERT, params)
        if cursor.rowcount:
            cursor.execute(INSERT_FILES, params)
            cursor.execute(INSERT_EVENT, params)
