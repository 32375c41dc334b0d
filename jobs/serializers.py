"""How jobs and what belongs to them are written in requests and answers."""

import json
import re
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.core.validators import URLValidator
from django.utils import timezone
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from engine.outgoing import AddressRefused, check_url
from engine.serializers import LineField, StrictSerializer
from jobs import usage
from jobs.execution.outcomes import Used
from jobs.models import Artifact, Attempt, Job, Question
from jobs.texts import instant

# The longest of anything that is stored with a job row.
MOST_TASK_CHARS = 100_000
# Below Django's own 100, which would answer with a bare 400.
MOST_FILES = 50
MOST_TAGS, MOST_TAG_CHARS = 20, 64
MOST_METADATA_CHARS = 16_384
LONGEST_TIMEOUT = timedelta(days=7)
FURTHEST_FUTURE = timedelta(days=366)

AGENT_REFERENCE = r"[a-z0-9]+(-[a-z0-9]+)*(@[1-9][0-9]{0,8})?"
QUEUE_NAME = r"[a-z0-9][a-z0-9_-]{0,62}"


# --- what comes in ---


class BudgetSerializer(StrictSerializer):
    """What a job may use before it stops to ask, or fails."""

    cost_usd = serializers.FloatField(min_value=0, max_value=1_000_000, required=False)
    tokens = serializers.IntegerField(min_value=1, max_value=10**12, required=False)
    on_exceeded = serializers.ChoiceField(choices=["ask", "fail"], default="ask")


class JobRequestSerializer(StrictSerializer):
    """A job to be done. `task` alone is enough; a member that is null counts as not given."""

    task = serializers.CharField(max_length=MOST_TASK_CHARS)
    agent = serializers.RegexField(
        rf"^{AGENT_REFERENCE}\Z",
        max_length=100,
        required=False,
        allow_null=True,
        help_text="`slug` or `slug@version`; left out, discovery picks one.",
    )
    input = serializers.DictField(
        required=False, allow_null=True, help_text="Checked against the agent's input schema."
    )
    priority = serializers.ChoiceField(choices=Job.Priority.choices, required=False, allow_null=True)
    run_at = serializers.DateTimeField(required=False, allow_null=True)
    timeout_s = serializers.IntegerField(
        min_value=1,
        max_value=int(LONGEST_TIMEOUT.total_seconds()),
        required=False,
        allow_null=True,
        help_text="Wall time of one attempt.",
    )
    deadline_s = serializers.IntegerField(
        min_value=1,
        max_value=int(FURTHEST_FUTURE.total_seconds()),
        required=False,
        allow_null=True,
        help_text="The job fails unless it has ended this long after it was submitted.",
    )
    max_attempts = serializers.IntegerField(min_value=1, max_value=20, required=False, allow_null=True)
    queue = serializers.RegexField(rf"^{QUEUE_NAME}\Z", required=False, allow_null=True)
    tags = serializers.ListField(
        child=LineField(max_length=MOST_TAG_CHARS),
        max_length=MOST_TAGS,
        required=False,
        allow_null=True,
    )
    metadata = serializers.DictField(required=False, allow_null=True)
    webhook_url = serializers.CharField(
        max_length=2000, validators=[URLValidator(schemes=["http", "https"])], required=False, allow_null=True
    )
    budget = BudgetSerializer(required=False, allow_null=True)

    def validate_run_at(self, value: datetime | None) -> datetime | None:
        """Refuse times that are most likely a mistake in the year."""
        if value is not None and value > timezone.now() + FURTHEST_FUTURE:
            raise serializers.ValidationError(f"At most {FURTHEST_FUTURE.days} days ahead.")
        return value

    def validate_webhook_url(self, value: str | None) -> str | None:
        """Refuse an address that could never be called."""
        if value:
            try:
                check_url(value)
            except AddressRefused as refused:
                raise serializers.ValidationError(str(refused)) from refused
        return value

    def validate_tags(self, value: list[str] | None) -> list[str] | None:
        """Each tag once, in the order given."""
        return value and list(dict.fromkeys(value))

    def validate_metadata(self, value: dict[str, Any] | None) -> dict[str, Any] | None:
        """Metadata is for labels, not for files."""
        if value is not None and len(json.dumps(value)) > MOST_METADATA_CHARS:
            raise serializers.ValidationError(f"At most {MOST_METADATA_CHARS:,} characters of JSON.")
        return value

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Leave out what was given as null."""
        return {name: value for name, value in attrs.items() if value is not None}


class JobFormSerializer(JobRequestSerializer):
    """The shape of a job with files, for the API's description: objects and lists are JSON in a field."""

    files = serializers.ListField(child=serializers.FileField(), max_length=MOST_FILES, required=False)


class RespondSerializer(StrictSerializer):
    """`answer` alone when one question is open; with `question_id`, or several in `answers`."""

    answer = serializers.JSONField(required=False)
    question_id = serializers.UUIDField(required=False)
    answers = serializers.DictField(
        child=serializers.JSONField(), required=False, help_text="question id → answer"
    )

    def validate_answers(self, value: dict[str, Any]) -> dict[UUID, Any]:
        """Keys are question ids."""
        if not value:
            raise serializers.ValidationError("Give at least one answer.")
        try:
            return {UUID(question_id): answer for question_id, answer in value.items()}
        except ValueError:
            raise serializers.ValidationError("Each name must be the id of a question.") from None

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """One of the forms, not a mixture."""
        if ("answer" in attrs) == ("answers" in attrs):
            raise serializers.ValidationError("Give either `answer` or `answers`.")
        if "answers" in attrs and "question_id" in attrs:
            raise serializers.ValidationError("`question_id` goes with `answer`, not with `answers`.")
        return attrs


class AnswerSerializer(StrictSerializer):
    """The answer to one question."""

    answer = serializers.JSONField()


class LinkSerializer(StrictSerializer):
    """Whom a link is for, and how long it works."""

    holder = LineField(max_length=200, required=False, help_text="Such as an e-mail address.")

    def validate_holder(self, value: str) -> str:
        """One line: it is shown as who answered, in logs and on pages."""
        if not value.isprintable():
            raise serializers.ValidationError("Write one line without control characters.")
        return value

    expires_in_s = serializers.IntegerField(
        min_value=60, max_value=int(FURTHEST_FUTURE.total_seconds()), required=False
    )


class TicketRequestSerializer(StrictSerializer):
    """Which job the ticket is for."""

    job_id = serializers.UUIDField()


# --- what goes out ---


def event_json(
    seq: int, attempt: int, at: datetime, type: str, source: str, level: str, message: str, data: Any
) -> dict[str, Any]:
    """An event as pages, NDJSON, SSE and WebSocket all send it."""
    return {
        "seq": seq,
        "at": instant(at),
        "type": type,
        "source": source,
        "level": level,
        "message": message,
        "data": data,
        "attempt": attempt,
    }


class EventSerializer(serializers.Serializer[Any]):
    """The shape of `event_json`, for the API's description."""

    seq = serializers.IntegerField(help_text="Numbered from 1 without gaps within one job.")
    at = serializers.DateTimeField()
    type = serializers.CharField(help_text="`log`, `job.*`, `step.*`, `question.*`, `artifact.created`, …")
    source = serializers.ChoiceField(  # type: ignore[assignment]  # a member of that name, not Field's own
        choices=["system", "agent", "stdout", "stderr"]
    )
    level = serializers.ChoiceField(choices=["debug", "info", "warning", "error"])
    message = serializers.CharField()
    data = serializers.JSONField()  # type: ignore[assignment]  # as above
    attempt = serializers.IntegerField()


class AgentReferenceSerializer(serializers.Serializer[Any]):
    """The version of an agent that a job is pinned to."""

    slug = serializers.CharField(source="agent.slug")
    version = serializers.IntegerField(source="number")
    name = serializers.CharField()


class ProgressSerializer(serializers.Serializer[Any]):
    """How far a job says it is."""

    fraction = serializers.FloatField(source="progress", allow_null=True, min_value=0, max_value=1)
    message = serializers.CharField(source="progress_message")


class QuestionSerializer(serializers.Serializer[Any]):
    """What a job asks a person, and what was answered by whom."""

    id = serializers.UUIDField()
    job_id = serializers.UUIDField()
    status = serializers.ChoiceField(choices=Question.Status.choices)
    kind = serializers.ChoiceField(choices=Question.Kind.choices)
    prompt = serializers.CharField(help_text="Markdown, written by the agent: show it as untrusted text.")
    choices = serializers.JSONField()
    schema = serializers.JSONField(help_text="JSON Schema that the answer must meet.")
    details = serializers.JSONField()
    default = serializers.JSONField()
    has_default = serializers.BooleanField()
    assignees = serializers.ListField(child=serializers.CharField())
    expires_at = serializers.DateTimeField(allow_null=True)
    on_timeout = serializers.ChoiceField(choices=Question.OnTimeout.choices)
    remind_at = serializers.DateTimeField(allow_null=True, help_text="When the assignees hear of it again.")
    answer = serializers.JSONField()
    answered_at = serializers.DateTimeField(allow_null=True)
    answered_by = serializers.CharField()
    answered_via = serializers.CharField()
    created_at = serializers.DateTimeField()


class AskingJobSerializer(serializers.Serializer[Any]):
    """The job behind a question of the inbox."""

    id = serializers.UUIDField()
    status = serializers.ChoiceField(choices=Job.Status.choices)
    task = serializers.CharField()
    priority = serializers.ChoiceField(choices=Job.Priority.choices)


class InboxQuestionSerializer(QuestionSerializer):
    """A question of the inbox, which goes over all jobs."""

    job = AskingJobSerializer()


class AttemptSerializer(serializers.Serializer[Any]):
    """One run of a job."""

    number = serializers.IntegerField()
    worker = serializers.UUIDField(source="worker_id")
    started_at = serializers.DateTimeField()
    ended_at = serializers.DateTimeField(allow_null=True)
    outcome = serializers.ChoiceField(choices=Attempt.Outcome.choices)
    error = serializers.JSONField()


class InputFileSerializer(serializers.Serializer[Any]):
    """A file that was handed to a job."""

    id = serializers.UUIDField()
    name = serializers.CharField()
    media_type = serializers.CharField()
    size = serializers.IntegerField()
    sha256 = serializers.CharField()


class ArtifactSerializer(serializers.Serializer[Any]):
    """A file that a job hands back."""

    id = serializers.UUIDField()
    name = serializers.CharField()
    media_type = serializers.CharField()
    size = serializers.IntegerField()
    sha256 = serializers.CharField()
    attempt = serializers.IntegerField()
    created_at = serializers.DateTimeField()
    url = serializers.SerializerMethodField()

    def get_url(self, artifact: Artifact) -> str:
        """Where its bytes are."""
        return f"{job_url(artifact.job_id)}/artifacts/{artifact.id}"


class UsageSerializer(serializers.Serializer[Any]):
    """What a job has used so far: attempts that have ended, and the model's replies."""

    attempts = serializers.IntegerField()
    run_seconds = serializers.FloatField()
    sandbox_seconds = serializers.FloatField()
    input_tokens = serializers.IntegerField()
    output_tokens = serializers.IntegerField()
    tokens = serializers.IntegerField(help_text="Both together: what budgets count.")
    cost_usd = serializers.FloatField(allow_null=True, help_text="Null: a model's price is not known.")


class JobLinksSerializer(serializers.Serializer[Any]):
    """Where to go on from a job. `events` is a WebSocket."""

    self = serializers.CharField()
    logs = serializers.CharField()
    artifacts = serializers.CharField()
    transcript = serializers.CharField(help_text="The conversation of an llm agent; empty for others.")
    respond = serializers.CharField()
    events = serializers.CharField()


def job_url(job_id: UUID) -> str:
    """The address of a job."""
    return f"/api/v1/jobs/{job_id}"


class JobSummarySerializer(serializers.Serializer[Any]):
    """A job in a list."""

    id = serializers.UUIDField()
    status = serializers.ChoiceField(choices=Job.Status.choices)
    status_reason = serializers.CharField()
    task = serializers.CharField()
    agent = AgentReferenceSerializer(source="agent_version", allow_null=True)
    priority = serializers.ChoiceField(choices=Job.Priority.choices)
    queue = serializers.CharField()
    tags = serializers.ListField(child=serializers.CharField())
    metadata = serializers.DictField()
    progress = ProgressSerializer(source="*")
    error = serializers.JSONField()
    created_by = serializers.CharField()
    created_at = serializers.DateTimeField()
    run_at = serializers.DateTimeField(allow_null=True)
    started_at = serializers.DateTimeField(allow_null=True)
    finished_at = serializers.DateTimeField(allow_null=True)
    deadline_at = serializers.DateTimeField(allow_null=True)
    cancel_requested_at = serializers.DateTimeField(allow_null=True)
    links = JobLinksSerializer()

    def to_representation(self, instance: Job) -> dict[str, Any]:
        """As the fields above say; written out, since a list or a submission pays for every field's machinery."""
        return job_summary(instance)


def job_summary(job: Job) -> dict[str, Any]:
    """A job as JSON, in the shape of JobSummarySerializer."""
    version, url = job.agent_version, job_url(job.id)
    return {
        "id": str(job.id),
        "status": job.status,
        "status_reason": job.status_reason,
        "task": job.task,
        "agent": version and {"slug": version.agent.slug, "version": version.number, "name": version.name},
        "priority": job.priority,
        "queue": job.queue,
        "tags": job.tags,
        "metadata": job.metadata,
        "progress": {"fraction": job.progress, "message": job.progress_message},
        "error": job.error,
        "created_by": job.created_by,
        **{name: _moment(getattr(job, name)) for name in JOB_MOMENTS},
        "links": {
            "self": url,
            "logs": f"{url}/logs",
            "artifacts": f"{url}/artifacts",
            "transcript": f"{url}/transcript",
            "respond": f"{url}/respond",
            "events": f"/ws/v1/jobs/{job.id}",
        },
    }


JOB_MOMENTS = ("created_at", "run_at", "started_at", "finished_at", "deadline_at", "cancel_requested_at")


def _moment(value: datetime | None) -> str | None:
    return None if value is None else instant(value)


class JobSerializer(JobSummarySerializer):
    """A job with all that belongs to it: questions, attempts, files, result."""

    input = serializers.DictField()
    why = serializers.JSONField(
        source="discovery", help_text="How the agent was found, or what came nearest."
    )
    max_attempts = serializers.IntegerField()
    timeout_s = serializers.IntegerField(source="timeout_seconds", allow_null=True)
    webhook_url = serializers.CharField()
    budget = serializers.JSONField()
    parent_id = serializers.UUIDField(allow_null=True)
    retried_from = serializers.UUIDField(source="retried_from_id", allow_null=True)
    questions = serializers.SerializerMethodField()
    attempts = serializers.SerializerMethodField()
    usage = serializers.SerializerMethodField()
    input_files = serializers.SerializerMethodField()
    artifacts = serializers.SerializerMethodField(help_text="The first 200; `links.artifacts` lists all.")
    result = serializers.JSONField()

    @property
    def is_new(self) -> bool:
        """Whether the job was made a moment ago: what it cannot have yet is not looked for."""
        return bool(self.context.get("is_new"))

    def to_representation(self, instance: Job) -> dict[str, Any]:
        """As the fields above say, written out like the summary; attempts are read once for those that need them."""
        self.past = attempts_of(instance)
        return {
            **job_summary(instance),
            "input": instance.input,
            "why": instance.discovery,
            "max_attempts": instance.max_attempts,
            "timeout_s": instance.timeout_seconds,
            "webhook_url": instance.webhook_url,
            "budget": instance.budget,
            "parent_id": instance.parent_id and str(instance.parent_id),
            "retried_from": instance.retried_from_id and str(instance.retried_from_id),
            "questions": self.get_questions(instance),
            "attempts": self.get_attempts(instance),
            "usage": self.get_usage(instance),
            "input_files": self.get_input_files(instance),
            "artifacts": self.get_artifacts(instance),
            "result": instance.result,
        }

    @extend_schema_field(QuestionSerializer(many=True))
    def get_questions(self, job: Job) -> Any:
        """All of them, the open ones included."""
        if self.is_new and job.status != Job.Status.WAITING_FOR_INPUT:
            return []
        return QuestionSerializer(job.questions.order_by("id")[:500], many=True).data

    @extend_schema_field(AttemptSerializer(many=True))
    def get_attempts(self, job: Job) -> Any:
        """The runs, first to last."""
        return self.past and AttemptSerializer(self.past, many=True).data

    @extend_schema_field(UsageSerializer)
    def get_usage(self, job: Job) -> dict[str, Any]:
        """Only what has ended: it is the same at each look, so that the ETag is."""
        return usage_of(job, self.past)

    @extend_schema_field(InputFileSerializer(many=True))
    def get_input_files(self, job: Job) -> Any:
        """By name."""
        if self.is_new and not self.context.get("has_files"):
            return []
        return InputFileSerializer(job.input_files.order_by("name"), many=True).data

    @extend_schema_field(ArtifactSerializer(many=True))
    def get_artifacts(self, job: Job) -> Any:
        """By age."""
        if not job.attempt:
            return []
        return ArtifactSerializer(job.artifacts.order_by("id")[:200], many=True).data


def usage_of(job: Job, attempts: list[Attempt]) -> dict[str, Any]:
    """What a job has used. A python agent holds its sandbox for as long as it runs."""
    ended = [(one, (one.ended_at - one.started_at).total_seconds()) for one in attempts if one.ended_at]
    thinks = job.agent_version is not None and job.agent_version.kind == "llm" and job.attempt > 0
    used = usage.of_job(job.id) if thinks else Used()
    held = sum(seconds for attempt, seconds in ended if attempt.sandbox)
    return {
        "attempts": len(ended),
        "run_seconds": round(sum(seconds for _, seconds in ended), 3),
        "sandbox_seconds": round(used.sandbox_seconds if thinks else held, 3),
        "input_tokens": used.input_tokens,
        "output_tokens": used.output_tokens,
        "tokens": used.tokens,
        "cost_usd": None if used.unpriced_tokens else round(used.cost_usd, 6),
    }


def attempts_of(job: Job) -> list[Attempt]:
    """A job's attempts, first to last. One that has no row yet is told by the job's own."""
    known = list(job.attempts.order_by("number")) if job.attempt else []
    worker_id, started_at = job.worker_id, job.attempt_started_at
    if worker_id and started_at and not any(attempt.number == job.attempt for attempt in known):
        known.append(Attempt(job=job, number=job.attempt, worker_id=worker_id, started_at=started_at))
    return known


class WorkerSerializer(serializers.Serializer[Any]):
    """A worker process; `state` is by the database's clock."""

    id = serializers.UUIDField(source="worker.id")
    state = serializers.ChoiceField(choices=["alive", "draining", "stopped", "lost"])
    host = serializers.CharField(source="worker.host")
    pid = serializers.IntegerField(source="worker.pid")
    version = serializers.CharField(source="worker.version")
    queues = serializers.ListField(source="worker.queues", child=serializers.CharField())
    slots = serializers.IntegerField(source="worker.slots")
    running = serializers.IntegerField(source="worker.running")
    can_run = serializers.BooleanField(source="worker.can_run", help_text="Its sandbox passed the probe.")
    health = serializers.JSONField(source="worker.health")
    started_at = serializers.DateTimeField(source="worker.started_at")
    heartbeat_at = serializers.DateTimeField(source="worker.heartbeat_at")
    heartbeat_age_s = serializers.FloatField()
    stopped_at = serializers.DateTimeField(source="worker.stopped_at", allow_null=True)


# --- lines for people ---

# What a terminal would act on or hide: C0 but for tab, DEL, C1, direction and zero-width marks, separators.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)


def visible(text: str) -> str:
    """The text with everything that a terminal would act on written as an escape."""
    return _INVISIBLE.sub(lambda found: ascii(found[0])[1:-1], text)


def event_line(event: dict[str, Any]) -> str:
    """An event as one line of plain text; further lines of its message are indented, so that none can pose as one."""
    message = "\n    ".join(visible(line.rstrip("\r")) for line in event["message"].split("\n"))
    head = f"{event['at'][:23]}Z {event['level']:<7} {event['source']:<6} {event['type']}"
    return f"{head} {message}".rstrip()
