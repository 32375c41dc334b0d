"""A deploy under load: workers are told to end, one after another, and started again.

    python -m drills.drain --restarts 20

Prints a table, and ends with 1 if a restart cost an attempt, lost something, or took too long.
"""

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "engine.settings")
django.setup()

from drills.chaos import Done, Plan, run, table  # noqa: E402 (after setup)
from drills.load import DEPLOY_MIX  # noqa: E402
from drills.report import percentile  # noqa: E402

SECONDS_APART = 10.0
JOBS_A_SECOND = 3
EXIT_SECONDS = 10.0
RESUMED_SECONDS = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the drill that the command line asks for."""
    parser = argparse.ArgumentParser(prog="drills.drain", description=__doc__.partition("\n")[0])
    parser.add_argument("--restarts", type=int, default=20)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    chosen = parser.parse_args(arguments)
    plan = plan_of(chosen.restarts, workers=chosen.workers, seed=chosen.seed)
    with tempfile.TemporaryDirectory(prefix="drain-") as folder:
        done = run(plan, Path(folder))
    print(table(plan, done))
    failed = [*done.missed(), *(f"a restart charged {what}" for what in done.findings.charged), *slow(done)]
    for line in failed:
        print(f"MISSED: {line}")
    return 1 if failed else 0


def plan_of(restarts: int, *, workers: int, seed: int) -> Plan:
    """So many restarts, and work enough for all of that time."""
    seconds = restarts * SECONDS_APART
    return Plan(
        jobs=round(seconds * JOBS_A_SECOND),
        seconds=seconds,
        workers=workers,
        concurrency=8,
        lease=15,
        faults={"SIGTERM": restarts},
        seed=seed,
        mix=DEPLOY_MIX,
    )


def slow(done: Done) -> list[str]:
    """Figures, which a busy machine may miss."""
    limits = {
        f"exit <= {EXIT_SECONDS:.0f} s": (max(done.field.exits, default=0), EXIT_SECONDS),
        f"handed-back jobs start elsewhere <= {RESUMED_SECONDS:.0f} s later": (
            percentile(done.findings.handed_back, 1),
            RESUMED_SECONDS,
        ),
    }
    return [f"{goal}: {value:.1f} s" for goal, (value, limit) in limits.items() if value > limit]


if __name__ == "__main__":
    sys.exit(main())
