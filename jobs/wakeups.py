"""Hints that something changed, sent after commit. Each may be lost without losing anything (I7): readers poll.

A NOTIFY inside the writing transaction would take PostgreSQL's global commit lock (measured: 5 to 10 times fewer
commits). So one thread per process sends coalesced notifies on a connection of its own, with
`synchronous_commit = off`. Where REDIS_URL is set they go over Redis, and PostgreSQL has nothing to do with them.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from uuid import UUID

import psycopg
from django.conf import settings
from django.db import transaction

from engine.database import direct_dsn
from engine.redis_errors import or_redis_errors
from jobs import failpoints

QUEUE_CHANNEL = "engine_queue"  # payload: queue names; a worker should look
JOB_CHANNEL = "engine_job"  # payload: job ids; a watcher should read
CANCEL_CHANNEL = "engine_cancel"  # payload: job ids; the lease holder should stop them

COALESCE_SECONDS = 0.005
MOST_PAYLOAD = 7_900  # bytes; NOTIFY takes less than 8,000
RETRY_SECONDS = 1.0
REDIS_SECONDS = 1.0

log = logging.getLogger("engine.wakeups")


class Notifier:
    """Collects hints and sends them from a daemon thread. Never blocks and never raises to its callers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: dict[str, set[str]] = {}
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._failing = False

    def send(self, channel: str, items: Iterable[str]) -> None:
        """Hint at these items soon."""
        with self._lock:
            self._pending.setdefault(channel, set()).update(items)
            if self._thread is None or not self._thread.is_alive():
                self._stopped = False
                self._thread = threading.Thread(target=self._run, name="wakeups", daemon=True)
                self._thread.start()
        self._wake.set()

    def stop(self) -> None:
        """Close the connection; the next `send` opens another."""
        self._stopped = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopped:
            try:
                with _by_redis() if settings.REDIS_URL else _by_notify() as say:
                    self._serve(say)
            except or_redis_errors(psycopg.Error, OSError) as error:
                if not self._failing:  # said once, however long it takes
                    log.warning("Wake-ups are not sent, polling goes on: %s", error)
                self._failing = True
                self._drop()
                time.sleep(RETRY_SECONDS)

    def _serve(self, say: Callable[[str, str], object]) -> None:
        while not self._stopped:
            self._wake.wait()
            self._wake.clear()
            for channel, payload in self._take():
                failpoints.hit("notify.before")
                say(channel, payload)
                if self._failing:
                    log.info("Wake-ups are sent again.")
                self._failing = False
            time.sleep(COALESCE_SECONDS)  # what comes meanwhile goes out together

    def _take(self) -> list[tuple[str, str]]:
        with self._lock:
            pending, self._pending = self._pending, {}
        return [
            (channel, payload) for channel, items in pending.items() for payload in _payloads(sorted(items))
        ]

    def _drop(self) -> None:
        with self._lock:
            self._pending.clear()


@contextmanager
def _by_notify() -> Iterator[Callable[[str, str], object]]:
    with psycopg.connect(direct_dsn(), autocommit=True) as connection:
        connection.execute("SET synchronous_commit = off")
        yield lambda channel, payload: connection.execute("SELECT pg_notify(%s, %s)", [channel, payload])


@contextmanager
def _by_redis() -> Iterator[Callable[[str, str], object]]:
    from redis import Redis

    client = Redis.from_url(
        settings.REDIS_URL, socket_timeout=REDIS_SECONDS, socket_connect_timeout=REDIS_SECONDS
    )
    with client:
        yield client.publish


def _payloads(items: list[str]) -> list[str]:
    """Join items with commas into as few payloads as fit."""
    payloads: list[str] = []
    for item in items:
        if payloads and len(payloads[-1]) + len(item) + 1 <= MOST_PAYLOAD:
            payloads[-1] += f",{item}"
        else:
            payloads.append(item[:MOST_PAYLOAD])
    return payloads


notifier = Notifier()


def jobs_changed(*job_ids: UUID) -> None:
    """Tell watchers, after the current transaction has committed."""
    ids = [str(job_id) for job_id in job_ids]
    transaction.on_commit(lambda: notifier.send(JOB_CHANNEL, ids))


def queues_filled(*queues: str) -> None:
    """Tell workers, after the current transaction has committed."""
    transaction.on_commit(lambda: notifier.send(QUEUE_CHANNEL, queues))


def cancel_requested(job_id: UUID) -> None:
    """Tell the job's lease holder, after the current transaction has committed."""
    transaction.on_commit(lambda: notifier.send(CANCEL_CHANNEL, [str(job_id)]))
