"""What django-ratelimit counts in: the counters of `queries.py`, one for all processes, as a cache of Django."""

from typing import Any

from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache

from apikeys import queries


class CounterCache(BaseCache):
    """Counts and nothing else: `add`, `incr`, `get` and `delete` of whole numbers, by the database's clock.

    Django's own caches do not serve: that in memory counts each process apart, that in the database does not count
    atomically.
    """

    def __init__(self, location: str, params: dict[str, Any]) -> None:
        super().__init__(params)

    def add(self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """Begin to count at `value` unless the key is counted already; whether it was not."""
        seconds = self.default_timeout if timeout is DEFAULT_TIMEOUT else timeout
        return queries.begin_count(self._subject(key, version), value=int(value), seconds=int(seconds or 0))

    def incr(self, key: str, delta: int = 1, version: int | None = None) -> int:
        """The count, raised by `delta`. ValueError where nothing is counted."""
        count = queries.raise_count(self._subject(key, version), by=delta)
        if count is None:
            raise ValueError(f"Nothing is counted as {key}")
        return count

    def get(self, key: str, default: Any = None, version: int | None = None) -> Any:
        """The count as it stands."""
        count = queries.raise_count(self._subject(key, version), by=0)
        return default if count is None else count

    def delete(self, key: str, version: int | None = None) -> bool:
        """Forget the count."""
        return queries.forget_count(self._subject(key, version))

    def _subject(self, key: str, version: int | None) -> str:
        return self.make_and_validate_key(key, version)
