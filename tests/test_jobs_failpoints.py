"""Every place at which a process can die, fail, lose its database or hang, walked on real processes.

The places are read from the code, so that a new commit is walked too, or this test says that nothing reaches it.
"""

import ast
import re
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError

from drills.client import PatientClient
from engine.embedded import DATABASE, PORT, USER, EmbeddedServer
from jobs import failpoints
from tests.history import faults
from tests.processes import ROOT, Instance, Program, copy_home, eventually

PACKAGE = ROOT / "jobs"
SHORT_LEASE = {
    "ENGINE_LEASE_SECONDS": "2",
    "ENGINE_HEARTBEAT_SECONDS": "0.5",
    "ENGINE_WARM_SANDBOXES": "0",
    "ENGINE_BENCHMARK": "1",  # no-op agents
    "ENGINE_WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
    "ENGINE_RUNTIME_DIR": str(settings.ENGINE_RUNTIME_DIR),
}
PATIENCE = 300.0  # seconds, where nothing but a busy machine holds things up
NOBODY = "http://127.0.0.1:9/"  # refuses what is delivered there
AT_ONCE = 3  # armed workers side by side

T = TypeVar("T")

WRITER = """
import time, uuid
from pathlib import Path
from engine_agent import artifact, ask, inputs_dir, outputs_dir, step

def draw():
    Path("note.txt").write_text("kept")
    return uuid.uuid4().hex

def main(task, inputs):
    again = Path("note.txt").exists()
    token = step("draw", draw)
    time.sleep(0 if again else inputs.get("seconds", 0))
    print("token", token, flush=True)
    (outputs_dir / "token.txt").write_text(token)
    artifact(outputs_dir / "token.txt")
    word = ask("Which word?", timeout=inputs.get("timeout"), default="none", remind=[0.3])
    step("use", len, word)
    return {"token": token, "word": word, "note": Path("note.txt").read_text(),
            "file": (inputs_dir / "in.txt").read_text()}
"""


def places() -> set[str]:
    """The names in the code: of each commit two, of each hit one."""
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "failpoints.hit",
                "failpoints.commit",
            ):
                name = ast.literal_eval(node.args[0])
                is_commit = ast.unparse(node.func) == "failpoints.commit"
                found |= {f"{name}.before_commit", f"{name}.after_commit"} if is_commit else {name}
    return found


def of(*names: str) -> set[str]:
    """The places of these commits."""
    return {place for place in places() if place.partition(".")[0] in names}


# Here receivers of webhooks are set up, and calls to E2B and what processes did counted: single transactions that no
# job's state hangs on.
WITHOUT_JOBS = {"notifying/services.py", "sandboxes/e2b/budget.py", "metering/totals.py"}
# Parts of a transaction, or one that only reads: surveys, the counts of a submission, audit rows of what people do.
WITHIN = {"claiming.py", "room.py", "admin/recorded.py", "admin/saved_views.py"}

# Statistics of endings outlive the jobs that pruning deletes.
OUTLIVE = "statistics count each attempt that a worker ended"

CALLER = {
    *("submit", "bulk", "retry", "fork", "cancel", "respond"),
    *("pause_queue", "resume_queue", "pause_agent", "resume_agent"),
}
WEB = of(*CALLER)
COMMAND = of("forget", "drop_week")  # done by workers too, each hour
OPERATOR = of("drain_worker")  # it would end the walk's own workers
FIRST = of("partitions")  # done once an hour by whoever comes first
SWEEPER = of("sweep") | {"sandbox.before_kill"}  # reached when others have died
WORKER = places() - WEB - COMMAND - OPERATOR


def test_every_transaction_is_a_place_to_fail_at() -> None:
    bare = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if path.name != "failpoints.py"
        and path.parent.name != "migrations"
        and re.search(r"\batomic\b", path.read_text())
    }
    assert bare == WITHOUT_JOBS | WITHIN
    assert len(places()) > 30


@pytest.mark.parametrize(
    "text", ["claim", "claim:explode", "claim:exit:x", "claim:sleep:1:2:3", "claim:raise:1.5"]
)
def test_a_failpoint_that_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="ENGINE_FAILPOINT"):
        failpoints.parse(text)


def test_a_failpoint_fires_as_often_as_it_was_told() -> None:
    armed = failpoints.Armed(failpoints.parse("claim:raise:2, *:cut"))

    for error in (failpoints.FailpointReached, failpoints.FailpointReached, None):
        if error:
            with pytest.raises(error):
                armed.hit("claim")
        else:
            armed.hit("claim")
    with pytest.raises(OperationalError):
        armed.hit("sweep")
    armed.hit("sweep")


def in_seconds(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


class Walk:
    """One installation, its client, and the work that reaches every place."""

    def __init__(self, instance: Instance, secret: str) -> None:
        self.instance = instance
        self.secret = secret
        self.client = PatientClient(instance.url, secret)
        self.written: list[str] = []  # jobs of the writing agent
        self.unanswered: set[str] = set()  # of these, those that a test answers itself

    def start(self, *command: str, failpoint: str = "") -> Program:
        """Start a command that is to fail somewhere."""
        return self.instance.start(*command, ENGINE_FAILPOINT=failpoint)

    def wave(self) -> None:
        """A few jobs of each kind."""
        self.client.submit("nothing", run_at=in_seconds(0.3), webhook_url=NOBODY)
        self.client.submit("nothing", run_at=in_seconds(3600), deadline_s=1)
        self.client.submit_many("nothing", 3)
        self.write(self.client, timeout=1)
        self.write(self.client)
        stopped = self.client.submit("nothing", input={"seconds": 1.0})
        self.client.call("DELETE", f"/api/v1/jobs/{stopped}")
        self.answer()

    def write(self, client: PatientClient, **given: Any) -> str:
        """A job of the writing agent."""
        self.written.append(client.submit("writer", file="given", input=given))
        return self.written[-1]

    def answer(self) -> None:
        self.client.answer_all("good", but=self.unanswered)

    def until(self, job_id: str, *statuses: str) -> str:
        """The job's status, once it is one of these."""

        def status() -> str:
            current = str(self.client.call("GET", f"/api/v1/jobs/{job_id}").json()["status"])
            return current if current in statuses else ""

        return eventually(status, seconds=PATIENCE, what=f"{job_id} {statuses}")

    def ended(self) -> str:
        """A job that was cancelled before it began."""
        job_id = self.client.submit("nothing", run_at=in_seconds(3600))
        self.client.call("DELETE", f"/api/v1/jobs/{job_id}")
        return job_id

    def waiting(self) -> str:
        """A job that asks and that nobody else answers. Faults may have ended one or the other before it could ask."""
        while True:
            job_id = self.write(self.client)
            self.unanswered.add(job_id)
            if self.until(job_id, "waiting_for_input", "failed") == "waiting_for_input":
                return job_id

    def completed(self) -> str:
        """A job that has written a step, an artifact and an answer."""
        while True:
            job_id = self.waiting()
            self.client.call("POST", f"/api/v1/jobs/{job_id}/respond", json={"answer": "good"})
            if self.until(job_id, "completed", "failed") == "completed":
                return job_id

    @contextmanager
    def waves(self, *, seconds: float = 1.5) -> Iterator[None]:
        """Work coming in until the block is left."""
        over = threading.Event()

        def work() -> None:
            while not over.is_set():
                self.wave()
                over.wait(seconds)

        with ThreadPoolExecutor(1) as pool:
            working = pool.submit(work)
            try:
                yield
            finally:
                over.set()
                working.result()

    def forget_next_week(self) -> None:
        """Let the events of coming weeks have no partition again."""
        with self.link() as link:
            weeks = link.execute(
                "SELECT relname FROM pg_class WHERE relname ~ '^jobs_event_[0-9]' AND relkind = 'r' ORDER BY 1 DESC"
            ).fetchall()
            if weeks:
                link.execute(f'DROP TABLE "{weeks[0][0]}"')

    def grow_old(self, *job_ids: str) -> None:
        """Let these jobs have ended long ago, and a week of that time have a partition of its own."""
        with self.link() as link:
            link.execute("ALTER TABLE jobs_job DISABLE TRIGGER job_final_stays")
            link.execute(
                "UPDATE jobs_job SET finished_at = now() - interval '60 days' WHERE id = ANY(%s)",
                [list(job_ids)],
            )
            link.execute("ALTER TABLE jobs_job ENABLE TRIGGER job_final_stays")
            link.execute(
                """
                CREATE TABLE IF NOT EXISTS jobs_event_2020_w10 PARTITION OF jobs_event
                   FOR VALUES FROM ('0170988a-d400-0000-0000-000000000000') TO ('0170bc97-5800-0000-0000-000000000000')
                """
            )

    def is_swept(self, pid: int) -> bool:
        with self.link() as link:
            row = link.execute(
                "SELECT count(*) FROM jobs_job JOIN jobs_worker AS worker ON worker.id = worker_id WHERE pid = %s",
                [pid],
            ).fetchone()
        return row == (0,)

    def is_in_the_middle(self, job_id: str) -> bool:
        """Whether the job's sandbox and its first step are stored."""
        with self.link() as link:
            row = link.execute(
                """
                SELECT count(*) FROM jobs_attempt AS attempt JOIN jobs_step AS step USING (job_id)
                 WHERE job_id = %s AND sandbox <> '' AND step.ended_at IS NOT NULL
                """,
                [job_id],
            ).fetchone()
        return row != (0,)

    def link(self) -> "psycopg.Connection[Any]":
        server = EmbeddedServer(self.instance.home)
        return psycopg.connect(
            host=str(server.socket_folder), port=PORT, user=USER, dbname=DATABASE, autocommit=True
        )

    def finish(self, worker: "Program | Restarted | None" = None) -> None:
        """Let this worker, or a healthy one, end all jobs, then judge what happened."""
        worker = worker or self.instance.worker()
        with self.link() as link:

            def over() -> bool:
                self.answer()
                row = link.execute("SELECT count(*) FROM jobs_job WHERE finished_at IS NULL").fetchone()
                return row == (0,)

            eventually(over, seconds=PATIENCE, what="every job has ended")
            worker.stop()
            self.judge(link)

    def judge(self, link: "psycopg.Connection[Any]") -> None:
        assert faults(link.cursor(), at_rest=True) == []
        stored = {str(row[0]) for row in link.execute("SELECT id FROM jobs_job").fetchall()}
        assert self.client.acknowledged <= stored
        doubled = link.execute(
            "SELECT metadata FROM jobs_job WHERE metadata ? 'drill' AND retried_from_id IS NULL"
            " GROUP BY metadata HAVING count(*) > 1"
        ).fetchall()
        assert doubled == []
        wrong = link.execute(
            """
            SELECT id, status_reason, error FROM jobs_job
             WHERE status = 'failed' AND status_reason NOT IN ('deadline', 'worker_lost', 'attempts_exhausted')
            """
        ).fetchall()
        assert wrong == []
        written = link.execute(
            """
            SELECT result, ARRAY(SELECT message FROM jobs_event
                                  WHERE job_id = id AND type = 'log' AND message LIKE 'token%%' ORDER BY seq)
              FROM jobs_job WHERE id = ANY(%s) AND status = 'completed'
            """,
            [self.written],
        ).fetchall()
        assert written
        for result, lines in written:
            assert (result["note"], result["file"]) == ("kept", "given")
            assert result["word"] in ("good", "none")
            assert set(lines) == {f"token {result['token']}"}


@pytest.fixture
def walk(migrated_home: Path, tmp_path: Path) -> Iterator[Walk]:
    home = tmp_path / "home"
    copy_home(migrated_home, home)
    instance = Instance(home, SHORT_LEASE)
    instance.serve()
    walk = Walk(instance, instance.key())
    writer: dict[str, Any] = {"kind": "python", "source": {"agent.py": WRITER}}
    for slug, fields in {"writer": writer, "nothing": {"kind": "noop"}, "idle": {"kind": "noop"}}.items():
        card = {"slug": slug, "name": slug, "description": f"The agent {slug} of this walk.", **fields}
        reply = walk.client.call("POST", "/api/v1/agents", json=card)
        assert reply.status_code == 201, reply.text
    yield walk
    walk.client.close()
    instance.stop()


def happened(program: Program) -> set[tuple[str, str]]:
    """(place, what was done there) so far."""
    return set(re.findall(r"failpoint (\S+): (\S+)", program.output()))


def reached(program: Program) -> set[str]:
    return {name for name, _ in happened(program)}


def ask(walk: Walk, client: PatientClient, commit: str) -> None:
    """Ask for what makes this commit, and be sure that it was done once."""
    jobs = "/api/v1/jobs"
    match commit:
        case "submit":
            walk.write(client)
            return
        case "bulk":
            assert len(set(client.submit_many("nothing", 3))) == 3
            return
        case "cancel":
            job_id = walk.client.submit("nothing", run_at=in_seconds(3600))
            reply, good = client.call("DELETE", f"{jobs}/{job_id}"), {200}
        case "respond":
            job_id = walk.waiting()
            # 409: the answer had been taken, only its reply was lost.
            reply, good = client.call("POST", f"{jobs}/{job_id}/respond", json={"answer": "good"}), {200, 409}
        case "retry":
            reply, good = client.call("POST", f"{jobs}/{walk.ended()}/retry"), {201}
        case "fork":
            fork = {"checkpoint": "draw#1"}
            reply, good = client.call("POST", f"{jobs}/{walk.completed()}/fork", json=fork), {201}
        case "pause_queue" | "resume_queue":
            walk.client.call("POST", "/api/v1/admin/queues/aside/pause")
            reply, good = client.call("POST", f"/api/v1/admin/queues/aside/{commit.partition('_')[0]}"), {204}
        case _:
            walk.client.call("POST", "/api/v1/agents/idle/pause")
            reply, good = client.call("POST", f"/api/v1/agents/idle/{commit.partition('_')[0]}"), {204}
    assert reply.status_code in good, reply.text


def test_a_worker_may_die_at_any_place(walk: Walk) -> None:
    waiting = sorted(WORKER - FIRST - SWEEPER)
    alive: dict[str, Program] = {}

    def start(name: str) -> None:
        alive[name] = walk.start("runworker", "--grace", "1", failpoint=f"{name}:exit")

    def all_dead() -> bool:
        for name, worker in list(alive.items()):
            if name.startswith("goodbye") and "serves queues" in worker.output():
                worker.kill(signal.SIGTERM)
            if not worker.alive:
                assert worker.wait(seconds=PATIENCE) == failpoints.EXIT_CODE, worker.output()
                assert reached(worker) == {name}
                del alive[name]
        return not alive

    def went_on() -> bool:
        while waiting and len(alive.keys() - SWEEPER) < AT_ONCE:
            start(waiting.pop(0))
        return all_dead() and not waiting

    for name in FIRST:
        walk.forget_next_week()
        start(name)
        eventually(all_dead, seconds=PATIENCE, what=f"death at {name}")
    for name in SWEEPER:
        start(name)
    with walk.waves():
        eventually(went_on, seconds=PATIENCE, what="death at every place")
    walk.finish()


# One after the other at each place. The sleep is longer than the lease: what hangs so long must find itself replaced.
FAULTS = ("raise", "cut", "sleep:2.5")


class Restarted:
    """A worker that is started again whenever it ends, each time with the faults that it has not met yet."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self.missed = [(name, fault) for name in sorted(WORKER - FIRST) for fault in FAULTS]
        self.start()

    def start(self) -> None:
        points = ",".join(f"{name}:{fault}" for name, fault in self.missed)
        self.program = self._walk.start("runworker", failpoint=points)

    def _look(self) -> None:
        met = happened(self.program)
        self.missed = [
            (name, fault) for name, fault in self.missed if (name, fault.partition(":")[0]) not in met
        ]

    def _keep_alive(self) -> None:
        self._look()
        if not self.program.alive:
            self.start()

    def while_alive(self, happens: Callable[[T], bool], argument: T) -> bool:
        """Whether that has happened yet; the worker goes on meanwhile."""
        self._keep_alive()
        return happens(argument)

    def has_met_all_at(self, wanted: set[str]) -> bool:
        self._keep_alive()
        return not any(name in wanted for name, _ in self.missed)

    def stop(self) -> None:
        """Until it has met every fault of stopping, too."""
        for _ in range(len(FAULTS) * 2):
            self.program.stop()
            self._look()
            if not self.missed:
                break
            self.start()
            self.program.printed("serves queues")


@pytest.mark.drill
def test_worker_and_web_process_go_on_after_faults_at_every_place(walk: Walk) -> None:
    web = walk.start("serve", "--port", "0", failpoint="*:raise,*:cut,*:sleep:0.5")
    url = web.printed(r"Engine serves (http://\S+)")[1]
    for name, fault in product(FIRST, FAULTS):
        walk.forget_next_week()
        starting = walk.start("runworker", failpoint=f"{name}:{fault}")
        eventually(partial(reached, starting), seconds=PATIENCE, what=name)
        starting.kill()
    worker = Restarted(walk)

    with PatientClient(url, walk.secret) as client, ThreadPoolExecutor(AT_ONCE) as pool:
        # A request that is repeated after its commit only gets its answer again: each fault needs a request of its own.
        asking = [pool.submit(ask, walk, client, commit) for commit in sorted(CALLER) for _ in FAULTS]
        with walk.waves(seconds=2.5):
            # What a sweep committed before a fault, no later one finds: each such fault needs another dead worker.
            while not worker.has_met_all_at(SWEEPER):
                job_id = walk.write(walk.client, seconds=10)
                eventually(partial(worker.while_alive, walk.is_in_the_middle, job_id), seconds=PATIENCE)
                pid = worker.program.pid
                worker.program.kill()
                eventually(partial(worker.while_alive, walk.is_swept, pid), seconds=PATIENCE, what="a sweep")
            everywhere = WORKER - FIRST - of("goodbye")
            eventually(
                partial(worker.has_met_all_at, everywhere), seconds=PATIENCE, what=f"all of {everywhere}"
            )
        for asked in asking:
            asked.result()
        assert client.wordless_refusals == 0
    walk.finish(worker)

    assert worker.missed == []
    assert {name for name, _ in happened(web)} >= WEB
    assert len([fault for name, fault in happened(web) if name in WEB]) == len(WEB) * len(FAULTS)


@pytest.mark.drill
def test_a_web_process_may_die_at_any_place(walk: Walk) -> None:
    worker = walk.instance.worker()
    names = sorted(WEB)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for done in pool.map(lambda name: die_serving(walk, name), names):
            assert done
    walk.finish(worker)


def die_serving(walk: Walk, name: str) -> bool:
    """Ask a web process for what kills it, then ask the healthy one again: the client never got an answer."""
    web = walk.start("serve", "--port", "0", failpoint=f"{name}:exit")
    client = PatientClient(web.printed(r"Engine serves (http://\S+)")[1], walk.secret)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask, walk, client, name.partition(".")[0])
        # What refuses the question is seen at once, not when patience is over.
        eventually(lambda: not web.alive or asking.done(), seconds=PATIENCE, what=f"the death at {name}")
        if web.alive:
            asking.result()
        assert web.wait(seconds=5) == failpoints.EXIT_CODE, web.output()
        client.url = walk.instance.url
        asking.result()
    client.close()
    walk.client.acknowledged |= client.acknowledged
    return reached(web) == {name}


@pytest.mark.drill
def test_pruning_may_die_or_lose_its_database_at_any_place(walk: Walk) -> None:
    worker = walk.instance.worker()
    completed = walk.completed()
    walk.finish(worker)

    for name in sorted(COMMAND):
        for fault in ("exit", "cut"):
            walk.grow_old(completed, walk.ended())
            prune = walk.start("prune", "--days", "30", failpoint=f"{name}:{fault}")
            assert (prune.wait(seconds=PATIENCE) == failpoints.EXIT_CODE) == (fault == "exit")
            assert reached(prune) == {name}, prune.output()
    young = walk.ended()
    assert walk.start("prune", "--days", "30").wait(seconds=PATIENCE) == 0

    with walk.link() as link:
        assert [str(row[0]) for row in link.execute("SELECT id FROM jobs_job").fetchall()] == [young]
        assert [fault for fault in faults(link.cursor(), at_rest=True) if OUTLIVE not in fault] == []
    assert [path for path in (walk.instance.home / "artifacts").rglob("*") if path.is_file()] == []
