"""A real PgBouncer, in transaction mode if no other is asked for, before a PostgreSQL that listens on a socket."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.embedded import DATABASE, PORT, USER, Account, EmbeddedServer, as_user
from tests.processes import eventually

# Fewer than what asks: connections are shared between transactions, or nothing is proved.
SERVER_CONNECTIONS = 3
PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


class Pooler:
    """`url` goes through it, `direct` past it."""

    def __init__(
        self, folder: Path, server: EmbeddedServer, *, ignore: str = "", mode: str = "transaction"
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as chosen:
            self.port = chosen.getsockname()[1]
        self.url = f"postgresql://{USER}@127.0.0.1:{self.port}/{DATABASE}?sslmode=disable&gssencmode=disable"
        self.direct = f"postgresql://{USER}@/{DATABASE}?host={server.socket_folder}&port={PORT}"
        account = Account.needed(server.data)
        # As another user it may be unable to reach the socket by its path; its working folder it can always name.
        place = server.socket_folder if account is None else "/proc/self/cwd"
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": mode,
            "default_pool_size": SERVER_CONNECTIONS,
            "max_client_conn": 500,
            "ignore_startup_parameters": f"extra_float_digits,{ignore}".rstrip(","),
        }
        file = folder / f"pgbouncer-{self.port}.ini"
        lines = [
            "[databases]",
            f"* = host={place} port={PORT} user={USER}",
            "[pgbouncer]",
            *(f"{name} = {value}" for name, value in settings.items()),
        ]
        file.write_text("\n".join(lines) + "\n")
        # From its standard input: its user may not reach the folder.
        with file.open() as given:
            self.process = subprocess.Popen(
                [str(PROGRAM), "/dev/stdin"], stdin=given, cwd=server.data, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, **as_user(account),
            )  # fmt: skip
        eventually(self.listens, what="pgbouncer listens")

    def listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@contextmanager
def pooler(
    folder: Path, server: EmbeddedServer, *, ignore: str = "", mode: str = "transaction"
) -> Iterator[Pooler]:
    if PROGRAM is None:
        pytest.skip("pgbouncer is not installed: apt-get install pgbouncer")
    started = Pooler(folder, server, ignore=ignore, mode=mode)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.wait()
