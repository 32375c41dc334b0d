"""Steps on a terminal: what is being done, how long it took, and what to do where it failed."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from engine.logs import is_json, tell

log = logging.getLogger("engine.up")
NAME_WIDTH = 36


class StepFailed(Exception):
    """A step could not be done. `remedy` is the command, or the sentence, that fixes it."""

    def __init__(self, message: str, *, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


@contextmanager
def step(name: str) -> Iterator[Callable[[str], None]]:
    """Print the step's name, then its seconds; what the block passes to the yielded function stands behind them.

    A StepFailed is printed with its remedy and goes on to the caller.
    """
    notes: list[str] = []
    if is_json():
        with told_step(name, notes):
            yield notes.append
        return
    print(f"  {name:<{NAME_WIDTH}}", end="", flush=True)
    begun = time.monotonic()
    try:
        yield notes.append
    except StepFailed as error:
        print(f"failed\n{error}\n  To fix it: {error.remedy}", flush=True)
        raise
    except BaseException as error:
        print("stopped" if isinstance(error, KeyboardInterrupt | SystemExit) else "failed", flush=True)
        raise
    print(f"{time.monotonic() - begun:6.1f} s  {' '.join(notes)}".rstrip(), flush=True)


@contextmanager
def told_step(name: str, notes: list[str]) -> Iterator[None]:
    """The same for machines: one line when it is done, or has failed."""
    begun = time.monotonic()
    try:
        yield
    except StepFailed as error:
        log.error("%s failed: %s To fix it: %s", name, error, error.remedy)
        raise
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        log.error("%s was stopped." if stopped else "%s failed.", name)
        raise
    log.info("%s", " ".join((f"{name}: {time.monotonic() - begun:.1f} s", *notes)))


def say(text: str = "") -> None:
    """Tell whoever started the program, line by line, also where the output is a pipe."""
    for line in text.split("\n"):
        tell(line)
