"""Webhooks over HTTP: endpoints, secrets that are shown once, deliveries, and whose they are."""

from ipaddress import ip_network
from typing import Any

import pytest
from django.utils import timezone

from apikeys.models import AuditRow
from apikeys.scopes import Scope
from jobs.notifying.models import Delivery, WebhookEndpoint
from tests.factories import KeyInHand, make_key
from tests.jobs import make_version

pytestmark = pytest.mark.django_db

WEBHOOKS = "/api/v1/webhooks"
URL = "https://example.com/hook"


@pytest.fixture
def owner() -> KeyInHand:
    return make_key()


def create(owner: KeyInHand, **body: Any) -> Any:
    return owner.client.post(WEBHOOKS, {"url": URL, **body})


def test_an_endpoint_is_made_and_its_secret_shown_once(owner: KeyInHand) -> None:
    answer = create(owner, events=["job.completed", "job.failed", "job.completed"], description="billing")

    made = answer.json()
    assert answer.status_code == 201
    assert answer["Cache-Control"] == "no-store"
    assert made["secret"].startswith("whsec_")
    assert (made["events"], made["enabled"]) == (["job.completed", "job.failed"], True)
    assert answer["Location"] == f"{WEBHOOKS}/{made['id']}"
    again = owner.client.get(answer["Location"])
    assert "secret" not in again.json()
    assert again.json() == {name: value for name, value in made.items() if name != "secret"}
    assert owner.client.get(WEBHOOKS).json()["items"] == [again.json()]
    assert made["secret"] not in str(list(WebhookEndpoint.objects.values())) + str(
        list(AuditRow.objects.values())
    )


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/url"),
        ({"url": "ftp://example.com/"}, "/url"),
        ({"url": "https://"}, "/url"),
        ({"url": 7}, "/url"),
        ({"url": "https://127.0.0.1/hook"}, "/url"),
        ({"url": "https://[::ffff:10.0.0.1]/hook"}, "/url"),
        ({"url": "http://localhost:8000/hook"}, "/url"),
        ({"url": "https://example.com:99999/hook"}, "/url"),
        ({"url": "https://example.com:0/hook"}, "/url"),
        ({"url": URL, "description": "two\nlines"}, "/description"),
        ({"url": "https://169.254.169.254/latest/meta-data"}, "/url"),
        ({"url": "https://user:secret@example.com/"}, "/url"),
        ({"url": URL, "events": ["job.done"]}, "/events/0"),
        ({"url": URL, "events": "job.completed"}, "/events"),
        ({"url": URL, "secret": "whsec_mine"}, "/secret"),
    ],
)
def test_an_endpoint_that_cannot_be_is_refused(owner: KeyInHand, body: dict[str, Any], pointer: str) -> None:
    answer = owner.client.post(WEBHOOKS, body)

    assert answer.status_code == 422, answer.json()
    assert answer.json()["errors"][0]["pointer"] == pointer
    assert not WebhookEndpoint.objects.exists()


def test_a_job_may_not_name_a_private_address_unless_it_is_allowed(owner: KeyInHand, settings: Any) -> None:
    make_version()
    body = {"task": "do it", "agent": "echo", "webhook_url": "http://127.0.0.1:9/hook"}

    settings.ENGINE_WEBHOOK_ALLOWED_NETWORKS = []
    refused = owner.client.post("/api/v1/jobs", body)
    settings.ENGINE_WEBHOOK_ALLOWED_NETWORKS = [ip_network("127.0.0.0/8")]
    taken = owner.client.post("/api/v1/jobs", body)

    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "/webhook_url"
    assert "ENGINE_WEBHOOK_ALLOWED_NETWORKS" in refused.json()["errors"][0]["detail"]
    assert taken.status_code == 201


def test_an_endpoint_is_changed_switched_off_and_deleted(owner: KeyInHand) -> None:
    made = create(owner).json()
    address = f"{WEBHOOKS}/{made['id']}"

    changed = owner.client.patch(address, {"enabled": False, "events": ["job.failed"]})
    unknown = owner.client.patch(address, {"generation": 7})
    gone = owner.client.delete(address)

    assert (changed.json()["enabled"], changed.json()["events"]) == (False, ["job.failed"])
    assert unknown.status_code == 422
    assert gone.status_code == 204
    assert owner.client.get(address).status_code == 404
    actions = set(AuditRow.objects.values_list("action", flat=True))
    assert {"webhook.created", "webhook.changed", "webhook.deleted"} <= actions


def test_each_secret_is_another_one(owner: KeyInHand) -> None:
    made = create(owner).json()
    rotated = owner.client.post(f"{WEBHOOKS}/{made['id']}/rotate").json()
    first = owner.client.post(f"{WEBHOOKS}/job-secret").json()
    second = owner.client.post(f"{WEBHOOKS}/job-secret").json()
    of_other = make_key().client.post(f"{WEBHOOKS}/job-secret").json()

    secrets = [row["secret"] for row in (made, rotated, first, second, of_other)]
    assert len(set(secrets)) == 5
    assert rotated["rotated_until"] > timezone.now().isoformat()


def test_deliveries_are_listed_and_sent_again(owner: KeyInHand) -> None:
    make_version()
    create(owner, events=["job.queued"])
    for _ in range(3):
        owner.client.post("/api/v1/jobs", {"task": "do it", "agent": "echo"})
    entry = {"at": "2026-01-01T00:00:00Z", "ms": 3, "status": 500, "error": "HTTP 500", "response": "no"}
    failed = Delivery.objects.order_by("id")[0]
    Delivery.objects.filter(id=failed.id).update(state="failed", tries=10, log=[entry])

    page = owner.client.get(f"{WEBHOOKS}/deliveries?limit=2").json()
    rest = owner.client.get(f"{WEBHOOKS}/deliveries?limit=2&cursor={page['next_cursor']}").json()
    only = owner.client.get(f"{WEBHOOKS}/deliveries?state=failed&event=job.queued").json()["items"]
    again = owner.client.post(f"{WEBHOOKS}/deliveries/{failed.id}/redeliver")
    twice = owner.client.post(f"{WEBHOOKS}/deliveries/{failed.id}/redeliver")

    assert (len(page["items"]), len(rest["items"]), rest["next_cursor"]) == (2, 1, None)
    assert [row["id"] for row in only] == [str(failed.id)]
    assert only[0]["log"] == [entry]
    assert (only[0]["receiver"], only[0]["next_try_at"]) == (URL, None)
    assert (again.status_code, again.json()["state"]) == (202, "pending")
    assert (twice.status_code, twice.json()["code"]) == (409, "delivery_pending")


def test_a_ping_becomes_a_delivery(owner: KeyInHand) -> None:
    made = create(owner, events=["job.failed"]).json()

    answer = owner.client.post(f"{WEBHOOKS}/{made['id']}/ping")

    assert (answer.status_code, answer.json()["event"]) == (202, "webhook.ping")
    assert Delivery.objects.get().endpoint_id == WebhookEndpoint.objects.get().id


def test_another_projects_webhooks_answer_as_missing_ones(owner: KeyInHand) -> None:
    make_version()
    made = create(owner).json()
    owner.client.post("/api/v1/jobs", {"task": "do it", "agent": "echo"})
    delivery = Delivery.objects.get()
    other, missing = make_key(), "01990000-0000-7000-8000-000000000000"

    for method, path in (
        ("get", f"{WEBHOOKS}/{{}}"),
        ("patch", f"{WEBHOOKS}/{{}}"),
        ("delete", f"{WEBHOOKS}/{{}}"),
        ("post", f"{WEBHOOKS}/{{}}/rotate"),
        ("post", f"{WEBHOOKS}/{{}}/ping"),
        ("post", f"{WEBHOOKS}/deliveries/{{}}/redeliver"),
    ):
        its_own = delivery.id if "deliveries" in path else made["id"]
        headers = {"HTTP_X_REQUEST_ID": "same"}
        there = getattr(other.client, method)(path.format(its_own), **headers)
        nowhere = getattr(other.client, method)(path.format(missing), **headers)
        assert (there.status_code, there.content) == (404, nowhere.content), path
    assert other.client.get(WEBHOOKS).json()["items"] == []
    assert other.client.get(f"{WEBHOOKS}/deliveries").json()["items"] == []
    assert owner.client.get(f"{WEBHOOKS}/{made['id']}").status_code == 200


def test_webhooks_need_a_scope_of_their_own() -> None:
    reader = make_key(Scope.JOBS_READ, Scope.JOBS_WRITE, Scope.ADMIN_KEYS)

    assert reader.client.get(WEBHOOKS).json()["missing_scope"] == "admin:webhooks"
    assert reader.client.post(f"{WEBHOOKS}/job-secret").status_code == 403
    assert make_key(Scope.ADMIN_WEBHOOKS).client.get(WEBHOOKS).status_code == 200


def test_a_project_has_a_limited_number_of_endpoints(owner: KeyInHand) -> None:
    WebhookEndpoint.objects.bulk_create(
        WebhookEndpoint(project=owner.project, url=URL, created_by="test") for _ in range(50)
    )

    answer = create(owner)

    assert (answer.status_code, answer.json()["code"]) == (409, "too_many_webhooks")
