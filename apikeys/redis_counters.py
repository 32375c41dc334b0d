"""A key's rate windows in Redis, where REDIS_URL names one: exact over all processes, and nothing for PostgreSQL to do.

While Redis does not answer, PostgreSQL counts: at the change from one to the other a window may let its limit through
twice, and no request waits for Redis for longer than TIMEOUT_SECONDS once in PAUSE_SECONDS.
"""

import logging
import time
from datetime import timedelta
from functools import cache

from django.conf import settings
from django.utils import timezone

from apikeys.queries import Count
from engine.redis_errors import or_redis_errors

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 0.25
PAUSE_SECONDS = 5.0

# One script, and so one step: as COUNT_REQUEST in queries.py, which counts to one above the limit, too.
COUNT = """
local used = tonumber(redis.call('GET', KEYS[1]) or '0')
local limit = tonumber(ARGV[1])
if used <= limit then
    used = redis.call('INCR', KEYS[1])
    if used == 1 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
end
return {math.min(used, limit + 1), redis.call('PTTL', KEYS[1])}
"""


class RedisCounters:
    """Counters in one Redis."""

    def __init__(self, url: str) -> None:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        self._redis = Redis.from_url(
            url,
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
        self._count = self._redis.register_script(COUNT)
        self._away_until = 0.0

    def count(self, subject: str, *, limit: int, seconds: int) -> Count | None:
        """Count one request of `subject` in its window of `seconds`; None while Redis does not answer."""
        if time.monotonic() < self._away_until:
            return None
        try:
            used, left = self._count(keys=[f"engine:rate:{subject}:{seconds}"], args=[limit, seconds * 1000])
        except or_redis_errors() as error:
            self._away_until = time.monotonic() + PAUSE_SECONDS
            logger.warning("Redis does not answer; PostgreSQL counts requests meanwhile: %s", error)
            return None
        resets_in = max(0, int(left)) / 1000
        return Count(limit, seconds, int(used), timezone.now() + timedelta(seconds=resets_in), resets_in)


@cache
def counters_at(url: str) -> RedisCounters:
    """The counters of this process at that address."""
    return RedisCounters(url)


def count_in_redis(subject: str, *, limit: int, seconds: int) -> Count | None:
    """Count where REDIS_URL names a Redis that answers; else None."""
    if not settings.REDIS_URL:
        return None
    return counters_at(settings.REDIS_URL).count(subject, limit=limit, seconds=seconds)
