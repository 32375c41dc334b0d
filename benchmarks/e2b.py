"""Many jobs at once on one worker's E2B provider, against the tests' own server: memory and latency.

    python -m benchmarks.e2b [--jobs 100] [--seconds 1]

The sandboxes are processes of this machine: most of the time measured is theirs. What is ours: the worker's memory,
the lag from a line's writing to its arrival, and that nothing is lost.
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "engine.settings")
django.setup()

from jobs.sandboxes.base import Ended, Record  # noqa: E402
from jobs.sandboxes.e2b.provider import E2BProvider  # noqa: E402
from tests.e2b import e2b_provider  # noqa: E402
from tests.sandboxes import spec  # noqa: E402

PROGRAM = """
import json, os, time
channel = int(os.environ["ENGINE_RECORDS"].removeprefix("fd:"))
end = time.time() + {seconds}
n = 0
while time.time() < end or n == 0:
    n += 1
    print("line", n)
    os.write(channel, json.dumps({{"n": n, "at": time.time()}}).encode() + b"\\n")
    time.sleep(0.1)
"""


@dataclass
class Measured:
    """Seconds and counts of all jobs."""

    opened: list[float] = field(default_factory=list)
    first_record: list[float] = field(default_factory=list)
    lag: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


async def one(provider: E2BProvider, seconds: float, measured: Measured) -> None:
    begun = time.monotonic()
    sandbox = await provider.open(spec(PROGRAM.format(seconds=seconds), wall_seconds=600.0))
    measured.opened.append(time.monotonic() - begun)
    expected = 1
    try:
        await sandbox.start(["python", "../agent/agent.py"])
        async for output in sandbox.outputs():
            if isinstance(output, Record):
                record = json.loads(output.line)
                if record["n"] == 1:
                    measured.first_record.append(time.monotonic() - begun)
                if record["n"] != expected:
                    measured.failed.append(f"record {record['n']} in place of {expected}")
                expected += 1
                measured.lag.append(time.time() - record["at"])
            elif isinstance(output, Ended) and output.exit_code != 0:
                measured.failed.append(f"{output}")
    finally:
        await sandbox.close()
    measured.whole.append(time.monotonic() - begun)


async def run(jobs: int, seconds: float) -> tuple[Measured, float, float]:
    measured = Measured()
    with tempfile.TemporaryDirectory() as folder:
        provider = e2b_provider(key(), Path(folder))
        health = await provider.start()
        assert health.ok, health
        await one(provider, 0, Measured())  # what is loaded once
        before = resident_mb()
        peak = before

        async def watch() -> None:
            nonlocal peak
            while True:
                peak = max(peak, resident_mb())
                await asyncio.sleep(0.05)

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(one(provider, seconds, measured) for _ in range(jobs)))
        watching.cancel()
        await provider.close()
    return measured, before, peak


def key() -> str:
    return os.environ["E2B_API_KEY"]


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def serve(pipe: int) -> None:
    """The server, in a process of its own: its memory is not the worker's."""
    from tests.e2b_server import E2BServer

    server = E2BServer().start()
    os.write(pipe, json.dumps(server.environment).encode() + b"\n")
    server.thread.join()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--serve", type=int)
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve)
        return
    import subprocess
    import sys

    reader, writer = os.pipe()
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.e2b", "--serve", str(writer)], pass_fds=[writer]
    )
    os.close(writer)
    try:
        with os.fdopen(reader) as said:
            os.environ.update(json.loads(said.readline()))
        begun = time.monotonic()
        measured, before, peak = asyncio.run(run(options.jobs, options.seconds))
        took = time.monotonic() - begun
    finally:
        server.terminate()
        server.wait()
    print(f"{options.jobs} jobs at once, programs of {options.seconds:g} s: {took:.1f} s in all")
    print(f"{'':28}{'p50':>9}{'p95':>9}{'most':>9}")
    for name, values in {
        "sandbox opened": measured.opened,
        "first record": measured.first_record,
        "a record's lag": measured.lag,
        "open to closed": measured.whole,
    }.items():
        cuts = statistics.quantiles(values, n=100)
        print(f"{name:28}{cuts[49]:8.2f}s{cuts[94]:8.2f}s{max(values):8.2f}s")
    per_job = (peak - before) / options.jobs
    print(f"worker's memory: {before:.0f} MB before, {peak:.0f} MB at most: {per_job:.2f} MB a job")
    print(f"records: {len(measured.lag)}, faults: {measured.failed or 'none'}")


if __name__ == "__main__":
    main()
