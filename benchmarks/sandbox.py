"""From nothing to a program's first line: a bare Python, a cold sandbox and a warm one, turn by turn in the same run.

    python -m benchmarks.sandbox [--rounds 20]

Quote the factors to the bare start: the machine is shared. A warm figure leaves out the start that was made ahead.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from uuid import uuid4

import django

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


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=20)
    asyncio.run(measure(parser.parse_args().rounds))


if __name__ == "__main__":
    main()
