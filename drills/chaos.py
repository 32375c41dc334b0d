"""Workers, web process and database under every fault at once, and a count of what that cost.

    python -m drills.chaos --jobs 6000 --kills 200 --restarts 30 --workers 4 --minutes 25

Prints a table, and ends with 1 if a goal was missed. What is counted: docs/chaos.md.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "engine.settings")
django.setup()

from drills import report  # noqa: E402 (after setup)
from drills.faults import Faults  # noqa: E402
from drills.field import Field  # noqa: E402
from drills.load import MIX, Load, Mix  # noqa: E402
from drills.report import Findings, percentile  # noqa: E402

PROGRESS_SECONDS = 10.0
QUIET_SECONDS = 300.0  # for all jobs to end after the last fault
# Beyond the lease: a sweep's interval, a claim, and the start of a sandbox on a machine that has much else to do.
RECOVERY_SECONDS = 5.0


@dataclass(frozen=True)
class Plan:
    """What a drill does."""

    jobs: int
    seconds: float
    workers: int
    concurrency: int
    lease: float
    faults: dict[str, int]
    seed: int
    mix: Mix = dataclass_field(default_factory=lambda: MIX)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the drill that the command line asks for."""
    plan = _plan(arguments)
    print(
        f"Seed {plan.seed}: {plan.jobs} jobs in {plan.seconds / 60:.1f} min, {plan.workers} workers.",
        flush=True,
    )
    for number in (signal.SIGTERM, signal.SIGINT):  # Ctrl+C, or `kill`: end all that was started
        signal.signal(number, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        done = run(plan, Path(folder))
    print(table(plan, done))
    for line in done.missed():
        print(f"MISSED: {line}")
    return 1 if done.missed() else 0


def _plan(arguments: Sequence[str] | None) -> Plan:
    parser = argparse.ArgumentParser(prog="drills.chaos", description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=6000)
    parser.add_argument(
        "--kills", type=int, default=200, help="SIGKILLs of workers; other faults in proportion"
    )
    parser.add_argument("--restarts", type=int, default=30, help="of PostgreSQL, as by a power cut")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--concurrency", type=int, default=8, help="jobs at once in each worker")
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--lease", type=float, default=15, help="seconds")
    parser.add_argument("--seed", type=int, default=None)
    chosen = parser.parse_args(arguments)
    return Plan(
        jobs=chosen.jobs,
        seconds=chosen.minutes * 60,
        workers=chosen.workers,
        concurrency=chosen.concurrency,
        lease=chosen.lease,
        faults={
            "SIGKILL": chosen.kills,
            "PostgreSQL restart": chosen.restarts,
            **in_proportion(chosen.kills),
        },
        seed=random.SystemRandom().randrange(10**6) if chosen.seed is None else chosen.seed,
    )


def in_proportion(kills: int) -> dict[str, int]:
    """The other faults that go with so many kills."""
    return {
        "SIGSTOP": -(-kills // 10),
        "SIGTERM": -(-kills // 10),
        "terminated backends": -(-kills // 4),
        "half-open connections": -(-kills // 10),
        "partition": -(-kills // 25),
        "web SIGKILL": -(-kills // 20),
        "web half-open": -(-kills // 40),
    }


@dataclass(frozen=True)
class Done:
    """A drill that is over."""

    field: Field
    load: Load
    faults: Faults
    findings: Findings
    seconds: float
    unfinished: int  # jobs that had not ended when patience did

    @property
    def recovered(self) -> list[float]:
        """Seconds from a fault to the job's next start, of all jobs that a worker lost."""
        return [recovery.seconds for recovery in self.findings.recoveries]

    def missed(self, *, figures: bool = True) -> list[str]:
        """The goals that were missed; without `figures` only those that hold on any machine, however busy."""
        found, load, effects = self.findings, self.load, self.field.effects
        # A killer that hits the same job three times in a row makes it look like one that kills its workers.
        unlucky = [job for job in found.lost if job.endswith("(worker_lost)")]
        goals: dict[str, list[Any]] = {
            "acknowledged jobs are stored": found.missing,
            "no job is lost": [job for job in found.lost if job not in unlucky],
            "every job ends": [self.unfinished] * bool(self.unfinished),
            "no effect is doubled": effects.doubled,
            "a step that runs again has the same idempotency key": effects.other_keys,
            "results are those of the last run of each step": found.unexplained_results,
            "no late write is accepted": found.late_accepted,
            "the history is sound": found.broken_rules,
            "clients never see a 500": ["500"] * load.client.statuses["500"],
            "503 says when to come again": ["503"] * load.client.wordless_refusals,
            "patient clients are heard": load.failures,
        }
        limit = self.field.lease + RECOVERY_SECONDS
        if figures:
            slowest = percentile(self.recovered, 0.99)
            goals |= {
                "no job is lost to three losses in a row": unlucky,
                "two programs of one job never run side by side": effects.side_by_side,
                f"recovery p99 <= {limit:.0f} s": [f"{slowest:.1f} s"] * (slowest > limit),
            }
        return [f"{goal}: {len(bad)}, as {bad[:5]}" for goal, bad in goals.items() if bad]


def run(plan: Plan, folder: Path) -> Done:
    """Do it all in this folder; everything that was started has ended on return."""
    field = Field(folder, workers=plan.workers, concurrency=plan.concurrency, lease=plan.lease)
    try:
        field.start()
        load = Load(field.client, plan.jobs, plan.seconds, plan.seed, plan.mix)
        faults = Faults(field, plan.faults, seconds=plan.seconds, seed=plan.seed)
        began = time.monotonic()
        load.start()
        faults.start()
        try:
            unfinished = _until_quiet(plan, field, load, faults, began)
        finally:
            load.stop()
        return Done(
            field, load, faults, report.read(field, load, faults.done), time.monotonic() - began, unfinished
        )
    finally:
        field.stop()


def _until_quiet(plan: Plan, field: Field, load: Load, faults: Faults, began: float) -> int:
    """Until the faults are over and every job has ended; returns how many have not."""
    told, patience = 0.0, plan.seconds + QUIET_SECONDS
    while True:
        faults.go_on()
        now = time.monotonic() - began
        if now - told >= PROGRESS_SECONDS:
            told = now
            _tell(now, load, faults)
        if load.is_sent and faults.are_over:
            open_jobs = _open_jobs(field)
            if not open_jobs or now > patience:
                return open_jobs
        time.sleep(0.05)


def _open_jobs(field: Field) -> int:
    with field.link() as link:
        row = link.execute("SELECT count(*) FROM jobs_job WHERE finished_at IS NULL").fetchone()
    return row[0] if row else 0


def _tell(now: float, load: Load, faults: Faults) -> None:
    counts = ", ".join(f"{number} {kind}" for kind, number in sorted(faults.counts.items()))
    print(
        f"{now:5.0f} s  {len(load.client.acknowledged)} jobs promised, {load.answers} answered; {counts}",
        flush=True,
    )


def table(plan: Plan, done: Done) -> str:
    """Markdown."""
    found, effects, statuses = done.findings, done.field.effects, done.load.client.statuses
    killed = [recovery.seconds for recovery in found.recoveries if recovery.kind == "SIGKILL"]
    plain = [recovery.seconds for recovery in found.recoveries if not recovery.in_outage]
    rows: list[tuple[str, object]] = [
        (
            "seed, minutes, workers × slots, lease",
            f"{plan.seed}, {done.seconds / 60:.1f}, {plan.workers} × {plan.concurrency}, {plan.lease:g} s",
        ),
        ("jobs submitted (acknowledged)", len(done.load.client.acknowledged)),
        ("ended as", ", ".join(f"{number} {status}" for status, number in sorted(found.by_status.items()))),
        (
            "attempts started; lost; handed back",
            f"{found.attempts}; {len(found.recoveries)}; {len(found.handed_back)}",
        ),
        *((f"fault: {kind}", number) for kind, number in sorted(done.faults.counts.items())),
        ("**acknowledged jobs missing**", len(found.missing)),
        ("**jobs lost**", len(found.lost)),
        ("**doubled effects** of all effects", f"{len(effects.doubled)} of {effects.total}"),
        ("**late writes accepted** / refused", f"{len(found.late_accepted)} / {found.late_refused}"),
        ("programs of one job side by side", len(effects.side_by_side)),
        ("rules of the history broken", len(found.broken_rules)),
        ("step bodies cut off and run again (at least once)", effects.cut_bodies),
        ("recovery p50 / p99 / worst: all faults", _spread(done.recovered)),
        ("… of SIGKILLs", _spread(killed)),
        ("… where PostgreSQL stayed up meanwhile", _spread(plain)),
        ("losses that no fault explains", found.unexplained_losses),
        ("worker's exit after SIGTERM p50 / p99 / worst", _spread(done.field.exits)),
        ("hand-back to next start p50 / p99 / worst", _spread(found.handed_back)),
        (
            "answers to clients",
            ", ".join(f"{number} × {status}" for status, number in sorted(statuses.items())),
        ),
        ("503 without Retry-After; 500", f"{done.load.client.wordless_refusals}; {statuses['500']}"),
    ]
    return "\n".join(
        ["| what | count |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]
    )


def _spread(seconds: list[float]) -> str:
    return (
        f"{percentile(seconds, 0.5):.1f} / {percentile(seconds, 0.99):.1f} / {max(seconds, default=0):.1f} s"
        f" ({len(seconds)})"
    )


if __name__ == "__main__":
    sys.exit(main())
