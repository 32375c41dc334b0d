"""How soon an idle worker begins a job, with wake-ups and without, and how 1,000 jobs that wait run side by side.

    python -m benchmarks.latency [--pickups 200]

Pickup is from the commit that inserted the job to the moment its agent begins.
"""

import argparse
import asyncio
import random
import time
from typing import Any

from benchmarks.support import (  # first: it sets Django up
    bulk_jobs,
    drained,
    fresh_tables,
    noop_agent,
    percentile,
    show,
    working,
)

# isort: split


from django.db import transaction

from apikeys.callers import Caller
from apikeys.models import Project
from apikeys.scopes import Scope
from jobs import services, wakeups
from jobs.worker import Options

WAITS, WAIT_SECONDS = 1_000, 5


def submit(project: Project) -> tuple[str, float]:
    """A new job's id, and when it was committed."""
    committed: list[float] = []
    by = Caller(project=project, scopes=frozenset({Scope.ADMIN}))
    with transaction.atomic():
        transaction.on_commit(lambda: committed.append(time.time()))
        order = services.JobRequest(task="nothing", agent="noop", input={"seconds": 0})
        job = services.submit(order, by=by, project=project)
    return str(job.id), committed[0]


async def pickups(number: int, *, listen: bool) -> list[float]:
    """Milliseconds from commit to begin, one job at a time on an idle worker."""
    project = await asyncio.to_thread(Project.objects.get, slug="bench")
    taken = []
    async with working(Options(concurrency=8, listen=listen)) as began:
        await asyncio.sleep(2)
        for _ in range(number):
            await asyncio.sleep(random.uniform(0.05, 0.15))
            job, committed = await asyncio.to_thread(submit, project)
            while job not in began:
                await asyncio.sleep(0.001)
            taken.append((began[job] - committed) * 1000)
    return taken


async def waits() -> float:
    """Seconds that 1,000 jobs of 5 s take on one worker."""
    started = time.perf_counter()
    async with working(Options(concurrency=2_000)):
        started = time.perf_counter()
        wakeups.notifier.send(wakeups.QUEUE_CHANNEL, ["default"])
        await drained()
        return time.perf_counter() - started


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pickups", type=int, default=200)
    options = parser.parse_args()
    fresh_tables()
    noop_agent()
    bulk_jobs(1)  # makes the project
    for listen, number in ((True, options.pickups), (False, options.pickups // 5)):
        found: Any = asyncio.run(pickups(number, listen=listen))
        words = "with wake-ups" if listen else "polling alone"
        show(
            f"pickup, idle, {words}",
            f"p50 {percentile(found, 0.5):.1f} ms",
            f"p95 {percentile(found, 0.95):.1f} ms",
        )
    fresh_tables()
    bulk_jobs(WAITS, given=f'{{"seconds": {WAIT_SECONDS}}}')
    show(f"{WAITS:,} jobs that wait {WAIT_SECONDS} s, one worker", f"{asyncio.run(waits()):.2f} s")


if __name__ == "__main__":
    main()
