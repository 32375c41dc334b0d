"""Children are kept running, and none is left behind."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from engine.logs import AddFields, OneLine, log_fields, printable
from engine.supervisor import Child, Supervisor
from tests.processes import eventually

SLEEPER = "import time; time.sleep(600)"
STUBBORN = (
    f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); {SLEEPER}"
)


def make_child(program: str, tmp_path: Path, name: str = "child") -> Child:
    return Child(name, [sys.executable, "-c", program], log=tmp_path / f"{name}.log")


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def supervise(lines):
    made: list[Supervisor] = []

    def make(*children: Child, grace_seconds: float = 10) -> Supervisor:
        made.append(Supervisor(children, grace_seconds=grace_seconds, say=lines.append))
        made[-1].start()
        return made[-1]

    yield make
    for supervisor in made:
        supervisor.grace_seconds = 0
        supervisor.stop()


def pid_of(child: Child) -> int:
    return child.process.pid if child.process is not None else 0


def test_a_child_that_dies_is_started_again_and_said_so(tmp_path, supervise, lines):
    child = make_child(SLEEPER, tmp_path)
    supervisor = supervise(child)
    first = pid_of(child)

    os.kill(first, signal.SIGKILL)
    eventually(lambda: supervisor.watch() or pid_of(child) not in (0, first))

    assert "killed by SIGKILL" in lines[0]
    assert "again" in lines[0]


def test_a_child_that_keeps_dying_is_started_ever_more_rarely(tmp_path, supervise, lines):
    child = make_child("raise SystemExit(3)", tmp_path)
    supervisor = supervise(child)

    eventually(lambda: supervisor.watch() or len(lines) >= 2)

    assert "exit code 3" in lines[0]
    assert "in 0.5 s" in lines[0]
    assert "in 1 s" in lines[1]


def test_stopping_waits_for_the_children(tmp_path, supervise):
    children = [make_child(SLEEPER, tmp_path, name) for name in ("one", "two")]
    supervisor = supervise(*children)

    supervisor.stop()

    assert [child.process.returncode for child in children if child.process] == [-signal.SIGTERM] * 2


def test_a_child_that_does_not_end_is_killed_after_the_grace(tmp_path, supervise):
    child = make_child(STUBBORN, tmp_path)
    supervisor = supervise(child, grace_seconds=0.2)
    eventually(lambda: child.log is not None and "deaf" in child.log.read_text())
    begun = time.monotonic()

    supervisor.stop()

    assert child.process is not None
    assert child.process.returncode == -signal.SIGKILL
    assert time.monotonic() - begun < 5


def test_output_goes_to_the_end_of_the_log(tmp_path, supervise):
    (tmp_path / "child.log").write_text("before\n")
    child = make_child("print('after'); import time; time.sleep(600)", tmp_path)
    child.command = [sys.executable, "-u", *child.command[1:]]

    supervise(child)

    eventually(lambda: (tmp_path / "child.log").read_text() == "before\nafter\n")


def test_a_log_line_names_what_it_belongs_to_and_stays_one_line():
    import logging

    record = logging.LogRecord("engine", logging.INFO, "", 0, "task %s", ("a\nFAKE line\x1b[2J",), None)
    formatter = OneLine("%(message)s%(fields)s")
    with log_fields(job="j1"), log_fields(attempt=2):
        AddFields().filter(record)

    assert formatter.format(record) == "task a\\nFAKE line\\x1b[2J job=j1 attempt=2"
    AddFields().filter(record)
    assert formatter.format(record).endswith("[2J")


def test_text_that_a_terminal_would_obey_is_shown_instead():
    assert printable("ok\u202etxt\x07") == "ok\\u202etxt\\x07"
    assert printable("Grüße, 日本") == "Grüße, 日本"
