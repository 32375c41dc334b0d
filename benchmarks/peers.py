"""Other queues on the same server, as their documentation sets them up. Runs in an environment of its own.

    .venv-peers/bin/python benchmarks/peers.py pgqueuer|pgqueuer_tuned|procrastinate|celery --address ADDRESS [--jobs N]

Prints one JSON object: no-op jobs drained a second by one worker process, pickup of single jobs in milliseconds, and
how long 1,000 jobs that wait 5 s take. `address` is the DSN of an empty database, or Redis' URL for Celery.
"""

# The peers are not in Engine's own environment.
# mypy: disable-error-code="import-not-found,untyped-decorator"

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

PICKUPS, WAITS, WAIT_SECONDS = 100, 1_000, 5.0

Submit = Callable[[str, int, list[float] | None], Awaitable[None]]


class Progress:
    """What the jobs tell: how many ran, and when each single one was picked up."""

    def __init__(self) -> None:
        self.ran = 0
        self.pickups: list[float] = []
        self.changed = asyncio.Event()

    def done(self) -> None:
        self.ran += 1
        self.changed.set()

    async def until(self, number: int) -> None:
        while self.ran < number:
            self.changed.clear()
            await self.changed.wait()


async def measure(
    submit: Submit, run: Callable[[], Awaitable[Any]], progress: Progress, jobs: int
) -> dict[str, float]:
    """Drain `jobs`, then single pickups on the idle worker, then the jobs that wait."""
    await submit("noop", jobs, None)
    started = time.perf_counter()
    worker = asyncio.ensure_future(run())
    await progress.until(jobs)
    drained = jobs / (time.perf_counter() - started)
    for number in range(PICKUPS):
        await asyncio.sleep(0.05)
        await submit("pickup", 1, [time.time()])
        await progress.until(jobs + number + 1)
    started = time.perf_counter()
    await submit("wait", WAITS, None)
    await progress.until(jobs + PICKUPS + WAITS)
    waited = time.perf_counter() - started
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
    pickups = sorted(progress.pickups)
    return {
        "drain": drained,
        "pickup_p50_ms": statistics.median(pickups) * 1000,
        "pickup_p95_ms": pickups[int(len(pickups) * 0.95)] * 1000,
        "wait_seconds": waited,
    }


async def pgqueuer(dsn: str, jobs: int, **options: int) -> dict[str, float]:
    """PgQueuer on asyncpg, its faster driver, with the batches of 10 that it takes by itself."""
    import asyncpg
    from pgqueuer import PgQueuer
    from pgqueuer.db import AsyncpgDriver
    from pgqueuer.queries import Queries

    enqueuing, working = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    queries, progress = Queries(AsyncpgDriver(enqueuing)), Progress()
    await queries.install()
    queue = PgQueuer(AsyncpgDriver(working))

    @queue.entrypoint("noop")
    async def noop(job: Any) -> None:
        progress.done()

    @queue.entrypoint("pickup")
    async def pickup(job: Any) -> None:
        progress.pickups.append(time.time() - float(job.payload))
        progress.done()

    @queue.entrypoint("wait")
    async def wait(job: Any) -> None:
        await asyncio.sleep(WAIT_SECONDS)
        progress.done()

    async def submit(name: str, count: int, payload: list[float] | None) -> None:
        for first in range(0, count, 5_000):
            number = min(5_000, count - first)
            text = [str(payload[0]).encode() if payload else None] * number
            await queries.enqueue([name] * number, text, [0] * number)

    result = await measure(submit, lambda: queue.run(**options), progress, jobs)
    await asyncio.gather(enqueuing.close(), working.close())
    return result


async def pgqueuer_tuned(dsn: str, jobs: int) -> dict[str, float]:
    """The same with batches of 200, as large as Engine's."""
    return await pgqueuer(dsn, jobs, batch_size=200, max_concurrent_tasks=2_000)


async def procrastinate(dsn: str, jobs: int) -> dict[str, float]:
    """Procrastinate on its psycopg connector."""
    from procrastinate import App, PsycopgConnector

    app, progress = App(connector=PsycopgConnector(conninfo=dsn, max_size=10)), Progress()

    @app.task(name="noop")
    async def noop() -> None:
        progress.done()

    @app.task(name="pickup")
    async def pickup(sent: float) -> None:
        progress.pickups.append(time.time() - sent)
        progress.done()

    @app.task(name="wait")
    async def wait() -> None:
        await asyncio.sleep(WAIT_SECONDS)
        progress.done()

    tasks: dict[str, Any] = {"noop": noop, "pickup": pickup, "wait": wait}

    async def submit(name: str, count: int, payload: list[float] | None) -> None:
        arguments = {"sent": payload[0]} if payload else {}
        await tasks[name].batch_defer_async(*[arguments] * count)

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        return await measure(
            submit,
            lambda: app.run_worker_async(concurrency=1_000, install_signal_handlers=False),
            progress,
            jobs,
        )


CELERY = """
import time
import celery
app = celery.Celery("peer", broker={url!r}, backend={url!r})
app.conf.update(task_ignore_result=False, worker_prefetch_multiplier=4, broker_connection_retry_on_startup=True)

@app.task(name="noop")
def noop():
    return None

@app.task(name="pickup")
def pickup(sent):
    return time.time() - sent
"""


async def celery(url: str, jobs: int) -> dict[str, float]:
    """Celery on Redis with four processes: its default pool. 1,000 waiting jobs would need 1,000 processes."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "peer.py").write_text(CELERY.format(url=url))
        sys.path.insert(0, folder)
        peer: Any = __import__("peer")
        results = [peer.noop.delay() for _ in range(jobs)]
        command = [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "peer",
            "worker",
            "-c",
            "4",
            "-l",
            "error",
            "--without-gossip",
        ]
        started = time.perf_counter()
        worker = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
        try:
            results[0].get(timeout=120)
            started = time.perf_counter()
            for result in results:
                result.get(timeout=120)
            drained = (jobs - 1) / (time.perf_counter() - started)
            pickups = []
            for _ in range(PICKUPS):
                await asyncio.sleep(0.05)
                pickups.append(peer.pickup.delay(time.time()).get(timeout=60))
        finally:
            worker.terminate()
            worker.wait()
    pickups.sort()
    return {
        "drain": drained,
        "pickup_p50_ms": statistics.median(pickups) * 1000,
        "pickup_p95_ms": pickups[int(len(pickups) * 0.95)] * 1000,
    }


def main() -> None:
    """Measure one peer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=["pgqueuer", "pgqueuer_tuned", "procrastinate", "celery"])
    parser.add_argument("--address", required=True)
    parser.add_argument("--jobs", type=int, default=20_000)
    options = parser.parse_args()
    print(json.dumps(asyncio.run(globals()[options.peer](options.address, options.jobs))))


if __name__ == "__main__":
    main()
