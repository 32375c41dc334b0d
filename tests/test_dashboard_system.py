"""The system page: each part with its state and remedy, for those who may see workers; nothing there waits."""

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from django.test import Client

from engine import __version__, readiness
from engine.diagnosis import PARTS
from jobs.models import Worker
from tests.dashboard import make_person, signed_in
from tests.jobs import make_worker
from tests.processes import eventually

pytestmark = pytest.mark.django_db

PAGE = "/admin/system/"
HOSTILE = "<script>alert(1)</script>\u202egnp.exe"


@pytest.fixture(autouse=True)
def fresh_readings() -> Iterator[None]:
    readiness.forget()
    yield
    readiness.forget()


@pytest.fixture
def browser() -> Client:
    return signed_in(make_person("ada", "jobs.view_worker", "jobs.view_job"))


def test_each_part_has_its_line_and_the_versions_are_there(browser: Client) -> None:
    Worker.objects.filter(id=make_worker()).update(can_run=True)

    page = browser.get(PAGE)

    assert {reading.name for reading in page.context["readings"]} == set(PARTS)
    assert "PostgreSQL" in page.text
    assert __version__ in page.text
    assert page.context["workers"] == 1
    assert page.context["is_ready"]


def test_what_needs_somebody_stands_first_with_its_remedy(browser: Client) -> None:
    page = browser.get(PAGE)

    first = page.context["readings"][0]
    assert (first.name, first.state) == ("workers", "failed")
    assert "To fix it: Run manage.py runworker." in page.text


def test_what_a_worker_says_of_its_sandbox_is_text(browser: Client) -> None:
    worker = make_worker()
    said = {"ok": False, "name": "local", "detail": HOSTILE, "remedy": HOSTILE}
    Worker.objects.filter(id=worker).update(can_run=False, health={"sandbox": said}, version=HOSTILE[:20])

    page = browser.get(PAGE)

    assert "alert(1)" in page.text
    assert "<script>alert" not in page.text
    assert "\u202e" not in page.text


def test_a_server_that_hangs_delays_neither_page_and_is_shown_on_both(
    browser: Client, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(address: str, **_: Any) -> httpx.Response:
        time.sleep(1)  # a server that hangs, not a test that waits
        raise httpx.ReadTimeout("it said nothing")

    monkeypatch.setattr(httpx, "get", hang)
    settings.OPENAI_BASE_URL = "http://model.internal/v1"
    browser.get(PAGE)
    begun = time.monotonic()
    pages = [browser.get(PAGE) for _ in range(3)]
    took = time.monotonic() - begun
    eventually(
        lambda: "model.internal: it said nothing" in browser.get(PAGE).text, seconds=30, what="its line"
    )
    overview = browser.get("/admin/")

    assert all("being looked at" in page.text for page in pages)
    assert took < 3
    assert "Model API: not as it should be" in overview.text


def test_who_may_not_see_workers_sees_nothing_of_the_system(client: Client) -> None:
    nobody = signed_in(make_person("bob", "jobs.view_job"))

    assert nobody.get(PAGE).status_code == 403
    assert client.get(PAGE).status_code == 302


def test_the_page_refreshes_by_itself(browser: Client) -> None:
    answer = browser.get(PAGE, headers={"Accept": "application/json"})

    assert "PostgreSQL" in answer.json()["parts"]["system"]
