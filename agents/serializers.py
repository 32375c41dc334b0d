"""The JSON of agents and discovery, in and out. Cards are checked in `agents/cards.py`."""

from typing import Any

from rest_framework import serializers

from agents.discovery import MAX_LIMIT, Filters
from agents.health import health, provider_problem, success_rate, typical_duration
from agents.models import Agent, AgentStats, AgentVersion
from engine.serializers import LineField, StrictSerializer

MAX_TASK_LENGTH = 100_000
# In one request: of the usual length they take half a minute to embed.
MAX_CARDS = 1_000


class HealthSerializer(serializers.Serializer[Any]):
    """Whether an agent can be given work now."""

    status = serializers.ChoiceField(choices=["ok", "failing", "unavailable"])
    reason = serializers.CharField(required=False)


class VersionSummarySerializer(serializers.ModelSerializer[AgentVersion]):
    """One version in a list of an agent's versions."""

    version = serializers.IntegerField(source="number")

    class Meta:
        model = AgentVersion
        fields = ("version", "name", "kind", "description", "created_at", "created_by")
        read_only_fields = fields


PROVIDER = "provider"  # in a serializer's context


class AgentSummarySerializer(serializers.ModelSerializer[AgentVersion]):
    """An agent in a list: its current version without source and instructions."""

    slug = serializers.CharField(source="agent.slug")
    version = serializers.IntegerField(source="number")
    status = serializers.ChoiceField(source="agent.status", choices=Agent.Status.choices)
    shared = serializers.BooleanField(source="agent.is_shared")
    health = serializers.SerializerMethodField()
    success_rate = serializers.SerializerMethodField()
    typical_duration_s = serializers.SerializerMethodField()
    # The agent's first registration, and this version's.
    created_at = serializers.DateTimeField(source="agent.created_at")
    updated_at = serializers.DateTimeField(source="created_at")

    class Meta:
        model = AgentVersion
        fields: tuple[str, ...] = (
            "slug",
            "version",
            "name",
            "description",
            "summary",
            "kind",
            "status",
            "shared",
            "skills",
            "examples",
            "tags",
            "limits",
            "health",
            "success_rate",
            "typical_duration_s",
            "created_at",
            "updated_at",
        )
        read_only_fields = fields

    def get_health(self, version: AgentVersion) -> dict[str, Any]:
        """Its state now."""
        # One look for a whole list: all its rows share the context.
        if PROVIDER not in self.context:
            self.context[PROVIDER] = provider_problem()
        return health(version, _stats(version), provider=self.context[PROVIDER]).as_json()

    def get_success_rate(self, version: AgentVersion) -> float | None:
        """Share of its runs that ended well."""
        return success_rate(_stats(version))

    def get_typical_duration_s(self, version: AgentVersion) -> float | None:
        """Median duration of a run in seconds."""
        return typical_duration(_stats(version))


class AgentSerializer(AgentSummarySerializer):
    """An agent, or one version of it, with everything that was registered."""

    class Meta(AgentSummarySerializer.Meta):
        fields = (
            *AgentSummarySerializer.Meta.fields,
            "input_schema",
            "output_schema",
            "requirements",
            "source",
            "instructions",
            "model",
            "tools",
            "settings",
            "created_by",
        )
        read_only_fields = fields


class CardsSerializer(StrictSerializer):
    """Cards to register together, each as POST /api/v1/agents takes it."""

    agents = serializers.ListField(child=serializers.DictField(), min_length=1, max_length=MAX_CARDS)


class ImportedAgentSerializer(serializers.Serializer[Any]):
    """One of them, as it is registered now."""

    agent = serializers.CharField()
    version = serializers.IntegerField()


class ImportedSerializer(serializers.Serializer[Any]):
    """What they are registered as, in their order."""

    items = ImportedAgentSerializer(many=True)


class FieldChangeSerializer(serializers.Serializer[Any]):
    """One field that differs."""

    field = serializers.CharField()
    before = serializers.JSONField()
    after = serializers.JSONField()


class FileDiffSerializer(serializers.Serializer[Any]):
    """One source file that differs, as a unified diff."""

    file = serializers.CharField()
    diff = serializers.CharField()


class DiffSerializer(serializers.Serializer[Any]):
    """What changed between two versions."""

    older = serializers.IntegerField()
    newer = serializers.IntegerField()
    fields_changed = FieldChangeSerializer(many=True)
    files_changed = FileDiffSerializer(many=True)


class FiltersSerializer(StrictSerializer):
    """Which agents are ranked at all."""

    # All of these tags.
    tags = serializers.ListField(child=LineField(max_length=40), max_length=20, default=list)
    # One of these kinds.
    kinds = serializers.ListField(
        child=serializers.ChoiceField(choices=AgentVersion.Kind.choices), max_length=10, default=list
    )
    # `available` leaves out agents that cannot run now, as jobs do; otherwise their health says so.
    health = serializers.ChoiceField(choices=["any", "available"], default="any")

    def as_filters(self, data: dict[str, Any]) -> Filters:
        """The checked filters as discovery takes them."""
        return Filters(data["tags"], data["kinds"], available_only=data["health"] == "available")


class DiscoverSerializer(StrictSerializer):
    """The body of POST /api/v1/agents/discover."""

    task = serializers.CharField(max_length=MAX_TASK_LENGTH)
    limit = serializers.IntegerField(min_value=1, max_value=MAX_LIMIT, default=5)
    filters = FiltersSerializer(required=False)

    def filters_given(self) -> Filters:
        """The filters of a checked body."""
        data = self.validated_data.get("filters")
        return FiltersSerializer().as_filters(data) if data else Filters()


class MatchedSerializer(serializers.Serializer[Any]):
    """Why an agent was found."""

    part = serializers.ChoiceField(choices=["description", "skill", "example"], allow_null=True)
    text = serializers.CharField(allow_null=True)
    terms = serializers.ListField(child=serializers.CharField())


class ResultSerializer(serializers.Serializer[Any]):
    """One agent that was found."""

    agent = serializers.CharField()
    version = serializers.IntegerField()
    name = serializers.CharField()
    score = serializers.FloatField()
    confidence = serializers.FloatField()
    matched = MatchedSerializer()
    health = HealthSerializer()
    success_rate = serializers.FloatField(allow_null=True)
    typical_duration_s = serializers.FloatField(allow_null=True)


class DiscoverySerializer(serializers.Serializer[Any]):
    """The answer of POST /api/v1/agents/discover."""

    decision = serializers.ChoiceField(choices=["match", "weak_match", "none"])
    results = ResultSerializer(many=True)
    nearest = ResultSerializer(many=True)
    degraded = serializers.BooleanField()
    space = serializers.CharField()


def _stats(version: AgentVersion) -> AgentStats | None:
    return getattr(version.agent, "stats", None)
