"""`manage.py createkey`: a key for scripts, its secret alone on standard output."""

from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from apikeys.auth import authenticate_bearer
from apikeys.models import ApiKey, AuditRow, Project
from tests.factories import make_project

pytestmark = pytest.mark.django_db


def createkey(*arguments: str) -> Any:
    out = StringIO()
    call_command("createkey", *arguments, stdout=out)
    return out.getvalue()


def test_it_prints_the_secret_alone() -> None:
    output = createkey("--name", "ci", "--project", "acme", "--scope", "jobs:read", "--scope", "jobs:write")

    by = authenticate_bearer(f"Bearer {output.strip()}", "")
    assert output == output.strip() + "\n"
    assert by.scopes == {"jobs:read", "jobs:write"}
    assert by.project == Project.objects.get(slug="acme")
    assert by.key is not None
    assert by.key.created_by == "cli"
    assert set(AuditRow.objects.values_list("actor", "action")) == {
        ("cli", "project.created"),
        ("cli", "key.created"),
    }


def test_scopes_may_stand_behind_one_option() -> None:
    secret = createkey("--name", "ci", "--scope", "jobs:read", "agents:a:run").strip()

    assert authenticate_bearer(f"Bearer {secret}", "").scopes == {"jobs:read", "agents:a:run"}


def test_a_project_that_exists_is_used() -> None:
    project = make_project("acme")

    createkey("--name", "ci", "--project", "acme")

    assert ApiKey.objects.get().project == project


def test_without_scopes_the_key_may_do_everything() -> None:
    createkey("--name", "ci")

    assert ApiKey.objects.get().scopes == ["admin"]


def test_a_test_key_says_so() -> None:
    assert createkey("--name", "ci", "--test").startswith("engine_test_")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--name", "ci", "--scope", "nope"], "scopes"),
        (["--name", ""], "name"),
        (["--name", "x" * 101], "name"),
        (["--name", "ci", "--project", "Not A Slug"], "slug"),
        ([], "--name"),
    ],
)
def test_a_wrong_argument_is_named_and_nothing_is_made(arguments: list[str], names: str) -> None:
    with pytest.raises(CommandError, match=names):
        createkey(*arguments)

    assert not Project.objects.exists()
