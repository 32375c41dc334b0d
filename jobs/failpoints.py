"""Named places at which tests let a process die, fail, lose its database or hang: each commit, each outside call.

    ENGINE_FAILPOINT="claim.after_commit:exit"  manage.py runworker
    ENGINE_FAILPOINT="*:sleep:3,settle.after_commit:cut"

The value is a comma-separated list of `name:action[:seconds][:count]`; `*` means every name that is not listed itself.

| action | what happens |
| --- | --- |
| exit | the process ends here and now; nothing is cleaned up |
| raise | a fault of our own that nobody foresaw |
| cut | the connection is lost; whether the commit before it happened, the caller cannot know |
| sleep | the thread hangs for `seconds` (1 by default), and on an event loop everything with it |

A failpoint fires the first `count` times that its place is reached (1 by default), then never again; a name that is
listed several times does one after the other. Read at start and refused where ENGINE_ENV=production. Unset, a place
costs one call of an empty function.
"""

import logging
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, connection, transaction

log = logging.getLogger("engine.failpoints")

EXIT_CODE = 86
DEFAULT_SECONDS = 1.0
_FORM = re.compile(
    r"(?P<action>exit|raise|cut)(:(?P<count>\d{1,6}))?"
    r"|sleep(:(?P<seconds>\d{1,4}(\.\d{1,3})?)(:(?P<sleeps>\d{1,6}))?)?"
)


class FailpointReached(Exception):
    """Stands for a fault that no caller expects."""


@dataclass
class Failpoint:
    """What happens at a place, and how often yet."""

    action: str
    seconds: float = DEFAULT_SECONDS
    left: int = 1


def parse(text: str) -> dict[str, list[Failpoint]]:
    """Read a list of failpoints, by name. Raises ImproperlyConfigured."""
    points: dict[str, list[Failpoint]] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, rest = part.partition(":")
        match = _FORM.fullmatch(rest)
        if match is None:
            raise ImproperlyConfigured(
                f"ENGINE_FAILPOINT={part!r} cannot be used: write name:exit, name:raise, name:cut or "
                "name:sleep[:seconds], each with [:count] behind it if it is not 1."
            )
        point = Failpoint(
            action=match["action"] or "sleep",
            seconds=float(match["seconds"] or DEFAULT_SECONDS),
            left=int(match["count"] or match["sleeps"] or 1),
        )
        points.setdefault(name, []).append(point)
    return points


class Armed:
    """The failpoints of this process."""

    def __init__(self, points: dict[str, list[Failpoint]]) -> None:
        self._points = points
        self._lock = threading.Lock()

    def hit(self, name: str) -> None:
        """This place is reached. Ends the process, raises, or returns late, if it was told to."""
        with self._lock:
            if name not in self._points:
                self._points[name] = [replace(point) for point in self._points.get("*", ())]
            point = next((point for point in self._points[name] if point.left > 0), None)
            if point is None:
                return
            point.left -= 1
        log.warning("failpoint %s: %s", name, point.action)
        if point.action == "exit":
            os._exit(EXIT_CODE)
        if point.action == "sleep":
            time.sleep(point.seconds)
        elif point.action == "cut":
            raise OperationalError(f"the connection was lost at failpoint {name}")
        else:
            raise FailpointReached(name)


def _nothing(name: str) -> None:
    """No failpoint is set."""


hit: Callable[[str], None] = (
    Armed(parse(settings.ENGINE_FAILPOINT)).hit if settings.ENGINE_FAILPOINT else _nothing
)


def commit(name: str) -> transaction.Atomic:
    """`transaction.atomic()` with the failpoints `NAME.before_commit` and `NAME.after_commit`.

    Inside another transaction the second one comes after that one's commit. A transaction that wrote nothing passes
    both.
    """
    return _Watched(name) if settings.ENGINE_FAILPOINT else transaction.atomic()


class _Watched(transaction.Atomic):
    def __init__(self, name: str) -> None:
        super().__init__(using=None, savepoint=True, durable=False)
        self._name = name

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and _has_written():
            transaction.on_commit(partial(hit, f"{self._name}.after_commit"))
            try:
                hit(f"{self._name}.before_commit")
            except BaseException as reached:  # as if the block had raised it: roll back
                super().__exit__(type(reached), reached, reached.__traceback__)
                raise
        super().__exit__(kind, error, trace)


def _has_written() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_current_xact_id_if_assigned() IS NOT NULL")
        return bool(cursor.fetchone()[0])
