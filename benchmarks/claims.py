"""What a claim costs behind a long queue, and beside a session that holds an old snapshot.

    python -m benchmarks.claims [--depths 1000 100000 1000000] [--held 60000]

A snapshot held for 10 minutes at 100 jobs/s leaves the dead rows of 60,000 jobs, none of which can be vacuumed. Here
they are worked off as fast as one worker can beside such a snapshot, and then claims are measured.
"""

import argparse
import asyncio
import time
from collections.abc import Callable
from uuid import uuid4

from benchmarks.support import (  # first: it sets Django up
    bulk_jobs,
    drained,
    fresh_tables,
    percentile,
    show,
    working,
)

# isort: split


import psycopg
from django.db import connection

from engine.database import direct_dsn
from jobs import claiming, queries
from jobs.worker import Options

CLAIMS, TAKEN = 200, 10


def worker() -> queries.WorkerInfo:
    """A registered worker that only claims."""
    info = queries.WorkerInfo(id=uuid4(), host="bench", pid=1, version="0", queues=["*"], slots=10_000)
    queries.register_worker(info)
    return info


def claims(refill: Callable[[], None] | None = None) -> list[float]:
    """Milliseconds of some claims in a row, each with the survey that a worker has at hand."""
    info, times = worker(), []
    seen = claiming.survey("default")
    for number in range(CLAIMS):
        if refill is not None:
            refill()
        if number % 20 == 0:
            queries.heartbeat(info.id, running=0, can_run=True, health={})
            seen = claiming.survey("default")
        started = time.perf_counter()
        taken = claiming.claim(info.id, queue="default", limit=TAKEN, seen=seen)
        times.append((time.perf_counter() - started) * 1000)
        assert len(taken) == TAKEN
    return times


def behind(depth: int) -> list[float]:
    """Claims from a queue of this length."""
    fresh_tables()
    bulk_jobs(depth + CLAIMS * TAKEN)
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE jobs_job")
    claims()  # warms the caches for every depth alike
    bulk_jobs(CLAIMS * TAKEN)
    return claims()


async def work_off() -> None:
    """Drain what is queued."""
    async with working(Options(concurrency=400)):
        await drained()


def beside_a_held_snapshot(jobs: int) -> list[float]:
    """Claims after so many jobs came and went while a snapshot kept their dead rows."""
    fresh_tables()
    bulk_jobs(CLAIMS * TAKEN)
    with psycopg.connect(direct_dsn()) as holder:
        holder.execute("SET idle_in_transaction_session_timeout = 0")
        holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        holder.execute("SELECT count(*) FROM jobs_job")
        for _ in range(10):
            bulk_jobs(jobs // 10)
            asyncio.run(work_off())
        return claims(lambda: bulk_jobs(TAKEN))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--depths", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--held", type=int, default=60_000)
    options = parser.parse_args()
    first = 0.0
    for depth in options.depths:
        found = behind(depth)
        p99 = percentile(found, 0.99)
        first = first or p99
        show(
            f"claim of {TAKEN} with {depth:,} queued",
            f"p50 {percentile(found, 0.5):.1f} ms",
            f"p99 {p99:.1f} ms",
            f"{p99 / first:.2f} x the first",
        )
    found = beside_a_held_snapshot(options.held)
    show(
        f"claim beside a snapshot held over {options.held:,} jobs",
        f"p50 {percentile(found, 0.5):.1f} ms",
        f"p95 {percentile(found, 0.95):.1f} ms",
    )


if __name__ == "__main__":
    main()
