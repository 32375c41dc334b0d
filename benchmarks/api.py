"""What keys, limits, waiting clients and slow downloads cost the API, and what it does while PostgreSQL is away.

    python -m benchmarks.api [--burst 10000] [--seconds 15] [--away 10] [burst] [cost] [beside] [away]

All over HTTP, against `manage.py serve`; the clients run in processes of their own.
"""

import argparse
import multiprocessing
import os
import random
import selectors
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from multiprocessing.synchronize import Event
from typing import Any
from urllib.parse import urlsplit

from benchmarks.__main__ import redis
from benchmarks.support import (  # it sets Django up
    bulk_jobs,
    fresh_tables,
    noop_agent,
    percentile,
    serving,
    show,
)

# isort: split

from django.conf import settings
from django.db import connection

from apikeys.callers import Caller
from apikeys.models import Project
from apikeys.scopes import Scope
from apikeys.services import create_key
from engine.embedded import server_for, wait_for_end
from jobs import storage
from jobs.models import Artifact, Job

CLIENTS, CONNECTIONS = 4, 10
PATH = "/api/v1/jobs?limit=1"
WAITING, DOWNLOADS = 100, 50
ARTIFACT_BYTES = 50_000_000
# A slow download: so much at a time, ten times a second.
SIP = 8 * 1024
# Between two requests of whoever measures: it is to meet the load of others and not to make it.
PAUSE = 0.02
SPAWN = multiprocessing.get_context("spawn")


def make_key(*windows: dict[str, int]) -> str:
    """A key that may all, with these rate windows."""
    project, _ = Project.objects.get_or_create(slug="bench", defaults={"name": "bench"})
    by = Caller(project=None, scopes=frozenset({Scope.ADMIN}), via="cli")
    return create_key(by, project=project, name="bench", scopes=[Scope.ADMIN], windows=list(windows))[1]


def ask(link: HTTPConnection, secret: str, path: str) -> tuple[int, dict[str, str]]:
    """One request on a kept connection: status and headers."""
    link.request("GET", path, headers={"Authorization": f"Bearer {secret}"})
    reply = link.getresponse()
    reply.read()
    return reply.status, {name.lower(): value for name, value in reply.getheaders()}


# --- a burst ---


def some_of_burst(host: str, secret: str, requests: int) -> Counter[int]:
    """How often each status came: one client process, over several connections."""

    def over_one(_: int) -> Counter[int]:
        link = HTTPConnection(host, timeout=60)
        return Counter(ask(link, secret, PATH)[0] for _ in range(requests // CONNECTIONS))

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return sum(pool.map(over_one, range(CONNECTIONS)), Counter())


def burst(requests: int, redis_url: str) -> None:
    """So many requests at once on four web processes, at a key that allows half of them."""
    limit = requests // 2
    secret = make_key({"limit": limit, "seconds": 86_400})
    connection.close()
    with serving("--processes", "4", REDIS_URL=redis_url) as address:
        host, started = urlsplit(address).netloc, time.perf_counter()
        with ProcessPoolExecutor(CLIENTS, SPAWN) as pool:
            futures = [pool.submit(some_of_burst, host, secret, requests // CLIENTS) for _ in range(CLIENTS)]
            found = sum((future.result() for future in futures), Counter[int]())
        taken = time.perf_counter() - started
    show(
        f"burst of {requests:,}, {limit:,} allowed, " + ("Redis" if redis_url else "PostgreSQL"),
        f"{found[200]:,} passed",
        f"{found[429]:,} refused",
        f"{sum(found.values()) / taken:,.0f}/s",
    )
    assert (found[200], found[429]) == (limit, requests - limit), found


# --- the cost of a limit ---


def cost(seconds: float, redis_url: str) -> None:
    """The same request by keys with one window, two, and none, in turns on one connection."""
    window = {"limit": 10**9, "seconds": 3600}
    keys = {
        "no window": make_key(),
        "one window": make_key(window),
        "two windows": make_key(window, {"limit": 10**9, "seconds": 60}),
    }
    connection.close()
    taken: dict[str, list[float]] = {name: [] for name in keys}
    with serving(REDIS_URL=redis_url) as address:
        link, ends = HTTPConnection(urlsplit(address).netloc, timeout=60), time.perf_counter() + seconds
        while time.perf_counter() < ends:
            for name in random.sample(list(keys), len(keys)):  # no place in the turn is always the same key's
                started = time.perf_counter()
                assert ask(link, keys[name], PATH)[0] == 200
                taken[name].append((time.perf_counter() - started) * 1000)
    medians = {name: percentile(values, 0.5) for name, values in taken.items()}
    for name, median in medians.items():
        show(
            f"GET, {name}, " + ("Redis" if redis_url else "PostgreSQL"),
            f"p50 {median:.2f} ms",
            f"p95 {percentile(taken[name], 0.95):.2f} ms",
            f"{median - medians['no window']:+.2f} ms",
        )


# --- beside those who wait and those who download ---


@dataclass(frozen=True)
class Load:
    """Who else is at the server."""

    host: str
    secret: str
    job: str
    artifact: str


def hold(load: Load, ready: Event, done: Event) -> None:
    """Clients that wait for a job, and others that take a file in sips, until told to stop."""
    address, port = load.host.split(":")
    sipping = selectors.DefaultSelector()
    wait = f"GET /api/v1/jobs/{load.job} HTTP/1.1\r\nPrefer: wait=60\r\n"
    download = f"GET /api/v1/jobs/{load.job}/artifacts/{load.artifact} HTTP/1.1\r\n"
    links = []
    for number in range(WAITING + DOWNLOADS):
        link = socket.create_connection((address, int(port)))
        if number >= WAITING:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SIP)
            sipping.register(link, selectors.EVENT_READ)
        head = wait if number < WAITING else download
        link.sendall(f"{head}Host: localhost\r\nAuthorization: Bearer {load.secret}\r\n\r\n".encode())
        links.append(link)
    said = False
    while not done.wait(0.1):
        for key, _ in sipping.select(0):
            if isinstance(key.fileobj, socket.socket) and not key.fileobj.recv(SIP):
                raise AssertionError("A download ended before it was read")
        if not said:
            ready.set()
            said = True
    for link in links:
        link.close()


@contextmanager
def held(load: Load) -> Iterator[None]:
    """The load while the block runs."""
    ready, done = SPAWN.Event(), SPAWN.Event()
    holder = SPAWN.Process(target=hold, args=(load, ready, done))
    holder.start()
    try:
        assert ready.wait(60)
        time.sleep(2)  # until all have come in
        yield
        assert holder.is_alive()
    finally:
        done.set()
        holder.join()


def latencies(host: str, secret: str, path: str, seconds: float) -> list[float]:
    """Milliseconds of one request after another."""
    link, taken, ends = HTTPConnection(host, timeout=60), [], time.perf_counter() + seconds
    while time.perf_counter() < ends:
        started = time.perf_counter()
        assert ask(link, secret, path)[0] == 200
        taken.append((time.perf_counter() - started) * 1000)
        time.sleep(PAUSE)
    return taken


def beside(seconds: float) -> None:
    """The API's latency, in turns alone and beside the load."""
    secret = make_key()
    bulk_jobs(1)
    job = Job.objects.latest("id")
    blob = storage.store_blocks(
        (random.randbytes(1_000_000) for _ in range(ARTIFACT_BYTES // 1_000_000)),
        folder="bench",
        most_bytes=ARTIFACT_BYTES,
    )
    artifact = Artifact.objects.create(
        job=job, project=job.project, attempt=1, name="big.bin", media_type=storage.UNKNOWN, size=blob.size,
        sha256=blob.sha256, storage_key=blob.key,
    )  # fmt: skip
    path = f"/api/v1/jobs/{job.id}"
    connection.close()
    alone: list[float] = []
    crowded: list[float] = []
    with serving() as address:
        host = urlsplit(address).netloc
        load = Load(host, secret, str(job.id), str(artifact.id))
        latencies(host, secret, path, 2)
        for _ in range(3):
            alone += latencies(host, secret, path, seconds / 3)
            with held(load):
                crowded += latencies(host, secret, path, seconds / 3)
    for name, taken in (
        ("alone", alone),
        (f"beside {WAITING} that wait, {DOWNLOADS} slow downloads", crowded),
    ):
        shares = (f"p{share * 100:.0f} {percentile(taken, share):.2f} ms" for share in (0.5, 0.95, 0.99))
        show(f"GET a job, {name}", *shares)


# --- without PostgreSQL ---


def away(seconds: float) -> None:
    """End PostgreSQL as a power cut does, start it again later; what the API says meanwhile, and until when."""
    server = server_for(settings.ENGINE_HOME)
    server.ensure()
    secret = make_key({"limit": 10**9, "seconds": 3600})
    connection.close()
    url = f"postgresql://{settings.DATABASES['default']['USER'] or 'postgres'}@/{settings.DATABASES['default']['NAME']}"
    with serving(DATABASE_URL=f"{url}?host={server.socket_folder}") as address:
        host = urlsplit(address).netloc
        assert once(host, secret) == (200, "")
        pid = int((server.data / "postmaster.pid").read_text().split("\n", 1)[0])
        os.kill(pid, signal.SIGQUIT)
        wait_for_end(pid)
        found: Counter[tuple[int, str]] = Counter()
        slowest, ends = 0.0, time.perf_counter() + seconds
        while time.perf_counter() < ends:
            started = time.perf_counter()
            found[once(host, secret)] += 1
            slowest = max(slowest, time.perf_counter() - started)
            time.sleep(0.1)
        server.ensure()
        back = time.perf_counter()
        while once(host, secret)[0] != 200:
            time.sleep(0.01)
        recovered = time.perf_counter() - back
    for (status, retry), times in found.items():
        show(
            f"away for {seconds:.0f} s",
            f"{times} x {status}",
            f"Retry-After: {retry}",
            f"slowest {slowest:.2f} s",
        )
    show("the first 200 after PostgreSQL answers", f"{recovered:.2f} s")
    assert {status for status, _ in found} == {503}, found
    assert recovered <= 5, recovered


def once(host: str, secret: str) -> tuple[int, str]:
    """A status and its Retry-After, over a connection of its own; 0 where none came."""
    link = HTTPConnection(host, timeout=30)
    try:
        status, headers = ask(link, secret, PATH)
    except (OSError, HTTPException):
        return 0, ""
    finally:
        link.close()
    return status, headers.get("retry-after", "")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", default=["burst", "cost", "beside", "away"])
    parser.add_argument("--burst", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--away", type=float, default=10.0)
    options: Any = parser.parse_args()
    fresh_tables()
    noop_agent()
    with redis() as redis_url:
        for url in dict.fromkeys(["", redis_url]):
            if "burst" in options.parts:
                burst(options.burst, url)
            if "cost" in options.parts:
                cost(options.seconds, url)
    if "beside" in options.parts:
        beside(options.seconds)
    if "away" in options.parts:
        away(options.away)


if __name__ == "__main__":
    main()
