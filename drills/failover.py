"""The primary dies under load and its synchronous standby takes over: by SIGKILL, then with its host, without a word.

    python -m drills.failover --jobs 900 --minutes 4

Two database hosts in one DATABASE_URL, two web hosts, two worker hosts (drills/network.py). Prints a table, and ends
with 1 if a goal was missed.
"""

import argparse
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "engine.settings")
django.setup()

from drills import network, postgres  # noqa: E402 (after setup)
from drills.client import NotHeard  # noqa: E402
from drills.load import Mix  # noqa: E402
from drills.network import Host  # noqa: E402
from drills.postgres import Cluster  # noqa: E402
from drills.site import Client, Site, SiteLoad  # noqa: E402
from tests.history import faults as broken_rules  # noqa: E402
from tests.processes import eventually  # noqa: E402

HOSTS = {"db1": 10, "db2": 11, "web1": 21, "web2": 22, "worker1": 31, "worker2": 32}
MIX: Mix = {"noop": 35, "noop in bulk": 2, "slow noop": 25, "steps": 25, "asks": 6, "long steps": 7}
# What a manager of failovers takes to believe in a death.
NOTICED_SECONDS = 6.0
READY_SECONDS = 30.0  # from the promotion until both web hosts and both workers go on


@dataclass
class Failover:
    """One, and what it took; seconds count from the promotion."""

    what: str
    began: float
    promoted: float = 0.0
    web: dict[str, float] = field(default_factory=dict)
    workers: dict[str, float] = field(default_factory=dict)
    slowest_answer: float = 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the drill that the command line asks for."""
    parser = argparse.ArgumentParser(prog="drills.failover", description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=900)
    parser.add_argument("--minutes", type=float, default=4, help="in which they are sent")
    parser.add_argument("--lease", type=float, default=15, help="seconds")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    chosen = parser.parse_args(arguments)
    network.enter_alone("drills.failover")
    print(f"Seed {chosen.seed}.", flush=True)
    with tempfile.TemporaryDirectory(prefix="failover-") as folder:
        site = Site(Path(folder), HOSTS, lease=chosen.lease, concurrency=8)
        try:
            site.first_database()
            follow(site, site.databases[0], site.databases[1])
            load = SiteLoad(site.open(), chosen.jobs, chosen.minutes * 60, chosen.seed, MIX)
            site.work(*site.workers)
            drill = Drill(site, load)
            rows, missed = drill.judge(drill.run())
        finally:
            site.close()
    print("\n".join(["| what | count |", "| --- | --- |", *(f"| {a} | {b} |" for a, b in rows)]))
    for line in missed:
        print(f"MISSED: {line}")
    return 1 if missed else 0


def follow(site: Site, primary: Host, standby: Host) -> None:
    """Make a standby from nothing; from then on no commit is acknowledged that it does not have."""
    cluster = site.clusters[standby.name] = Cluster(site.folder / f"{standby.name}-{time.monotonic_ns()}")
    cluster.copy_from(primary.address, name=standby.name)
    site.serve_database(standby)
    with postgres.link(primary.address) as link:
        link.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{standby.name}'")
        link.execute("SELECT pg_reload_conf()")

        def is_in_step() -> bool:
            rows = link.execute("SELECT sync_state FROM pg_stat_replication").fetchall()
            return ("sync",) in rows

        eventually(is_in_step, seconds=60, what="a standby in step")


def promote(standby: Host) -> None:
    """Let it take writes. Nobody follows it yet, so it waits for nobody."""
    with postgres.link(standby.address, writes=False) as link:
        link.execute("SELECT pg_promote()")
    with postgres.link(standby.address) as link:
        link.execute("ALTER SYSTEM RESET synchronous_standby_names")
        link.execute("SELECT pg_reload_conf()")


class Drill:
    """Two failovers beside the load."""

    def __init__(self, site: Site, load: SiteLoad) -> None:
        self._site, self._load = site, load
        self.failovers: list[Failover] = []

    def run(self) -> int:
        """Do it all; how many jobs had not ended when patience did."""
        site, load = self._site, self._load
        one, two = site.databases
        load.start()
        try:
            time.sleep(load.seconds * 0.12)
            self._fail_over(one, two, "SIGKILL of every process of the primary", host_dies=False)
            time.sleep(load.seconds * 0.1)
            site.clusters[one.name].delete()
            one.switch_on()
            follow(site, two, one)
            time.sleep(load.seconds * 0.1)
            self._fail_over(two, one, "the primary's host off, without a word", host_dies=True)
            while not load.is_sent:
                time.sleep(0.5)
            return site.wait_until_quiet(seconds=240)
        finally:
            load.stop()

    def _fail_over(self, primary: Host, standby: Host, what: str, *, host_dies: bool) -> None:
        failover = Failover(what, time.monotonic())
        self.failovers.append(failover)
        self._load.client.slowest_answer = 0.0
        primary.kill(silently=host_dies)
        if not host_dies:
            primary.switch_on()  # the host answers that nobody listens
        time.sleep(NOTICED_SECONDS)
        promote(standby)
        failover.promoted = time.monotonic()
        beat = self._site.ask("SELECT clock_timestamp()")[0][0]
        watchers = [
            *(
                threading.Thread(target=self._until_it_takes_jobs, args=(failover, host))
                for host in self._site.webs
            ),
            *(
                threading.Thread(target=self._until_it_beats, args=(failover, host, beat))
                for host in self._site.workers
            ),
        ]
        for watcher in watchers:
            watcher.start()
        for watcher in watchers:
            watcher.join()
        failover.slowest_answer = self._load.client.slowest_answer
        print(failover, flush=True)

    def _until_it_takes_jobs(self, failover: Failover, host: Host) -> None:
        mine = Client([f"http://{host.address}:8000"], self._load.client.secret)
        with mine:
            try:
                mine.submit("nothing")
            except NotHeard:
                return
        failover.web[host.name] = time.monotonic() - failover.promoted
        self._load.client.acknowledged.update(mine.acknowledged)

    def _until_it_beats(self, failover: Failover, host: Host, since: object) -> None:
        def beats() -> bool:
            return bool(
                self._site.ask(
                    "SELECT 1 FROM jobs_worker WHERE host = %s AND heartbeat_at > %s AND can_run",
                    [host.name, since],
                )
            )

        eventually(beats, seconds=120, what=f"{host.name} goes on")
        failover.workers[host.name] = time.monotonic() - failover.promoted

    def judge(self, unfinished: int) -> tuple[list[tuple[str, str]], list[str]]:
        """Rows of the table, and the goals that were missed."""
        site, client = self._site, self._load.client
        promised = client.acknowledged
        stored = {str(row[0]): row[1:] for row in site.ask("SELECT id, status, status_reason FROM jobs_job")}
        lost = [
            f"{job} {stored[job]}"
            for job in promised & stored.keys()
            if stored[job][0] not in ("completed", "cancelled")
        ]
        late = site.ask("SELECT job_id, what, attempt FROM drill_late")
        with site.link() as link:
            broken = broken_rules(link.cursor(), at_rest=True)
        rows = [
            ("jobs submitted (acknowledged)", str(len(promised))),
            ("**acknowledged jobs missing; lost**", f"{len(promised - stored.keys())}; {len(lost)}"),
            ("**doubled effects** of all effects", f"{len(site.effects.doubled)} of {site.effects.total}"),
            ("programs of one job side by side", str(len(site.effects.side_by_side))),
            ("late writes accepted; rules of the history broken", f"{len(late)}; {len(broken)}"),
            *(self._row(failover) for failover in self.failovers),
            ("answers to clients", ", ".join(f"{n} × {s}" for s, n in sorted(client.statuses.items()))),
            ("503 without Retry-After", str(client.wordless_refusals)),
        ]
        slow = [
            f"{failover.what}: {who} after {seconds:.1f} s"
            for failover in self.failovers
            for who, seconds in (failover.web | failover.workers).items()
            if seconds > READY_SECONDS
        ]
        goals: dict[str, Sequence[object]] = {
            "acknowledged jobs are stored": sorted(promised - stored.keys()),
            "no job is lost": lost,
            "every job ends": [unfinished] * bool(unfinished),
            "no effect is doubled": site.effects.doubled,
            "two programs of one job never run side by side": site.effects.side_by_side,
            "no late write is accepted": late,
            "the history is sound": broken,
            f"all go on <= {READY_SECONDS:.0f} s after the promotion": slow,
            "every web host takes jobs again": [
                f.what for f in self.failovers if len(f.web) < len(site.webs)
            ],
            "clients never see a 500": ["500"] * client.statuses["500"],
            "503 says when to come again": ["503"] * client.wordless_refusals,
            "patient clients are heard": self._load.failures,
        }
        return rows, [f"{goal}: {len(bad)}, as {list(bad)[:5]}" for goal, bad in goals.items() if bad]

    @staticmethod
    def _row(failover: Failover) -> tuple[str, str]:
        times = {**failover.web, **failover.workers}
        return (
            f"{failover.what}; standby promoted after {failover.promoted - failover.began:.1f} s",
            "goes on after the promotion: "
            + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in times.items())
            + f"; longest that a client waited for an answer {failover.slowest_answer:.1f} s",
        )


if __name__ == "__main__":
    sys.exit(main())
