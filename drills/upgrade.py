"""The release before, on this release's tables: its own tests of the queue, of jobs, keys and agents must pass.

    python -m drills.upgrade [--revision v0.1.0]

While a release is rolled out, processes of both work on one database; and going back is starting the old ones again.
So each release's migrations leave tables that the one before can work with. The release before is the last tag `v*`
before this commit, or, where there is none, the revision in .ci/previous-release. Its files are laid into a folder, a
database is brought up to date by this release, and the old tests run on it, as they are.
"""

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import psycopg

from engine.embedded import PORT, USER, EmbeddedServer

ROOT = Path(__file__).resolve().parent.parent
FALLBACK = ROOT / ".ci" / "previous-release"
TEST_DATABASE = "test_engine"  # the name that pytest-django asks for
# What a process of the old release does in the database all day. Tests that start processes make tables of their own.
CORE = (
    "tests/test_jobs_queue.py",
    "tests/test_jobs_recorder.py",
    "tests/test_jobs_answers.py",
    "tests/test_jobs_api_submit.py",
    "tests/test_agents_registry.py",
    "tests/test_apikeys_authentication.py",
)
TESTS_SECONDS = 600
# Between tests Django empties the tables that the old release knows; a new one may refer to them.
CASCADE = """
from django.core.management.commands import flush

empty = flush.sql_flush
flush.sql_flush = lambda *args, **options: empty(*args, **(options | {"allow_cascade": True}))
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the release that the command line, a tag or the file names."""
    parser = argparse.ArgumentParser(prog="drills.upgrade", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--revision", help="of the release before (default: the last tag, or .ci/previous-release)"
    )
    chosen = parser.parse_args(arguments)
    revision = chosen.revision or previous_release()
    archive = git("archive", revision) if revision else None
    if archive is None:
        print(
            f"The upgrade was not checked: this clone does not have the release before ({revision or 'no tag'})."
        )
        return 1 if chosen.revision else 0
    with tempfile.TemporaryDirectory(prefix="upgrade-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(folder / "old", filter="data")
        server = EmbeddedServer(folder / "home")
        server.ensure()
        try:
            return check(folder, server, revision)
        finally:
            server.leave()


def check(folder: Path, server: EmbeddedServer, revision: str) -> int:
    """New tables, old tests; their exit code."""
    place = f"host={server.socket_folder} port={PORT} user={USER}"
    with psycopg.connect(f"{place} dbname=postgres", autocommit=True) as link:
        link.execute(f"CREATE DATABASE {TEST_DATABASE}")
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in ("DATABASE_URL", "DJANGO_SETTINGS_MODULE")
    }
    env |= {"ENGINE_HOME": str(folder / "home"), "PYTHONDONTWRITEBYTECODE": "1"}
    url = f"postgresql://{USER}@/{TEST_DATABASE}?host={quote(str(server.socket_folder), safe='')}"
    begun = time.monotonic()
    run(ROOT, env | {"DATABASE_URL": url}, "manage.py", "migrate", "--verbosity", "0")
    added = migrations(ROOT) - migrations(folder / "old")
    print(f"{revision[:12]} on this release's tables: {len(added)} migrations later.", flush=True)
    for missing in sorted(migrations(folder / "old") - migrations(ROOT)):
        print(f"FAILED: the migration {missing} of the release before is gone.")
        return 1
    core = [test for test in CORE if (folder / "old" / test).exists()]
    (folder / "plugins").mkdir()
    (folder / "plugins" / "cascade.py").write_text(CASCADE)
    env["PYTHONPATH"] = str(folder / "plugins")
    old = (
        "-m",
        "pytest",
        "-q",
        "-p",
        "cascade",
        "--reuse-db",
        "-p",
        "no:cacheprovider",
        "--override-ini",
        "addopts=",
        *core,
    )
    code = run(folder / "old", env, *old, check=False)
    print(f"{time.monotonic() - begun:.0f} s.")
    return code


def previous_release() -> str:
    """The last tag before this commit, or the revision in the file; empty where there is neither."""
    tag = git("describe", "--tags", "--abbrev=0", "--match", "v*", "HEAD^")
    if tag is not None:
        return tag.decode().strip()
    return FALLBACK.read_text().split()[0] if FALLBACK.exists() else ""


def git(*arguments: str) -> bytes | None:
    """What git prints, or None where it has no such thing (or is not there)."""
    try:
        command = ["git", "-c", f"safe.directory={ROOT}", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def migrations(tree: Path) -> set[str]:
    """The names of a release's migrations."""
    return {
        f"{path.parent.parent.name}.{path.stem}"
        for path in tree.glob("*/migrations/*.py")
        if path.stem != "__init__" and not path.is_relative_to(tree / ".venv")
    }


def run(folder: Path, env: Mapping[str, str], *arguments: str, check: bool = True) -> int:
    """A Python program of a release, in its own folder; its exit code."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, check=check, timeout=TESTS_SECONDS
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
