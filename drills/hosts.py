"""Engine over six hosts of their own, cut off from each other, slowed down and switched off; and what that cost.

    python -m drills.hosts --jobs 2000 --minutes 6

One database host, two web hosts, three worker hosts (drills/network.py). First what three workers do in the time of
one; then the jobs, beside the faults. Prints a table, and ends with 1 if a goal was missed.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "engine.settings")
django.setup()

from drills import network  # noqa: E402 (after setup)
from drills.load import Mix  # noqa: E402
from drills.network import Host  # noqa: E402
from drills.report import percentile  # noqa: E402
from drills.site import Site, SiteLoad  # noqa: E402
from tests.history import faults as broken_rules  # noqa: E402
from tests.processes import eventually  # noqa: E402

HOSTS = {"db1": 10, "web1": 21, "web2": 22, "worker1": 31, "worker2": 32, "worker3": 33}
CONCURRENCY = 16
MIX: Mix = {
    "noop": 30,
    "noop in bulk": 2,
    "slow noop": 25,
    "steps": 25,
    "asks": 6,
    "long steps": 5,
    "ticks": 7,
}
SCALE = 2.4  # three workers against one
RECOVERY_SECONDS = 5.0  # beyond the lease, and beyond the last heartbeat that came through
OFF_SECONDS = 20.0
WAYS: dict[str, tuple[str, ...]] = {"both ways": (), "what it sends": ("out",), "what it hears": ("in",)}

LOST = """
SELECT attempt.job_id, extract(epoch FROM attempt.ended_at)::float8, extract(epoch FROM again.at)::float8
  FROM jobs_attempt AS attempt JOIN jobs_worker AS worker ON worker.id = attempt.worker_id
  LEFT JOIN jobs_event AS again ON again.job_id = attempt.job_id AND again.type = 'job.started'
       AND again.attempt = attempt.number + 1
 WHERE attempt.outcome = 'lost' AND worker.host = %s
   AND extract(epoch FROM attempt.started_at) < %s + 1 AND extract(epoch FROM attempt.ended_at) BETWEEN %s AND %s
"""


@dataclass
class Trouble:
    """One fault, and what ran on that host when it came."""

    what: str
    host: str
    began: float
    ended: float = 0.0
    programs: dict[str, str] = field(default_factory=dict)  # job -> the program that acted for it
    lost: int = 0  # attempts
    stops: list[float] = field(default_factory=list)  # seconds until each program's last word
    margins: list[float] = field(default_factory=list)  # seconds from then until its job was taken away
    recoveries: list[float] = field(default_factory=list)  # seconds until its job started elsewhere


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the drill that the command line asks for."""
    parser = argparse.ArgumentParser(prog="drills.hosts", description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--minutes", type=float, default=6, help="in which they are sent")
    parser.add_argument("--lease", type=float, default=15, help="seconds")
    parser.add_argument("--waves", type=int, default=3, help="for the measure of scale; 0: none")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    chosen = parser.parse_args(arguments)
    network.enter_alone("drills.hosts")
    print(f"Seed {chosen.seed}.", flush=True)
    with tempfile.TemporaryDirectory(prefix="hosts-") as folder:
        site = Site(Path(folder), HOSTS, lease=chosen.lease, concurrency=CONCURRENCY)
        try:
            site.first_database()
            site.open()
            site.work(site.workers[0])
            scale = Scale(site, chosen.waves)
            scale.measure(1)
            site.work(*site.workers[1:])
            scale.measure(3)
            load = SiteLoad(site.client, chosen.jobs, chosen.minutes * 60, chosen.seed, MIX)
            drill = Drill(site, load)
            unfinished = drill.run()
            rows, missed = drill.judge(unfinished)
        finally:
            site.close()
    print(
        "\n".join(
            ["| what | count |", "| --- | --- |", *(f"| {a} | {b} |" for a, b in [*scale.rows(), *rows])]
        )
    )
    missed += scale.missed()
    for line in missed:
        print(f"MISSED: {line}")
    return 1 if missed else 0


class Scale:
    """Jobs a second of one worker and of three, where jobs only wait."""

    KINDS = {
        "no sandbox, 1 s each": ("nothing", {"seconds": 1}, 20),
        "in a sandbox, 15 s each": ("effects", {"steps": 1, "seconds": 15}, 1),
    }

    def __init__(self, site: Site, waves: int) -> None:
        self._site, self._waves = site, waves
        self._rates: dict[tuple[str, int], float] = {}

    def measure(self, workers: int) -> None:
        """Fill all slots of so many workers some times over."""
        for kind, (agent, given, factor) in self.KINDS.items() if self._waves else ():
            count = CONCURRENCY * workers * self._waves * factor
            jobs: list[str] = []
            while len(jobs) < count:
                given_now = given | ({"drill": f"scale-{workers}-{len(jobs)}"} if agent == "effects" else {})
                if agent == "effects":
                    jobs.append(self._site.client.submit(agent, input=given_now))
                else:
                    jobs += self._site.client.submit_many(agent, min(100, count - len(jobs)), input=given_now)
            self._site.wait_until_quiet(seconds=300)
            ((seconds,),) = self._site.ask(
                "SELECT extract(epoch FROM max(finished_at) - min(started_at))::float8 FROM jobs_job"
                " WHERE id = ANY(%s::uuid[])",
                [jobs],
            )
            self._rates[kind, workers] = count / seconds
            print(f"{workers} workers, {kind}: {count} jobs, {count / seconds:.1f}/s", flush=True)

    def rows(self) -> list[tuple[str, str]]:
        """For the table."""
        return [
            (
                f"**jobs/s of one worker, of three** ({kind}, {CONCURRENCY} slots each)",
                f"{self._rates[kind, 1]:.1f}, {self._rates[kind, 3]:.1f}: {self._factor(kind):.2f} times",
            )
            for kind in self.KINDS
            if self._waves
        ]

    def _factor(self, kind: str) -> float:
        return self._rates[kind, 3] / self._rates[kind, 1]

    def missed(self) -> list[str]:
        """Goals."""
        kinds = self.KINDS if self._waves else ()
        return [
            f"{SCALE} times: {kind} {self._factor(kind):.2f}" for kind in kinds if self._factor(kind) < SCALE
        ]


class Drill:
    """The faults in their order, spread over the time in which jobs are sent."""

    def __init__(self, site: Site, load: SiteLoad) -> None:
        self._site, self._load = site, load
        self.troubles: list[Trouble] = []

    def run(self) -> int:
        """Do it all; how many jobs had not ended when patience did."""
        self._load.start()
        one, two, three = self._site.workers
        silence = 2.5 * self._site.lease
        script: list[tuple[float, Callable[[], None]]] = [
            (0.06, lambda: self._cut(one, "both ways", silence)),
            (0.20, lambda: self._cut(two, "what it sends", silence)),
            (0.34, lambda: self._cut(three, "what it hears", silence)),
            (0.50, lambda: self._bad_cables(45)),
            (0.68, lambda: self._switch_off(one)),
            (0.80, lambda: self._switch_off(self._site.webs[0])),
        ]
        began = time.monotonic()
        try:
            for share, do in script:
                time.sleep(max(0.0, began + share * self._load.seconds - time.monotonic()))
                do()
                print(f"{time.monotonic() - began:5.0f} s  {self.troubles[-1].what}", flush=True)
            while not self._load.is_sent:
                time.sleep(0.5)
            return self._site.wait_until_quiet(seconds=240)
        finally:
            self._load.stop()

    def _trouble(self, what: str, host: Host) -> Trouble:
        running = self._site.ask(
            "SELECT job.id, job.input->>'drill' FROM jobs_job AS job JOIN jobs_worker AS worker"
            " ON worker.id = job.worker_id WHERE job.status = 'running' AND worker.host = %s AND job.input ? 'drill'",
            [host.name],
        )
        now = {str(job): self._site.effects.latest_program(drill) for job, drill in running}
        return Trouble(what, host.name, time.time(), programs={job: one for job, one in now.items() if one})

    def _cut(self, host: Host, how: str, seconds: float) -> None:
        what = f"{host.name} cut off, {how}, {seconds:.0f} s"
        eventually(
            lambda: len(self._trouble(what, host).programs) > 1, seconds=60, what="something to cut off"
        )
        self.troubles.append(self._trouble(what, host))
        host.cut(*WAYS[how])
        time.sleep(seconds)
        host.heal()
        self.troubles[-1].ended = time.time()

    def _bad_cables(self, seconds: float) -> None:
        what = f"all cables: 40 to 60 ms more each way, 2 % of the frames lost, {seconds:.0f} s"
        self.troubles.append(Trouble(what, "", time.time()))
        for host in (*self._site.workers, *self._site.webs):
            host.worsen(delay=0.04, jitter=0.02, loss=0.02)
        time.sleep(seconds)
        for host in (*self._site.workers, *self._site.webs):
            host.heal()
        self.troubles[-1].ended = time.time()

    def _switch_off(self, host: Host) -> None:
        self.troubles.append(
            self._trouble(f"{host.name} off without a word, on again after {OFF_SECONDS:.0f} s", host)
        )
        host.kill()
        time.sleep(OFF_SECONDS)
        host.switch_on()
        self.troubles[-1].ended = time.time()
        if host in self._site.workers:
            self._site.work(host)
        else:
            self._site.serve(host)

    def judge(self, unfinished: int) -> tuple[list[tuple[str, str]], list[str]]:
        """Rows of the table, and the goals that were missed."""
        site, load = self._site, self._load
        promised = load.client.acknowledged
        stored = {str(row[0]): row[1:] for row in site.ask("SELECT id, status, status_reason FROM jobs_job")}
        lost = [
            f"{job} {stored[job]}"
            for job in promised & stored.keys()
            if stored[job][0] not in ("completed", "cancelled")
        ]
        late = site.ask("SELECT job_id, what, attempt FROM drill_late")
        with site.link() as link:
            broken = broken_rules(link.cursor(), at_rest=True)
        for trouble in self.troubles:
            self._follow(trouble)
        rows = [
            ("jobs submitted (acknowledged)", str(len(promised))),
            ("**acknowledged jobs missing; lost**", f"{len(promised - stored.keys())}; {len(lost)}"),
            ("**doubled effects** of all effects", f"{len(site.effects.doubled)} of {site.effects.total}"),
            ("programs of one job side by side", str(len(site.effects.side_by_side))),
            ("**late writes accepted**; refused", f"{len(late)}; {len(list(site.late_writes_refused()))}"),
            ("rules of the history broken", str(len(broken))),
            *(row for trouble in self.troubles for row in self._row(trouble)),
            ("answers to clients", ", ".join(f"{n} × {s}" for s, n in sorted(load.client.statuses.items()))),
        ]
        bound = site.lease + site.lease / 3 + RECOVERY_SECONDS
        goals: dict[str, Sequence[object]] = {
            "acknowledged jobs are stored": sorted(promised - stored.keys()),
            "no job is lost": lost,
            "every job ends": [unfinished] * bool(unfinished),
            "no effect is doubled": site.effects.doubled,
            "two programs of one job never run side by side": site.effects.side_by_side,
            "a step that runs again has the same idempotency key": site.effects.other_keys,
            "no late write is accepted": late,
            "the history is sound": broken,
            "a cut-off worker stops its sandboxes before its jobs are taken": [
                trouble.what for trouble in self.troubles if min(trouble.margins, default=1) <= 0
            ],
            "each cut costs an attempt": [  # or it proved nothing
                trouble.what for trouble in self.troubles if "cut off" in trouble.what and not trouble.margins
            ],
            f"recovery <= {bound:.0f} s": [
                trouble.what for trouble in self.troubles if max(trouble.recoveries, default=0) > bound
            ],
            "clients never see a 500": ["500"] * load.client.statuses["500"],
            "patient clients are heard": load.failures,
        }
        return rows, [f"{goal}: {len(bad)}, as {list(bad)[:5]}" for goal, bad in goals.items() if bad]

    def _follow(self, trouble: Trouble) -> None:
        """What became of the jobs that ran there."""
        if not trouble.host:
            return
        until = trouble.ended + self._site.lease
        rows = self._site.ask(LOST, [trouble.host, trouble.began, trouble.began, until])
        trouble.lost = len(rows)
        for job, ended, again in rows:
            program = trouble.programs.get(str(job))
            if program is not None:
                last = self._site.effects.last_words[program]
                trouble.stops.append(last - trouble.began)
                trouble.margins.append(ended - last)
            if again is not None:
                trouble.recoveries.append(again - trouble.began)

    @staticmethod
    def _row(trouble: Trouble) -> list[tuple[str, str]]:
        found = f"{len(trouble.programs)} programs ran there; {trouble.lost} attempts lost"
        if not trouble.host:
            return [(trouble.what, "no worker lost its lease" if not trouble.lost else found)]
        if trouble.host.startswith("web"):
            return [(trouble.what, "its requests went to the other")]
        if trouble.stops:
            found += (
                f"; last word of a program there after {max(0.0, *trouble.stops):.1f} s at most,"
                f" at least {min(trouble.margins):.1f} s before its job was taken"
            )
        if trouble.recoveries:
            found += (
                f"; started elsewhere after {percentile(trouble.recoveries, 0.5):.1f} s (p50),"
                f" {max(trouble.recoveries):.1f} s (worst)"
            )
        return [(trouble.what, found)]


if __name__ == "__main__":
    sys.exit(main())
