"""One installation over many hosts: database hosts, web hosts and worker hosts, each with an address of its own."""

import itertools
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
from django.conf import settings

from drills import postgres
from drills.client import NotHeard, PatientClient
from drills.effects import AGENT, DOOR, Effects, runtime_with_door
from drills.field import LOCK, WITNESS
from drills.load import Load
from drills.network import Host, Network
from drills.postgres import Cluster
from tests.processes import Instance, Program, eventually

WEB_PORT = 8000
# Acts all the time and waits for nobody: what it tells shows the moment at which it was stopped.
TICKER = f"""
import json, os, time

def main(task, inputs):
    door = os.open("/etc/{DOOR}", os.O_WRONLY)
    me = {{"job": inputs["drill"], "program": os.urandom(6).hex(), "what": "tick"}}
    line = (json.dumps(me) + "\\n").encode()
    for _ in range(int(inputs["seconds"] * 10)):
        os.write(door, line)
        time.sleep(0.1)
    return {{"values": []}}
"""
CARDS: dict[str, dict[str, Any]] = {
    "nothing": {"kind": "noop"},
    "effects": {"kind": "python", "source": {"agent.py": AGENT}},
    "ticker": {"kind": "python", "source": {"agent.py": TICKER}},
}


class Client(PatientClient):
    """Asks the web hosts in turn."""

    def __init__(self, urls: list[str], secret: str) -> None:
        super().__init__(urls[0], secret, patience_seconds=180)
        self._urls = itertools.cycle(urls)

    def next_url(self) -> str:
        """The next one's."""
        return next(self._urls)


class SiteLoad(Load):
    """Ends as asked for, and runs programs that can be seen to stop."""

    def _send_one(self, kind: str, chance: Any) -> None:
        if kind == "ticks":
            given = {"drill": str(uuid4()), "seconds": chance.uniform(12, 25)}
            self.client.submit("ticker", input=given)
        else:
            super()._send_one(kind, chance)


class Site:
    """Starts nothing by itself; `close` ends it all."""

    def __init__(self, folder: Path, hosts: dict[str, int], *, lease: float, concurrency: int) -> None:
        folder.chmod(0o755)  # the database's user has to get through
        self.folder, self.lease, self.concurrency = folder, lease, concurrency
        self._ends = ExitStack()
        self.network = Network(hosts)
        self._ends.callback(self.network.close)
        self.hosts = self.network.hosts
        self.databases = [host for name, host in self.hosts.items() if name.startswith("db")]
        self.webs = [host for name, host in self.hosts.items() if name.startswith("web")]
        self.workers = [host for name, host in self.hosts.items() if name.startswith("worker")]
        runtime = runtime_with_door(settings.ENGINE_RUNTIME_DIR, LOCK, folder)
        self.effects = Effects(next(runtime.glob(f"python-*/etc/{DOOR}")))
        self._ends.callback(self.effects.close)
        self._instance = Instance(
            folder / "home",
            {
                "DATABASE_URL": postgres.address(*(host.address for host in self.databases)),
                "SECRET_KEY": "drill" * 12,
                "ENGINE_HOST": "0.0.0.0",
                "ALLOWED_HOSTS": "*",
                "ENGINE_LEASE_SECONDS": str(lease),
                "ENGINE_HEARTBEAT_SECONDS": f"{lease / 3:.2f}",
                "ENGINE_BENCHMARK": "1",  # no-op agents
                "ENGINE_WARM_SANDBOXES": "1",
                "ENGINE_RUNTIME_DIR": str(runtime),
            },
        )
        self.clusters: dict[str, Cluster] = {}
        self.logs: list[Path] = []
        self._numbers = itertools.count()

    def close(self) -> None:
        """End everything."""
        self._ends.close()

    def launch(self, host: Host, name: str, command: list[str], env: dict[str, str]) -> Program:
        """Start a program on a host, with a log of its own."""
        log = self.folder / f"{host.name}-{name}-{next(self._numbers)}.log"
        self.logs.append(log)
        return host.start(f"{host.name} {name}", command, env, log)

    def serve_database(self, host: Host, **options: str) -> None:
        """Start PostgreSQL on a host; its data folder is there."""
        cluster = self.clusters[host.name]
        cluster.forget_its_last_run()
        self.launch(host, "postgres", cluster.command(**options), dict(cluster.environment))

    def first_database(self, **options: str) -> None:
        """An empty database with Engine's tables on the first database host."""
        host = self.databases[0]
        self.clusters[host.name] = Cluster(self.folder / host.name)
        self.clusters[host.name].initialise()
        self.serve_database(host, **options)
        self.link().close()
        self._instance.manage("migrate", "--verbosity", "0")
        with self.link() as link:
            link.execute(WITNESS)

    def link(self) -> "psycopg.Connection[Any]":
        """A connection of the drill's own to the database that takes writes."""
        return postgres.link(*(host.address for host in self.databases))

    def engine(self, host: Host, *arguments: str) -> Program:
        """Start one of Engine's commands on a host, with a home of its own."""
        env = self._instance.env | {"ENGINE_HOME": str(self.folder / f"home-{host.name}")}
        return self.launch(host, arguments[0], [sys.executable, "manage.py", *arguments], env)

    def serve(self, host: Host) -> None:
        """Start the web process of a host."""
        self.engine(host, "serve", "--port", str(WEB_PORT)).printed(r"Engine serves")

    def work(self, *hosts: Host) -> None:
        """Start a worker on each host; returns once all of them can run jobs."""
        for host in hosts:
            self.engine(host, "runworker", "--concurrency", str(self.concurrency))
        for host in hosts:
            eventually(lambda host=host: self.is_at_work(host), seconds=90, what=f"a worker on {host.name}")  # type: ignore[misc]

    def is_at_work(self, host: Host) -> bool:
        """Whether a worker there has a lease and a sandbox."""
        with self.link() as link:
            found = link.execute(
                "SELECT count(*) FROM jobs_worker WHERE host = %s AND can_run AND stopped_at IS NULL"
                " AND lease_until > statement_timestamp()",
                [host.name],
            ).fetchone()
        return bool(found and found[0])

    def open(self) -> Client:
        """Start the web hosts, make a key and the agents; the client to use them by."""
        for host in self.webs:
            self.serve(host)
        urls = [f"http://{host.address}:{WEB_PORT}" for host in self.webs]
        self.client = self._ends.enter_context(Client(urls, self._instance.key()))
        for slug, fields in CARDS.items():
            card = {"slug": slug, "name": slug, "description": f"The agent {slug} of a drill.", **fields}
            reply = self.client.call("POST", "/api/v1/agents", json=card)
            if reply.status_code != 201:
                raise NotHeard(reply.text)
        return self.client

    def wait_until_quiet(self, *, seconds: float) -> int:
        """Until every job has ended; how many have not."""
        deadline = time.monotonic() + seconds
        while (left := self.open_jobs()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return left

    def open_jobs(self) -> int:
        """Jobs that have not ended."""
        return int(self.ask("SELECT count(*) FROM jobs_job WHERE finished_at IS NULL")[0][0])

    def ask(self, query: str, parameters: list[Any] | None = None) -> list[tuple[Any, ...]]:
        """Rows, seen from outside."""
        with self.link() as link:
            return link.execute(query, parameters).fetchall()

    def late_writes_refused(self) -> Iterator[str]:
        """Lines of the workers' logs that say so."""
        for log in self.logs:
            yield from (
                line for line in log.read_text(errors="replace").splitlines() if "late write" in line.lower()
            )
