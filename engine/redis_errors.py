"""What Redis' client raises, without its import where no Redis is: that takes 0.14 s and half of OpenTelemetry."""

import sys


def or_redis_errors(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """These and Redis' own, for an `except` clause; a client that nobody has imported has raised nothing."""
    if "redis" not in sys.modules:
        return others
    from redis.exceptions import RedisError

    return (*others, RedisError)
