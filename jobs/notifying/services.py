"""What callers may ask of webhooks: endpoints and their secrets, deliveries and another try of one."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from apikeys.callers import Caller
from apikeys.models import Project
from apikeys.services import audit
from engine.errors import ValidationFailed
from engine.outgoing import AddressRefused, check_url
from jobs.errors import DeliveryNotFound, DeliveryPending, TooManyWebhooks, WebhookNotFound
from jobs.notifying import signing
from jobs.notifying.models import PING, Delivery, JobWebhookSecret, WebhookEndpoint

# A new secret signs at once; the one before signs for so much longer, beside it.
OVERLAP = timedelta(hours=24)
MOST_ENDPOINTS = 50


@transaction.atomic
def create(
    by: Caller, *, url: str, events: Sequence[str] = (), description: str = "", project: Project | None = None
) -> tuple[WebhookEndpoint, str]:
    """A new endpoint of the caller's project, or for staff of `project`, and its secret, which is shown this once."""
    owner = by.project or project
    assert owner is not None  # noqa: S101 (staff name a project; the views see to it)
    _check(url)
    Project.objects.select_for_update(no_key=True).get(id=owner.id)
    if WebhookEndpoint.objects.filter(project=owner).count() >= MOST_ENDPOINTS:
        raise TooManyWebhooks(f"A project has at most {MOST_ENDPOINTS} webhooks.")
    endpoint = WebhookEndpoint.objects.create(
        project=owner, url=url, events=list(events), description=description, created_by=by.label
    )
    audit(by, "webhook.created", f"webhook:{endpoint.id}", project=owner, url=url, events=list(events))
    return endpoint, signing.secret(endpoint.id, endpoint.generation)


@transaction.atomic
def change(by: Caller, endpoint_id: UUID, **changes: Any) -> WebhookEndpoint:
    """Set its url, events, description, or whether it is enabled. Raises WebhookNotFound."""
    endpoint = _locked(by, endpoint_id)
    if "url" in changes:
        _check(changes["url"])
    for column, value in changes.items():
        setattr(endpoint, column, value)
    if changes.get("enabled"):
        endpoint.disabled_reason = ""
    if "url" in changes:  # what waits for another try goes to the new address
        waiting = Delivery.objects.filter(endpoint_id=endpoint.id, state=Delivery.State.PENDING)
        waiting.update(receiver=endpoint.url, host=host_of(endpoint.url))
    if changes:
        endpoint.save(update_fields=[*changes, "disabled_reason"])
        audit(by, "webhook.changed", f"webhook:{endpoint.id}", project=endpoint.project, **changes)
    return endpoint


@transaction.atomic
def delete(by: Caller, endpoint_id: UUID) -> None:
    """Forget the endpoint. What was to be sent to it is not. Raises WebhookNotFound."""
    endpoint = _locked(by, endpoint_id)
    audit(by, "webhook.deleted", f"webhook:{endpoint.id}", project=endpoint.project, url=endpoint.url)
    endpoint.delete()


@transaction.atomic
def rotate(by: Caller, endpoint_id: UUID) -> tuple[WebhookEndpoint, str]:
    """A new secret; for 24 hours messages carry a signature by the old one too. Raises WebhookNotFound."""
    endpoint = _locked(by, endpoint_id)
    endpoint.generation += 1
    endpoint.rotated_until = Now() + OVERLAP
    endpoint.save(update_fields=["generation", "rotated_until"])
    endpoint.refresh_from_db()
    audit(by, "webhook.rotated", f"webhook:{endpoint.id}", project=endpoint.project)
    return endpoint, signing.secret(endpoint.id, endpoint.generation)


@transaction.atomic
def job_secret(by: Caller, *, project: Project | None = None) -> str:
    """The secret that signs what goes to jobs' own `webhook_url`; asked again, a new one takes over as in `rotate`."""
    owner = by.project or project
    assert owner is not None  # noqa: S101 (staff name a project; the views see to it)
    Project.objects.select_for_update(no_key=True).get(id=owner.id)
    held, is_new = JobWebhookSecret.objects.get_or_create(project=owner)
    if not is_new:
        held.generation += 1
        held.rotated_until = Now() + OVERLAP
        held.save(update_fields=["generation", "rotated_until"])
    audit(by, "webhook.job_secret", f"project:{owner.slug}", project=owner)
    return signing.secret(owner.id, held.generation)


def get(by: Caller, endpoint_id: UUID) -> WebhookEndpoint:
    """An endpoint that the caller may see. Raises WebhookNotFound."""
    endpoint = WebhookEndpoint.objects.visible_to(by).filter(id=endpoint_id).first()
    if endpoint is None:
        raise WebhookNotFound
    return endpoint


@transaction.atomic
def ping(by: Caller, endpoint_id: UUID) -> Delivery:
    """Send a `webhook.ping` to an endpoint, to see whether it hears. Raises WebhookNotFound."""
    endpoint = get(by, endpoint_id)
    audit(by, "webhook.pinged", f"webhook:{endpoint.id}", project=endpoint.project)
    return Delivery.objects.create(
        project_id=endpoint.project_id,
        endpoint_id=endpoint.id,
        channel=Delivery.Channel.WEBHOOK,
        receiver=endpoint.url,
        host=host_of(endpoint.url),
        event=PING,
    )


@transaction.atomic
def redeliver(by: Caller, delivery_id: UUID) -> Delivery:
    """Send a delivery again, at once and under the same id, with all tries anew.

    Raises DeliveryNotFound, and DeliveryPending while it waits for a try of its own.
    """
    rows = Delivery.objects.visible_to(by).select_for_update(no_key=True)
    delivery = rows.filter(id=delivery_id).first()
    if delivery is None:
        raise DeliveryNotFound
    if delivery.state == Delivery.State.PENDING and delivery.tries == delivery.tries_before:
        raise DeliveryPending(next_try_at=delivery.next_try_at)
    delivery.state = Delivery.State.PENDING
    delivery.tries_before, delivery.next_try_at = F("tries"), Now()
    delivery.save(update_fields=["state", "tries_before", "next_try_at"])
    delivery.refresh_from_db()
    audit(by, "webhook.redelivered", f"delivery:{delivery.id}", project=delivery.project)
    return delivery


def receiver_is_gone(delivery: Delivery) -> None:
    """A receiver said 410: its endpoint is switched off, and what else waits for it is not sent."""
    if delivery.endpoint_id is not None:
        reason = "It answered 410 Gone."
        WebhookEndpoint.objects.filter(id=delivery.endpoint_id).update(enabled=False, disabled_reason=reason)


def host_of(url: str) -> str:
    """The host and port of a URL, as the outbox counts calls in progress by."""
    return urlsplit(url).netloc.lower()


def _check(url: str) -> None:
    try:
        check_url(url)
    except AddressRefused as refused:
        raise ValidationFailed(errors=[{"pointer": "/url", "detail": str(refused)}]) from refused


def _locked(by: Caller, endpoint_id: UUID) -> WebhookEndpoint:
    rows = WebhookEndpoint.objects.visible_to(by).select_related("project")
    endpoint = rows.select_for_update(of=("self",), no_key=True).filter(id=endpoint_id).first()
    if endpoint is None:
        raise WebhookNotFound
    return endpoint
