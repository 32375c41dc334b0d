"""A worker leaves a model server alone for a while when it has failed several times in a row."""

import time
from collections import defaultdict

# Of all jobs of a worker together.
FAILURES = 5
OPEN_SECONDS = 15.0


class Breaker:
    """Closed until the server has failed too often; then open, with one call let through each time it ends."""

    def __init__(self) -> None:
        self._failures = 0
        self._open_until = 0.0  # monotonic

    def delay(self) -> float:
        """Seconds until a call may be made; 0: now."""
        now = time.monotonic()
        if self._failures < FAILURES:
            return 0.0
        if now < self._open_until:
            return self._open_until - now
        self._open_until = now + OPEN_SECONDS  # this caller tries; the others go on waiting for how it ends
        return 0.0

    def failed(self) -> None:
        """A call failed by the server's doing."""
        self._failures += 1
        if self._failures >= FAILURES:
            self._open_until = time.monotonic() + OPEN_SECONDS

    def succeeded(self) -> None:
        """The server answered."""
        self._failures = 0


breakers: dict[str, Breaker] = defaultdict(Breaker)  # by base URL
