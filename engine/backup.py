"""An installation in one folder: its database by pg_dump, and the bytes of its jobs from wherever they are stored.

    FOLDER/database.dump   pg_dump's custom format
           files/          what `storages["artifacts"]` holds, under the same names
           manifest.json   what made it, and the dump's SHA-256

The database comes first: a file is stored before the row that names it, so what the dump names is there to be copied,
but for what is deleted meanwhile. SECRET_KEY is in none of it.
"""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django.core.files import File
from django.core.files.storage import Storage, storages
from django.db import connection
from django.db.migrations.loader import MigrationLoader
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from engine import __version__
from engine.database import direct_dsn
from engine.embedded import EmbeddedServerFailed, packaged_install

FORMAT = 1
BLOCK_BYTES = 1024 * 1024


class BackupFailed(Exception):
    """Nothing usable was made or restored; the message says what to do."""


@dataclass(frozen=True)
class Manifest:
    """What a backup is of."""

    format: int
    engine: str
    made_at: str
    migrations: list[tuple[str, str]]
    dump_sha256: str
    files: int
    file_bytes: int


# --- out ---


def backup(folder: Path, *, with_files: bool) -> Manifest:
    """Copy the installation to `folder`, which may hold an earlier copy: files that are there are not copied again.

    Raises BackupFailed. Engine goes on meanwhile.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    dump, half = folder / "database.dump", folder / "database.dump.new"
    run_tool("pg_dump", "--format=custom", "--no-owner", "--no-privileges", f"--file={half}")
    half.chmod(0o600)
    half.replace(dump)
    count = size = 0
    if with_files:
        for name in names(storages["artifacts"]):
            copied = copy_out(storages["artifacts"], name, folder / "files" / name)
            count, size = count + (copied is not None), size + (copied or 0)
    made_at = datetime.now(UTC).isoformat(timespec="seconds")
    manifest = Manifest(FORMAT, __version__, made_at, applied_migrations(), sha256(dump), count, size)
    new = folder / "manifest.json.new"
    new.write_text(json.dumps(asdict(manifest), indent=1))
    new.chmod(0o600)
    new.replace(folder / "manifest.json")
    return manifest


def names(storage: Storage, folder: str = "") -> Iterator[str]:
    """Every file of a storage."""
    try:
        folders, files = storage.listdir(folder)
    except FileNotFoundError:  # nothing was stored yet
        return
    for name in files:
        yield f"{folder}/{name}" if folder else name
    for name in folders:
        yield from names(storage, f"{folder}/{name}" if folder else name)


def copy_out(storage: Storage, name: str, target: Path) -> int | None:
    """Copy one file; its size, or None if it was deleted meanwhile. A whole copy stays: names tell the content."""
    try:
        size = storage.size(name)
        if target.exists() and target.stat().st_size == size:
            return size
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        half = target.with_name(f".{target.name}.new")
        with storage.open(name) as source, half.open("wb") as sink:
            shutil.copyfileobj(source, sink, BLOCK_BYTES)
    except FileNotFoundError:
        return None
    half.chmod(0o600)
    half.replace(target)
    return size


# --- in ---


def restore(folder: Path, *, with_files: bool) -> Manifest:
    """Fill an empty database, and the storage, from a backup. Raises BackupFailed, and has changed nothing then.

    The database is filled in one transaction, after the files: whoever finds a row finds its file.
    """
    manifest = read_manifest(folder)
    dump = folder / "database.dump"
    if sha256(dump) != manifest.dump_sha256:
        raise BackupFailed(f"{dump} is not the one that its manifest names: take another backup.")
    unknown = set(manifest.migrations) - known_migrations()
    if unknown:
        app, name = min(unknown)
        raise BackupFailed(
            f"The backup is of a later release ({manifest.engine}, with {app}.{name}): restore it with that release."
        )
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('jobs_job') IS NULL AND to_regclass('django_migrations') IS NULL")
        if not cursor.fetchone()[0]:
            raise BackupFailed(
                "The database is not empty: create another (createdb), or move ENGINE_HOME/postgres away, and name it "
                "in DATABASE_URL."
            )
    if with_files:
        copy_in(folder / "files", storages["artifacts"])
    run_tool(
        "pg_restore", "--no-owner", "--no-comments", "--exit-on-error", "--single-transaction", str(dump)
    )
    return manifest


def copy_in(folder: Path, storage: Storage) -> None:
    """Store every file of a backup that is not there yet."""
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_file() and not (storage.exists(name) and storage.size(name) == path.stat().st_size):
            with path.open("rb") as source:
                if (stored := storage.save(name, File(source))) != name:
                    raise BackupFailed(
                        f"The storage calls {name} {stored}: is something else of that name there?"
                    )


def read_manifest(folder: Path) -> Manifest:
    """What `folder` holds. Raises BackupFailed."""
    try:
        found = json.loads((folder / "manifest.json").read_text())
        if found["format"] != FORMAT:
            raise BackupFailed(
                f"{folder} is of a format that this release does not read: {found['format']!r}."
            )
        found["migrations"] = [(app, name) for app, name in found["migrations"]]
        return Manifest(**found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackupFailed(
            f"{folder} holds no backup ({error}): give the folder that manage.py backup made."
        ) from error


# --- PostgreSQL's own programs ---


def run_tool(name: str, *arguments: str) -> None:
    """Run pg_dump or pg_restore on the database itself, past a pooler. Raises BackupFailed with what it said."""
    parameters: dict[str, Any] = dict(conninfo_to_dict(direct_dsn()))
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "PGPASSWORD": str(parameters.pop("password", "")),
    }
    parameters.pop("options", None)  # time limits of ours: a dump takes as long as it takes
    command: list[str | Path] = [tool(name), f"--dbname={make_conninfo(**parameters)}", *arguments]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise BackupFailed(f"{name}: {ended.stderr.strip() or ended.returncode}")


def tool(name: str) -> Path:
    """The program, no older than the server: the one that Engine brings, or one on the PATH. Raises BackupFailed."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('server_version_num')::int / 10000")
        server = int(cursor.fetchone()[0])
    candidates = []
    with contextlib.suppress(EmbeddedServerFailed):
        candidates.append(packaged_install() / "bin" / name)
    if found := shutil.which(name):
        candidates.append(Path(found))
    for candidate in candidates:
        said = subprocess.run(
            [candidate, "--version"], capture_output=True, text=True, check=False
        ).stdout.split()
        if said and int(said[2].partition(".")[0]) >= server:
            return candidate
    raise BackupFailed(
        f"The server is PostgreSQL {server}, and no {name} is as new: install postgresql-client-{server}."
    )


# --- small helpers ---


def applied_migrations() -> list[tuple[str, str]]:
    """What the database has."""
    return sorted(MigrationLoader(connection).applied_migrations)


def known_migrations() -> set[tuple[str, str]]:
    """What this release has."""
    return set(MigrationLoader(None).disk_migrations)


def sha256(file: Path) -> str:
    """The digest of a file. Raises BackupFailed if it cannot be read."""
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise BackupFailed(f"{file} cannot be read: {error.strerror}.") from error
