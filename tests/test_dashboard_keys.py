"""A key's page in the dashboard: its use, its limits and budgets, rotation, switching off."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.test import Client
from django.utils import timezone

from apikeys import queries
from apikeys.models import ApiKey, AuditRow, KeyUse
from jobs.models import Usage
from tests.dashboard import make_person, signed_in
from tests.factories import KeyInHand, make_key, make_project

pytestmark = pytest.mark.django_db


@pytest.fixture
def browser() -> Client:
    return signed_in(make_person())


def page(key: ApiKey, action: str = "change") -> str:
    return f"/admin/apikeys/apikey/{key.id}/{action}/"


def form(**fields: Any) -> dict[str, Any]:
    return {"name": "import", "scopes": ["jobs:read"], "days": "keep", **fields}


def status_of(held: KeyInHand, secret: str = "") -> int:
    client = Client()
    headers = {"Authorization": f"Bearer {secret or held.secret}"}
    return client.get("/api/v1/jobs", headers=headers).status_code


def test_a_new_key_has_the_limits_and_budgets_of_the_form(browser: Client) -> None:
    fields = {
        "project": make_project().slug,
        "mode": "live",
        "days": "30",
        "agents": "echo, chart-maker",
        "per_minute": "60",
        "per_day": "1000",
        "max_concurrent_jobs": "3",
        "budget_cost": "2.5",
        "budget_tokens": "100000",
        "allowed_cidrs": "10.0.0.0/8\n127.0.0.1",
    }

    reply = browser.post("/admin/apikeys/apikey/add/", form(**fields))

    key = ApiKey.objects.get()
    assert reply.status_code == 200
    assert key.scopes == ["jobs:read", "agents:echo:run", "agents:chart-maker:run"]
    assert key.windows == [{"limit": 60, "seconds": 60}, {"limit": 1000, "seconds": 86400}]
    assert (key.max_concurrent_jobs, key.budget) == (3, {"cost_usd": 2.5, "tokens": 100000})
    assert key.allowed_cidrs == ["10.0.0.0/8", "127.0.0.1/32"]
    assert key.expires_at is not None


def test_only_what_was_changed_is_changed(browser: Client) -> None:
    expires = timezone.now() + timedelta(days=9)
    windows = [{"limit": 5, "seconds": 7}, {"limit": 60, "seconds": 60}]
    key = make_key("jobs:read", "agents:echo:run", name="import", windows=windows, expires_at=expires).key

    browser.post(page(key), form(agents="echo", per_minute="60", budget_tokens="5"))

    row = AuditRow.objects.get()
    assert (row.action, row.data) == ("key.changed", {"budget": {"tokens": 5}})
    key.refresh_from_db()
    assert (key.windows, key.expires_at, key.budget) == (windows, expires, {"tokens": 5})
    browser.post(page(key), form(agents="echo", per_minute="60", days=""))
    key.refresh_from_db()
    assert (key.budget, key.expires_at) == (None, None)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": ""}, "This field is required."),
        ({"scopes": []}, "Choose at least one."),
        ({"agents": "No/Such"}, "cannot be an agent&#x27;s slug"),
        ({"allowed_cidrs": "10.0.0.0/99"}, "Not a network"),
        ({"per_minute": "0"}, "greater than or equal to 1"),
        ({"budget_cost": "nan"}, "Enter a number."),
        ({"budget_tokens": "9" * 400}, "less than or equal"),
        ({"days": "5"}, "Select a valid choice"),
    ],
)
def test_what_does_not_fit_comes_back(browser: Client, fields: dict[str, Any], said: str) -> None:
    key = make_key("jobs:read").key

    reply = browser.post(page(key), form(**fields))

    assert reply.status_code == 422
    assert said in reply.content.decode()
    assert not AuditRow.objects.exists()


def test_a_rotated_key_has_a_successor_and_ends_itself(browser: Client) -> None:
    held = make_key("jobs:read")

    reply = browser.post(page(held.key, "rotate"), {"overlap": "0"})

    secret = reply.context["secret"]
    assert "no-store" in reply.headers["Cache-Control"]
    assert (status_of(held), status_of(held, secret)) == (401, 200)
    again = browser.post(page(held.key, "rotate"), {"overlap": "0"}, follow=True).content.decode()
    assert "Only an active key that was not rotated before can be rotated" in again
    assert "its successor" in again


def test_a_disabled_key_is_refused_until_it_is_enabled(browser: Client) -> None:
    held = make_key("jobs:read")

    browser.post(page(held.key, "disable"))
    assert status_of(held) == 401
    browser.post(page(held.key, "enable"))
    assert status_of(held) == 200


def test_a_revoked_key_is_not_changed_any_more(browser: Client) -> None:
    key = make_key("jobs:read", revoked_at=timezone.now()).key

    assert "Save" not in browser.get(page(key)).content.decode()
    reply = browser.post(page(key), form())

    assert reply.status_code == 422
    assert "The key is revoked" in reply.content.decode()
    assert browser.get(page(ApiKey(id=uuid4()))).status_code == 404


def test_use_is_told_in_minutes_by_day(browser: Client) -> None:
    held = make_key("jobs:read")
    status_of(held)
    status_of(held)
    assert [use.minutes for use in KeyUse.objects.all()] == [1]
    ApiKey.objects.update(last_used_at=timezone.now() - timedelta(minutes=2))
    status_of(held)
    today = timezone.now().date()
    KeyUse.objects.create(api_key_id=held.key.id, day=today - timedelta(days=3), minutes=7)
    KeyUse.objects.create(api_key_id=held.key.id, day=today - timedelta(days=500), minutes=7)

    use = browser.get(page(held.key)).context["use"]
    listed = browser.get("/admin/apikeys/apikey/").content.decode()
    queries.sweep(limit=10)

    assert (len(use), use[-1], use[-4], sum(use)) == (30, 2, 7, 9)
    assert "In use in 9 minutes of the last 30 days" in listed
    assert KeyUse.objects.count() == 2


def test_what_its_jobs_used_of_models_stands_beside_its_budget(browser: Client) -> None:
    key = make_key("jobs:read", budget={"tokens": 1000, "cost_usd": 1.5}).key
    common = {"project": key.project, "api_key_id": key.id, "agent_version_id": uuid4(), "job_id": uuid4()}
    now = timezone.now()
    Usage.objects.create(key="a", input_tokens=200, output_tokens=34, cost_usd=0.25, at=now, **common)
    Usage.objects.create(key="b", input_tokens=9, cost_usd=9, at=now - timedelta(days=40), **common)

    text = browser.get(page(key)).content.decode()

    assert "234 of 1000" in text
    assert "$0.25 of $1.50" in text


def test_ready_lines_name_this_server_and_no_secret(browser: Client) -> None:
    page = browser.get("/admin/apikeys/apikey/connect/", headers={"Host": "testserver"})

    lines = {client["id"]: client["lines"] for client in page.context["clients"]}
    assert set(lines) >= {"curl", "python", "javascript"}
    assert all("http://testserver" in text for text in lines.values())
    compile(lines["python"], "connect.py", "exec")
    assert "base_url=&quot;http://testserver/api/v1&quot;" in page.content.decode()
