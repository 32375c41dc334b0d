"""Who is told what: endpoints that projects named, and the outbox of webhooks and mails."""

from typing import ClassVar

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from uuid_utils.compat import uuid7

from apikeys.callers import Caller
from apikeys.models import Project

# Every event that is told. The triggers of migration 0005 write them.
EVENTS = (
    "job.queued",
    "job.scheduled",
    "job.started",
    "job.waiting",
    "job.retrying",
    "job.completed",
    "job.failed",
    "job.cancelled",
    "job.rejected",
    "question.opened",
    "question.reminder",
    "question.answered",
    "question.expired",
    "question.superseded",
)
PING = "webhook.ping"


class WebhookEndpointQuerySet(models.QuerySet["WebhookEndpoint"]):
    """Endpoints as callers ask for them."""

    def visible_to(self, by: Caller) -> "WebhookEndpointQuerySet":
        """The only owner filter: a key sees its project's endpoints, staff sees all."""
        return self if by.project is None else self.filter(project=by.project)


class WebhookEndpoint(models.Model):
    """An address that hears of a project's jobs. Its secret is derived (`signing.py`), never stored."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.ForeignKey(Project, on_delete=models.PROTECT, db_index=False)
    url = models.TextField()
    description = models.TextField(default="", blank=True)
    events = ArrayField(models.TextField(), default=list, blank=True)  # empty: all
    enabled = models.BooleanField(default=True)
    disabled_reason = models.TextField(default="", blank=True)  # why Engine itself switched it off
    generation = models.IntegerField(default=1)  # of the secret
    # Until then the secret of the generation before signs too.
    rotated_until = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    created_by = models.TextField()

    objects = WebhookEndpointQuerySet.as_manager()

    class Meta:
        indexes = [models.Index(fields=["project"], condition=Q(enabled=True), name="endpoint_told_idx")]

    def __str__(self) -> str:
        return self.url


class JobWebhookSecret(models.Model):
    """Which secret signs what goes to the `webhook_url` of a project's jobs. Without a row: the first."""

    project = models.OneToOneField(Project, on_delete=models.CASCADE, primary_key=True)
    generation = models.IntegerField(default=1)
    rotated_until = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return f"{self.project_id}: {self.generation}"


class DeliveryQuerySet(models.QuerySet["Delivery"]):
    """Deliveries as callers ask for them."""

    def visible_to(self, by: Caller) -> "DeliveryQuerySet":
        """The only owner filter: a key sees its project's deliveries, staff sees all."""
        return self if by.project is None else self.filter(project=by.project)


class Delivery(models.Model):
    """One message to one receiver: a row of the outbox, written in the transaction of what it tells.

    Its id is the `webhook-id`, the same in each try. What it says is made from rows that no longer change
    (`payloads.py`), so each try says the same.
    """

    class State(models.TextChoices):
        PENDING = "pending"
        DELIVERED = "delivered"
        FAILED = "failed"  # given up
        SKIPPED = "skipped"  # nothing was sent: no e-mail is configured, or its receiver is gone

    class Channel(models.TextChoices):
        WEBHOOK = "webhook"
        EMAIL = "email"

    OPEN: ClassVar[str] = State.PENDING

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.ForeignKey(Project, on_delete=models.PROTECT, db_index=False, db_constraint=False)
    # No foreign keys below: the trigger's transaction has just written or read what they name.
    job_id = models.UUIDField(null=True)
    question_id = models.UUIDField(null=True)
    endpoint_id = models.UUIDField(null=True)  # null: the job's own webhook_url, or an e-mail
    channel = models.CharField(max_length=8, choices=Channel)
    receiver = models.TextField()  # URL, or e-mail address
    host = models.TextField()  # of the URL: at most a few calls to one at a time
    event = models.TextField()
    data = models.JSONField(default=dict)  # what of the moment its rows do not keep
    state = models.CharField(max_length=9, choices=State, default=State.PENDING, db_default=State.PENDING)
    tries = models.IntegerField(default=0, db_default=0)  # never goes back: it is the sender's fence
    tries_before = models.IntegerField(default=0, db_default=0)  # those before the last redelivery
    next_try_at = models.DateTimeField(
        db_default=Now()
    )  # while it is being sent: when another sender may try
    log = models.JSONField(
        default=list, db_default=models.Value([], models.JSONField())
    )  # [{"at", "ms", "status", "error", "response"}], the last tries
    delivered_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    objects = DeliveryQuerySet.as_manager()

    class Meta:
        indexes = [
            models.Index(fields=["next_try_at"], condition=Q(state="pending"), name="delivery_due_idx"),
            models.Index(fields=["project", "-id"], name="delivery_list_idx"),
            models.Index(fields=["job_id"], name="delivery_job_idx"),
            models.Index(fields=["endpoint_id", "-id"], name="delivery_endpoint_idx"),
        ]

    def __str__(self) -> str:
        return f"{self.event} to {self.receiver}"
