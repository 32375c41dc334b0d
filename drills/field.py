"""One installation under a drill: a database, a web process and workers behind proxies, agents, and a client's load."""

import os
import random
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from django.conf import settings

from drills.client import NotHeard, PatientClient
from drills.effects import AGENT, DOOR, Effects, runtime_with_door
from drills.proxy import Loop, Proxy
from engine.embedded import DATABASE, PORT, SOCKET, USER, EmbeddedServer, wait_for_end
from tests.processes import Instance, Program

LOCK = settings.BASE_DIR / "requirements" / "sandbox.lock"

# Writes down each row of an attempt that is no longer the job's: a late write that was accepted.
WITNESS = """
CREATE TABLE drill_late (job_id uuid, what text, attempt int, seen timestamptz DEFAULT statement_timestamp());
CREATE FUNCTION drill_watch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.attempt < (SELECT attempt FROM jobs_job WHERE id = NEW.job_id) THEN
        INSERT INTO drill_late (job_id, what, attempt) VALUES (NEW.job_id, TG_TABLE_NAME, NEW.attempt);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER drill_watch AFTER INSERT ON jobs_event FOR EACH ROW EXECUTE FUNCTION drill_watch();
CREATE TRIGGER drill_watch AFTER INSERT OR UPDATE ON jobs_step FOR EACH ROW EXECUTE FUNCTION drill_watch();
CREATE TRIGGER drill_watch AFTER INSERT OR UPDATE ON jobs_artifact FOR EACH ROW EXECUTE FUNCTION drill_watch();
CREATE TRIGGER drill_watch AFTER INSERT ON jobs_question FOR EACH ROW EXECUTE FUNCTION drill_watch();
"""


@dataclass
class Slot:
    """A place for a worker: what runs there is started again whenever it ends."""

    proxy: Proxy
    program: Program
    stopped: bool = False
    told_to_end_at: float | None = None  # SIGTERM was sent then
    cut: bool = False  # from the database


@dataclass
class Field:
    """Everything that runs, and how to reach it from outside."""

    folder: Path
    workers: int
    concurrency: int
    lease: float
    slots: list[Slot] = field(default_factory=list)
    exits: list[float] = field(default_factory=list)  # seconds from SIGTERM to the end of a worker
    server_starts: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ends = ExitStack()
        home = self.folder / "home"
        home.mkdir(parents=True)
        runtime = runtime_with_door(settings.ENGINE_RUNTIME_DIR, LOCK, self.folder)
        self.effects = Effects(next(runtime.glob(f"python-*/etc/{DOOR}")))
        self.instance = Instance(
            home,
            {
                "ENGINE_LEASE_SECONDS": str(self.lease),
                "ENGINE_BENCHMARK": "1",  # no-op agents
                "ENGINE_WARM_SANDBOXES": "1",  # most are killed with their worker before anybody needs them
                "ENGINE_HEARTBEAT_SECONDS": f"{self.lease / 3:.2f}",
                "ENGINE_RUNTIME_DIR": str(runtime),
            },
        )
        self.server = EmbeddedServer(home)
        loop = Loop()
        web, *workers = (Proxy(loop, self.server.socket_folder / SOCKET) for _ in range(1 + self.workers))
        self._web_proxy, self._worker_proxies = web, workers
        # In this order from below: programs end while they can reach the database.
        for end in (
            loop.close,
            self.server.leave,
            *(proxy.close for proxy in (web, *workers)),
            self.effects.close,
        ):
            self._ends.callback(end)
        for end in (self.instance.stop, *(proxy.heal for proxy in (web, *workers))):
            self._ends.callback(end)

    def start(self) -> None:
        """Database, tables, web process, a key, agents and workers; returns once jobs can run."""
        self.server.ensure()
        self.server_starts.append(time.time())
        self.instance.manage("migrate", "--verbosity", "0")
        with self.link() as link:
            link.execute(WITNESS)
        self.web = self._start_web("0")
        self.client = self._ends.enter_context(
            PatientClient(self.instance.url, self.instance.key(), patience_seconds=180)
        )
        cards: dict[str, dict[str, Any]] = {
            "nothing": {"kind": "noop"},
            "effects": {"kind": "python", "source": {"agent.py": AGENT}},
        }
        for slug, fields in cards.items():
            card = {"slug": slug, "name": slug, "description": f"The agent {slug} of a drill.", **fields}
            reply = self.client.call("POST", "/api/v1/agents", json=card)
            if reply.status_code != 201:
                raise NotHeard(reply.text)
        for proxy in self._worker_proxies:
            self.slots.append(Slot(proxy, self._start_worker(proxy)))
        self.instance.ready()

    def _through(self, proxy: Proxy) -> dict[str, str]:
        return {
            "DATABASE_URL": f"postgresql://{USER}@127.0.0.1:{proxy.port}/{DATABASE}?sslmode=disable&gssencmode=disable"
        }

    def _start_web(self, port: str) -> Program:
        web = self.instance.start("serve", "--port", port, **self._through(self._web_proxy))
        self.instance.url = web.printed(r"Engine serves (http://\S+)")[1]
        return web

    def _start_worker(self, proxy: Proxy) -> Program:
        arguments = ("runworker", "--concurrency", str(self.concurrency))
        return self.instance.start(*arguments, **self._through(proxy))

    def link(self) -> "psycopg.Connection[Any]":
        """A connection of the drill's own, past all proxies."""
        return psycopg.connect(
            host=str(self.server.socket_folder), port=PORT, user=USER, dbname=DATABASE, autocommit=True
        )

    def supervise(self) -> None:
        """Start again what has ended."""
        for slot in self.slots:
            if slot.program.alive:
                continue
            if slot.told_to_end_at is not None:
                self.exits.append(time.time() - slot.told_to_end_at)
            slot.stopped, slot.told_to_end_at = False, None
            slot.program = self._start_worker(slot.proxy)

    def kill_web(self) -> None:
        """SIGKILL the web process and start it again on its port."""
        self.web.kill()
        self.web.wait()
        self.web = self._start_web(self.instance.url.rpartition(":")[2])

    def web_falls_silent(self, share: float, chance: random.Random) -> int:
        """Make some of the web process's connections half-open."""
        return self._web_proxy.fall_silent(share, ways=("to_server", "to_client"), chance=chance)

    def heal_web(self) -> None:
        """Reset them."""
        self._web_proxy.heal()

    def restart_postgres(self) -> float:
        """Let PostgreSQL end at once, as by a power cut (SIGQUIT), and start it; returns when it ended."""
        pid = int((self.server.data / "postmaster.pid").read_text().split("\n", 1)[0])
        ended = time.time()
        os.kill(pid, signal.SIGQUIT)
        wait_for_end(pid)
        self.server.ensure()
        self.server_starts.append(time.time())
        return ended

    def stop(self) -> None:
        """End all processes, however far the start came."""
        self._ends.close()
