"""What benchmarks share: a database of their own, jobs by the thousand, and a worker without sandboxes.

Importing it sets Django up, for agents that do nothing to be allowed. ENGINE_HOME is the benchmarks' own: they delete
all jobs in it.
"""

import asyncio
import math
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from unittest import mock

import django

os.environ["ENGINE_BENCHMARK"] = "1"
os.environ.setdefault("ENGINE_HOME", ".engine-bench")
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "engine.settings")
django.setup()

from django.conf import settings  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import connection  # noqa: E402

from agents.models import Agent, AgentVersion  # noqa: E402
from engine import collector  # noqa: E402
from jobs import queries  # noqa: E402
from jobs.execution.outcomes import Outcome  # noqa: E402
from jobs.models import Job  # noqa: E402
from jobs.sandboxes.base import (  # noqa: E402
    Provider,
    ProviderHealth,
    Sandbox,
    SandboxSpec,
    SandboxUnavailable,
)
from jobs.worker import Incarnation, Options, Running, Worker  # noqa: E402


def show(what: str, *figures: str) -> None:
    """One line of the table."""
    print(f"{what:<48}" + "".join(f"{figure:>24}" for figure in figures), flush=True)


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile."""
    return sorted(values)[max(0, math.ceil(len(values) * share) - 1)]


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


@contextmanager
def serving(*options: str, **environment: str) -> Iterator[str]:
    """`manage.py serve`, with more in its environment if that is given; gives its address."""
    command = [sys.executable, "manage.py", "serve", "--port", "0", *options]
    with (
        (settings.ENGINE_HOME / "serve.log").open("a") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | environment
        ) as process,
    ):
        assert process.stdout is not None
        try:
            yield next(line.split()[-1] for line in process.stdout if "Engine serves" in line)
        finally:
            process.terminate()


def fresh_tables() -> None:
    """Every table there and empty. Only for a home made for benchmarks: it deletes all jobs."""
    call_command("migrate", verbosity=0)
    with connection.cursor() as cursor:
        cursor.execute(
            "TRUNCATE jobs_job, jobs_worker, jobs_event, jobs_attempt, jobs_step, jobs_minutestat, jobs_hourstat"
            " CASCADE"
        )
    queries.ensure_partitions()


@asynccontextmanager
async def working(options: Options) -> AsyncIterator[dict[str, float]]:
    """One worker in this process while the block runs; gives when each job's agent began, by `time.time`."""
    collector.calm()
    began: dict[str, float] = {}
    usual = Incarnation._outcome

    async def noted(self: Incarnation, entry: Running) -> Outcome:
        began[str(entry.job.id)] = time.time()
        return await usual(self, entry)

    worker = Worker(NoSandbox(), options)
    with mock.patch.object(Incarnation, "_outcome", noted):
        running = asyncio.create_task(worker.run())
        try:
            yield began
        finally:
            worker.stop()
            await running


def unfinished() -> bool:
    """Whether any job still waits for a worker or runs."""
    try:
        return Job.objects.filter(status__in=["queued", "scheduled", "running"]).exists()
    finally:
        connection.close()


async def drained() -> None:
    """Wait until no job waits or runs."""
    while await asyncio.to_thread(unfinished):
        await asyncio.sleep(0.05)


def bulk_jobs(count: int, *, queue: str = "default", given: str = "{}") -> None:
    """Insert queued no-op jobs with this input, each with its first event."""
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
                SELECT uuidv7(), project.id, %s, %s, 'nothing', %s, 'queued', '', 'normal',
                       statement_timestamp() + number * interval '1 microsecond', 0, 0, 0, 3, 1, '', '{}', '{}', '',
                       '', 'bench'
                  FROM generate_series(1, %s) AS number, project
                RETURNING id
            )
            INSERT INTO jobs_event (job_id, seq, attempt, at, type, source, level, message)
            SELECT id, 1, 0, statement_timestamp(), 'job.queued', 'system', 'info', '' FROM made
            """,
            [noop_agent(), queue, given, count],
        )
        cursor.execute("ANALYZE jobs_job")


def noop_agent() -> str:
    """The id of the only version of `noop`, made if need be."""
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
    agent = Agent.objects.create(slug="noop")
    version = AgentVersion.objects.create(
        agent=agent, number=1, name="noop", description="Ends at once.", kind="noop", content_hash="noop"
    )
    agent.current_version = version
    agent.save()
    return str(version.id)
