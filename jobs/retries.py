"""How often, and after how long, a failed attempt is tried again."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any


@dataclass(frozen=True)
class RetryPolicy:
    """How an agent's failures are tried again; `limits.retry` of its card. A job's own `max_attempts` goes before."""

    max_attempts: int = 3
    backoff_s: float = 2.0  # before the second attempt
    backoff_factor: float = 2.0
    max_backoff_s: float = 1_024.0

    @classmethod
    def of(cls, limits: Mapping[str, Any]) -> "RetryPolicy":
        """The policy of an agent with these limits."""
        return cls(**limits.get("retry", {}))

    def backoff(self, failures: int) -> timedelta:
        """How long the next attempt waits after so many failures: with up to a tenth more, so that jobs which failed
        together do not return together."""
        seconds = min(self.backoff_s * self.backoff_factor ** min(failures - 1, 30), self.max_backoff_s)
        return timedelta(seconds=seconds * (1 + random.random() / 10))  # noqa: S311 (jitter, not a secret)
