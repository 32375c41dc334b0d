"""The outbox as senders use it: take what is due, note how it went. Rows are leased by time, as jobs are.

A row that a sender took is due again when its lease is over: a sender that was killed loses nothing, and what it had
sent is sent once more under the same id.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import connection

from jobs import failpoints
from jobs.notifying.models import Delivery

# Ten tries over 76 hours, as Standard Webhooks 1.0.0 proposes; each wait up to a tenth longer, so that what failed
# together does not come back together.
WAITS_SECONDS = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
# Longer than a try may take.
LEASE_SECONDS = 45
MOST_LOGGED = 30


@dataclass(frozen=True)
class Taken:
    """A delivery that is this sender's until its lease is over. Its `tries` is the fence."""

    delivery: Delivery
    now: datetime  # by the database's clock


# At most so many to one host at a time: a receiver that hangs holds up its own messages, and nobody else's.
MOST_TO_ONE_HOST = 4

TAKE = """
WITH due AS MATERIALIZED (
    SELECT id, host, next_try_at FROM jobs_delivery
     WHERE state = 'pending' AND next_try_at <= statement_timestamp() AND host <> ALL(%(busy)s::text[])
     ORDER BY next_try_at LIMIT 200 FOR UPDATE SKIP LOCKED
), fair AS (
    SELECT id, row_number() OVER (PARTITION BY host ORDER BY next_try_at) AS place, next_try_at FROM due
), chosen AS (
    SELECT id FROM fair WHERE place <= %(to_one)s ORDER BY next_try_at LIMIT %(most)s
)
UPDATE jobs_delivery AS delivery
   SET tries = tries + 1, next_try_at = statement_timestamp() + make_interval(secs => %(lease)s)
  FROM chosen WHERE delivery.id = chosen.id
RETURNING delivery.id, statement_timestamp()
"""


def take(*, most: int, busy: Sequence[str]) -> list[Taken]:
    """Up to `most` deliveries that are due, none to a busy host; the oldest first."""
    with failpoints.commit("delivery.take"), connection.cursor() as cursor:
        params: dict[str, Any] = {
            "busy": list(busy),
            "to_one": MOST_TO_ONE_HOST,
            "most": most,
            "lease": LEASE_SECONDS,
        }
        cursor.execute(TAKE, params)
        taken = dict(cursor.fetchall())
    return [Taken(row, taken[row.id]) for row in Delivery.objects.filter(id__in=taken)]


@dataclass(frozen=True)
class Tried:
    """How a try went."""

    state: Delivery.State  # pending: it failed, and is tried again if any try is left
    milliseconds: int = 0
    status: int | None = None  # of HTTP
    error: str = ""
    response: str = ""  # how its body began
    retry_after: timedelta | None = None  # what the receiver asked for

    def as_json(self, at: datetime) -> dict[str, Any]:
        """As it stands in the delivery's log."""
        return {
            "at": at.isoformat().replace("+00:00", "Z"),
            "ms": self.milliseconds,
            "status": self.status,
            "error": self.error,
            "response": self.response,
        }


def wait_before(tries: int, *, asked: timedelta | None = None) -> timedelta | None:
    """How long after this many failed tries the next one comes; None: there is none."""
    if tries > len(WAITS_SECONDS):
        return None
    wait = timedelta(seconds=WAITS_SECONDS[tries - 1] * (1 + random.random() / 10))  # noqa: S311 (jitter, no secret)
    return max(wait, min(asked or wait, timedelta(days=1)))


def note(taken: Taken, tried: Tried) -> bool:
    """Store how a try went; False if another sender has taken the row since, or it was sent again by hand."""
    row = taken.delivery
    wait = wait_before(row.tries - row.tries_before, asked=tried.retry_after)
    state = tried.state
    if state == Delivery.State.PENDING and wait is None:
        state = Delivery.State.FAILED
    with failpoints.commit("delivery.note"), connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE jobs_delivery
               SET state = %(state)s, next_try_at = statement_timestamp() + make_interval(secs => %(wait)s),
                   delivered_at = CASE WHEN %(state)s = 'delivered' THEN statement_timestamp() END,
                   log = jsonb_path_query_array(%(entry)s::jsonb || log, '$[0 to %(most)s]')
             WHERE id = %(id)s AND tries = %(tries)s AND state = 'pending'
            """.replace("%(most)s", str(MOST_LOGGED - 1)),
            {
                "id": row.id,
                "tries": row.tries,
                "state": state.value,
                "wait": wait.total_seconds() if wait else 0.0,
                "entry": json.dumps([tried.as_json(taken.now)]),
            },
        )
        return bool(cursor.rowcount)
