"""How fast jobs are submitted over HTTP to one web process, beside a plain REST framework create on the same server.

    python -m benchmarks.submit [--seconds 5]

Both are POSTed by the same client over kept connections, in turns, so that both meet the same machine.
"""

import argparse
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from urllib.parse import urlsplit

os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.plain.settings"

from benchmarks.support import fresh_tables, noop_agent, serving, show  # first: it sets Django up

# isort: split

from django.core.management import call_command
from django.db import connection

from apikeys.callers import Caller
from apikeys.models import Project
from apikeys.scopes import Scope
from apikeys.services import create_key
from benchmarks.plain.models import Row

CONNECTIONS, ROUNDS, BULK = 4, 3, 1_000
PLAIN, SINGLE, MANY = "/plain/rows", "/api/v1/jobs", "/api/v1/jobs/bulk"
BODIES = {
    PLAIN: {"task": "Do nothing", "data": {"rows": 1}},
    SINGLE: {"task": "Do nothing", "agent": "noop", "input": {"rows": 1}},
    MANY: {"jobs": [{"task": "Do nothing", "agent": "noop", "input": {"rows": n}} for n in range(BULK)]},
}


def make_table() -> None:
    """The plain application's table."""
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS plain_row")
    with connection.schema_editor() as editor:
        editor.create_model(Row)


def rate(address: str, secret: str, path: str, seconds: float) -> float:
    """Requests a second over all connections. A thread each, and the plainest client: it shares the server's cores."""
    ends = time.perf_counter() + seconds
    host = urlsplit(address).netloc
    body = json.dumps(BODIES[path])
    headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}

    def ask(_: int) -> int:
        link, done = HTTPConnection(host, timeout=60), 0
        while time.perf_counter() < ends:
            link.request("POST", path, body, headers)
            reply = link.getresponse()
            text = reply.read()
            assert reply.status in (200, 201), text
            done += 1
        link.close()
        return done

    started, connections = time.perf_counter(), 1 if path == MANY else CONNECTIONS
    with ThreadPoolExecutor(connections) as pool:
        done = sum(pool.map(ask, range(connections)))
    return done / (time.perf_counter() - started)


def measure(address: str, secret: str, seconds: float) -> dict[str, float]:
    """The best of some rounds for each path: what disturbs the machine only takes away."""
    best = dict.fromkeys(BODIES, 0.0)
    for _ in range(ROUNDS):
        for path in BODIES:
            best[path] = max(best[path], rate(address, secret, path, seconds))
    return best


def make_key() -> str:
    """A key without rate limits."""
    project, _ = Project.objects.get_or_create(slug="bench", defaults={"name": "bench"})
    by = Caller(project=None, scopes=frozenset({Scope.ADMIN}), via="cli")
    return create_key(by, project=project, name="bench", scopes=[Scope.JOBS_WRITE], windows=[])[1]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    fresh_tables()
    call_command("migrate", verbosity=0)
    make_table()
    noop_agent()
    secret = make_key()
    connection.close()
    with serving() as address:
        best = measure(address, secret, options.seconds)
    show("plain REST framework create", f"{best[PLAIN]:,.0f}/s")
    show(
        "POST /api/v1/jobs", f"{best[SINGLE]:,.0f}/s", f"{best[SINGLE] / best[PLAIN]:.2f} x the plain create"
    )
    show(
        "POST /api/v1/jobs/bulk",
        f"{best[MANY] * BULK:,.0f} jobs/s",
        f"{BULK:,} jobs in {1000 / best[MANY]:.0f} ms",
    )


if __name__ == "__main__":
    main()
