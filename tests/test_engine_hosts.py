"""The drills over many hosts in their short form, for `make walk`; `make drill-hosts` and the like measure."""

import os
import subprocess
import sys

import pytest

from tests.processes import ROOT


@pytest.mark.drill
@pytest.mark.parametrize(
    "arguments",
    [
        ("drills.hosts", "--jobs", "600", "--minutes", "4", "--waves", "0"),
        ("drills.failover", "--jobs", "150", "--minutes", "2"),
    ],
    ids=["hosts", "failover"],
)
def test_hosts_and_primaries_that_go_lose_and_double_nothing(arguments: tuple[str, ...]) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT, env=os.environ, text=True, capture_output=True, timeout=900, check=False,
    )  # fmt: skip
    if finished.stdout.startswith("SKIPPED"):
        pytest.skip(finished.stdout)

    assert finished.returncode == 0, finished.stdout + finished.stderr
