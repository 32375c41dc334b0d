"""PostgreSQL on a network, as a managed one is: a data folder, the command that serves it, a standby made from it."""

import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg

from engine.embedded import Account, EmbeddedServer, as_user, clean_environment
from tests.processes import eventually

USER, DATABASE, PORT = "engine", "engine", 5432
# fsync and synchronous_commit stay on. A peer that is gone is given up as soon as Engine gives up on its server.
OPTIONS = {
    "listen_addresses": "*",
    "unix_socket_directories": "",
    "max_connections": "200",
    "max_wal_size": "2GB",
    "jit": "off",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "3",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "20000",
}


class Cluster:
    """One data folder."""

    def __init__(self, folder: Path) -> None:
        self.data = folder
        self.data.mkdir(mode=0o700)
        self._account = Account.needed(folder)
        self._bin = EmbeddedServer(folder).install_for(self._account) / "bin"
        if self._account:
            os.chown(folder, self._account.uid, self._account.gid)

    def _run(self, program: str, *arguments: str, stdin: str = "", **env: str) -> None:
        finished = subprocess.run(
            [self._bin / program, *arguments],
            cwd=self.data,
            input=stdin,
            text=True,
            env=clean_environment() | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            **as_user(self._account),
        )
        if finished.returncode != 0:
            raise RuntimeError(f"{program}: {finished.stdout}")

    def initialise(self) -> None:
        """An empty database that every host may use: the network is the drill's own."""
        self._run(
            "initdb", "-D", str(self.data), "-U", USER, "--auth=trust", "-E", "UTF8", "--no-locale", "-N"
        )
        self._run(
            "postgres",
            "--single",
            "-j",
            "-D",
            str(self.data),
            "postgres",
            stdin=f"CREATE DATABASE {DATABASE};\n\n",
        )
        with (self.data / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 0.0.0.0/0 trust\nhost replication all 0.0.0.0/0 trust\n")

    def copy_from(self, primary: str, *, name: str) -> None:
        """Become the standby `name` of the server at that address."""
        source = f"host={primary} port={PORT} user={USER} application_name={name}"
        self._run("pg_basebackup", "-D", str(self.data), "-d", source, "-R", "-X", "stream", "-c", "fast")

    def command(self, **options: str) -> list[str]:
        """What serves it, as the user that may."""
        settings = [f"--{name}={value}" for name, value in (OPTIONS | options).items()]
        program = [str(self._bin / "postgres"), "-D", str(self.data), *settings]
        account = self._account
        if account is None:
            return program
        return ["setpriv", f"--reuid={account.uid}", f"--regid={account.gid}", "--clear-groups", *program]

    @property
    def environment(self) -> Mapping[str, str]:
        """What the server is started with."""
        return clean_environment()

    def forget_its_last_run(self) -> None:
        """A server that was killed in another process namespace cannot be told from one that runs."""
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def delete(self) -> None:
        """For good."""
        shutil.rmtree(self.data)


def link(*hosts: str, seconds: float = 30.0, writes: bool = True) -> "psycopg.Connection[Any]":
    """A connection to whichever of the hosts takes writes (or is there at all), once one does."""

    def connect() -> "psycopg.Connection[Any] | None":
        try:
            return psycopg.connect(
                host=",".join(hosts), port=PORT, user=USER, dbname=DATABASE, autocommit=True,
                connect_timeout=3, target_session_attrs="read-write" if writes else "any", tcp_user_timeout=5000,
            )  # fmt: skip
        except psycopg.OperationalError:
            time.sleep(0.1)
            return None

    found = eventually(connect, seconds=seconds, what=f"a database at {hosts}")
    assert found is not None
    return found


def address(*hosts: str) -> str:
    """DATABASE_URL for these hosts, of which one takes writes."""
    places = ",".join(f"{host}:{PORT}" for host in hosts)
    return f"postgresql://{USER}@{places}/{DATABASE}?target_session_attrs=read-write"
