"""What benchmarks share: a database of their own, jobs by the thousand, and a worker without sandboxes."""

from django.core.management import call_command
from django.db import connection

from jobs import queries
from jobs.sandboxes.base import Provider, ProviderHealth, Sandbox, SandboxSpec, SandboxUnavailable


class NoSandbox(Provider):
    """For no-op agents, which never open one."""

    name = "none"

    async def start(self) -> ProviderHealth:
        """Always ready."""
        return ProviderHealth(True, self.name, "no-op agents only")

    async def open(self, spec: SandboxSpec) -> Sandbox:
        """Refuse: only no-op agents run here."""
        raise SandboxUnavailable("This worker runs no-op agents only.")

    def tick(self, seconds: float) -> None:
        """Nothing to kill."""

    async def kill(self, ref: str) -> None:
        """Nothing to kill."""

    async def close(self) -> None:
        """Nothing to close."""


def fresh_tables() -> None:
    """Every table there and empty. Only for a home made for benchmarks: it deletes all jobs."""
    call_command("migrate", verbosity=0)
    with connection.cursor() as cursor:
        cursor.execute(
            "TRUNCATE jobs_job, jobs_worker, jobs_event, jobs_attempt, jobs_step, jobs_minutestat CASCADE"
        )
    queries.ensure_partitions()


def bulk_jobs(count: int, *, queue: str = "default") -> None:
    """Insert queued no-op jobs, each with its first event."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            WITH project AS (
                INSERT INTO apikeys_project (id, slug, name) VALUES (gen_random_uuid(), 'bench', 'bench')
                ON CONFLICT (slug) DO UPDATE SET name = 'bench' RETURNING id
            ), made AS (
                INSERT INTO jobs_job (id, project_id, agent_version_id, queue, task, input, status, status_reason,
                    priority, sort_at, attempt, failed_count, lost_count, max_attempts, last_seq, cancel_requested_by,
                    tags, metadata, webhook_url, progress_message, created_by)
                SELECT uuidv7(), project.id, %s, %s, 'nothing', '{}', 'queued', '', 'normal',
                       statement_timestamp() + number * interval '1 microsecond', 0, 0, 0, 3, 1, '', '{}', '{}', '',
                       '', 'bench'
                  FROM generate_series(1, %s) AS number, project
                RETURNING id
            )
            INSERT INTO jobs_event (job_id, seq, attempt, at, type, source, level, message)
            SELECT id, 1, 0, statement_timestamp(), 'job.queued', 'system', 'info', '' FROM made
            """,
            [_noop_version(), queue, count],
        )
        cursor.execute("ANALYZE jobs_job")


def _noop_version() -> str:
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT version.id FROM agents_agentversion AS version JOIN agents_agent AS agent ON agent.id = agent_id
             WHERE agent.slug = 'noop' AND version.kind = 'noop'
            """
        )
        row = cursor.fetchone()
    if row is not None:
        return str(row[0])
    from agents.models import Agent, AgentVersion

    agent = Agent.objects.create(slug="noop")
    version = AgentVersion.objects.create(
        agent=agent, number=1, name="noop", description="Ends at once.", kind="noop", content_hash="noop"
    )
    agent.current_version = version
    agent.save()
    return str(version.id)
