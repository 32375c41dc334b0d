"""An agent whose sandboxes cannot be had is unavailable, and says why, wherever agents are shown."""

from typing import Any

import pytest
from django.test import Client

from agents import health
from apikeys.scopes import Scope
from jobs.models import Worker
from jobs.provider_health import provider_problem
from tests.agents import make_noop, register_all, staff
from tests.dashboard import make_person, signed_in
from tests.factories import make_key
from tests.jobs import end_lease, make_worker

pytestmark = pytest.mark.django_db

SICK = {"ok": False, "name": "e2b", "detail": "E2B_API_KEY is not <b>set</b>", "remedy": "set E2B_API_KEY"}
WELL = {"ok": True, "name": "local", "detail": "bubblewrap", "remedy": ""}


def worker_that_says(sandbox: dict[str, Any] | None) -> Worker:
    worker = Worker.objects.get(id=make_worker())
    worker.health = {} if sandbox is None else {"sandbox": sandbox}
    worker.save(update_fields=["health"])
    return worker


def test_agents_are_unavailable_while_no_worker_has_a_sandbox(client: Client) -> None:
    key = make_key(Scope.AGENTS_READ)
    register_all(staff(), [make_noop(f"idle-{number}", "Does nothing at all") for number in range(3)])
    worker_that_says(SICK)
    headers = {"Authorization": f"Bearer {key.secret}"}

    rows = client.get("/api/v1/agents", headers=headers).json()["items"]
    one = client.get("/api/v1/agents/idle-0", headers=headers).json()
    body = {"task": "Do nothing at all"}
    found = client.post(
        "/api/v1/agents/discover", body, content_type="application/json", headers=headers
    ).json()
    page = signed_in(make_person()).get("/admin/agents/agent/").text

    for shown in (*rows, one):
        assert shown["health"]["status"] == "unavailable"
        assert "set E2B_API_KEY" in shown["health"]["reason"]
    results = found["results"] or found["nearest"]  # jobs for them wait: they are found all the same
    assert {result["health"]["status"] for result in results} == {"unavailable"}
    assert "set E2B_API_KEY" in page
    assert "<b>set</b>" not in page


def test_a_list_of_agents_asks_once(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ask() -> str:
        asked.append("now")
        return "none is there"

    monkeypatch.setattr(health, "_provider_problem", ask)
    register_all(staff(), [make_noop(f"idle-{number}", "Does nothing at all") for number in range(3)])
    headers = {"Authorization": f"Bearer {make_key(Scope.AGENTS_READ).secret}"}

    rows = client.get("/api/v1/agents", headers=headers).json()["items"]

    assert [row["health"]["reason"] for row in rows] == ["none is there"] * 3
    assert len(asked) == 1


def test_one_worker_with_a_sandbox_is_enough() -> None:
    worker_that_says(SICK)
    worker_that_says(WELL)

    assert provider_problem() == ""


@pytest.mark.parametrize("sandbox", [None, WELL])
def test_a_worker_that_has_not_said_anything_bad_is_no_reason(sandbox: dict[str, Any] | None) -> None:
    worker_that_says(sandbox)

    assert provider_problem() == ""


def test_workers_that_are_away_for_a_moment_are_no_reason(settings: Any) -> None:
    settings.ENGINE_SANDBOX, settings.E2B_API_KEY = "e2b", ""
    end_lease(worker_that_says(SICK).id)

    assert provider_problem() == ""


def test_before_the_first_worker_a_provider_without_its_key_is_missing(settings: Any) -> None:
    settings.ENGINE_SANDBOX, settings.E2B_API_KEY = "e2b", ""

    assert "E2B_API_KEY" in provider_problem()
