"""How fast one worker drains no-op jobs with every feature on, beside two floors and other queues, in the same run.

    python -m benchmarks.drain [--jobs 20000] [--peers .venv-peers/bin/python] [--redis redis://127.0.0.1:6379/0]

The floors claim and complete in batches of 50 with psycopg: no history, no events, no fence. One has a table of two
columns; the other what any queue stores (a queue's name, a payload, an order, a worker, times). Quote the ratios: the
machine is shared. Each is measured several times in turns, and the best counts: what disturbs only takes away.
"""

import argparse
import asyncio
import json
import subprocess
import time

from benchmarks.support import bulk_jobs, drained, fresh_tables, show, working  # first: it sets Django up

# isort: split


import psycopg
from psycopg.conninfo import conninfo_to_dict

from engine.database import direct_dsn
from jobs.models import Event
from jobs.worker import Options

FLOOR_BATCH, ROUNDS = 50, 3
# Peers do fewer jobs where they are slow, so that a run ends.
PEER_JOBS = {"pgqueuer": 20_000, "pgqueuer_tuned": 20_000, "procrastinate": 1_500, "celery": 3_000}

BARE = "CREATE TABLE bench_floor (id bigserial PRIMARY KEY, status text NOT NULL DEFAULT 'queued')"
USUAL = """
CREATE TABLE bench_floor (
    id uuid PRIMARY KEY DEFAULT uuidv7(), queue text NOT NULL DEFAULT 'default', status text NOT NULL DEFAULT 'queued',
    task text NOT NULL DEFAULT 'nothing', payload jsonb NOT NULL DEFAULT '{}',
    sort_at timestamptz NOT NULL DEFAULT now(), attempt int NOT NULL DEFAULT 0, worker uuid, started_at timestamptz,
    finished_at timestamptz)
"""


def floor(jobs: int, *, usual: bool) -> float:
    """Jobs a second of a bare claim-and-complete loop."""
    index = "(queue, sort_at, id)" if usual else "(id)"
    order = "sort_at, id" if usual else "id"
    where = "status = 'queued'" + (" AND queue = 'default'" if usual else "")
    claim = ", attempt = attempt + 1, worker = gen_random_uuid(), started_at = now()" if usual else ""
    end = ", worker = NULL, finished_at = now()" if usual else ""
    given = "job.id, job.task, job.payload" if usual else "job.id"
    with psycopg.connect(direct_dsn(), autocommit=True) as link:
        link.execute("DROP TABLE IF EXISTS bench_floor")
        link.execute(USUAL if usual else BARE)
        link.execute(f"CREATE INDEX ON bench_floor {index} WHERE status = 'queued'")
        link.execute(
            "INSERT INTO bench_floor SELECT FROM generate_series(1, %s)"
            if not usual
            else "INSERT INTO bench_floor (task) SELECT 'nothing' FROM generate_series(1, %s)",
            [jobs],
        )
        link.execute("VACUUM ANALYZE bench_floor")
        started, done = time.perf_counter(), 0
        while True:
            rows = link.execute(
                f"WITH due AS MATERIALIZED (SELECT id FROM bench_floor WHERE {where} ORDER BY {order} LIMIT %s"
                f" FOR UPDATE SKIP LOCKED) UPDATE bench_floor AS job SET status = 'running'{claim} FROM due"
                f" WHERE job.id = due.id RETURNING {given}",
                [FLOOR_BATCH],
            ).fetchall()
            if not rows:
                break
            ids = [row[0] for row in rows]
            link.execute(f"UPDATE bench_floor SET status = 'completed'{end} WHERE id = ANY(%s)", [ids])
            done += len(rows)
        seconds = time.perf_counter() - started
        link.execute("DROP TABLE bench_floor")
    return done / seconds


async def drain(jobs: int, concurrency: int) -> float:
    """Jobs a second of one worker with every feature on."""
    started = time.perf_counter()
    async with working(Options(concurrency=concurrency)):
        await drained()
        return jobs / (time.perf_counter() - started)


def engine(jobs: int, concurrency: int) -> float:
    """The same from fresh tables, checked by the events that it left."""
    fresh_tables()
    bulk_jobs(jobs)
    rate = asyncio.run(drain(jobs, concurrency))
    assert Event.objects.filter(type="job.completed").count() == jobs
    return rate


def peer(name: str, python: str, redis: str) -> dict[str, float]:
    """What a peer measured in an empty database on the same server."""
    address = redis if name == "celery" else empty_database(f"peer_{name}")
    command = [python, "benchmarks/peers.py", name, "--address", address, "--jobs", str(PEER_JOBS[name])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=600)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def empty_database(name: str) -> str:
    """Its address."""
    with psycopg.connect(direct_dsn(), autocommit=True) as link:
        link.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        link.execute(f"CREATE DATABASE {name}")
    parts = conninfo_to_dict(direct_dsn())
    return f"postgresql://{parts['user']}@/{name}?host={parts['host']}&port={parts['port']}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--concurrency", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--peers", default="", help="a Python that has the peers installed")
    parser.add_argument("--redis", default="", help="Redis' URL for Celery")
    options = parser.parse_args()
    names = [name for name in PEER_JOBS if options.peers and (name != "celery" or options.redis)]
    rates: dict[str, list[float]] = {}
    pickups: dict[str, dict[str, float]] = {}
    for _ in range(options.rounds):
        rates.setdefault("floor, two columns", []).append(floor(options.jobs, usual=False))
        rates.setdefault("floor, a usual job row", []).append(floor(options.jobs, usual=True))
        rates.setdefault("engine, one worker", []).append(engine(options.jobs, options.concurrency))
        for name in names:
            pickups[name] = peer(name, options.peers, options.redis)
            rates.setdefault(name, []).append(pickups[name]["drain"])
    ours = max(rates["engine, one worker"])
    show("drain, no-op jobs", "best", "all rounds", "engine is")
    for name, all_rates in rates.items():
        rounds = " ".join(f"{rate:,.0f}" for rate in all_rates)
        show(name, f"{max(all_rates):,.0f}/s", rounds, f"{ours / max(all_rates):.2f} x")
    for name, figures in pickups.items():
        waited = f"{figures['wait_seconds']:.2f} s" if "wait_seconds" in figures else "-"
        show(
            f"{name}: pickup p50, p95; 1,000 x 5 s",
            f"{figures['pickup_p50_ms']:.1f} ms",
            f"{figures['pickup_p95_ms']:.1f} ms",
            waited,
        )


if __name__ == "__main__":
    main()
