"""How many log lines a second reach the table from 500 running jobs of one worker, and what that does to its memory.

python -m benchmarks.logs [--lines 600000]
"""

import argparse
import asyncio
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

from benchmarks.support import bulk_jobs, fresh_tables, show  # first: it sets Django up

# isort: split


from engine import collector
from jobs import claiming, queries, services
from jobs.claiming import Claimed
from jobs.models import Event
from jobs.recorder import AttemptRecorder, Clock, Writer

JOBS = 500
LINE = "2026-11-22 10:00:00 rows 12000 of 48000 read, 3 skipped because their date could not be read"


def memory_mb() -> float:
    """The most that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def write(worker: queries.WorkerInfo, jobs: list[Claimed], lines: int) -> tuple[float, float]:
    """Lines a second until all are durable, and megabytes of growth after the first tenth."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(4) as pool:

        async def in_database(function: Any, *args: Any) -> Any:
            return await loop.run_in_executor(pool, function, *args)

        writer = Writer(worker.id, in_database=in_database, on_worker_lost=lambda: None)
        writing = asyncio.create_task(writer.run())
        clock = Clock(await in_database(services.database_time))
        warm = memory_mb()
        started = time.perf_counter()

        async def beat() -> None:
            while True:
                await in_database(lambda: queries.heartbeat(worker.id, running=JOBS, can_run=True, health={}))
                await asyncio.sleep(5)

        beating = asyncio.create_task(beat())

        async def tell(job: Claimed, number: int) -> None:
            nonlocal warm
            recorder = AttemptRecorder(writer, job, clock)
            for line in range(number):
                await recorder.ready()
                recorder.event("log", message=LINE, source="stdout")
                if line % 50 == 49:
                    await asyncio.sleep(0)
                if line == number // 10:
                    warm = max(warm, memory_mb())
            await recorder.flush()

        await asyncio.gather(*[tell(job, lines // len(jobs)) for job in jobs])
        seconds = time.perf_counter() - started
        beating.cancel()
        await writer.close()
        await writing
    return lines / seconds, memory_mb() - warm


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lines", type=int, default=600_000)
    options = parser.parse_args()
    fresh_tables()
    bulk_jobs(JOBS)
    worker = queries.WorkerInfo(id=uuid4(), host="bench", pid=1, version="0", queues=["*"], slots=JOBS)
    queries.register_worker(worker)
    queries.heartbeat(worker.id, running=JOBS, can_run=True, health={})
    jobs = claiming.claim(worker.id, queue="default", limit=JOBS)
    collector.calm()
    rate, grown = asyncio.run(write(worker, jobs, options.lines // JOBS * JOBS))
    assert Event.objects.filter(type="log").count() == options.lines // JOBS * JOBS
    show(f"log lines from {JOBS} running jobs", f"{rate:,.0f}/s", f"memory +{grown:.0f} MB")


if __name__ == "__main__":
    main()
