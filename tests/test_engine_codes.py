"""Every code of docs/errors.md can be met, and the table of security names files that are there."""

import re
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.conf import settings
from django.test import Client
from django.utils import timezone

from engine.error_table import error_classes
from jobs import pausing
from jobs.errors import WorkerNotFound
from jobs.notifying import links
from tests.dashboard import asking, sole_question
from tests.factories import make_key
from tests.jobs import make_caller

NOBODY = UUID("01a00000-0000-7000-8000-000000000000")


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("get", "/api/v1/admin/projects/none", "project_not_found"),
        ("get", f"/api/v1/admin/keys/{NOBODY}", "key_not_found"),
        ("get", f"/api/v1/webhooks/{NOBODY}", "webhook_not_found"),
        ("post", f"/api/v1/webhooks/deliveries/{NOBODY}/redeliver", "delivery_not_found"),
        ("get", "/answer/none", "link_not_found"),
    ],
)
def test_what_is_not_there_is_a_404_of_its_own_code(method: str, path: str, code: str) -> None:
    answer: Any = getattr(make_key().client, method)(path, headers={"Accept": "application/json"})

    assert (answer.status_code, answer.json()["code"]) == (404, code)


@pytest.mark.django_db
def test_a_link_whose_time_is_over_is_gone() -> None:
    question = sole_question(asking(None, {}))
    late = links.AnswerLink(question.id, "ann", timezone.now() - timedelta(seconds=1))

    answer = Client().get(f"/answer/{links.token(late)}", headers={"Accept": "application/json"})

    assert (answer.status_code, answer.json()["code"]) == (410, "link_expired")


@pytest.mark.django_db
def test_a_worker_that_is_not_there_cannot_be_drained() -> None:
    with pytest.raises(WorkerNotFound):
        pausing.drain_worker(uuid4(), by=make_caller())


def test_every_code_is_met_by_a_test() -> None:
    tests = "".join(path.read_text() for path in (settings.BASE_DIR / "tests").glob("*.py"))
    kinds = error_classes()

    assert not sorted(
        kind.code for kind in kinds if f'"{kind.code}"' not in tests and kind.__name__ not in tests
    )


def test_the_table_of_security_names_what_is_there() -> None:
    page = (settings.BASE_DIR / "docs/security.md").read_text()
    named = set(re.findall(r"`((?:[a-z_]+/)+[a-z_0-9]*(?:\.py)?)`", page))

    assert len(named) > 40
    assert not sorted(name for name in named if not (settings.BASE_DIR / name).exists())
