"""Real Engine processes for tests: an instance with a home, a database and a port of its own."""

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import httpx
from django.conf import settings

from engine.embedded import EmbeddedServer

ROOT = Path(__file__).resolve().parent.parent
READY_SECONDS = 60.0
T = TypeVar("T")


def eventually(ask: Callable[[], T], *, seconds: float = 20.0, what: str = "") -> T:
    """The first truthy answer; AssertionError when none came in time."""
    deadline = time.monotonic() + seconds
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"{what or ask} did not come true within {seconds} s"
        time.sleep(0.02)
    return answer


def read_process(pid: int, name: str) -> str:
    """A file of /proc/PID; empty when the process is gone, which it may be at any moment."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_running(pid: int) -> bool:
    """Whether the process is there and not a zombie, which only waits for its parent to notice."""
    stat = read_process(pid, "stat").rpartition(")")[2].split()
    return bool(stat) and stat[0] != "Z"


def name_of(pid: int) -> str:
    return read_process(pid, "comm").strip()


def children_of(pid: int) -> list[int]:
    """What its first thread has started."""
    return [int(child) for child in read_process(pid, f"task/{pid}/children").split()]


def processes_named(token: str) -> list[int]:
    """Processes of this machine with `token` on their command line."""
    everybody = (int(folder.name) for folder in Path("/proc").glob("[0-9]*"))
    return [pid for pid in everybody if token in read_process(pid, "cmdline")]


class Program:
    """One running `manage.py` command; its output goes to a file, so that no pipe can fill up."""

    def __init__(self, name: str, command: list[str], env: Mapping[str, str], log: Path) -> None:
        self.name, self.log = name, log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def printed(self, pattern: str, *, seconds: float = READY_SECONDS) -> re.Match[str]:
        """Wait until its output matches; fails early, with the output, if it ends before."""
        deadline = time.monotonic() + seconds
        while not (match := re.search(pattern, self.output())):
            assert self.alive, f"{self.name} ended with {self.process.returncode}:\n{self.output()}"
            assert time.monotonic() < deadline, f"{self.name} did not print {pattern!r}:\n{self.output()}"
            time.sleep(0.02)
        return match

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, by default the one that nobody can catch."""
        self.process.send_signal(number)

    def wait(self, *, seconds: float = 30.0) -> int:
        """Its exit code, once it has ended."""
        return self.process.wait(seconds)

    def stop(self, *, seconds: float = 40.0) -> int:
        """End it in order, or by force if it does not, and return its exit code."""
        if self.alive:
            self.kill(signal.SIGCONT)  # a test may have stopped it
            self.kill(signal.SIGTERM)
        try:
            return self.wait(seconds=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.wait()


class Instance:
    """One installation: home, database, and the programs started in it."""

    def __init__(self, home: Path, environment: Mapping[str, str] | None = None) -> None:
        self.home = home
        self.logs = home.parent / f"{home.name}-logs"
        self.logs.mkdir(exist_ok=True)
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("ENGINE_", "PYTEST_", "COV_")) and name not in ("DATABASE_URL", "PORT")
        }
        self.env = {
            **inherited,
            "ENGINE_HOME": str(home),
            "ENGINE_RUNTIME_DIR": str(settings.ENGINE_RUNTIME_DIR),  # built once for all
            "PYTHONUNBUFFERED": "1",
            "LOG_LEVEL": "INFO",
            **(environment or {}),
        }
        self.programs: list[Program] = []
        self._numbers = itertools.count()  # threads start programs, and no two may share a log
        self.url = ""

    def manage(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run one command to its end."""
        finished = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT, env=self.env, text=True, capture_output=True, timeout=120, check=False,
        )  # fmt: skip
        assert finished.returncode == 0 or not check, finished.stdout + finished.stderr
        return finished

    def start(self, *arguments: str, **environment: str) -> Program:
        """Start a command, with more in its environment if that is given."""
        name = f"{next(self._numbers)}-{arguments[0]}"
        log = self.logs / f"{name}.log"
        command = [sys.executable, "manage.py", *arguments]
        program = Program(name, command, self.env | environment, log)
        self.programs.append(program)
        return program

    def run(self, name: str, script: str) -> Program:
        """Start a Python script in this instance's environment."""
        log = self.logs / f"{next(self._numbers)}-{name}.log"
        self.programs.append(Program(name, [sys.executable, "-c", script], self.env, log))
        return self.programs[-1]

    def serve(self, *arguments: str) -> Program:
        """Start a web process on a free port; `url` is then its address."""
        program = self.start("serve", "--port", "0", *arguments)
        self.url = program.printed(r'Engine serves (http://[^\s"]+)')[1]
        return program

    def worker(self, *arguments: str) -> Program:
        """Start a worker."""
        return self.start("runworker", *arguments)

    def ready(self, *, seconds: float = READY_SECONDS) -> None:
        """Return once jobs can run."""

        def answers() -> bool:
            try:
                return httpx.get(f"{self.url}/health/ready").is_success
            except httpx.TransportError:  # between two web processes
                return False

        eventually(answers, seconds=seconds, what="/health/ready")

    def key(self, *scopes: str, project: str = "default") -> str:
        """A new key's secret."""
        options = [part for scope in scopes or ("admin",) for part in ("--scope", scope)]
        return self.manage("createkey", "--name", "test", "--project", project, *options).stdout.strip()

    @contextmanager
    def client(self, secret: str = "") -> Iterator[httpx.Client]:
        """An HTTP client for this instance, with a key if one is given."""
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        with httpx.Client(base_url=self.url, headers=headers, timeout=30) as client:
            yield client

    def stop(self) -> None:
        """End whatever still runs; the database ends with the last program."""
        for program in self.programs:
            program.stop()
        server = EmbeddedServer(self.home)
        if (self.home / "postgres" / "postmaster.pid").exists():  # its last user was killed
            server.ensure()
            server.leave()


def copy_home(template: Path, home: Path) -> None:
    """Copy a home with its database folder as it lies there, owners included (the server must be stopped)."""
    shutil.copytree(template, home, symlinks=True)
    if os.geteuid() == 0:
        for source in template.rglob("*"):
            owner = source.lstat()
            os.chown(home / source.relative_to(template), owner.st_uid, owner.st_gid, follow_symlinks=False)
