"""What is done: jobs and everything that happened to them.

Rules the data must always obey are constraints here and triggers in the first migration. State changes are made by
`queries.py` (workers) and `services.py` (callers) alone. Rows that workers write all day carry no foreign key to the
job (`db_constraint=False`): the fence of the same statement already proves that it exists.
"""

from typing import ClassVar
from uuid import uuid4

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import F, Q
from django.db.models.fields.json import KeyTextTransform
from django.db.models.functions import Now
from uuid_utils.compat import uuid7

from agents.models import AgentVersion
from apikeys.callers import Caller
from apikeys.models import Project
from jobs.metering import models as _metering  # noqa: F401, its tables are this app's
from jobs.notifying import models as _notifying  # noqa: F401, its tables are this app's


class Worker(models.Model):
    """One worker process. Its id is made fresh at each start; its row is its lease."""

    id = models.UUIDField(primary_key=True, default=uuid4)
    host = models.TextField()
    pid = models.IntegerField()
    version = models.TextField(default="")
    queues = ArrayField(models.TextField(), default=list)
    slots = models.IntegerField()
    running = models.IntegerField(default=0)  # as the worker said with its last heartbeat
    started_at = models.DateTimeField(db_default=Now())
    heartbeat_at = models.DateTimeField(db_default=Now())
    lease_until = models.DateTimeField()
    drain_requested_at = models.DateTimeField(null=True, blank=True)
    stopped_at = models.DateTimeField(
        null=True, blank=True
    )  # said goodbye; a row without it and past its lease died
    can_run = models.BooleanField(default=False)  # its sandbox passed the probe
    health = models.JSONField(
        default=dict
    )  # {"sandbox": {"ok", "name", "detail", "remedy"}, "cpu", "memory_mb"}

    class Meta:
        indexes = [models.Index(fields=["lease_until"], name="worker_lease_idx")]

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}"


class Queue(models.Model):
    """A named queue that somebody paused or limited. A queue without a row is open."""

    name = models.TextField(primary_key=True)
    paused_at = models.DateTimeField(null=True, blank=True)
    paused_by = models.TextField(default="", blank=True)

    def __str__(self) -> str:
        return self.name


class PausedAgent(models.Model):
    """An agent whose jobs stay queued until somebody resumes it."""

    agent = models.OneToOneField("agents.Agent", on_delete=models.CASCADE, primary_key=True)
    paused_at = models.DateTimeField(db_default=Now())
    paused_by = models.TextField()

    def __str__(self) -> str:
        return str(self.agent_id)


class JobQuerySet(models.QuerySet["Job"]):
    """Jobs as callers ask for them."""

    def visible_to(self, by: Caller) -> "JobQuerySet":
        """The only owner filter: a key sees its project's jobs, staff sees all."""
        return self if by.project is None else self.filter(project=by.project)


class Job(models.Model):
    """A request and where it stands. History lives in Attempt and Event."""

    class Status(models.TextChoices):
        SCHEDULED = "scheduled"
        QUEUED = "queued"
        RUNNING = "running"
        WAITING_FOR_INPUT = "waiting_for_input"
        COMPLETED = "completed"
        FAILED = "failed"
        CANCELLED = "cancelled"
        REJECTED = "rejected"

    class Priority(models.TextChoices):
        LOW = "low"
        NORMAL = "normal"
        HIGH = "high"
        URGENT = "urgent"

    FINAL: ClassVar[tuple[str, ...]] = (Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.REJECTED)
    # Seconds a job of this priority is treated as having waited already (negative: as having come later).
    CREDIT_SECONDS: ClassVar[dict[str, int]] = {"low": -600, "normal": 0, "high": 600, "urgent": 3600}

    id = models.UUIDField(primary_key=True, default=uuid7)
    project = models.ForeignKey(Project, on_delete=models.PROTECT, db_index=False)
    agent_version = models.ForeignKey(AgentVersion, on_delete=models.PROTECT, null=True, db_index=False)
    queue = models.TextField(default="default")
    task = models.TextField()
    input = models.JSONField(default=dict)
    status = models.CharField(max_length=20, choices=Status)
    status_reason = models.TextField(default="", blank=True)
    priority = models.CharField(max_length=8, choices=Priority, default=Priority.NORMAL)
    sort_at = (
        models.DateTimeField()
    )  # greatest(created_at, run_at) less the priority's credit; kept over every return
    run_at = models.DateTimeField(null=True, blank=True)
    attempt = models.IntegerField(default=0)  # the fencing number: never goes back
    failed_count = models.IntegerField(default=0)
    lost_count = models.IntegerField(default=0)  # losses in a row without a new durable step
    max_attempts = models.IntegerField(default=3)
    worker_id = models.UUIDField(null=True, blank=True)
    last_seq = models.BigIntegerField(default=0)  # of the events; exact while the job is not running
    timeout_seconds = models.IntegerField(null=True, blank=True)  # wall time of one attempt
    deadline_at = models.DateTimeField(null=True, blank=True)
    cancel_requested_at = models.DateTimeField(null=True, blank=True)
    cancel_requested_by = models.TextField(default="", blank=True)
    parent = models.ForeignKey(
        "self", on_delete=models.DO_NOTHING, null=True, blank=True, related_name="children", db_index=False
    )
    retried_from = models.ForeignKey(
        "self", on_delete=models.DO_NOTHING, null=True, blank=True, related_name="retries", db_index=False
    )
    # What the agent's chance and idempotency keys are drawn from; empty: the id. A continued job keeps it.
    seed = models.TextField(default="", blank=True, db_default="")
    # Where its spans belong, as W3C's Trace Context writes it; empty: nothing traced its submission.
    traceparent = models.TextField(default="", blank=True, db_default="")
    tags = ArrayField(models.TextField(), default=list, blank=True)
    metadata = models.JSONField(default=dict, blank=True)
    webhook_url = models.TextField(default="", blank=True)
    budget = models.JSONField(null=True, blank=True)
    discovery = models.JSONField(null=True, blank=True)  # why this agent, or why none
    progress = models.FloatField(null=True, blank=True)  # 0..1
    progress_message = models.TextField(default="", blank=True)
    result = models.JSONField(null=True, blank=True)
    error = models.JSONField(null=True, blank=True)  # {"code", "message", "remedy", ...}
    created_by = models.TextField(default="")  # label of the caller
    created_by_key = models.UUIDField(null=True, blank=True)
    created_at = models.DateTimeField(db_default=Now())
    started_at = models.DateTimeField(null=True, blank=True)  # first attempt
    attempt_started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    objects = JobQuerySet.as_manager()

    class Meta:
        indexes = [
            # One for each scan that workers run; all partial, so that history costs them nothing.
            models.Index(
                fields=["queue", "priority", "sort_at", "id"],
                condition=Q(status="queued", attempt=0),
                name="job_new_idx",
            ),
            models.Index(
                fields=["queue", "sort_at", "id"],
                condition=Q(status="queued", attempt__gt=0),
                name="job_back_idx",
            ),
            models.Index(
                fields=["queue", "project", "sort_at", "id"],
                condition=Q(status="queued"),
                name="job_share_idx",
            ),
            models.Index(
                fields=["queue"], condition=Q(status="queued", lost_count__gte=2), name="job_suspect_idx"
            ),
            models.Index(fields=["worker_id"], condition=Q(status="running"), name="job_held_idx"),
            models.Index(fields=["run_at"], condition=Q(status="scheduled"), name="job_scheduled_idx"),
            models.Index(
                fields=["deadline_at"],
                condition=Q(finished_at__isnull=True, deadline_at__isnull=False),
                name="job_deadline_idx",
            ),
            models.Index(fields=["project", "queue"], condition=Q(status="running"), name="job_running_idx"),
            models.Index(
                fields=["retried_from"], condition=Q(retried_from__isnull=False), name="job_continued_idx"
            ),
            models.Index(fields=["parent"], condition=Q(parent__isnull=False), name="job_parent_idx"),
            models.Index(
                fields=["finished_at"], condition=Q(finished_at__isnull=False), name="job_finished_idx"
            ),
            # Lists, newest first.
            models.Index(F("project"), F("id").desc(), name="job_list_idx"),
            # Running jobs are few, and job_running_idx finds them: one entry less to write at each claim.
            models.Index(
                F("project"),
                F("status"),
                F("id").desc(),
                condition=~Q(status="running"),
                name="job_status_list_idx",
            ),
            models.Index(
                F("agent_version"),
                F("status"),
                F("id").desc(),
                condition=~Q(status="running"),
                name="job_agent_list_idx",
            ),
            models.Index(
                KeyTextTransform("code", "error"),
                F("id").desc(),
                condition=Q(status="failed"),
                name="job_error_list_idx",
            ),
        ]
        constraints = [
            models.CheckConstraint(
                name="job_status_known",
                condition=Q(
                    status__in=[
                        "scheduled",
                        "queued",
                        "running",
                        "waiting_for_input",
                        "completed",
                        "failed",
                        "cancelled",
                        "rejected",
                    ]
                ),
            ),
            models.CheckConstraint(
                name="job_running_has_worker",
                condition=Q(status="running", worker_id__isnull=False, attempt__gt=0)
                | (~Q(status="running") & Q(worker_id__isnull=True)),
            ),
            models.CheckConstraint(
                name="job_final_is_finished",
                condition=Q(
                    status__in=["completed", "failed", "cancelled", "rejected"], finished_at__isnull=False
                )
                | Q(
                    status__in=["scheduled", "queued", "running", "waiting_for_input"],
                    finished_at__isnull=True,
                ),
            ),
            models.CheckConstraint(
                name="job_scheduled_has_time", condition=~Q(status="scheduled") | Q(run_at__isnull=False)
            ),
            models.CheckConstraint(
                name="job_result_if_completed", condition=Q(result__isnull=True) | Q(status="completed")
            ),
            models.CheckConstraint(
                name="job_error_if_ended_badly",
                condition=Q(error__isnull=True) | Q(status__in=["failed", "cancelled", "rejected"]),
            ),
            models.CheckConstraint(
                name="job_agent_unless_rejected",
                condition=Q(agent_version__isnull=False)
                | Q(status__in=["rejected", "waiting_for_input", "cancelled", "failed"]),
            ),
            models.CheckConstraint(
                name="job_priority_known", condition=Q(priority__in=["low", "normal", "high", "urgent"])
            ),
            models.CheckConstraint(
                name="job_progress_in_range",
                condition=Q(progress__isnull=True) | Q(progress__gte=0, progress__lte=1),
            ),
        ]

    def __str__(self) -> str:
        return str(self.id)

    @property
    def is_final(self) -> bool:
        """Whether nothing can change any more."""
        return self.status in self.FINAL


class SavedView(models.Model):
    """A filter of the list of jobs that a member of staff kept under a name."""

    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    name = models.CharField(max_length=40)
    query = models.CharField(max_length=500)  # of the list's address, without the page
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = [models.UniqueConstraint(fields=["owner", "name"], name="saved_view_name_once")]

    def __str__(self) -> str:
        return self.name


class Attempt(models.Model):
    """One run of a job. Written when its sandbox opens and when it ends; until then the job row tells."""

    class Outcome(models.TextChoices):
        RUNNING = "running"
        COMPLETED = "completed"
        FAILED = "failed"
        SUSPENDED = "suspended"
        CANCELLED = "cancelled"
        HANDED_BACK = "handed_back"
        LOST = "lost"

    pk = models.CompositePrimaryKey("job_id", "number")
    job = models.ForeignKey(
        Job, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False, related_name="attempts"
    )
    number = models.IntegerField()
    worker_id = models.UUIDField()
    sandbox = models.TextField(default="")  # provider:ref
    started_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)
    outcome = models.CharField(max_length=12, choices=Outcome, default=Outcome.RUNNING)
    error = models.JSONField(null=True)

    def __str__(self) -> str:
        return f"{self.job_id}#{self.number}"


class Event(models.Model):
    """A state change or a log line, numbered without gaps per job. The table is partitioned by the job's age."""

    pk = models.CompositePrimaryKey("job_id", "seq")
    job = models.ForeignKey(
        Job, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False, related_name="events"
    )
    seq = models.BigIntegerField()
    attempt = models.IntegerField()
    at = models.DateTimeField()
    type = models.TextField()
    source = models.TextField(default="system")  # system | agent | stdout | stderr
    level = models.TextField(default="info")  # debug | info | warning | error
    message = models.TextField(default="")
    data = models.JSONField(null=True)

    def __str__(self) -> str:
        return f"{self.job_id}:{self.seq} {self.type}"


class Step(models.Model):
    """One entry of a job's journal: a memoised step, an ask, or a journalled value. Replay reads these in order."""

    pk = models.CompositePrimaryKey("job_id", "key")
    job = models.ForeignKey(
        Job, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False, related_name="steps"
    )
    key = models.TextField()  # name#occurrence, below the parent's key
    ordinal = models.IntegerField()  # order of beginning
    kind = models.CharField(max_length=8)  # step | ask | value
    signature = models.TextField(default="")
    once = models.BooleanField(default=False)
    attempt = models.IntegerField()  # the one that wrote the last change
    begun_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)
    result = models.JSONField(null=True)
    files = models.JSONField(
        default=list
    )  # what it changed in the workspace: [{"path", "size", "sha256", "key"}]
    deleted = models.JSONField(default=list)  # paths it removed

    def __str__(self) -> str:
        return f"{self.job_id}:{self.key}"


class QuestionQuerySet(models.QuerySet["Question"]):
    """Questions as callers ask for them."""

    def visible_to(self, by: Caller) -> "QuestionQuerySet":
        """The only owner filter: a key sees its project's questions, staff sees all."""
        return self if by.project is None else self.filter(project=by.project)

    def open(self) -> "QuestionQuerySet":
        """Those that wait for an answer."""
        return self.filter(status=Question.Status.OPEN)


class Question(models.Model):
    """What a job asks a person. The first valid answer wins under the job's row lock."""

    class Status(models.TextChoices):
        OPEN = "open"
        ANSWERED = "answered"
        EXPIRED = "expired"
        SUPERSEDED = "superseded"  # its job ended first

    class Kind(models.TextChoices):
        TEXT = "text"
        CHOICE = "choice"
        MULTI_CHOICE = "multi_choice"
        CONFIRM = "confirm"
        FORM = "form"
        APPROVAL = "approval"

    class OnTimeout(models.TextChoices):
        WAIT = "wait"
        DEFAULT = "default"
        FAIL = "fail"

    id = models.UUIDField(primary_key=True, default=uuid7)
    job = models.ForeignKey(Job, on_delete=models.DO_NOTHING, related_name="questions")
    project = models.ForeignKey(Project, on_delete=models.PROTECT, db_index=False)
    attempt = models.IntegerField()
    key = models.TextField()  # the journal key of the ask that waits for it
    kind = models.CharField(max_length=12, choices=Kind)
    prompt = models.TextField()
    choices = models.JSONField(null=True, blank=True)  # [text, …] for choice and multi_choice
    schema = models.JSONField(default=dict)  # JSON Schema that an answer must meet
    details = models.JSONField(default=dict, blank=True)  # approval: action, arguments, allowed, risk
    has_default = models.BooleanField(default=False)
    default = models.JSONField(null=True, blank=True)
    assignees = ArrayField(models.TextField(), default=list, blank=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    on_timeout = models.CharField(max_length=8, choices=OnTimeout, default=OnTimeout.WAIT)
    remind_after = ArrayField(
        models.FloatField(), default=list, db_default=[], blank=True
    )  # seconds after it was asked, rising
    reminded = models.IntegerField(default=0, db_default=0)  # how many of these have passed
    remind_at = models.DateTimeField(null=True, blank=True)  # the next one
    status = models.CharField(max_length=10, choices=Status, default=Status.OPEN)
    answer = models.JSONField(null=True, blank=True)
    answered_at = models.DateTimeField(null=True, blank=True)
    answered_by = models.TextField(default="", blank=True)  # from the credential, never from a body
    answered_via = models.TextField(default="", blank=True)
    created_at = models.DateTimeField(db_default=Now())

    objects = QuestionQuerySet.as_manager()

    class Meta:
        indexes = [
            models.Index(fields=["project", "id"], condition=Q(status="open"), name="question_inbox_idx"),
            models.Index(
                fields=["expires_at"],
                condition=Q(status="open", expires_at__isnull=False),
                name="question_expiry_idx",
            ),
            models.Index(
                fields=["remind_at"],
                condition=Q(status="open", remind_at__isnull=False),
                name="question_reminder_idx",
            ),
        ]
        constraints = [
            models.UniqueConstraint(fields=["job", "key"], name="question_once_per_ask"),
            models.CheckConstraint(
                name="question_answered_has_answerer",
                condition=~Q(status="answered") | (Q(answered_at__isnull=False) & ~Q(answered_by="")),
            ),
        ]

    def __str__(self) -> str:
        return self.prompt[:80]


class InputFile(models.Model):
    """A file handed to a job."""

    id = models.UUIDField(primary_key=True, default=uuid7)
    job = models.ForeignKey(Job, on_delete=models.DO_NOTHING, related_name="input_files")
    name = models.TextField()
    media_type = models.TextField()
    size = models.BigIntegerField()
    sha256 = models.CharField(max_length=64)
    storage_key = models.TextField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["job", "name"], name="input_file_name_once")]

    def __str__(self) -> str:
        return self.name


class ArtifactQuerySet(models.QuerySet["Artifact"]):
    """Artifacts as callers ask for them."""

    def visible_to(self, by: Caller) -> "ArtifactQuerySet":
        """The only owner filter: a key sees its project's artifacts, staff sees all."""
        return self if by.project is None else self.filter(project=by.project)


class Artifact(models.Model):
    """A file a job hands back. Its bytes are in `storages["artifacts"]` under `storage_key`."""

    id = models.UUIDField(primary_key=True, default=uuid7)
    job = models.ForeignKey(Job, on_delete=models.DO_NOTHING, related_name="artifacts")
    project = models.ForeignKey(Project, on_delete=models.PROTECT, db_index=False)
    attempt = models.IntegerField()
    name = models.TextField()
    media_type = models.TextField()
    size = models.BigIntegerField()
    sha256 = models.CharField(max_length=64)
    storage_key = models.TextField()
    created_at = models.DateTimeField(db_default=Now())

    objects = ArtifactQuerySet.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["job", "name"], name="artifact_name_once")]

    def __str__(self) -> str:
        return self.name


class Usage(models.Model):
    """What one journal entry of a job used of models or sandboxes. Kept beyond its job: budgets count months."""

    pk = models.CompositePrimaryKey("job_id", "key")
    job_id = models.UUIDField()
    key = models.TextField()  # of the journal entry
    project = models.ForeignKey(Project, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False)
    api_key_id = models.UUIDField(null=True)  # that submitted the job, or the job that started it
    agent_version_id = models.UUIDField()
    model = models.TextField(default="")
    input_tokens = models.BigIntegerField(default=0)
    output_tokens = models.BigIntegerField(default=0)
    cost_usd = models.FloatField(null=True)  # null: the model's price is not known
    sandbox_seconds = models.FloatField(default=0)
    at = models.DateTimeField()

    class Meta:
        indexes = [
            models.Index(
                fields=["api_key_id", "at"], condition=Q(api_key_id__isnull=False), name="usage_key_idx"
            ),
            models.Index(fields=["agent_version_id", "at"], name="usage_agent_idx"),
            models.Index(fields=["at"], name="usage_at_idx"),
        ]

    def __str__(self) -> str:
        return f"{self.job_id}:{self.key}"


class MinuteStat(models.Model):
    """How many attempts ended how in one minute. Workers only append; readers sum; so no two workers ever wait here."""

    minute = models.DateTimeField()
    project = models.ForeignKey(Project, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False)
    agent_id = models.UUIDField(null=True)
    queue = models.TextField()
    outcome = models.TextField()  # an Attempt.Outcome, or a final Job.Status reached without a worker
    error_code = models.TextField(default="")
    count = models.IntegerField()
    wait_ms = models.BigIntegerField()  # summed: due to started
    run_ms = models.BigIntegerField()  # summed: started to ended
    wait_histogram = ArrayField(models.IntegerField())  # counts per bucket of HISTOGRAM_MS
    run_histogram = ArrayField(models.IntegerField())

    # Upper bounds of the histogram buckets in milliseconds; a last bucket takes the rest.
    HISTOGRAM_MS: ClassVar[tuple[int, ...]] = (
        5,
        10,
        25,
        50,
        100,
        250,
        500,
        1000,
        2500,
        5000,
        10_000,
        30_000,
        60_000,
        300_000,
        1_800_000,
        7_200_000,
    )

    class Meta:
        indexes = [models.Index(fields=["minute"], name="minute_stat_idx")]

    def __str__(self) -> str:
        return f"{self.minute} {self.outcome} {self.count}"


class HourStat(models.Model):
    """The minute buckets of a whole hour, added up by `jobs.buckets`: for windows of a day and more."""

    pk = models.CompositePrimaryKey("hour", "outcome", "error_code")
    hour = models.DateTimeField()
    outcome = models.TextField()
    error_code = models.TextField(default="")
    count = models.BigIntegerField()
    wait_histogram = ArrayField(models.BigIntegerField())  # counts per bucket of MinuteStat.HISTOGRAM_MS
    run_histogram = ArrayField(models.BigIntegerField())

    def __str__(self) -> str:
        return f"{self.hour} {self.outcome} {self.count}"


class SandboxBudget(models.Model):
    """What a provider allows all workers together. Whoever holds the row decides alone (`sandboxes/e2b/budget.py`)."""

    provider = models.TextField(primary_key=True)
    installation = models.UUIDField()  # what this database's sandboxes are marked with
    tokens = models.FloatField()  # creates that may begin now, as of `refilled_at`
    refilled_at = models.DateTimeField(db_default=Now())
    swept_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return self.provider


class SandboxSlot(models.Model):
    """A sandbox that counts against the budget, from before it is made until it is certainly gone."""

    id = models.UUIDField(primary_key=True)
    provider = models.TextField()
    job_id = models.UUIDField()
    attempt = models.IntegerField()
    ref = models.TextField()  # empty until it is known
    expires_at = models.DateTimeField()  # by then the provider itself has ended it
    parked_at = models.DateTimeField(null=True)  # it sleeps, and does not count

    class Meta:
        indexes = [
            models.Index(fields=["provider", "expires_at"], name="slot_live_idx"),
            models.Index(fields=["job_id"], name="slot_job_idx"),
        ]

    def __str__(self) -> str:
        return f"{self.provider}:{self.ref}"
