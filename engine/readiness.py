"""How the parts are now, for probes and pages that cannot wait.

What costs a millisecond is looked at on the spot. What may hang (a bucket, Redis, E2B, a model server, a second way to
the database) is looked at by a thread of its own, again once the last look is old and somebody asks; whoever asks gets
the last finding with its age. A process that nobody asks looks at nothing.
"""

import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import connections
from django.utils import timezone

from engine.database import is_embedded
from engine.diagnosis import ASKS_DATABASE, NO_ANSWER, PARTS, Finding, State, is_away, safely, title

# How long all that was never looked at, or long ago, is waited for together.
PATIENCE_SECONDS = 0.05
# A look that takes longer than this is a part that does not answer.
SLOW_SECONDS = 4.0
SILENT = "see whether the database's host is overloaded or hangs"
# A part that failed is looked at again after so long, so that its return is seen soon.
AGAIN_SECONDS = 5.0


@dataclass(frozen=True)
class Reading:
    """How one part is, and when that was found; None: now."""

    finding: Finding
    checked_at: datetime | None = None

    @property
    def name(self) -> str:
        """The part's name."""
        return self.finding.part

    @property
    def title(self) -> str:
        """The part's name as people write it."""
        return title(self.name)

    @property
    def is_ready(self) -> bool:
        """Whether jobs can be taken and run as far as this part goes."""
        return not (PARTS[self.name].is_needed and self.finding.state == State.FAILED)

    @property
    def needs_somebody(self) -> bool:
        """Whether there is something to mend, needed or not."""
        return self.finding.state in (State.DEGRADED, State.FAILED)

    @property
    def state(self) -> State:
        """The state as a probe sees it: a part that failed but is not needed leaves Engine degraded."""
        failed = self.finding.state == State.FAILED
        return State.DEGRADED if failed and self.is_ready else self.finding.state

    def public(self) -> dict[str, Any]:
        """For everybody: no host, path, bucket or exact version in it."""
        shown: dict[str, Any] = {"ok": self.is_ready, "state": self.state.value}
        if self.state == State.DEGRADED:
            shown["degraded"] = True
        if self.state in (State.DEGRADED, State.FAILED):
            shown["detail"] = self.finding.public or PARTS[self.name].without
            shown["remedy"] = self.finding.remedy
        elif self.finding.public:
            shown["detail"] = self.finding.public
        if self.checked_at is not None:
            shown["checked_at"] = self.checked_at.isoformat(timespec="milliseconds")
        return shown


class Watched:
    """A part that is looked at by a thread, at most one look at a time."""

    def __init__(self, name: str) -> None:
        self.name, self.part = name, PARTS[name]
        self.lock = threading.Lock()
        self.last: Reading | None = None
        self.looked = 0.0  # of the monotonic clock, when the last look ended
        self.begun: float | None = None  # when the look began that goes on now
        self.done = threading.Event()

    def ask(self) -> None:
        """Have the part looked at if its last look is old. Returns at once, unless the look is one that may be here."""
        with self.lock:
            wait = self.part.every if self.last is None or self.last.finding.ok else AGAIN_SECONDS
            due = self.last is None or time.monotonic() - self.looked >= wait
            if self.begun is not None or not due:
                return
            self.begun = time.monotonic()
            self.done.clear()
        if is_quick(self.name):
            self._look()
        else:
            threading.Thread(target=self._look_apart, name=f"look-{self.name}", daemon=True).start()

    def _look_apart(self) -> None:
        try:
            self._look()
        finally:
            connections.close_all()

    def _look(self) -> None:
        found = safely(self.name, self.part.look)
        with self.lock:
            self.last, self.looked, self.begun = Reading(found, timezone.now()), time.monotonic(), None
        self.done.set()

    def reading(self, deadline: float) -> Reading:
        """The last finding. If it is missing or old, the look that has just begun is waited for until `deadline`."""
        old = self.last is None or time.monotonic() - self.looked > 3 * self.part.every
        if old and self.begun is not None and time.monotonic() - self.begun < PATIENCE_SECONDS:
            self.done.wait(max(0.0, deadline - time.monotonic()))
        with self.lock:
            hangs = 0.0 if self.begun is None else time.monotonic() - self.begun
            if hangs > SLOW_SECONDS:
                remedy = "see whether it hangs, and the way there; manage.py doctor says more"
                silent = Finding(self.name, State.FAILED, f"no answer for {hangs:.0f} s", remedy)
                return Reading(silent, self.last.checked_at if self.last else None)
            return self.last or Reading(
                Finding(self.name, State.UNKNOWN, "being looked at for the first time")
            )


_watched = {name: Watched(name) for name, part in PARTS.items() if part.every}


def is_quick(name: str) -> bool:
    """Whether a look at this part cannot hang: the model that runs in this process."""
    return name == "embedder" and settings.ENGINE_EMBEDDER != "openai"


def is_moot(name: str) -> bool:
    """Whether there is nothing to look at: the embedded server has no pooler before it."""
    return name in ("pooling", "notifications") and is_embedded()


def begin() -> None:
    """Look at everything once, so that the first who asks has an answer. Returns at once."""

    def look() -> None:
        readings()
        connections.close_all()

    threading.Thread(target=look, name="look", daemon=True).start()


def forget() -> None:
    """Know nothing of what is outside. For tests, whose settings change."""
    for name in _watched:
        _watched[name] = Watched(name)


def readings(*, without: Collection[str] = ()) -> list[Reading]:
    """All parts, in the doctor's order. Takes milliseconds, unless the database does not answer."""
    _ask()
    found: dict[str, Reading] = {}
    away = False
    for name, part in PARTS.items():
        look = part.glance or part.look
        if name in without or (away and look in ASKS_DATABASE):
            continue
        if is_moot(name):
            found[name] = Reading(Finding(name, State.OK, "no pooler before the embedded server"))
        elif name not in _watched:
            found[name] = Reading(safely(name, look))
            away = away or is_away(found[name].finding)
    deadline = time.monotonic() + PATIENCE_SECONDS
    apart = (name for name in _watched if name not in found and name not in without)
    found |= {name: _watched[name].reading(deadline) for name in apart}
    return [found[name] for name in PARTS if name in found]


def outside() -> list[Reading]:
    """The parts outside that can be looked at, as last found; asks neither them nor the database."""
    _ask()
    return [watched.reading(0.0) for name, watched in _watched.items() if not is_moot(name)]


def _ask() -> None:
    for name, watched in _watched.items():
        if not is_moot(name):
            watched.ask()


def last_known() -> list[Reading]:
    """What is known without asking anybody, when the database does not answer: that, and the parts outside."""
    silent = Finding("database", State.FAILED, NO_ANSWER + "it takes connections, and is silent", SILENT)
    apart = [one.reading(0.0) for one in _watched.values() if one.part.look not in ASKS_DATABASE]
    return [Reading(silent), *apart]
