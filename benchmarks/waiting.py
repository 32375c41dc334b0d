"""10,000 jobs that wait for a person: what they hold of a worker, and how soon a new job starts beside them.

python -m benchmarks.waiting [--jobs 10000]
"""

import argparse
import asyncio
import resource
from uuid import uuid4

from benchmarks.latency import submit
from benchmarks.support import (  # first: it sets Django up
    bulk_jobs,
    fresh_tables,
    noop_agent,
    percentile,
    show,
    working,
)

# isort: split

from django.db import connection

from apikeys.models import Project
from jobs import batch, claiming, queries
from jobs.execution.outcomes import QuestionSpec, Suspended
from jobs.loading import claim
from jobs.models import Job
from jobs.recorder import AttemptRecorder, Clock, Writer
from jobs.services import database_time
from jobs.settling import settlement
from jobs.worker import Options

PICKUPS = 100


def ask(number: int) -> None:
    """Let so many jobs begin and wait, as a worker does when their agents ask."""
    info = queries.WorkerInfo(id=uuid4(), host="bench", pid=1, version="0", queues=["*"], slots=number)
    queries.register_worker(info)
    clock = Clock(database_time())
    question = QuestionSpec(key="approve#1", kind="confirm", prompt="Go on?", schema={"type": "boolean"})
    bulk_jobs(number)
    while claimed := claim(info.id, queue="default", limit=500, seen=claiming.survey("default")):
        queries.heartbeat(info.id, running=0, can_run=True, health={})
        writer = Writer(info.id, in_database=_never, on_worker_lost=lambda: None)
        ends = [
            settlement(
                Suspended((question,)), job, agent, recorder=AttemptRecorder(writer, job, clock), clock=clock
            )
            for job, agent in claimed
        ]
        batch.write(info.id, batch.Batch(settlements=ends))
    queries.stop_worker(info.id)


async def _never(*_: object) -> None:
    """The writer is only the recorders' name here."""


async def beside() -> tuple[list[float], int, int, float]:
    """Pickups in ms, and the worker's running jobs, connections and memory meanwhile."""
    project = await asyncio.to_thread(Project.objects.get, slug="bench")
    taken = []
    async with working(Options(concurrency=8)) as began:
        await asyncio.sleep(2)
        for _ in range(PICKUPS):
            await asyncio.sleep(0.05)
            job, committed = await asyncio.to_thread(submit, project)
            while job not in began:
                await asyncio.sleep(0.001)
            taken.append((began[job] - committed) * 1000)
        held, connections = await asyncio.to_thread(_held)
    return taken, held, connections, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _held() -> tuple[int, int]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT (SELECT count(*) FROM jobs_job WHERE status = 'running'),"
            " (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid())"
        )
        running, connections = cursor.fetchone()
    connection.close()
    return running, connections


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=10_000)
    options = parser.parse_args()
    for number in (0, options.jobs):
        fresh_tables()
        noop_agent()
        bulk_jobs(1)  # makes the project
        Job.objects.all().delete()
        if number:
            ask(number)
        waiting = Job.objects.filter(status="waiting_for_input").count()
        assert waiting == number
        taken, running, connections, memory = asyncio.run(beside())
        show(
            f"new jobs beside {number:,} that wait",
            f"p50 {percentile(taken, 0.5):.1f} ms",
            f"p95 {percentile(taken, 0.95):.1f} ms",
            f"{running} running, {connections} conn., {memory:.0f} MB",
        )


if __name__ == "__main__":
    main()
