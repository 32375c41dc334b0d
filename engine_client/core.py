"""What both clients share: requests as values, retries, and the way through an event stream. Nothing here does I/O.

An operation is a generator. It yields what it wants done, a `Call` or a `Pause`, and gets the response back (or the
`httpx.TransportError` thrown into it); `Client` and `AsyncClient` differ in how they carry that out.
"""

import json
import os
import random
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import httpx

from engine_client import errors
from engine_client.models import Event

DEFAULT_URL = "http://127.0.0.1:8000"
# Tries of one request: with the pauses between them they bear a restart of the server.
TRIES = 8
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 5.0
# A longer Retry-After (a month that is used up) is for the caller to hear.
LONGEST_RETRY_AFTER_SECONDS = 60.0
# The server sends a comment every 15 seconds: a stream silent for longer is dead.
STREAM_SILENCE_SECONDS = 45.0
WAIT_SECONDS = 30

T = TypeVar("T")
# A file to hand over: a path, or its name and content.
FileLike: TypeAlias = "str | os.PathLike[str] | tuple[str, bytes]"


@dataclass(frozen=True)
class Call:
    """One HTTP request."""

    method: str
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)
    body: Any = None
    fields: Mapping[str, str] | None = None
    files: tuple[FileLike, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 30.0

    @property
    def is_repeatable(self) -> bool:
        """Whether sending it twice does its work once."""
        return self.method in ("GET", "DELETE", "PUT") or "Idempotency-Key" in self.headers

    def keywords(self, stack: ExitStack) -> dict[str, Any]:
        """What httpx takes. Files are opened anew for each try and closed with the stack."""
        keywords: dict[str, Any] = {"headers": dict(self.headers), "timeout": self.timeout}
        if self.params:
            keywords["params"] = dict(self.params)
        if self.files:
            keywords["data"] = dict(self.fields or {})
            keywords["files"] = [("files", _opened(file, stack)) for file in self.files]
        elif self.body is not None:
            keywords["json"] = self.body
        return keywords


@dataclass(frozen=True)
class Pause:
    """Wait for so many seconds."""

    seconds: float


Steps: TypeAlias = Generator[Call | Pause, httpx.Response, T]


def _opened(file: FileLike, stack: ExitStack) -> tuple[str, Any]:
    if isinstance(file, tuple):
        return file
    path = Path(file)
    return path.name, stack.enter_context(path.open("rb"))


def exchange(call: Call) -> Steps[httpx.Response]:
    """The answer to a request, which is tried again where that is safe. Raises Problem or ConnectionFailed."""
    for number in range(1, TRIES + 1):
        try:
            response = yield call
        except httpx.TransportError as error:
            never_sent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
            if number == TRIES or not (call.is_repeatable or never_sent):
                raise unreachable(error) from error
            yield Pause(pause(number))
            continue
        if response.is_success or response.status_code == httpx.codes.NOT_MODIFIED:
            return response
        problem = errors.problem_of(response)
        delay = retry_delay(problem, call, number)
        if number == TRIES or delay is None:
            raise problem
        yield Pause(delay)
    raise AssertionError("unreachable")  # the last try returns or raises


def unreachable(error: Exception) -> errors.ConnectionFailed:
    """What to tell of a connection that failed."""
    return errors.ConnectionFailed(f"Engine cannot be reached: {error or type(error).__name__}")


def retry_delay(problem: errors.Problem, call: Call, number: int) -> float | None:
    """Seconds after which a refused request is sent again, or None if it is not.

    Engine changes nothing when it answers 429, or 503 with its own code; a proxy's 502, 503 or 504 promises nothing.
    """
    after = problem.retry_after
    if after is not None and after > LONGEST_RETRY_AFTER_SECONDS:
        return None
    match problem:
        case errors.QueueFull() | errors.TooManyJobs() | errors.MonthUsedUp():
            return after  # without a time to come back, room may be long in coming
        case errors.TooManyRequests() | errors.IdempotencyInProgress():
            return pause(number) if after is None else after
        case errors.Problem(status=502 | 503 | 504):
            if (
                isinstance(problem, errors.Unavailable) and problem.problem.get("code")
            ) or call.is_repeatable:
                return pause(number) if after is None else after
    return None


def pause(number: int) -> float:
    """Seconds before try n+1: doubling from 0.2 to 5, up to half of it less so that clients spread."""
    longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** (number - 1))
    return longest * random.uniform(0.5, 1)  # noqa: S311 (it spreads load, it hides nothing)


def pages(path: str, params: Mapping[str, Any]) -> Iterator[Steps[list[dict[str, Any]]]]:
    """One operation after another, each a page of a list, until there is no further one."""
    cursor: list[str | None] = [None]

    def page() -> Steps[list[dict[str, Any]]]:
        more = {"cursor": cursor[0]} if cursor[0] else {}
        response = yield from exchange(Call("GET", path, {**given(params), **more}))
        body = response.json()
        cursor[0] = body["next_cursor"]
        items: list[dict[str, Any]] = body["items"]
        return items

    yield page()
    while cursor[0]:
        yield page()


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what was left out; lists as query parameters take them."""
    return {
        name: ",".join(value) if isinstance(value, list | tuple) else value
        for name, value in values.items()
        if value is not None
    }


class EventFeed:
    """One job's events over any number of connections, each seq once and in order."""

    def __init__(self, job_id: str, *, after: int = 0, **filters: Any) -> None:
        self.path = f"/api/v1/jobs/{job_id}/logs"
        self.after, self.filters = after, given(filters)
        self.ended = False
        self.failures = 0
        self._name, self._data, self._rest = "", "", b""

    def call(self) -> Call:
        """The request that goes on after the last event seen."""
        self._name, self._data, self._rest = "", "", b""
        return Call(
            "GET",
            self.path,
            {**self.filters, "after": self.after},
            headers={"Accept": "text/event-stream"},
            timeout=STREAM_SILENCE_SECONDS,
        )

    def read(self, chunk: bytes) -> Iterator[Event]:
        """The events that the next bytes of the stream complete.

        httpx' own lines end at U+0085, U+2028 and the like, too, which a log line may hold: in SSE they do not.
        """
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            if event := self.take(line.removesuffix(b"\r").decode()):
                yield event

    def take(self, line: str) -> Event | None:
        """One line of the stream; an event when it completes one (a subset of SSE: Engine's frames)."""
        if line:
            name, _, value = line.partition(":")
            if name == "event":
                self._name = value.strip()
            elif name == "data":
                self._data += value.removeprefix(" ")
            return None
        kind, data, self._name, self._data = self._name, self._data, "", ""
        if kind == "end":
            self.ended = True
        if kind or not data:
            return None
        event = Event.of(json.loads(data))
        self.failures = 0
        if event.seq <= self.after:
            return None
        self.after = event.seq
        return event

    def refused(self, response: httpx.Response) -> float:
        """Seconds to wait after an answer that is no stream, which `broken` counts. Raises Problem to end it."""
        problem = errors.problem_of(response)
        delay = retry_delay(problem, self.call(), self.failures + 1)
        if delay is None or self.failures + 1 >= TRIES:
            raise problem
        return delay

    def broken(self, error: Exception | None = None) -> float:
        """Seconds until the next try after a stream that was cut. Raises ConnectionFailed after too many in a row."""
        self.failures += 1
        if self.failures >= TRIES:
            raise unreachable(error or ConnectionError("the stream ends at once each time"))
        return pause(self.failures)
