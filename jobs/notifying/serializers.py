"""The JSON of webhooks, in and out."""

from typing import Any

from django.core.validators import URLValidator
from rest_framework import serializers

from engine.serializers import LineField, StrictSerializer
from jobs.notifying.models import EVENTS, Delivery, WebhookEndpoint


class EventsField(serializers.ListField):
    """Names of events, each once."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(child=serializers.ChoiceField(choices=EVENTS), max_length=len(EVENTS), **kwargs)

    def to_internal_value(self, data: Any) -> list[str]:
        """The names without repetition."""
        if isinstance(data, list) and len(data) > len(
            EVENTS
        ):  # or repetitions would make room for themselves
            self.fail("max_length", max_length=len(EVENTS), length=len(data))
        return list(dict.fromkeys(super().to_internal_value(data)))


class WebhookSettings(StrictSerializer):
    """The body of PATCH /api/v1/webhooks/:id."""

    url = serializers.CharField(
        max_length=2000, validators=[URLValidator(schemes=["http", "https"])], required=False
    )
    events = EventsField(required=False, help_text="Which events it hears; empty: all.")
    description = LineField(max_length=500, allow_blank=True, required=False)
    enabled = serializers.BooleanField(required=False)


class NewWebhook(StrictSerializer):
    """The body of POST /api/v1/webhooks."""

    url = serializers.CharField(max_length=2000, validators=[URLValidator(schemes=["http", "https"])])
    events = EventsField(required=False, default=list, help_text="Which events it hears; empty: all.")
    description = LineField(max_length=500, allow_blank=True, required=False, default="")


class WebhookSerializer(serializers.ModelSerializer[WebhookEndpoint]):
    """An endpoint as it is shown; its secret is not part of it."""

    class Meta:
        model = WebhookEndpoint
        fields: tuple[str, ...] = (
            "id",
            "url",
            "events",
            "description",
            "enabled",
            "disabled_reason",
            "rotated_until",
            "created_at",
            "created_by",
        )
        read_only_fields = fields


class WebhookWithSecretSerializer(WebhookSerializer):
    """An endpoint in the one answer that shows its secret."""

    secret = serializers.CharField(read_only=True, help_text="`whsec_…`, for the receiver to verify with.")

    class Meta(WebhookSerializer.Meta):
        fields = (*WebhookSerializer.Meta.fields, "secret")
        read_only_fields = fields


class TrySerializer(serializers.Serializer[Any]):
    """One try to deliver, newest first in the log."""

    at = serializers.DateTimeField()
    ms = serializers.IntegerField(help_text="How long it took, in milliseconds.")
    status = serializers.IntegerField(allow_null=True, help_text="Of the receiver's answer.")
    error = serializers.CharField()
    response = serializers.CharField(help_text="How the receiver's answer began.")


class DeliverySerializer(serializers.ModelSerializer[Delivery]):
    """A message to one receiver and how its tries went. `id` is the `webhook-id`."""

    webhook_id = serializers.UUIDField(
        source="endpoint_id", read_only=True, help_text="Null: the job's own `webhook_url`, or an e-mail."
    )
    log = TrySerializer(many=True, read_only=True)

    class Meta:
        model = Delivery
        fields: tuple[str, ...] = (
            "id",
            "webhook_id",
            "job_id",
            "question_id",
            "event",
            "channel",
            "receiver",
            "state",
            "tries",
            "next_try_at",
            "delivered_at",
            "created_at",
            "log",
        )
        read_only_fields = fields

    def to_representation(self, instance: Delivery) -> dict[str, Any]:
        """The next try is told where there is one."""
        document: dict[str, Any] = super().to_representation(instance)
        if instance.state != Delivery.State.PENDING:
            document["next_try_at"] = None
        return document
