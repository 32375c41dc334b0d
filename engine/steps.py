"""Steps on a terminal: what is being done, how long it took, and what to do where it failed."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


def say(text: str = "") -> None:
    """Print a line now, also where the output is a pipe."""
    print(text, flush=True, file=sys.stdout)
