"""Two database functions side by side, each on a connection of its own, one statement at a time in a chosen order."""

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from django.db import OperationalError, connection

PATIENCE_SECONDS = 20.0
LOOK_SECONDS = 0.004  # after which a statement that has not come back may be waiting for a lock

Call = Callable[[], Any]


class Run:
    """One call of a function that halts before each statement and each commit until it may go on."""

    def __init__(self, function: Call) -> None:
        self.function = function
        self.result: Any = None
        self.error: Exception | None = None
        self.done = False
        self.pid = 0
        self.may_go = threading.Semaphore(0)
        self.halted = threading.Event()

    def halt(self) -> None:
        """In the function's thread: wait to be let on."""
        self.halted.set()
        assert self.may_go.acquire(timeout=PATIENCE_SECONDS), "nobody let this function go on"

    def step(self) -> bool:
        """Run to the next halt; False if it waits for a lock instead, and goes on by itself once it has it."""
        if not self.done and self.halted.is_set():
            self.halted.clear()
            self.may_go.release()
        while not self.halted.wait(LOOK_SECONDS):
            if self._waits_for_lock() and not self.halted.is_set():
                return False
        return True

    def _waits_for_lock(self) -> bool:
        with connection.cursor() as cursor:
            cursor.execute("SELECT wait_event_type FROM pg_stat_activity WHERE pid = %s", [self.pid])
            row = cursor.fetchone()
        return row is not None and row[0] == "Lock"


class Session:
    """A thread with a connection of its own, which does one run after another."""

    def __init__(self) -> None:
        self._runs: queue.SimpleQueue[Run | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def begin(self, function: Call) -> Run:
        """Begin a run; it halts before its first statement."""
        run = Run(function)
        self._runs.put(run)
        assert run.halted.wait(PATIENCE_SECONDS)
        return run

    def close(self) -> None:
        """End the thread."""
        self._runs.put(None)
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()

    def _work(self) -> None:
        commit = connection.commit
        try:
            with connection.cursor() as cursor:
                # Nothing crashes here, and there are a thousand commits.
                cursor.execute("SET synchronous_commit = off")
            while (run := self._runs.get()) is not None:
                run.pid = connection.connection.info.backend_pid
                # Django has no hook for it.
                connection.commit = partial(halted, run, commit)  # type: ignore[method-assign]
                try:
                    with connection.execute_wrapper(partial(halted, run)):
                        run.result = run.function()
                except Exception as error:  # what the function raised is its outcome
                    run.error = error
                run.done = True
                run.halted.set()
        finally:
            connection.close()


def halted(run: Run, then: Callable[..., Any], *arguments: Any) -> Any:
    """Do something once the run may go on."""
    run.halt()
    return then(*arguments)


def finish(one: Run, other: Run) -> None:
    """Run one to its end; while it waits for a lock, the other goes on until it has it."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not one.done:
        if not one.step() and not other.done:
            other.step()
        assert time.monotonic() < deadline, "it waits for a lock that nobody gives up"
    # A deadlock, or a lock that was never free, is nobody's outcome.
    assert not isinstance(one.error, OperationalError), one.error


def advance(run: Run, steps: int) -> bool:
    """Up to so many steps; False if it came to its end, or to a lock, before."""
    return all(not run.done and run.step() for _ in range(steps))


def interleaved(prepare: Callable[[], tuple[Call, Call]]) -> Iterator[tuple[Run, Run]]:
    """Both functions, at their ends, for every order in which one is interrupted once by a part of the other.

    The orders: the first up to some statement, the second up to some statement, the rest of the first, the rest of the
    second; and the same with the second beginning. `prepare` makes a new situation for each order.
    """
    sessions = Session(), Session()
    try:
        for begins in (0, 1):
            for before in itertools.count(1):
                for between in itertools.count(1):
                    runs = [
                        session.begin(function) for session, function in zip(sessions, prepare(), strict=True)
                    ]
                    one, other = runs[begins], runs[1 - begins]
                    all_of_one = not advance(one, before)
                    all_of_other = not advance(other, between)
                    finish(one, other)
                    finish(other, one)
                    yield runs[0], runs[1]
                    if all_of_other:
                        break
                if all_of_one:
                    break
    finally:
        for session in sessions:
            session.close()
