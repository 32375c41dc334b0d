"""The JSON of keys and projects, in and out."""

from datetime import timedelta
from ipaddress import ip_network
from typing import Any

from rest_framework import serializers
from rest_framework.exceptions import ValidationError

from apikeys.models import ApiKey, Project
from apikeys.scopes import is_scope
from apikeys.secret import MODES
from engine.serializers import LineField, StrictSerializer

MAX_OVERLAP = timedelta(days=30)
MAX_INT = 2**31 - 1


class ScopesField(serializers.ListField):
    """One or more scopes, each once."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            child=serializers.CharField(max_length=100),
            allow_empty=False,
            min_length=1,
            max_length=100,
            **kwargs,
        )

    def to_internal_value(self, data: Any) -> list[str]:
        """The scopes without repetition. Raises ValidationError for one that does not exist."""
        scopes: list[str] = super().to_internal_value(data)
        faults = {
            index: ["There is no such scope"] for index, scope in enumerate(scopes) if not is_scope(scope)
        }
        if faults:
            raise ValidationError(faults)  # type: ignore[arg-type]  # as ListField itself raises it
        return list(dict.fromkeys(scopes))


class CidrField(serializers.CharField):
    """A network such as 10.0.0.0/8; a single address is a network of one."""

    def to_internal_value(self, data: Any) -> str:
        """The network in its usual spelling."""
        try:
            return str(ip_network(super().to_internal_value(data)))
        except ValueError as exc:
            raise ValidationError("Not a network like 10.0.0.0/8 or 2001:db8::/32") from exc


class WindowSerializer(StrictSerializer):
    """At most `limit` requests in `seconds`."""

    limit = serializers.IntegerField(min_value=1, max_value=1_000_000_000)
    seconds = serializers.IntegerField(min_value=1, max_value=366 * 86_400)


class KeyBudgetSerializer(StrictSerializer):
    """What the key's jobs may use of models in a calendar month (UTC)."""

    cost_usd = serializers.FloatField(min_value=0, max_value=1_000_000_000, required=False)
    tokens = serializers.IntegerField(min_value=0, max_value=10**15, required=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """An empty budget would limit nothing; null says that."""
        if not attrs:
            raise ValidationError("Give `cost_usd`, `tokens` or both; null for no limit")
        return attrs


class KeySettings(StrictSerializer):
    """The body of PATCH /api/v1/admin/keys/:id. Not a partial serializer: that would let windows be partial."""

    name = LineField(max_length=100, required=False)
    scopes = ScopesField(required=False)
    windows = WindowSerializer(many=True, required=False, max_length=5)  # type: ignore[call-arg]  # not in the stubs
    max_concurrent_jobs = serializers.IntegerField(
        required=False, allow_null=True, min_value=1, max_value=MAX_INT
    )
    budget = KeyBudgetSerializer(required=False, allow_null=True)
    expires_at = serializers.DateTimeField(required=False, allow_null=True)
    allowed_cidrs = serializers.ListField(child=CidrField(max_length=49), required=False, max_length=50)

    def validate_windows(self, windows: list[dict[str, int]]) -> list[dict[str, int]]:
        """Shortest first, one for each length."""
        if len({window["seconds"] for window in windows}) < len(windows):
            raise ValidationError("Two windows have the same length")
        return sorted((dict(window) for window in windows), key=lambda window: window["seconds"])


class NewKey(KeySettings):
    """The body of POST /api/v1/admin/keys."""

    name = LineField(max_length=100)
    scopes = ScopesField()
    mode = serializers.ChoiceField(choices=MODES, default="live")


class Rotation(StrictSerializer):
    """The body of POST /api/v1/admin/keys/:id/rotate."""

    # For how much longer the old secret is accepted.
    overlap_seconds = serializers.IntegerField(
        required=False, min_value=0, max_value=int(MAX_OVERLAP.total_seconds())
    )


class KeySerializer(serializers.ModelSerializer[ApiKey]):
    """A key as it is shown; its secret is not part of it."""

    project = serializers.SlugRelatedField[Project](slug_field="slug", read_only=True)
    replaced_by = serializers.UUIDField(source="replaced_by_id", read_only=True, allow_null=True)
    budget = KeyBudgetSerializer(read_only=True, allow_null=True)

    class Meta:
        model = ApiKey
        fields: tuple[str, ...] = (
            "id",
            "name",
            "prefix",
            "project",
            "scopes",
            "windows",
            "max_concurrent_jobs",
            "budget",
            "expires_at",
            "allowed_cidrs",
            "created_at",
            "created_by",
            "last_used_at",
            "disabled_at",
            "revoked_at",
            "replaced_by",
        )
        read_only_fields = fields


class KeyWithSecretSerializer(KeySerializer):
    """A key in the one answer that shows its secret."""

    secret = serializers.CharField(read_only=True)

    class Meta(KeySerializer.Meta):
        fields = (*KeySerializer.Meta.fields, "secret")
        read_only_fields = fields


class ProjectSettings(StrictSerializer):
    """The body of PATCH /api/v1/admin/projects/:slug; null limits nothing."""

    name = LineField(max_length=200, required=False)
    max_running = serializers.IntegerField(required=False, allow_null=True, min_value=0, max_value=MAX_INT)
    max_queued = serializers.IntegerField(required=False, allow_null=True, min_value=0, max_value=MAX_INT)
    weight = serializers.IntegerField(required=False, min_value=1, max_value=1000)
    storage_bytes = serializers.IntegerField(
        required=False, allow_null=True, min_value=0, max_value=2**63 - 1
    )
    monthly_jobs = serializers.IntegerField(required=False, allow_null=True, min_value=0, max_value=MAX_INT)
    on_weak_match = serializers.ChoiceField(choices=Project.OnWeakMatch.choices, required=False)
    discovery_cut = serializers.ChoiceField(choices=Project.DiscoveryCut.choices, required=False)


class NewProject(ProjectSettings):
    """The body of POST /api/v1/admin/projects."""

    slug = serializers.RegexField(r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")


class ProjectSerializer(serializers.ModelSerializer[Project]):
    """A project as it is shown."""

    class Meta:
        model = Project
        fields: tuple[str, ...] = (
            "id",
            "slug",
            "name",
            "max_running",
            "max_queued",
            "weight",
            "storage_bytes",
            "monthly_jobs",
            "on_weak_match",
            "discovery_cut",
            "created_at",
            "archived_at",
        )
        read_only_fields = fields


class ProjectWithKeySerializer(ProjectSerializer):
    """A project in the answer that made it, with its first key."""

    key = KeyWithSecretSerializer(read_only=True)

    class Meta(ProjectSerializer.Meta):
        fields = (*ProjectSerializer.Meta.fields, "key")
        read_only_fields = fields
