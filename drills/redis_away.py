"""Redis killed, started again, stopped, and let go on, under load: what jobs and requests feel of it.

    python -m drills.redis_away --seconds 12 --rate 10

Prints a table, and ends with 1 if a goal was missed.
"""

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "engine.settings")
django.setup()

import httpx  # noqa: E402 (after setup)
import psycopg  # noqa: E402
from redis import Redis  # noqa: E402

from drills.report import percentile  # noqa: E402
from engine.embedded import DATABASE, PORT, USER, EmbeddedServer  # noqa: E402
from jobs.wakeups import QUEUE_CHANNEL  # noqa: E402
from tests.processes import Instance, eventually  # noqa: E402
from tests.redis_server import RedisServer, redis_server  # noqa: E402

SLOWEST_SECONDS = 2.0
SENDERS = 4
PICKED_UP = """
SELECT extract(epoch FROM started_at - created_at)::float8 FROM jobs_job WHERE id = ANY(%s::uuid[])
"""


@dataclass
class Phase:
    """A time in which Redis was in one state."""

    what: str
    jobs: list[str] = field(default_factory=list)
    answers: list[float] = field(default_factory=list)  # seconds that requests took
    refused: list[str] = field(default_factory=list)  # answers that were not what was asked for
    pick_ups: list[float] = field(default_factory=list)  # seconds from a job's row to its start


class Load:
    """Submits no-op jobs at a steady rate, and asks after readiness now and then."""

    def __init__(self, url: str, secret: str, rate: float) -> None:
        self.phase = Phase("")
        self._url, self._secret, self._rate = url, secret, rate
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(SENDERS)]
        for thread in self._threads:
            thread.start()

    def _send(self, number: int) -> None:
        headers = {"Authorization": f"Bearer {self._secret}"}
        with httpx.Client(base_url=self._url, headers=headers, timeout=30) as client:
            while not self._over.wait(SENDERS / self._rate):
                phase, began = self.phase, time.monotonic()
                try:
                    if number == 0:
                        reply = client.get("/health/ready")
                    else:
                        reply = client.post("/api/v1/jobs", json={"task": "Nothing", "agent": "idle"})
                except httpx.TransportError as error:
                    phase.refused.append(str(error))
                    continue
                phase.answers.append(time.monotonic() - began)
                if not reply.is_success:
                    phase.refused.append(f"{reply.status_code} {reply.text[:100]}")
                elif number:
                    phase.jobs.append(reply.json()["id"])

    def stop(self) -> None:
        """Send no more."""
        self._over.set()
        for thread in self._threads:
            thread.join()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the drill that the command line asks for."""
    parser = argparse.ArgumentParser(prog="drills.redis_away", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=12, help="each phase lasts")
    parser.add_argument("--rate", type=float, default=10, help="requests a second")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="redis-") as folder, redis_server(Path(folder)) as server:
        (home := Path(folder, "home")).mkdir()
        instance = Instance(home, {"REDIS_URL": server.url, "ENGINE_BENCHMARK": "1"})
        try:
            phases, counted, unfinished = run(instance, server, chosen.seconds, chosen.rate)
        finally:
            instance.stop()
    print(table(phases))
    missed = judge(phases, counted, unfinished)
    for line in missed:
        print(f"MISSED: {line}")
    return 1 if missed else 0


def run(
    instance: Instance, server: RedisServer, seconds: float, rate: float
) -> tuple[list[Phase], bool, int]:
    """The phases, whether requests are counted in Redis again at the end, and how many jobs did not complete."""
    instance.manage("migrate", "--verbosity", "0")
    secret = instance.key()
    instance.worker()
    instance.serve()
    instance.ready()
    with instance.client(secret) as client:
        card = {"slug": "idle", "name": "Idle", "description": "Does nothing at all", "kind": "noop"}
        client.post("/api/v1/agents", json=card).raise_for_status()
    server_of_jobs = EmbeddedServer(instance.home)
    steps: list[tuple[str, Callable[[], None]]] = [
        ("Redis is there", lambda: None),
        ("killed (SIGKILL)", server.kill),
        ("there again", server.start),
        ("stopped (SIGSTOP: takes connections, answers nothing)", lambda: server.kill(signal.SIGSTOP)),
        ("goes on", lambda: server.kill(signal.SIGCONT)),
    ]
    phases = []
    load = Load(instance.url, secret, rate)
    try:
        for what, change in steps:
            load.phase = Phase(what)
            change()
            phases.append(load.phase)
            time.sleep(seconds)
    finally:
        load.stop()
    eventually(lambda: server.listeners(QUEUE_CHANNEL), seconds=30, what="the worker listens again")
    with Redis.from_url(server.url) as redis:
        counted = bool(list(redis.scan_iter("engine:rate:*")))
    with psycopg.connect(
        host=str(server_of_jobs.socket_folder), port=PORT, user=USER, dbname=DATABASE, autocommit=True
    ) as link:

        def left() -> int:
            row = link.execute("SELECT count(*) FROM jobs_job WHERE status <> 'completed'").fetchone()
            return row[0] if row else 0

        deadline = time.monotonic() + 60
        while left() and time.monotonic() < deadline:
            time.sleep(0.1)
        for phase in phases:
            phase.pick_ups = [row[0] for row in link.execute(PICKED_UP, [phase.jobs]).fetchall()]
        return phases, counted, left()


def judge(phases: list[Phase], counted: bool, unfinished: int) -> list[str]:
    """Goals that were missed."""
    missed = [f"{unfinished} jobs did not complete"] if unfinished else []
    if not counted:
        missed.append("no request is counted in Redis after its return")
    for phase in phases:
        if len(phase.pick_ups) != len(phase.jobs):
            missed.append(
                f"{phase.what}: {len(phase.jobs) - len(phase.pick_ups)} acknowledged jobs are missing"
            )
        if phase.refused:
            missed.append(f"{phase.what}: {len(phase.refused)} requests were refused, as {phase.refused[:3]}")
        for name, values in (("an answer", phase.answers), ("the start of a job", phase.pick_ups)):
            if (slowest := max(values, default=0)) > SLOWEST_SECONDS:
                missed.append(f"{phase.what}: {name} took {slowest:.1f} s")
    return missed


def table(phases: list[Phase]) -> str:
    """Markdown."""
    rows = [
        f"| {phase.what} | {len(phase.jobs)} | {spread(phase.answers)} | {spread(phase.pick_ups)} |"
        f" {len(phase.refused)} |"
        for phase in phases
    ]
    head = [
        "| Redis | jobs | answers p50 / p95 / slowest | job's row to its start p50 / p95 / slowest | refused |",
        "| --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*head, *rows])


def spread(seconds: list[float]) -> str:
    """Three figures in milliseconds."""
    figures = (percentile(seconds, 0.5), percentile(seconds, 0.95), max(seconds, default=0.0))
    return " / ".join(f"{figure * 1000:.0f}" for figure in figures) + " ms"


if __name__ == "__main__":
    sys.exit(main())
