"""How long nine projects wait for a start beside a tenth with 100,000 queued jobs, against the same nine without it.

    python -m benchmarks.fairness [--backlog 100000] [--seconds 20]

Each job takes 50 ms of a worker with 20 slots. The big project may have 15 running at once; how many it has is looked
at all the time.
"""

import argparse
import asyncio
import itertools

from benchmarks.support import (  # first: it sets Django up
    bulk_jobs,
    fresh_tables,
    noop_agent,
    percentile,
    show,
    working,
)

# isort: split

from django.db import connection, transaction

from apikeys.callers import Caller
from apikeys.models import Project
from apikeys.scopes import Scope
from jobs import services
from jobs.models import Job
from jobs.worker import Options

SLOTS, MOST_RUNNING, EVERY_SECONDS = 20, 15, 0.02
WORK = '{"seconds": 0.05}'


def small_projects() -> list[Project]:
    """Nine of them."""
    names = [f"bench-{number}" for number in range(9)]
    return [Project.objects.get_or_create(slug=name, defaults={"name": name})[0] for name in names]


def submit(project: Project) -> None:
    """One job of a small project."""
    by = Caller(project=project, scopes=frozenset({Scope.ADMIN}))
    with transaction.atomic():
        order = services.JobRequest(task="nothing", agent="noop", input={"seconds": 0.05})
        services.submit(order, by=by, project=project)


async def delays(projects: list[Project], seconds: float) -> tuple[list[float], int]:
    """Milliseconds from submission to start of the small projects' jobs; the most that the big one ran at once."""
    most = 0

    async def look() -> None:
        nonlocal most
        while True:
            most = max(most, await asyncio.to_thread(running))
            await asyncio.sleep(0.01)

    async with working(Options(concurrency=SLOTS)):
        await asyncio.sleep(2)
        looking = asyncio.create_task(look())
        turns = itertools.cycle(projects)
        for _ in range(int(seconds / EVERY_SECONDS)):
            await asyncio.gather(asyncio.to_thread(submit, next(turns)), asyncio.sleep(EVERY_SECONDS))
        looking.cancel()
    return await asyncio.to_thread(waited, projects), most


def running() -> int:
    """How many of the big project's jobs run now."""
    return Job.objects.filter(project__slug="bench", status="running").count()


def waited(projects: list[Project]) -> list[float]:
    """Milliseconds between submission and start."""
    jobs = Job.objects.filter(project__in=projects, started_at__isnull=False)
    return [(job.started_at - job.created_at).total_seconds() * 1000 for job in jobs if job.started_at]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--backlog", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    alone = 0.0
    for backlog in (0, options.backlog):
        fresh_tables()
        noop_agent()
        projects = small_projects()
        if backlog:
            bulk_jobs(backlog, given=WORK)
            Project.objects.filter(slug="bench").update(max_running=MOST_RUNNING)
        found, most = asyncio.run(delays(projects, options.seconds))
        p95 = percentile(found, 0.95)
        alone = alone or p95
        show(
            f"start delay of 9 projects beside {backlog:,} jobs",
            f"p50 {percentile(found, 0.5):.1f} ms",
            f"p95 {p95:.1f} ms, {p95 / alone:.2f} x",
            f"most running {most} of {MOST_RUNNING}",
        )
    Project.objects.filter(slug="bench").update(max_running=None)
    connection.close()


if __name__ == "__main__":
    main()
