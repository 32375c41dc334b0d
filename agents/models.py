"""Who can work: agents, their immutable versions, and what discovery keeps about them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import GinIndex
from django.db import connection, models
from django.db.models import Exists, F, OuterRef, Q
from django.db.models.functions import Now
from pgvector.django import VectorField
from uuid_utils.compat import uuid7

if TYPE_CHECKING:
    from apikeys.callers import Caller

# Lower-case words joined by single hyphens: safe in a URL, in "slug@3" and in a file name.
SLUG_PATTERN = r"^[a-z0-9]+(-[a-z0-9]+)*$"
SLUG_MAX_LENGTH = 63  # one DNS label, and what `agents:SLUG:run` takes


class AgentQuerySet(models.QuerySet["Agent"]):
    """Agents, asked for in the words of the domain."""

    def visible_to(self, by: Caller) -> AgentQuerySet:
        """Agents of the caller's project, and the shared ones. The only owner filter there is.

        An agent of the project hides the shared one of the same slug, so a slug means one agent to a
        project. Staff (no project) see every agent of every project.
        """
        if by.project is None:
            return self
        hidden = Agent.objects.filter(project=by.project, slug=OuterRef("slug"))
        return self.filter(Q(project=by.project) | Q(project__isnull=True) & ~Exists(hidden))

    def active(self) -> AgentQuerySet:
        """Agents that may be given work."""
        return self.filter(status=Agent.Status.ACTIVE)


# `AgentQuerySet.visible_to` for one slug and a project, with the version by number or the current one: what each
# submission of a job looks up. Written out, since building the same from the ORM takes longer than running it.
FIND_VERSION = """
SELECT agent.status, version.id
  FROM agents_agent AS agent
  LEFT JOIN agents_agentversion AS version
    ON version.agent_id = agent.id
   AND CASE WHEN %(number)s::int IS NULL THEN version.id = agent.current_version_id
            ELSE version.number = %(number)s::int END
 WHERE agent.slug = %(slug)s AND (agent.project_id = %(project)s OR agent.project_id IS NULL)
   AND agent.current_version_id IS NOT NULL
 ORDER BY agent.project_id NULLS LAST LIMIT 1
"""


def find_version(project: UUID, slug: str, number: int | None) -> tuple[str, UUID | None] | None:
    """The status of the agent that a project means by this slug, and its version (None: no such number)."""
    with connection.cursor() as cursor:
        cursor.execute(FIND_VERSION, {"project": project, "slug": slug, "number": number})
        row: tuple[str, UUID | None] | None = cursor.fetchone()
    return row


class Agent(models.Model):
    """Something that can carry out a task. What it is and does stands in its current version."""

    class Status(models.TextChoices):
        """Whether an agent may be given work."""

        ACTIVE = "active"
        ARCHIVED = "archived"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    # The owner; null: shared, every project sees it.
    project = models.ForeignKey(
        "apikeys.Project", models.PROTECT, null=True, blank=True, related_name="agents"
    )
    slug = models.CharField(max_length=SLUG_MAX_LENGTH)
    status = models.CharField(max_length=16, choices=Status.choices, default=Status.ACTIVE)
    current_version = models.ForeignKey("AgentVersion", models.PROTECT, null=True, related_name="+")
    # Drawn anew from one sequence, by a trigger, at each change that discovery can notice.
    revision = models.BigIntegerField(default=0, editable=False)
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    archived_at = models.DateTimeField(null=True, blank=True)

    objects = AgentQuerySet.as_manager()

    class Meta:
        ordering = ("slug", "id")
        constraints = (
            models.UniqueConstraint(fields=("project", "slug"), name="agent_slug_in_project"),
            models.UniqueConstraint(
                fields=("slug",), condition=Q(project=None), name="agent_slug_among_shared"
            ),
            models.CheckConstraint(condition=Q(slug__regex=SLUG_PATTERN), name="agent_slug_pattern"),
            models.CheckConstraint(
                condition=Q(status="active", archived_at=None)
                | Q(status="archived", archived_at__isnull=False),
                name="agent_archived_has_time",
            ),
        )
        indexes = (models.Index(fields=("project", "revision"), name="agent_revision_idx"),)

    def __str__(self) -> str:
        return self.slug

    @property
    def is_shared(self) -> bool:
        """Whether every project sees this agent."""
        return self.project_id is None


class AgentVersion(models.Model):
    """One immutable state of an agent's card and source; a job is pinned to the version it started with.

    A database trigger refuses each UPDATE and DELETE.
    """

    class Kind(models.TextChoices):
        """How a version runs."""

        PYTHON = "python"  # its source, in a sandbox
        LLM = "llm"  # a model with tools, from instructions
        NOOP = "noop"  # ends at once with its input: for drills and load tests

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    agent = models.ForeignKey(Agent, models.PROTECT, related_name="versions")
    number = models.PositiveIntegerField()
    name = models.CharField(max_length=120)
    description = models.TextField()
    summary = models.TextField(blank=True, default="")
    kind = models.CharField(max_length=16, choices=Kind.choices)
    skills: models.JSONField[list[dict[str, Any]]] = models.JSONField(
        default=list
    )  # [{id, name, description}]
    examples: models.JSONField[list[str]] = models.JSONField(default=list)  # tasks it is meant for, 3 to 5
    tags: ArrayField[list[str], list[str]] = ArrayField(models.CharField(max_length=40), default=list)
    input_schema: models.JSONField[dict[str, Any]] = models.JSONField(default=dict)
    output_schema: models.JSONField[dict[str, Any]] = models.JSONField(default=dict)
    limits: models.JSONField[dict[str, Any]] = models.JSONField(default=dict)  # wall_seconds, memory_mb, …
    requirements: models.JSONField[list[str]] = models.JSONField(default=list)  # "name==1.2" lines
    source: models.JSONField[dict[str, str]] = models.JSONField(default=dict)  # file name -> text
    instructions = models.TextField(blank=True, default="")  # llm: the system prompt
    model = models.CharField(max_length=120, blank=True, default="")  # llm: empty means the configured one
    tools: models.JSONField[list[str]] = models.JSONField(default=list)  # llm: names of tools it may call
    settings: models.JSONField[dict[str, Any]] = models.JSONField(
        default=dict
    )  # llm: temperature, max_steps, …
    content_hash = models.CharField(
        max_length=64, editable=False
    )  # SHA-256 of the card; equal content, no new version
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    created_by = models.CharField(max_length=160, blank=True, default="")  # "key:NAME" or "user:NAME"

    class Meta:
        ordering = ("agent", "-number")
        constraints = (
            models.UniqueConstraint(fields=("agent", "number"), name="agentversion_number"),
            models.CheckConstraint(condition=Q(number__gte=1), name="agentversion_number_from_one"),
            models.CheckConstraint(
                condition=Q(kind__in=("python", "llm", "noop")), name="agentversion_kind_known"
            ),
        )
        # For filters of discovery that leave few of very many agents.
        indexes = (GinIndex(fields=("tags",), name="agentversion_tags_idx"),)

    def __str__(self) -> str:
        return self.ref

    @property
    def ref(self) -> str:
        """The version as a caller writes it: "slug@3"."""
        return f"{self.agent.slug}@{self.number}"


class Part(models.TextChoices):
    """Which text of a card a vector or a term comes from."""

    FULL = "full"
    DESCRIPTION = "description"
    SKILL = "skill"
    EXAMPLE = "example"


class EmbeddingSpace(models.Model):
    """A family of vectors that may be compared with each other: one model, revision, size and prefix rule."""

    name = models.CharField(primary_key=True, max_length=200)
    dims = models.PositiveIntegerField()
    is_active = models.BooleanField(default=False)  # the space that discovery asks
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        constraints = (
            models.UniqueConstraint(
                fields=("is_active",), condition=Q(is_active=True), name="space_one_active"
            ),
        )

    def __str__(self) -> str:
        return self.name


class AgentEmbeddingQuerySet(models.QuerySet["AgentEmbedding"]):
    """Vectors of one space at a time."""

    def in_space(self, space: str) -> AgentEmbeddingQuerySet:
        """Vectors that may be compared with each other. Two spaces of one size would mix unnoticed."""
        return self.filter(space_id=space)


class AgentEmbedding(models.Model):
    """The vector of one text of one version in one space."""

    agent_version = models.ForeignKey(AgentVersion, models.CASCADE, related_name="embeddings")
    part = models.CharField(max_length=16, choices=Part.choices)
    ordinal = models.PositiveSmallIntegerField(default=0)  # which skill or example
    text = models.TextField()  # what was embedded; shown as the reason of a match
    text_hash = models.CharField(max_length=64)  # SHA-256 of the text
    space = models.ForeignKey(EmbeddingSpace, models.PROTECT, related_name="embeddings")
    dims = models.PositiveIntegerField()
    embedding = VectorField()  # no fixed size: spaces differ

    objects = AgentEmbeddingQuerySet.as_manager()

    class Meta:
        constraints = (
            models.UniqueConstraint(
                fields=("space", "agent_version", "part", "ordinal"), name="embedding_one_per_text"
            ),
            models.CheckConstraint(
                condition=Q(
                    dims=models.Func(
                        F("embedding"), function="vector_dims", output_field=models.IntegerField()
                    )
                ),
                name="embedding_has_its_dims",
            ),
        )
        indexes = (models.Index(fields=("space", "text_hash"), name="embedding_text_idx"),)

    def __str__(self) -> str:
        return f"{self.agent_version_id} {self.part}[{self.ordinal}]"


class BackgroundEmbedding(models.Model):
    """The vector of one shipped background task in one space; what discovery calibrates on."""

    space = models.ForeignKey(EmbeddingSpace, models.CASCADE, related_name="background")
    text_hash = models.CharField(max_length=64)
    embedding = VectorField()

    class Meta:
        constraints = (
            models.UniqueConstraint(fields=("space", "text_hash"), name="background_one_per_text"),
        )

    def __str__(self) -> str:
        return f"{self.space_id} {self.text_hash[:8]}"


class AgentTerm(models.Model):
    """One lexeme of one version's text and how often it stands there: the postings that BM25 reads.

    Document frequencies are counted from the postings of a query's own terms, over what the caller may
    see: no second table to keep in step, and no project learns another's words.
    """

    agent_version = models.ForeignKey(AgentVersion, models.CASCADE, related_name="terms")
    term = models.CharField(max_length=200)
    frequency = models.FloatField()  # occurrences, capped per part
    length = models.FloatField()  # terms in the whole text, the same on each row of a version

    class Meta:
        constraints = (
            models.UniqueConstraint(
                fields=("term", "agent_version"),
                name="term_once_per_version",
                include=("frequency", "length"),
            ),
        )

    def __str__(self) -> str:
        return f"{self.agent_version_id} {self.term}"


class Calibration(models.Model):
    """How the shipped background tasks score in one view of the registry: the yardstick of a match."""

    # Whose view: the project's; null: all agents (staff).
    project = models.ForeignKey("apikeys.Project", models.CASCADE, null=True, blank=True, related_name="+")
    space = models.CharField(max_length=200, blank=True)  # empty: terms alone, no vectors
    revision = models.BigIntegerField()  # highest agent revision it has seen
    agents = models.PositiveIntegerField()  # how many agents it was taken over
    values: models.JSONField[dict[str, Any]] = models.JSONField()  # agents.discovery.Yardstick
    computed_at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = (
            models.UniqueConstraint(
                fields=("project", "space"), name="calibration_one_per_view", nulls_distinct=False
            ),
        )

    def __str__(self) -> str:
        return f"{self.project_id or 'all'} {self.space or 'terms'}"


class AgentStats(models.Model):
    """How the runs of an agent ended and how long they took, newer runs weighing more.

    Counts are halved when they reach a limit, so an agent that got better is seen to.
    """

    agent = models.OneToOneField(Agent, models.CASCADE, primary_key=True, related_name="stats")
    ok = models.PositiveIntegerField(default=0)
    failed = models.PositiveIntegerField(default=0)
    # Runs by duration; bucket n holds runs of up to 2^n seconds (n = 0..15), the last one everything longer.
    durations: ArrayField[list[int], list[int]] = ArrayField(models.PositiveIntegerField(), default=list)

    class Meta:
        verbose_name_plural = "agent stats"

    def __str__(self) -> str:
        return f"{self.agent_id}: {self.ok} ok, {self.failed} failed"
