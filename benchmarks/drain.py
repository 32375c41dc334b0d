"""How fast one worker drains no-op jobs, beside the bare floor, on the same database in the same run.

    python -m benchmarks.drain [--jobs 20000]

The floor claims and completes rows of a two-column table with psycopg in batches of 50: no history, no events, no
fence. Quote the ratio: the machine is shared.
"""

import argparse
import asyncio
import os
import time

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "engine.settings")
django.setup()

import psycopg  # noqa: E402
from django.db import connection  # noqa: E402

from benchmarks.support import NoSandbox, bulk_jobs, fresh_tables  # noqa: E402
from engine.database import direct_dsn  # noqa: E402
from jobs.models import Event, Job  # noqa: E402
from jobs.worker import Options, Worker  # noqa: E402

FLOOR_BATCH = 50


def floor(jobs: int) -> float:
    """Jobs a second of a bare claim-and-complete loop."""
    with psycopg.connect(direct_dsn(), autocommit=True) as link:
        link.execute("DROP TABLE IF EXISTS bench_floor")
        link.execute(
            "CREATE TABLE bench_floor (id bigserial PRIMARY KEY, status text NOT NULL DEFAULT 'queued')"
        )
        link.execute("CREATE INDEX ON bench_floor (id) WHERE status = 'queued'")
        link.execute("INSERT INTO bench_floor SELECT FROM generate_series(1, %s)", [jobs])
        link.execute("VACUUM ANALYZE bench_floor")
        started, done = time.perf_counter(), 0
        while True:
            rows = link.execute(
                "WITH due AS MATERIALIZED (SELECT id FROM bench_floor WHERE status = 'queued' ORDER BY id LIMIT %s"
                " FOR UPDATE SKIP LOCKED) UPDATE bench_floor AS job SET status = 'running' FROM due"
                " WHERE job.id = due.id RETURNING job.id",
                [FLOOR_BATCH],
            ).fetchall()
            if not rows:
                break
            ids = [row[0] for row in rows]
            link.execute("UPDATE bench_floor SET status = 'completed' WHERE id = ANY(%s)", [ids])
            done += len(rows)
        seconds = time.perf_counter() - started
        link.execute("DROP TABLE bench_floor")
    return done / seconds


async def drain(jobs: int, concurrency: int) -> float:
    """Jobs a second of one worker with every feature on."""
    worker = Worker(NoSandbox(), Options(concurrency=concurrency))
    started = time.perf_counter()
    running = asyncio.create_task(worker.run())
    while await asyncio.to_thread(unfinished):
        await asyncio.sleep(0.05)
    seconds = time.perf_counter() - started
    worker.stop()
    await running
    return jobs / seconds


def unfinished() -> bool:
    """Whether any job still waits or runs."""
    try:
        return Job.objects.filter(finished_at__isnull=True).exists()
    finally:
        connection.close()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--concurrency", type=int, default=400)
    options = parser.parse_args()
    fresh_tables()
    bare = floor(options.jobs)
    bulk_jobs(options.jobs)
    ours = asyncio.run(drain(options.jobs, options.concurrency))
    bare_again = floor(options.jobs)
    assert Event.objects.filter(type="job.completed").count() == options.jobs
    print(f"{'floor':<28}{bare:>10,.0f} jobs/s, again {bare_again:,.0f}")
    print(
        f"{'engine, one worker':<28}{ours:>10,.0f} jobs/s, {ours / ((bare + bare_again) / 2):.2f} of the floor"
    )


if __name__ == "__main__":
    main()
