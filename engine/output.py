"""What a long-running program prints beside its log, as lines of the log, where those are JSON objects.

Python's own words are meant: warnings, exceptions that nobody caught, what Django's commands say before they end, and
what a library prints. `manage.py` begins with it; commands that print a result (`createkey`, `doctor`) are left alone.
"""

import io
import json
import logging
import sys
import threading
from collections.abc import Sequence
from types import TracebackType

from engine.logs import AddFields, JsonLine, is_json

LONG_RUNNING = ("serve", "runworker", "up")
log = logging.getLogger("engine.program")
_telling = threading.local()


def begin(arguments: Sequence[str]) -> None:
    """Take over what this process prints, if it is a long-running command and its lines are to be JSON.

    Raises ImproperlyConfigured, from the settings.
    """
    if arguments[1:2] and arguments[1] in LONG_RUNNING and is_json():
        logging.captureWarnings(capture=True)
        sys.excepthook = uncaught
        threading.excepthook = uncaught_in_thread
        sys.unraisablehook = unraisable
        sys.stdout, sys.stderr = Lines("engine.stdout", logging.INFO), Lines("engine.stderr", logging.WARNING)


def refuse(why: str, *, as_json: bool) -> None:
    """Say why the program cannot start: one line, also where the settings failed before they said how to log."""
    stream = sys.__stderr__
    if stream is None:
        return
    if as_json:
        record = logging.LogRecord("engine.program", logging.CRITICAL, "", 0, "%s", (why,), None)
        AddFields().filter(record)
        stream.write(json.dumps(JsonLine().document(record)) + "\n")
    else:
        stream.write(f"{why}\n")
    stream.flush()


def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """`sys.excepthook`: one line, with the traceback in it."""
    if not issubclass(kind, KeyboardInterrupt):
        log.critical("The program ends: %s: %s", kind.__name__, error, exc_info=(kind, error, trace))


def uncaught_in_thread(what: threading.ExceptHookArgs) -> None:
    """`threading.excepthook`."""
    if what.exc_value is not None and what.exc_type is not SystemExit:
        name = what.thread.name if what.thread is not None else "?"
        trace = (what.exc_type, what.exc_value, what.exc_traceback)
        log.critical("Thread %s ends: %s: %s", name, what.exc_type.__name__, what.exc_value, exc_info=trace)


def unraisable(what: "sys.UnraisableHookArgs") -> None:
    """`sys.unraisablehook`: an exception where none can be raised, such as in a destructor."""
    trace = (what.exc_type, what.exc_value, what.exc_traceback) if what.exc_value is not None else None
    log.error("%s: %r", what.err_msg or "Exception ignored in", what.object, exc_info=trace)


class Lines(io.TextIOBase):
    """A stream for text, each line of which is logged. The log itself writes to what the process began with."""

    encoding = "utf-8"

    def __init__(self, logger: str, level: int) -> None:
        self._log, self._level = logging.getLogger(logger), level
        self._rest = ""
        self._lock = threading.Lock()

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, text: str, /) -> int:
        """Log the lines that are complete."""
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._tell(line)
        return len(text)

    def close(self) -> None:
        """Log what has no end of line."""
        with self._lock:
            line, self._rest = self._rest, ""
        self._tell(line)

    def _tell(self, line: str) -> None:
        # A log that cannot write says so on stderr, which is ours: its words would never end.
        if line.strip() and not getattr(_telling, "now", False):
            _telling.now = True
            try:
                self._log.log(self._level, "%s", line.rstrip())
            finally:
                _telling.now = False
