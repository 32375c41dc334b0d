"""Webhooks in the dashboard: made, switched, deleted, their secrets shown once, and deliveries sent again."""

import re
from typing import Any

import pytest
from django.test import Client

from apikeys.models import AuditRow
from jobs.models import Job
from jobs.notifying.models import Delivery, WebhookEndpoint
from tests.dashboard import make_person, signed_in
from tests.jobs import make_caller, make_job, make_project

pytestmark = pytest.mark.django_db

PAGE = "/admin/jobs/webhookendpoint/"


@pytest.fixture
def browser() -> Client:
    """A superuser's."""
    return signed_in(make_person())


def make_endpoint(**fields: object) -> WebhookEndpoint:
    values = {"project": make_project(), "url": "https://example.com/hook", "created_by": "test", **fields}
    return WebhookEndpoint.objects.create(**values)


def do(browser: Client, endpoint: WebhookEndpoint, action: str) -> Any:
    return browser.post(f"{PAGE}{endpoint.id}/{action}/")


def test_a_webhook_is_made_and_its_secret_shown_once(browser: Client) -> None:
    make_project()
    values = {"url": "https://example.com/hook", "project": "acme", "events": ["job.failed"]}

    shown = browser.post(f"{PAGE}add/", values)

    made = WebhookEndpoint.objects.get()
    assert re.search(r"whsec_[A-Za-z0-9+/=]{44}", shown.text)
    assert (made.url, made.events, made.created_by) == (
        "https://example.com/hook",
        ["job.failed"],
        "user:ada",
    )
    assert "whsec_" not in browser.get(PAGE).text
    assert AuditRow.objects.get().action == "webhook.created"


@pytest.mark.parametrize("url", ["", "https://10.0.0.1/", "http://localhost/"])
def test_an_address_that_cannot_be_called_is_explained_at_its_field(browser: Client, url: str) -> None:
    make_project()

    answer = browser.post(f"{PAGE}add/", {"url": url, "project": "acme"})

    assert answer.status_code == 422
    assert answer.context["form"].errors["url"]
    assert not WebhookEndpoint.objects.exists()


def test_a_webhook_is_switched_pinged_and_deleted(browser: Client) -> None:
    endpoint = make_endpoint()

    do(browser, endpoint, "disable")
    endpoint.refresh_from_db()
    assert not endpoint.enabled
    do(browser, endpoint, "enable")
    do(browser, endpoint, "ping")
    endpoint.refresh_from_db()
    assert endpoint.enabled
    assert Delivery.objects.get().event == "webhook.ping"
    assert "whsec_" in do(browser, endpoint, "rotate").text
    do(browser, endpoint, "delete")
    assert not WebhookEndpoint.objects.exists()


def test_deliveries_are_shown_with_what_was_answered_and_sent_again(browser: Client) -> None:
    make_endpoint(events=["job.queued"])
    make_job()
    entry = {
        "at": "2026-01-01T00:00:00Z",
        "ms": 7,
        "status": 500,
        "error": "HTTP 500",
        "response": "<b>no</b>",
    }
    Delivery.objects.update(state="failed", tries=10, log=[entry])

    page = browser.get(f"{PAGE}?state=failed").text
    assert "HTTP 500" in page
    assert "<b>no" not in page
    assert "HTTP 500" not in browser.get(f"{PAGE}?state=delivered").text
    browser.post(f"{PAGE}deliveries/{Delivery.objects.get().id}/redeliver/")

    assert Delivery.objects.get().state == "pending"


def test_staff_without_the_right_can_do_nothing(browser: Client) -> None:
    endpoint = make_endpoint()
    make_job()
    delivery = Delivery.objects.get()
    clerk = signed_in(make_person("bob", "jobs.view_job", "jobs.change_question"))

    for action in ("disable", "rotate", "delete", "ping"):
        assert clerk.post(f"{PAGE}{endpoint.id}/{action}/").status_code == 403
    assert clerk.post(f"{PAGE}deliveries/{delivery.id}/redeliver/").status_code == 403
    assert WebhookEndpoint.objects.get().enabled
    assert Job.objects.visible_to(make_caller()).count() == 1


def test_what_is_not_there_is_not_found(browser: Client) -> None:
    nowhere = "01990000-0000-7000-8000-000000000000"

    assert browser.post(f"{PAGE}{nowhere}/disable/").status_code == 404
    assert browser.post(f"{PAGE}deliveries/{nowhere}/redeliver/").status_code == 404
    assert browser.post(f"{PAGE}{make_endpoint().id}/explode/").status_code == 404
    assert browser.get(f"{PAGE}{nowhere}/disable/").status_code == 405
