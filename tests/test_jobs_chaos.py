"""The drills in their short form, on real processes: what must hold on any machine, however busy. `make chaos` and
`make drain` measure as well, and print tables."""

import random
from pathlib import Path

import pytest

from drills import chaos, drain


@pytest.mark.drill
def test_a_minute_of_every_fault_loses_and_doubles_nothing(tmp_path: Path) -> None:
    kills = 8
    plan = chaos.Plan(
        jobs=150,
        seconds=40,
        workers=3,
        concurrency=4,
        lease=4,
        faults={"SIGKILL": kills, "PostgreSQL restart": 2, **chaos.in_proportion(kills)},
        seed=random.SystemRandom().randrange(10**6),
    )

    done = chaos.run(plan, tmp_path)

    assert done.missed(figures=False) == [], chaos.table(plan, done)
    assert done.faults.counts == plan.faults
    assert done.findings.recoveries
    assert done.field.effects.total > 0


@pytest.mark.drill
def test_restarts_under_load_charge_no_attempt_and_lose_nothing(tmp_path: Path) -> None:
    plan = drain.plan_of(3, workers=2, seed=random.SystemRandom().randrange(10**6))

    done = chaos.run(plan, tmp_path)

    assert [*done.missed(figures=False), *done.findings.charged] == [], chaos.table(plan, done)
    assert len(done.field.exits) == 3
