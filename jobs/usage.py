"""The ledger of what jobs use of models and sandboxes: one row a model call, none for what a journal only copies."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from django.db import connection
from django.db.backends.utils import CursorWrapper

from apikeys.models import ApiKey
from jobs.execution.outcomes import Used
from jobs.execution.ports import KeySpending
from jobs.models import Job

# Spending is counted over a calendar month, so that much is kept of it after its jobs are gone, and a year to look at.
KEPT_DAYS = 400

_SUMS = """
coalesce(sum(input_tokens), 0)::bigint, coalesce(sum(output_tokens), 0)::bigint, coalesce(sum(cost_usd), 0),
coalesce(sum(sandbox_seconds), 0),
coalesce(sum(input_tokens + output_tokens) FILTER (WHERE cost_usd IS NULL), 0)::bigint
"""


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What one journal entry of a running job used."""

    job_id: UUID
    attempt: int
    key: str
    model: str
    used: Used


# `fence` matches rows to jobs that this worker holds (I3); a repeated batch meets its own rows.
INSERT = """
INSERT INTO jobs_usage (job_id, key, project_id, api_key_id, agent_version_id, model, input_tokens, output_tokens,
                        cost_usd, sandbox_seconds, at)
SELECT given.job_id, given.key, job.project_id, job.created_by_key, job.agent_version_id, given.model, given.input,
       given.output, given.cost, given.seconds, statement_timestamp()
  FROM unnest(%(jobs)s::uuid[], %(attempts)s::int[], %(keys)s::text[], %(models)s::text[], %(inputs)s::bigint[],
              %(outputs)s::bigint[], %(costs)s::float8[], %(seconds)s::float8[])
       AS given(job_id, attempt, key, model, input, output, cost, seconds)
  {fence}
ON CONFLICT (job_id, key) DO NOTHING
"""


def insert(cursor: CursorWrapper, worker_id: UUID, rows: Sequence[UsageRow], *, fence: str) -> None:
    """Write the rows of jobs that this worker still holds."""
    if rows:
        cursor.execute(
            INSERT.format(fence=fence),
            {
                "worker_id": worker_id,
                "jobs": [row.job_id for row in rows],
                "attempts": [row.attempt for row in rows],
                "keys": [row.key for row in rows],
                "models": [row.model for row in rows],
                "inputs": [row.used.input_tokens for row in rows],
                "outputs": [row.used.output_tokens for row in rows],
                "costs": [None if row.used.unpriced_tokens else row.used.cost_usd for row in rows],
                "seconds": [row.used.sandbox_seconds for row in rows],
            },
        )


def of_job(job_id: UUID) -> Used:
    """What one job has used itself."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {_SUMS} FROM jobs_usage WHERE job_id = %s", [job_id])  # noqa: S608 (a constant)
        return Used(*cursor.fetchone())


def of_family(job_id: UUID) -> Used:
    """What a job has used together with all jobs that it started, and these again."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            WITH RECURSIVE family AS (
                SELECT %s::uuid AS id
                UNION ALL
                SELECT job.id FROM jobs_job AS job JOIN family ON job.parent_id = family.id
            )
            SELECT {_SUMS} FROM jobs_usage JOIN family ON family.id = job_id
            """,  # noqa: S608 (a constant)
            [job_id],
        )
        return Used(*cursor.fetchone())


def key_spending(job_id: UUID) -> KeySpending | None:
    """The budget of the key that submitted this job, and what its jobs have used in this calendar month (UTC)."""
    key_id = Job.objects.values_list("created_by_key", flat=True).get(id=job_id)
    budget = ApiKey.objects.filter(id=key_id).values_list("budget", flat=True).first() if key_id else None
    if not budget or key_id is None:
        return None
    return KeySpending(budget, of_key(key_id))


def of_key(key_id: UUID) -> Used:
    """What the jobs of a key have used in this calendar month (UTC)."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT {_SUMS} FROM jobs_usage
             WHERE api_key_id = %s AND at >= date_trunc('month', statement_timestamp() AT TIME ZONE 'UTC')
                                            AT TIME ZONE 'UTC'
            """,  # noqa: S608 (a constant)
            [key_id],
        )
        return Used(*cursor.fetchone())


@dataclass(frozen=True, slots=True)
class VersionUsage:
    """What one version of an agent has used, and for how many jobs."""

    number: int
    jobs: int
    used: Used


def of_agent(agent_id: UUID, *, days: int = 30) -> list[VersionUsage]:
    """What an agent's jobs have used in the last days, by version, the newest first."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT version.number, count(DISTINCT job_id), {_SUMS}
              FROM jobs_usage JOIN agents_agentversion AS version ON version.id = agent_version_id
             WHERE version.agent_id = %s AND at > statement_timestamp() - make_interval(days => %s)
             GROUP BY version.number ORDER BY version.number DESC LIMIT 20
            """,  # noqa: S608 (a constant)
            [agent_id, days],
        )
        return [VersionUsage(number, jobs, Used(*sums)) for number, jobs, *sums in cursor.fetchall()]


_TODAY = "at >= date_trunc('day', statement_timestamp() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'"
# The jobs that have used something since midnight (UTC).
JOBS_OF_TODAY = f"SELECT job_id FROM jobs_usage WHERE {_TODAY}"  # noqa: S608 (a constant)


def of_today() -> Used:
    """What all jobs have used since midnight (UTC)."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {_SUMS} FROM jobs_usage WHERE {_TODAY}")  # noqa: S608 (a constant)
        return Used(*cursor.fetchone())


def forget() -> None:
    """Delete what is older than anybody asks for."""
    with connection.cursor() as cursor:
        cursor.execute(
            "DELETE FROM jobs_usage WHERE at < statement_timestamp() - make_interval(days => %s)", [KEPT_DAYS]
        )
