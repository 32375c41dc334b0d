"""A web process on the tests' own database, jobs that talk, and clients that listen to them."""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import httpx
from django.conf import settings
from django.db import connection
from psycopg.conninfo import conninfo_to_dict
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from apikeys.models import Project
from engine.database import direct_dsn
from jobs import wakeups
from jobs.claiming import Claimed
from jobs.models import Attempt, Job
from tests.jobs import claim_one, log_line, make_job, make_worker, settlement, write
from tests.processes import Instance

PATIENCE = 20.0
HTTP = httpx.Client(timeout=PATIENCE)  # one for all: making one reads every certificate of the system
SERVER = "engine-under-test"  # what its database sessions are called


def database_url() -> str:
    """The test database as another process reaches it."""
    parts = conninfo_to_dict(direct_dsn())
    query = {name: parts[name] for name in ("host", "port", "user", "password") if parts.get(name)}
    query["application_name"] = SERVER
    return f"postgresql:///{connection.settings_dict['NAME']}?{urlencode(query)}"


def environment() -> dict[str, str]:
    """What makes a process work on the tests' own rows, and accept the sessions and tickets they make."""
    return {"DATABASE_URL": database_url(), "SECRET_KEY": settings.SECRET_KEY}


@dataclass
class Talker:
    """A job that a worker of this process runs: it says what a test lets it say."""

    job: Job
    worker: UUID
    claimed: Claimed
    said: int = 0  # lines
    sizes: list[int] = field(default_factory=list)

    @classmethod
    def start(cls, project: Project) -> "Talker":
        job, worker = make_job(project), make_worker()
        return cls(job, worker, claim_one(worker))

    @property
    def last(self) -> int:
        """The number of its last event."""
        return self.claimed.last_seq + self.said

    def say(self, count: int = 1, *, size: int = 20, aloud: bool = True) -> None:
        """Log some lines, and send the hint unless told not to."""
        first = self.said + 1
        lines = [
            log_line(self.claimed, offset, f"line {offset} ".ljust(size, "."))
            for offset in range(first, first + count)
        ]
        write(self.worker, events=lines)
        self.said += count
        if aloud:
            self.hint()

    def end(self, result: Any = None) -> None:
        """Complete the job."""
        self._settle(Job.Status.COMPLETED, Attempt.Outcome.COMPLETED, result=json.dumps(result))

    def ask(self, *questions: Any) -> None:
        """Let the job wait for a person."""
        self._settle(
            Job.Status.WAITING_FOR_INPUT, Attempt.Outcome.SUSPENDED, reason="question", questions=questions
        )

    def _settle(self, *how: Any, **more: Any) -> None:
        write(self.worker, settlements=[settlement(self.claimed, *how, offset=self.said + 1, **more)])
        self.said += 1 + len(more.get("questions", ()))
        self.hint()

    def hint(self) -> None:
        wakeups.notifier.send(wakeups.JOB_CHANNEL, [str(self.job.id)])


@contextlib.contextmanager
def sse(
    server: Instance, secret: str, job_id: UUID, query: str = "", **headers: str
) -> Iterator[httpx.Response]:
    """An event stream."""
    url = f"{server.url}/api/v1/jobs/{job_id}/logs{query}"
    sent = {"Accept": "text/event-stream", "Authorization": f"Bearer {secret}"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    with HTTP.stream("GET", url, headers=sent) as response:
        yield response


@dataclass
class Sent:
    """One server-sent event."""

    id: int | None
    name: str
    data: Any


def sent_events(response: httpx.Response) -> Iterator[Sent]:
    """The events of a stream as they come; comments and `retry` are passed over."""
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
            continue
        if "data" in fields:
            number = int(fields["id"]) if "id" in fields else None
            yield Sent(number, fields.get("event", "message"), json.loads(fields["data"]))
        fields = {}


@contextlib.contextmanager
def socket(
    server: Instance, job_id: UUID, query: str = "", *, secret: str = "", **options: Any
) -> Iterator[ClientConnection]:
    """A WebSocket on a job."""
    headers = {**({"Authorization": f"Bearer {secret}"} if secret else {}), **options.pop("headers", {})}
    url = f"{server.url.replace('http', 'ws', 1)}/ws/v1/jobs/{job_id}{query}"
    client: ClientConnection = connect(url, additional_headers=headers, open_timeout=PATIENCE, **options)
    with client:
        yield client


def frames(client: ClientConnection, *, until: int | None = None) -> list[dict[str, Any]]:
    """Frames as they come, up to and including event `until`, or till the server closes."""
    received: list[dict[str, Any]] = []
    with contextlib.suppress(ConnectionClosed):
        while until is None or not received or received[-1]["seq"] < until:
            received.append(json.loads(client.recv(timeout=PATIENCE)))
    return received


def close_code(client: ClientConnection) -> int | None:
    """Read on until the server closes; the code it gave."""
    frames(client)
    return client.protocol.close_rcvd.code if client.protocol.close_rcvd else None


def took(started: float) -> float:
    return time.monotonic() - started
