"""The SQL that every request pays for."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from django.db import connection, transaction
from django.db.models import Model

from apikeys.models import ApiKey, IdempotencyRecord, Project

KEPT_SECONDS = IdempotencyRecord.KEPT_FOR.total_seconds()

# One statement, exact over all processes by the row's lock. A fixed window, which starts with its first
# request: at the edge of two windows twice the limit can pass. Compared with the row's own start, not with a
# grid, because a waiter's statement_timestamp() may be older than the start that the lock's holder has set.
# Counting stops one above the limit, so that a lowered limit or a long siege overflows nothing.
COUNT_REQUEST = """
INSERT INTO apikeys_ratecounter AS counter (subject, seconds, started_at, used)
VALUES (%(subject)s, %(seconds)s, statement_timestamp(), 1)
ON CONFLICT (subject, seconds) DO UPDATE
   SET (started_at, used) = (
       SELECT CASE WHEN over THEN excluded.started_at ELSE counter.started_at END,
              CASE WHEN over THEN 1 ELSE least(counter.used, %(limit)s) + 1 END
         FROM (SELECT excluded.started_at >= counter.started_at + make_interval(secs => counter.seconds)) AS _ (over)
   )
RETURNING used, started_at + make_interval(secs => seconds),
          extract(epoch FROM started_at + make_interval(secs => seconds) - statement_timestamp())
"""

# For django-ratelimit, which puts the window into the subject.
BEGIN_COUNT = """
INSERT INTO apikeys_ratecounter (subject, seconds, started_at, used)
VALUES (%(subject)s, %(seconds)s, statement_timestamp(), %(value)s) ON CONFLICT DO NOTHING
"""
RAISE_COUNT = "UPDATE apikeys_ratecounter SET used = used + %(by)s WHERE subject = %(subject)s RETURNING used"
FORGET_COUNT = "DELETE FROM apikeys_ratecounter WHERE subject = %(subject)s"

# A live record of the same key makes this wait for its transaction, and then insert nothing. One that has
# outlived its promise is taken over.
CLAIM_IDEMPOTENCY_KEY = """
INSERT INTO apikeys_idempotencyrecord AS record
       (project_id, key, method, path, request_hash, scopes, headers, body, created_at)
VALUES (%(project_id)s, %(key)s, %(method)s, %(path)s, %(request_hash)s, '[]', '{}', '', statement_timestamp())
ON CONFLICT (project_id, key) DO UPDATE
   SET method = excluded.method, path = excluded.path, request_hash = excluded.request_hash,
       created_at = excluded.created_at, status = NULL
 WHERE record.created_at < statement_timestamp() - make_interval(secs => %(kept_seconds)s)
RETURNING id
"""


def _columns(model: type[Model], alias: str) -> str:
    return ", ".join(f"{alias}.{field.column}" for field in model._meta.concrete_fields)


# Written out, because building it through the ORM costs each request a millisecond of CPU, ten times what the
# rest of the look-up does. Both verdicts are by the database's clock.
FIND_KEY = f"""
SELECT key.expires_at <= statement_timestamp(),
       coalesce(key.last_used_at < statement_timestamp() - interval '1 minute', true),
       {_columns(ApiKey, "key")}, {_columns(Project, "project")}
  FROM apikeys_apikey AS key JOIN apikeys_project AS project ON project.id = key.project_id
 WHERE key.secret_hash = %s
"""  # noqa: S608, columns of our own models
FLAGS = 2

TOUCH_KEY = """
WITH touched AS (
    UPDATE apikeys_apikey SET last_used_at = statement_timestamp()
     WHERE id = %s AND (last_used_at IS NULL OR last_used_at < statement_timestamp() - interval '1 minute')
    RETURNING id
)
INSERT INTO apikeys_keyuse (api_key_id, day, minutes)
SELECT id, (statement_timestamp() AT TIME ZONE 'UTC')::date, 1 FROM touched
ON CONFLICT (api_key_id, day) DO UPDATE SET minutes = apikeys_keyuse.minutes + 1
"""

# Bounded, so that a backlog never holds a lock for long.
SWEEP_IDEMPOTENCY = """
DELETE FROM apikeys_idempotencyrecord WHERE id IN (
    SELECT id FROM apikeys_idempotencyrecord
     WHERE created_at < statement_timestamp() - make_interval(secs => %(kept_seconds)s)
     ORDER BY created_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED)
"""
SWEEP_COUNTERS = """
DELETE FROM apikeys_ratecounter WHERE (subject, seconds) IN (
    SELECT subject, seconds FROM apikeys_ratecounter
     WHERE started_at + make_interval(secs => seconds) < statement_timestamp() - interval '1 day'
     LIMIT %(limit)s FOR UPDATE SKIP LOCKED)
"""

# A year and a month, to look back on.
SWEEP_USES = """
DELETE FROM apikeys_keyuse WHERE (api_key_id, day) IN (
    SELECT api_key_id, day FROM apikeys_keyuse WHERE day < current_date - 400
     LIMIT %(limit)s FOR UPDATE SKIP LOCKED)
"""


@dataclass(frozen=True)
class Count:
    """How far one window of one subject is used up."""

    limit: int
    # The window's length.
    seconds: int
    # Requests so far, this one included; at most one above the limit.
    used: int
    resets_at: datetime
    # Seconds until then, by the database's clock.
    resets_in: float

    @property
    def is_over(self) -> bool:
        """Whether this request is one too many."""
        return self.used > self.limit

    @property
    def remaining(self) -> int:
        """Requests that the window still lets through."""
        return max(0, self.limit - self.used)


@dataclass(frozen=True)
class FoundKey:
    """A key as one request finds it, its project with it."""

    key: ApiKey
    is_expired: bool
    # Its last use was noted a minute ago or more.
    is_use_unnoted: bool


def find_key(secret_hash: bytes) -> FoundKey | None:
    """The key of this secret, whatever its state. One SELECT."""
    with connection.cursor() as cursor:
        cursor.execute(FIND_KEY, [secret_hash])
        row = cursor.fetchone()
    if row is None:
        return None
    project_at = FLAGS + len(ApiKey._meta.concrete_fields)
    key = _from_row(ApiKey, row[FLAGS:project_at])
    key.project = _from_row(Project, row[project_at:])
    return FoundKey(key, is_expired=bool(row[0]), is_use_unnoted=row[1])


M = TypeVar("M", bound=Model)


def _from_row(model: type[M], row: Sequence[Any]) -> M:
    """An instance from all its columns, as the ORM would make it."""
    fields = model._meta.concrete_fields
    values = [
        field.from_db_value(value, None, connection) if hasattr(field, "from_db_value") else value
        for field, value in zip(fields, row, strict=True)
    ]
    return model.from_db(connection.alias, [field.attname for field in fields], values)


def count_request(subject: str, *, limit: int, seconds: int) -> Count:
    """Count one request of `subject` in its window of `seconds`. Call it outside transactions: it locks a row."""
    with connection.cursor() as cursor:
        cursor.execute(COUNT_REQUEST, {"subject": subject, "seconds": seconds, "limit": limit})
        used, resets_at, resets_in = cursor.fetchone()
    return Count(limit, seconds, used, resets_at, float(resets_in))


def begin_count(subject: str, *, value: int, seconds: int) -> bool:
    """Count from `value` on, unless the subject is counted already; whether it was not. Kept for `seconds` at least."""
    with connection.cursor() as cursor:
        cursor.execute(BEGIN_COUNT, {"subject": subject, "value": value, "seconds": seconds})
        return bool(cursor.rowcount)


def raise_count(subject: str, *, by: int) -> int | None:
    """The subject's count, raised; None if it is not counted."""
    with connection.cursor() as cursor:
        cursor.execute(RAISE_COUNT, {"subject": subject, "by": by})
        row = cursor.fetchone()
    return row[0] if row else None


def forget_count(subject: str) -> bool:
    """Stop counting the subject; whether it was counted."""
    with connection.cursor() as cursor:
        cursor.execute(FORGET_COUNT, {"subject": subject})
        return bool(cursor.rowcount)


def claim_idempotency_key(**fields: Any) -> int | None:
    """The new record's id, or None where a live record of the key exists; waits for one that is being made."""
    with connection.cursor() as cursor:
        cursor.execute(CLAIM_IDEMPOTENCY_KEY, {**fields, "kept_seconds": KEPT_SECONDS})
        row = cursor.fetchone()
    return row[0] if row else None


def touch_key(key_id: UUID) -> None:
    """Note that the key was used, unless that was noted less than a minute ago."""
    with connection.cursor() as cursor:
        cursor.execute(TOUCH_KEY, [key_id])


def sweep(*, limit: int) -> int:
    """Delete up to `limit` idempotency records, and as many counters and uses, that have had their time."""
    with connection.cursor() as cursor:
        cursor.execute(SWEEP_IDEMPOTENCY, {"kept_seconds": KEPT_SECONDS, "limit": limit})
        records: int = cursor.rowcount
        cursor.execute(SWEEP_COUNTERS, {"limit": limit})
        counters: int = cursor.rowcount
        cursor.execute(SWEEP_USES, {"limit": limit})
        uses: int = cursor.rowcount
    return records + counters + uses


FORGET_AUDIT = """
DELETE FROM apikeys_auditrow WHERE id IN (
    SELECT id FROM apikeys_auditrow WHERE at < statement_timestamp() - make_interval(days => %s)
     ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED)
"""
AUDIT_BATCH = 1_000


def forget_audit(days: int) -> int:
    """Delete audit rows older than `days` (30 or more: the table's trigger lets no younger one go); how many."""
    forgotten = 0
    while True:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT set_config('engine.audit_days', %s, true)", [str(days)])
            cursor.execute(FORGET_AUDIT, [days, AUDIT_BATCH])
            if not cursor.rowcount:
                return forgotten
            forgotten += cursor.rowcount
