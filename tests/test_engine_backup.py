"""An installation is copied to a folder while it runs, and only a fitting copy is put into an empty database."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import storages
from django.core.management import CommandError, call_command
from django.db import connection
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from apikeys.models import Project
from engine import backup
from engine.database import direct_dsn
from tests.processes import ROOT

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def copy(tmp_path: Path, settings) -> Path:
    """A backup of a database with one project, and of one file."""
    settings.STORAGES = {
        **settings.STORAGES,
        "artifacts": {
            "BACKEND": "django.core.files.storage.FileSystemStorage",
            "OPTIONS": {"location": tmp_path / "stored"},
        },
    }
    Project.objects.create(slug="kept")
    storages["artifacts"].save("project/job/abc", ContentFile(b"bytes"))
    call_command("backup", str(tmp_path / "copy"))
    return tmp_path / "copy"


def test_a_backup_holds_database_and_files_for_its_owner_alone(copy: Path):
    manifest = json.loads((copy / "manifest.json").read_text())

    assert (copy / "files/project/job/abc").read_bytes() == b"bytes"
    assert (manifest["files"], manifest["file_bytes"]) == (1, 5)
    assert ["jobs", "0001_first_tables"] in manifest["migrations"]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in copy.rglob("*") if path.is_file()}
    assert modes == {0o600}
    assert stat.S_IMODE(copy.stat().st_mode) == 0o700


def test_a_second_backup_into_the_folder_copies_only_new_files(copy: Path):
    before = (copy / "files/project/job/abc").stat().st_ino
    storages["artifacts"].save("project/job/def", ContentFile(b"more"))

    call_command("backup", str(copy))

    assert (copy / "files/project/job/abc").stat().st_ino == before
    assert (copy / "files/project/job/def").read_bytes() == b"more"


def test_a_database_that_is_not_empty_is_refused(copy: Path):
    with pytest.raises(CommandError, match="not empty: create another"):
        call_command("restore", str(copy))


def test_a_folder_without_a_backup_is_named(tmp_path: Path):
    with pytest.raises(CommandError, match="holds no backup"):
        call_command("restore", str(tmp_path))


def test_a_damaged_dump_is_refused(copy: Path):
    with (copy / "database.dump").open("ab") as dump:
        dump.write(b"x")

    with pytest.raises(CommandError, match="not the one that its manifest names"):
        call_command("restore", str(copy))


def test_a_backup_of_a_later_release_is_refused_by_name(copy: Path):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["migrations"].append(["jobs", "9999_of_tomorrow"])
    (copy / "manifest.json").write_text(json.dumps(manifest))

    with pytest.raises(CommandError, match=r"later release .*jobs\.9999_of_tomorrow"):
        call_command("restore", str(copy))


def test_without_files_only_the_database_is_copied(copy: Path, tmp_path: Path):
    call_command("backup", str(tmp_path / "other"), "--without-files")

    assert (tmp_path / "other/database.dump").exists()
    assert not (tmp_path / "other/files").exists()


def test_what_was_backed_up_is_restored_into_an_empty_database(copy: Path, tmp_path: Path):
    parameters: dict[str, Any] = dict(conninfo_to_dict(direct_dsn()))
    name = f"{parameters['dbname']}_restored"
    with psycopg.connect(direct_dsn(), autocommit=True) as link:
        link.execute(f'CREATE DATABASE "{name}"')
        try:
            url = f"postgresql://{parameters['user']}@/{name}?host={quote(str(parameters['host']), safe='')}"
            home = tmp_path / "home"
            ended = subprocess.run(
                [sys.executable, "manage.py", "restore", str(copy)],
                cwd=ROOT, env={"PATH": os.environ["PATH"], "ENGINE_HOME": str(home), "DATABASE_URL": url},
                capture_output=True, text=True, timeout=120, check=False,
            )  # fmt: skip
            assert ended.returncode == 0, ended.stderr
            with psycopg.connect(make_conninfo(**{**parameters, "dbname": name})) as restored:
                row = restored.execute("SELECT count(*) FROM apikeys_project WHERE slug = 'kept'").fetchone()
        finally:
            link.execute(f'DROP DATABASE "{name}"')

    assert row == (1,)
    assert (home / "artifacts/project/job/abc").read_bytes() == b"bytes"


def test_a_server_newer_than_every_pg_dump_here_is_named(monkeypatch):
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "pg_dump (x) 9.6")
    )

    with pytest.raises(backup.BackupFailed, match="install postgresql-client-"):
        backup.tool("pg_dump")
    assert connection.is_usable()
