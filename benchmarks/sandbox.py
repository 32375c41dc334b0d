"""From nothing to a program's first line: a bare Python, a cold sandbox and a warm one, turn by turn in the same run.

    python -m benchmarks.sandbox [--rounds 20] [--jobs 50]

Then whole jobs, one after the other on an idle system: a web process and a worker in a home of their own, and a client
over HTTP that asks for a small Python agent and waits for its end.

Quote the factors to the bare start: the machine is shared. A warm figure leaves out the start that was made ahead.
"""

import argparse
import asyncio
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import django
import httpx

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "engine.settings")
django.setup()

from django.conf import settings  # noqa: E402

from jobs.sandboxes import runtime  # noqa: E402
from jobs.sandboxes.base import Limits, SandboxFile, SandboxSpec, Stdout  # noqa: E402
from jobs.sandboxes.local import LocalProvider  # noqa: E402

LOCK = settings.BASE_DIR / "requirements" / "sandbox.lock"
PROGRAMS = {"print": "print('first line')", "import pandas, print": "import pandas; print('first line')"}


def bare(built: runtime.Runtime, code: str) -> float:
    """Seconds to the first line of the same interpreter without a sandbox."""
    environment = {
        "LD_LIBRARY_PATH": str(built.folder / "python" / "lib"),
        "PYTHONPATH": str(built.folder / "packages"),
        "OPENBLAS_NUM_THREADS": "1",
    }
    start = time.perf_counter()
    command = [str(built.folder / "python" / "bin" / "python3"), "-u", "-c", code]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        return time.perf_counter() - start


async def sandboxed(provider: LocalProvider, code: str) -> tuple[float, float]:
    """Seconds from the wish for a sandbox to the first line of a program in it, and to close it afterwards."""
    start = time.perf_counter()
    files = [SandboxFile("agent/agent.py", code.encode())]
    sandbox = await provider.open(SandboxSpec(uuid4(), 1, Limits(), files))
    await sandbox.start(["python", "../agent/agent.py"])
    async for output in sandbox.outputs():
        if isinstance(output, Stdout):
            break
    first_line = time.perf_counter() - start
    start = time.perf_counter()
    await sandbox.close()
    return first_line, time.perf_counter() - start


async def measure(rounds: int) -> None:
    """Print one table."""
    built = runtime.build(settings.ENGINE_RUNTIME_DIR, LOCK)
    with tempfile.TemporaryDirectory() as scratch:
        cold, warm = (
            LocalProvider(
                runtime_folder=settings.ENGINE_RUNTIME_DIR,
                lock=LOCK,
                scratch_folder=Path(scratch, name),
                warm=number,
            )
            for number, name in enumerate(("cold", "warm"))
        )
        for provider in (cold, warm):
            health = await provider.start()
            if not health.ok:
                raise SystemExit(f"{health.detail}\n{health.remedy}")
        print(f"{health.detail}, {rounds} rounds, load {os.getloadavg()[0]:.1f}\n")
        print(f"{'first line after':24} {'':12} {'median':>9} {'least':>9} {'factor':>8}")
        closing = []
        for name, code in PROGRAMS.items():
            times: dict[str, list[float]] = {"bare python": [], "cold sandbox": [], "warm sandbox": []}
            for _ in range(rounds):
                while not warm.pool.ready:
                    await asyncio.sleep(0.01)
                times["bare python"].append(bare(built, code))
                for kind, provider in (("cold sandbox", cold), ("warm sandbox", warm)):
                    first_line, close = await sandboxed(provider, code)
                    times[kind].append(first_line)
                    closing.append(close)
            base = statistics.median(times["bare python"])
            for kind, seconds in times.items():
                median = statistics.median(seconds)
                figures = f"{median * 1000:6.1f} ms {min(seconds) * 1000:6.1f} ms {median / base:8.2f}"
                print(f"{name:24} {kind:12} {figures}")
        print(
            f"\nclosing a sandbox: {statistics.median(closing) * 1000:.1f} ms; load {os.getloadavg()[0]:.1f}"
        )
        await asyncio.gather(cold.close(), warm.close())


AGENT = {
    "slug": "small",
    "name": "small",
    "description": "Adds two numbers.",
    "kind": "python",
    "source": {"agent.py": "def main(task, inputs):\n    return {'sum': inputs['a'] + inputs['b']}\n"},
}
SETTLE_SECONDS = 3.0  # after the start, for the warm pool
REST_SECONDS = 1.0  # between two jobs: idle means that the pool is full again


@contextmanager
def system(home: str) -> Iterator[httpx.Client]:
    """A web process and a worker on a database of their own; gives a client with a key."""
    env = {
        **os.environ,
        "ENGINE_HOME": home,
        "ENGINE_RUNTIME_DIR": str(settings.ENGINE_RUNTIME_DIR),
        "LOG_LEVEL": "WARNING",
    }
    env.pop("DATABASE_URL", None)
    manage = [sys.executable, "manage.py"]
    subprocess.run([*manage, "migrate", "--verbosity", "0"], env=env, check=True)
    web = subprocess.Popen([*manage, "serve", "--port", "0"], env=env, stdout=subprocess.PIPE, text=True)
    worker = subprocess.Popen([*manage, "runworker"], env=env, stdout=subprocess.DEVNULL)
    try:
        assert web.stdout is not None
        address = next(line.split()[-1] for line in web.stdout if "Engine serves" in line)
        create = [*manage, "createkey", "--name", "bench", "--project", "default", "--scope", "admin"]
        secret = subprocess.run(create, env=env, check=True, capture_output=True, text=True).stdout.strip()
        with httpx.Client(
            base_url=address, headers={"Authorization": f"Bearer {secret}"}, timeout=60
        ) as client:
            while not client.get("/health/ready").is_success:
                time.sleep(0.1)
            yield client
    finally:
        for process in (worker, web):
            process.terminate()
        for process in (worker, web):
            process.wait()


def completed(jobs: int) -> list[float]:
    """Seconds from the request that submits a job to the reply that says it has completed."""
    seconds = []
    with tempfile.TemporaryDirectory() as home, system(home) as client:
        client.post("/api/v1/agents", json=AGENT).raise_for_status()
        time.sleep(SETTLE_SECONDS)
        for number in range(jobs):
            order = {"task": "add", "agent": "small", "input": {"a": number, "b": 1}}
            start = time.perf_counter()
            job = client.post("/api/v1/jobs", json=order, headers={"Prefer": "wait=30"}).json()
            seconds.append(time.perf_counter() - start)
            assert job["status"] == "completed", job
            time.sleep(REST_SECONDS)
    return seconds


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=50)
    options = parser.parse_args()
    if options.rounds:
        asyncio.run(measure(options.rounds))
    if options.jobs:
        taken = sorted(completed(options.jobs))
        p95 = taken[max(0, math.ceil(len(taken) * 0.95) - 1)]
        print(
            f"POST to completed, {options.jobs} jobs: p50 {statistics.median(taken) * 1000:.0f} ms, "
            f"p95 {p95 * 1000:.0f} ms, least {taken[0] * 1000:.0f} ms; load {os.getloadavg()[0]:.1f}"
        )


if __name__ == "__main__":
    main()
