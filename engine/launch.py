"""`make run`: prepare what is missing, start the web process and a worker, keep them up, end them in order."""

import atexit
import fcntl
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import httpx
from django.conf import settings
from django.db import connections

from engine.database import is_embedded
from engine.embedded import server_for
from engine.installation import Access, prepare
from engine.logs import is_json
from engine.sample import TASK, run_sample_job
from engine.secretfile import make_private
from engine.serving import PortTaken, bracketed, listen
from engine.steps import StepFailed, say, step
from engine.supervisor import Child, Supervisor, die_with_parent

READY_SECONDS = 60.0
GIVE_UP_FAILURES = 2  # of one child, while we wait; it is still started again after that
PREVIOUS_SECONDS = 45.0  # what a killed run left behind drains in this time
WORKER_GRACE_SECONDS = 10.0
MOST_LOG_BYTES = 20 * 1024 * 1024
SAMPLE_FILE = settings.BASE_DIR / "samples" / "reviews.csv"


def launch(*, sample: bool, end_with_parent: bool) -> None:
    """Run Engine on this machine until a signal ends it. Raises StepFailed, already explained on the terminal."""
    # Until the supervisor takes over.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if end_with_parent:
        end_with_the_parent()
    say(f"Engine, in {settings.ENGINE_HOME}")
    make_private(settings.ENGINE_HOME)
    run = RunLock(settings.ENGINE_HOME)
    with step("Port") as note:
        run.take()
        listener = take_port()
        note(str(settings.PORT))
    access = prepared()
    supervisor = Supervisor(children(listener, run), grace_seconds=settings.ENGINE_DRAIN_SECONDS + 10)
    supervisor.catch_signals()
    try:
        with step("Web process and worker"):
            supervisor.start()
            trouble = wait_until_ready(supervisor)
        listener.close()  # the web process has it; the supervisor keeps a copy for its successor
        if not supervisor.signals:
            if sample and not trouble:
                first_job(access)
            introduce(access, trouble)
        while not supervisor.signals:
            supervisor.watch()
            trim_logs(supervisor)
            time.sleep(0.2)
    finally:
        run.stopping()
        say("\nStopping: requests and jobs in progress get a moment …")
        supervisor.stop()
        connections.close_all()
        say("Stopped.")


def prepared() -> Access:
    """Prepare in a process of its own, and keep only what it found: models and drivers would stay in our memory.

    Raises StepFailed, told already.
    """
    reader, writer = os.pipe()
    ask = die_with_parent(os.getpid())
    child = os.fork()
    if child == 0:
        os._exit(prepare_and_tell(writer, ask))
    os.close(writer)
    try:
        with os.fdopen(reader, encoding="utf-8") as answer:
            found = answer.read()
    finally:  # Ctrl+C has reached it too: let it tidy up
        _, status = os.waitpid(child, 0)
    if status != 0:
        raise StepFailed("Engine could not be prepared.", remedy="see above")
    if is_embedded():
        server_for(settings.ENGINE_HOME).ensure()  # ours from now on; the child had it until here
    return Access(**json.loads(found))


def prepare_and_tell(writer: int, ask: Callable[[], None] | None) -> int:
    """The child's part: 0 once what it found is written."""
    if ask is not None:
        ask()
    try:
        found = prepare()
        connections.close_all()
        os.write(writer, json.dumps(asdict(found)).encode())
    except BaseException as error:  # whatever it is: a child that raised would go on as a second parent
        if not isinstance(error, StepFailed | KeyboardInterrupt | SystemExit):
            sys.excepthook(type(error), error, error.__traceback__)
        if is_embedded():
            server_for(settings.ENGINE_HOME).leave()
        return 1
    return 0


# --- one run at a time ---


class RunLock:
    """Only one run uses a home at a time. Its children hold a second lock, which outlives a killed supervisor."""

    def __init__(self, home: Path) -> None:
        self.own = os.open(home / "run.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.childrens = os.open(home / "run.children.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self) -> None:
        """Take both locks, waiting for what a killed run left behind. Raises StepFailed if another run is up."""
        deadline = time.monotonic() + PREVIOUS_SECONDS
        for descriptor in (self.own, self.childrens):
            while not try_lock(descriptor):
                pid, _, state = self.holder().partition(" ")
                if descriptor == self.own and state != "stopping":
                    raise StepFailed(
                        f"Engine runs in {settings.ENGINE_HOME} already (process {pid}).",
                        remedy=f"kill {pid}, or start another: ENGINE_HOME=.engine-2 PORT={settings.PORT + 1} make run",
                    )
                if time.monotonic() > deadline:
                    raise StepFailed(
                        "Processes of an earlier run do not end.",
                        remedy=f"fuser -k {settings.ENGINE_HOME}/run.children.lock",
                    )
                time.sleep(0.1)
        self.write("running")

    def stopping(self) -> None:
        """Tell the next run that it is worth waiting for us."""
        self.write("stopping")

    def write(self, state: str) -> None:
        """Say who holds the lock."""
        os.ftruncate(self.own, 0)
        os.pwrite(self.own, f"{os.getpid()} {state}".encode(), 0)

    def holder(self) -> str:
        """Who said so last."""
        return os.pread(self.own, 100, 0).decode(errors="replace")


def try_lock(descriptor: int) -> bool:
    """Take the lock if nobody has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def end_with_the_parent() -> None:
    """Be told by SIGTERM when whoever started us is killed."""
    ask = die_with_parent(os.getppid())
    if ask is not None:
        ask()


# --- children ---


def take_port() -> socket.socket:
    """The listening socket that the web process will inherit. Raises StepFailed."""
    try:
        return listen(settings.ENGINE_HOST, settings.PORT)
    except PortTaken as error:
        raise StepFailed(str(error), remedy=f"PORT={settings.PORT + 1} make run") from error


def children(listener: socket.socket, run: RunLock) -> list[Child]:
    """The web process and one worker."""
    logs = settings.ENGINE_HOME / "logs"
    make_private(logs)
    manage = [sys.executable, str(settings.BASE_DIR / "manage.py")]
    # A duplicate that stays open here: a web process that is started again finds the same socket.
    descriptor = os.dup(listener.fileno())
    atexit.register(os.close, descriptor)
    return [
        Child(
            "The web process",
            [*manage, "serve", "--fd", str(descriptor)],
            log=logs / "serve.log",
            pass_fds=(descriptor, run.childrens),
        ),
        Child(
            "The worker",
            [*manage, "runworker", "--grace", str(WORKER_GRACE_SECONDS)],
            log=logs / "worker.log",
            pass_fds=(run.childrens,),
        ),
    ]


def wait_until_ready(supervisor: Supervisor) -> str:
    """Wait until jobs can run, or nothing speaks for it; then what is missing, part by part, with its remedy."""
    deadline = time.monotonic() + READY_SECONDS
    trouble = ""
    with httpx.Client(base_url=local_url(), timeout=10) as client:
        while time.monotonic() < deadline and not supervisor.signals:
            for child in supervisor.children:
                if child.failures >= GIVE_UP_FAILURES:
                    return f"{child.name} does not start: {child.last_words()}"
            supervisor.watch()
            try:
                answer = client.get("/health/ready")
            except httpx.TransportError as error:
                trouble = (
                    f"The web process does not answer ({error}): see {settings.ENGINE_HOME}/logs/serve.log"
                )
            else:
                if answer.is_success:
                    return ""
                parts = answer.json()["parts"].items()
                missing = [f"{part['detail']} {part['remedy']}" for _, part in parts if not part["ok"]]
                trouble = " ".join(missing)
                if "sandbox that works:" in trouble:  # a worker has looked, and says why
                    return trouble
            time.sleep(0.1)
    return trouble


def trim_logs(supervisor: Supervisor) -> None:
    """Keep the end of a log that has grown large, in a second file, and begin anew (children append)."""
    for child in supervisor.children:
        if child.log is not None and child.log.exists() and child.log.stat().st_size > MOST_LOG_BYTES:
            shutil.copy2(child.log, child.log.with_suffix(".log.1"))
            os.truncate(child.log, 0)


# --- what the person at the terminal sees ---


def first_job(access: Access) -> None:
    """On the first start, run the sample job; a later start has seen it."""
    done = settings.ENGINE_HOME / "sample-job.done"
    if done.exists():
        return
    say("\nA first job, over the REST API:")
    try:
        status = run_sample_job(local_url(), access.api_key, SAMPLE_FILE)
    except (httpx.HTTPError, TimeoutError) as error:
        say(f"  It could not be run: {error}")
        return
    if status == "completed":
        done.touch()


def introduce(access: Access, trouble: str) -> None:
    """How to go on from here."""
    url = settings.ENGINE_PUBLIC_URL
    if is_json():  # whoever reads these lines is not always who may have the key
        say(f"Engine is up, but cannot run jobs yet. {trouble}" if trouble else "Engine is ready.")
        say(f"Dashboard {url}/admin/, API {url}/api/docs, secrets in {settings.SECRETS.path}")
        return
    password = access.password or "(as you changed it)"
    say(f"""
{f"Engine is up, but cannot run jobs yet. {trouble}" if trouble else "Engine is ready."}
  Dashboard  {url}/admin/    user {access.user}, password {password}
  API        {url}/api/docs
  Try it     curl -X POST {url}/api/v1/jobs -H "Authorization: Bearer {access.api_key}" \\
               -H "Content-Type: application/json" -d '{{"task": "{TASK}"}}'
  Claude     claude mcp add --transport http engine {url}/mcp --header "Authorization: Bearer {access.api_key}"
  Logs       {settings.ENGINE_HOME}/logs      Secrets  {settings.SECRETS.path}
Ctrl+C stops it.""")


def local_url() -> str:
    """Where this machine reaches the web process, whatever address it listens on."""
    host = settings.ENGINE_HOST
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104, compared, not bound
    return f"http://{bracketed(host)}:{settings.PORT}"
