"""Who may call: projects, their keys, and what is counted, replayed and recorded for them."""

from datetime import timedelta
from typing import TYPE_CHECKING, Self

from django.contrib.postgres.fields import ArrayField
from django.core.serializers.json import DjangoJSONEncoder
from django.db import models
from django.db.models.functions import Now
from uuid_utils.compat import uuid7

if TYPE_CHECKING:
    from apikeys.callers import Caller

# 100 requests a second, held over a minute: a script is not slowed, a runaway loop is stopped.
DEFAULT_WINDOW = {"limit": 6000, "seconds": 60}


def default_windows() -> list[dict[str, int]]:
    """The rate windows of a key that names none."""
    return [dict(DEFAULT_WINDOW)]


class ProjectQuerySet(models.QuerySet["Project"]):
    """Projects, as the domain asks for them."""

    def visible_to(self, caller: "Caller") -> Self:
        """A key sees its own project, staff see all."""
        return self if caller.project is None else self.filter(id=caller.project.id)


class Project(models.Model):
    """A tenant: owns keys, agents and jobs. A limit that is null does not limit."""

    class OnWeakMatch(models.TextChoices):
        """What becomes of a job for which discovery found only a weak match."""

        RUN = "run", "Run the best agent"
        ASK = "ask", "Ask a person first"
        REJECT = "reject", "Reject the job"

    class DiscoveryCut(models.TextChoices):
        """An agent must score above this share of tasks that none is meant for, or the answer is `none`."""

        OFF = "off", "Off: always the nearest agent"
        Q80 = "q80", "Balanced: the 80th percentile"
        Q90 = "q90", "Strict: the 90th percentile"
        Q95 = "q95", "Very strict: the 95th percentile"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    slug = models.SlugField(max_length=63, unique=True)
    name = models.CharField(max_length=200)
    # Jobs running at the same time, over all queues.
    max_running = models.PositiveIntegerField(null=True, blank=True)
    # Jobs queued or scheduled; one more is refused.
    max_queued = models.PositiveIntegerField(null=True, blank=True)
    # Share of the workers among projects that all have work waiting.
    weight = models.PositiveIntegerField(default=1, db_default=1)
    # Bytes of input files and artifacts together.
    storage_bytes = models.PositiveBigIntegerField(null=True, blank=True)
    # Jobs submitted in a calendar month (UTC).
    monthly_jobs = models.PositiveIntegerField(null=True, blank=True)
    # What `monthly_jobs` is held against: the first day of the month that was counted, and the jobs since.
    month = models.DateField(null=True, editable=False)
    month_jobs = models.PositiveIntegerField(default=0, db_default=0, editable=False)
    # What `storage_bytes` is held against: the sum as it was then, and what was uploaded since.
    stored_bytes = models.PositiveBigIntegerField(default=0, db_default=0, editable=False)
    stored_at = models.DateTimeField(null=True, editable=False)
    on_weak_match = models.CharField(
        max_length=10, choices=OnWeakMatch, default=OnWeakMatch.RUN, db_default=OnWeakMatch.RUN
    )
    discovery_cut = models.CharField(
        max_length=10, choices=DiscoveryCut, default=DiscoveryCut.Q80, db_default=DiscoveryCut.Q80
    )
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    # Set: its keys are refused. Rows stay, because jobs and audit rows name it.
    archived_at = models.DateTimeField(null=True, blank=True)

    objects = ProjectQuerySet.as_manager()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=models.Q(weight__gte=1), name="apikeys_project_weight"),
        ]

    def __str__(self) -> str:
        return self.slug


class ApiKeyQuerySet(models.QuerySet["ApiKey"]):
    """Keys, as the domain asks for them."""

    def visible_to(self, caller: "Caller") -> Self:
        """A key sees the keys of its own project, staff see all."""
        return self if caller.project is None else self.filter(project=caller.project)


class ApiKey(models.Model):
    """A credential of a project. The secret itself is shown once and never stored."""

    class State(models.TextChoices):
        """Whether a key is accepted now; computed, never stored."""

        ACTIVE = "active"
        DISABLED = "disabled"
        EXPIRED = "expired"
        REVOKED = "revoked"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="keys")
    name = models.CharField(max_length=100)
    # What people recognise the key by: mode and the first characters, useless without the rest.
    prefix = models.CharField(max_length=24, editable=False)
    # SHA-256 of the secret. 256 random bits need no slow hash (OWASP ASVS 5.0 6.5.2: 112 bits are enough).
    secret_hash = models.BinaryField(max_length=32, unique=True, editable=False)
    scopes = ArrayField(models.CharField(max_length=100), default=list)
    # [{"limit": requests, "seconds": length}], shortest first. Empty: no rate limit.
    windows = models.JSONField(default=default_windows, blank=True)
    # Jobs of this key that have not ended; one more is refused. Null: the project's limits alone hold.
    max_concurrent_jobs = models.PositiveIntegerField(null=True, blank=True)
    # What its jobs may use of models in a calendar month (UTC): {"cost_usd", "tokens"}. Null: no limit.
    budget = models.JSONField(null=True, blank=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    # Networks it may be used from, IPv4 or IPv6. Empty: any.
    allowed_cidrs = ArrayField(models.CharField(max_length=49), default=list, blank=True)
    # Written at most once a minute.
    last_used_at = models.DateTimeField(null=True, editable=False)
    # Refused until it is enabled again.
    disabled_at = models.DateTimeField(null=True, blank=True)
    # Refused for good.
    revoked_at = models.DateTimeField(null=True, blank=True)
    # Rotation: the key that takes over; this one expires at the end of the overlap.
    replaced_by = models.OneToOneField(
        "self", on_delete=models.PROTECT, null=True, blank=True, editable=False, related_name="replaces"
    )
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    # The label of whoever made it: "key:NAME", "user:NAME" or "cli".
    created_by = models.CharField(max_length=200, editable=False)

    objects = ApiKeyQuerySet.as_manager()

    class Meta:
        verbose_name = "API key"
        indexes = [models.Index(fields=["project", "-id"], name="apikeys_key_project_idx")]

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"


class KeyUse(models.Model):
    """In how many minutes of a day (UTC) a key was used: written where `last_used_at` is, so at most once a minute."""

    # Not a foreign key: noting a use must not lock the key's row twice.
    pk = models.CompositePrimaryKey("api_key_id", "day")
    api_key_id = models.UUIDField()
    day = models.DateField()
    minutes = models.PositiveIntegerField()

    def __str__(self) -> str:
        return f"{self.api_key_id} {self.day}: {self.minutes} min"


class RateCounter(models.Model):
    """Requests of one subject in its running window. UNLOGGED: empty after a crash of the server."""

    # Not a foreign key: counting must not lock the key's row.
    pk = models.CompositePrimaryKey("subject", "seconds")
    subject = models.CharField(max_length=100)
    seconds = models.PositiveIntegerField()
    started_at = models.DateTimeField()
    used = models.PositiveBigIntegerField()

    def __str__(self) -> str:
        return f"{self.subject}: {self.used} in {self.seconds} s"


class IdempotencyRecord(models.Model):
    """The first answer to a POST with an `Idempotency-Key`, stored in the transaction that did the work."""

    KEPT_FOR = timedelta(hours=24)

    id = models.BigAutoField(primary_key=True)
    project = models.ForeignKey(Project, on_delete=models.CASCADE)
    key = models.CharField(max_length=255)
    method = models.CharField(max_length=10)
    path = models.TextField()
    # SHA-256 over method, path and body, files included.
    request_hash = models.BinaryField(max_length=32)
    # [[scope, agent slug or null]]: what the first answer was allowed by; a replay needs the same.
    scopes = models.JSONField(default=list)
    # Null only inside the first request's transaction: nobody else ever reads it so.
    status = models.PositiveSmallIntegerField(null=True)
    headers = models.JSONField(default=dict)
    body = models.BinaryField(default=b"")
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["project", "key"], name="apikeys_idempotency_key"),
        ]
        indexes = [models.Index(fields=["created_at"], name="apikeys_idempotency_age_idx")]

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.key}"


class AuditQuerySet(models.QuerySet["AuditRow"]):
    """Audit rows, as the domain asks for them."""

    def visible_to(self, caller: "Caller") -> Self:
        """A key sees what happened in its own project, staff see all."""
        return self if caller.project is None else self.filter(project=caller.project)


class AuditRow(models.Model):
    """Who did what to which object. A trigger refuses changes and deletions."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    at = models.DateTimeField(db_default=Now())
    # "key:NAME", "user:NAME" or "cli".
    actor = models.CharField(max_length=200)
    # The door it came through: api_key, dashboard, link, mcp, cli.
    via = models.CharField(max_length=20)
    # "key.created", "key.revoked", …
    action = models.CharField(max_length=60)
    # "key:UUID", "project:SLUG", …
    object = models.CharField(max_length=200)
    data = models.JSONField(default=dict, encoder=DjangoJSONEncoder)
    ip = models.GenericIPAddressField(null=True)
    request_id = models.CharField(max_length=128, blank=True, default="")
    # Null: it concerns no single project.
    project = models.ForeignKey(Project, on_delete=models.PROTECT, null=True)

    objects = AuditQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["project", "-id"], name="apikeys_audit_project_idx")]

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M:%S} {self.actor} {self.action} {self.object}"
