"""The tables of jobs, the guards that hold whatever the code does, and how hot tables are stored."""

import uuid

import django.contrib.postgres.fields
import django.db.models.deletion
import django.db.models.functions.datetime
import uuid_utils.compat
from django.db import migrations, models

EVENTS = """
CREATE TABLE jobs_event (
    job_id uuid NOT NULL,
    seq bigint NOT NULL,
    attempt integer NOT NULL,
    at timestamptz NOT NULL,
    type text NOT NULL,
    source text NOT NULL,
    level text NOT NULL,
    message text NOT NULL,
    data jsonb,
    PRIMARY KEY (job_id, seq)
) PARTITION BY RANGE (job_id);
CREATE TABLE jobs_event_default PARTITION OF jobs_event DEFAULT;
"""
DROP_EVENTS = "DROP TABLE jobs_event"

# I1: what is final stays as it ended; the fencing number never goes back. WHEN keeps the usual update free of any call.
GUARDS = """
CREATE FUNCTION jobs_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '%', TG_ARGV[0] USING ERRCODE = 'check_violation';
END $$;
CREATE TRIGGER job_final_stays BEFORE UPDATE ON jobs_job FOR EACH ROW
    WHEN (OLD.status IN ('completed', 'failed', 'cancelled', 'rejected'))
    EXECUTE FUNCTION jobs_refuse('a job that has ended never changes');
CREATE TRIGGER job_attempt_never_goes_back BEFORE UPDATE ON jobs_job FOR EACH ROW
    WHEN (NEW.attempt < OLD.attempt OR NEW.last_seq < OLD.last_seq)
    EXECUTE FUNCTION jobs_refuse('a job''s attempt and event numbers never go back');
CREATE TRIGGER job_edges BEFORE UPDATE OF status ON jobs_job FOR EACH ROW
    WHEN (OLD.status <> NEW.status AND NOT (
        (OLD.status = 'scheduled' AND NEW.status IN ('queued', 'failed', 'cancelled'))
        OR (OLD.status = 'queued' AND NEW.status IN ('running', 'failed', 'cancelled'))
        OR (OLD.status = 'running' AND NEW.status <> 'rejected')
        OR (OLD.status = 'waiting_for_input' AND NEW.status IN ('queued', 'failed', 'cancelled'))))
    EXECUTE FUNCTION jobs_refuse('there is no such edge between a job''s states');
CREATE TRIGGER event_stays BEFORE UPDATE ON jobs_event FOR EACH ROW
    EXECUTE FUNCTION jobs_refuse('an event never changes');
CREATE TRIGGER step_end_stays BEFORE UPDATE ON jobs_step FOR EACH ROW
    WHEN (OLD.ended_at IS NOT NULL)
    EXECUTE FUNCTION jobs_refuse('a step with a durable end never changes');
CREATE TRIGGER question_closed_stays BEFORE UPDATE ON jobs_question FOR EACH ROW
    WHEN (OLD.status <> 'open')
    EXECUTE FUNCTION jobs_refuse('a closed question never changes');
"""
DROP_GUARDS = """
DROP TRIGGER job_final_stays ON jobs_job;
DROP TRIGGER job_attempt_never_goes_back ON jobs_job;
DROP TRIGGER job_edges ON jobs_job;
DROP TRIGGER event_stays ON jobs_event;
DROP TRIGGER step_end_stays ON jobs_step;
DROP TRIGGER question_closed_stays ON jobs_question;
DROP FUNCTION jobs_refuse();
"""

# Rows that change all day: room for updates within the page, and vacuum before the dead rows slow the claim down.
STORAGE = """
ALTER TABLE jobs_job SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0.05);
ALTER TABLE jobs_worker SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 20);
"""
KEEP_STORAGE = """
ALTER TABLE jobs_job RESET (fillfactor, autovacuum_vacuum_scale_factor, autovacuum_vacuum_cost_delay,
    autovacuum_analyze_scale_factor);
ALTER TABLE jobs_worker RESET (fillfactor, autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold);
"""


class Migration(migrations.Migration):
    initial = True

    dependencies = [
        ("agents", "0001_agents_and_versions"),
        ("apikeys", "0001_keys_and_projects"),
    ]

    operations = [
        migrations.CreateModel(
            name="Queue",
            fields=[
                ("name", models.TextField(primary_key=True, serialize=False)),
                ("paused_at", models.DateTimeField(blank=True, null=True)),
                ("paused_by", models.TextField(blank=True, default="")),
            ],
        ),
        migrations.CreateModel(
            name="Job",
            fields=[
                ("id", models.UUIDField(default=uuid_utils.compat.uuid7, primary_key=True, serialize=False)),
                ("queue", models.TextField(default="default")),
                ("task", models.TextField()),
                ("input", models.JSONField(default=dict)),
                (
                    "status",
                    models.CharField(
                        choices=[
                            ("scheduled", "Scheduled"),
                            ("queued", "Queued"),
                            ("running", "Running"),
                            ("waiting_for_input", "Waiting For Input"),
                            ("completed", "Completed"),
                            ("failed", "Failed"),
                            ("cancelled", "Cancelled"),
                            ("rejected", "Rejected"),
                        ],
                        max_length=20,
                    ),
                ),
                ("status_reason", models.TextField(blank=True, default="")),
                (
                    "priority",
                    models.CharField(
                        choices=[
                            ("low", "Low"),
                            ("normal", "Normal"),
                            ("high", "High"),
                            ("urgent", "Urgent"),
                        ],
                        default="normal",
                        max_length=8,
                    ),
                ),
                ("sort_at", models.DateTimeField()),
                ("run_at", models.DateTimeField(blank=True, null=True)),
                ("attempt", models.IntegerField(default=0)),
                ("failed_count", models.IntegerField(default=0)),
                ("lost_count", models.IntegerField(default=0)),
                ("max_attempts", models.IntegerField(default=3)),
                ("worker_id", models.UUIDField(blank=True, null=True)),
                ("last_seq", models.BigIntegerField(default=0)),
                ("timeout_seconds", models.IntegerField(blank=True, null=True)),
                ("deadline_at", models.DateTimeField(blank=True, null=True)),
                ("cancel_requested_at", models.DateTimeField(blank=True, null=True)),
                ("cancel_requested_by", models.TextField(blank=True, default="")),
                (
                    "tags",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.TextField(), blank=True, default=list, size=None
                    ),
                ),
                ("metadata", models.JSONField(blank=True, default=dict)),
                ("webhook_url", models.TextField(blank=True, default="")),
                ("budget", models.JSONField(blank=True, null=True)),
                ("discovery", models.JSONField(blank=True, null=True)),
                ("progress", models.FloatField(blank=True, null=True)),
                ("progress_message", models.TextField(blank=True, default="")),
                ("result", models.JSONField(blank=True, null=True)),
                ("error", models.JSONField(blank=True, null=True)),
                ("created_by", models.TextField(default="")),
                ("created_by_key", models.UUIDField(blank=True, null=True)),
                ("created_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ("started_at", models.DateTimeField(blank=True, null=True)),
                ("attempt_started_at", models.DateTimeField(blank=True, null=True)),
                ("finished_at", models.DateTimeField(blank=True, null=True)),
                (
                    "agent_version",
                    models.ForeignKey(
                        db_index=False,
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        to="agents.agentversion",
                    ),
                ),
                (
                    "parent",
                    models.ForeignKey(
                        blank=True,
                        db_index=False,
                        null=True,
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        related_name="children",
                        to="jobs.job",
                    ),
                ),
                (
                    "project",
                    models.ForeignKey(
                        db_index=False, on_delete=django.db.models.deletion.PROTECT, to="apikeys.project"
                    ),
                ),
                (
                    "retried_from",
                    models.ForeignKey(
                        blank=True,
                        db_index=False,
                        null=True,
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        related_name="retries",
                        to="jobs.job",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="InputFile",
            fields=[
                ("id", models.UUIDField(default=uuid_utils.compat.uuid7, primary_key=True, serialize=False)),
                ("name", models.TextField()),
                ("media_type", models.TextField()),
                ("size", models.BigIntegerField()),
                ("sha256", models.CharField(max_length=64)),
                ("storage_key", models.TextField()),
                (
                    "job",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        related_name="input_files",
                        to="jobs.job",
                    ),
                ),
            ],
        ),
        # Django makes no partitioned tables: the model is told, the table is made by hand.
        migrations.SeparateDatabaseAndState(
            state_operations=[
                migrations.CreateModel(
                    name="Event",
                    fields=[
                        (
                            "pk",
                            models.CompositePrimaryKey(
                                "job_id", "seq", blank=True, editable=False, primary_key=True, serialize=False
                            ),
                        ),
                        ("seq", models.BigIntegerField()),
                        ("attempt", models.IntegerField()),
                        ("at", models.DateTimeField()),
                        ("type", models.TextField()),
                        ("source", models.TextField(default="system")),
                        ("level", models.TextField(default="info")),
                        ("message", models.TextField(default="")),
                        ("data", models.JSONField(null=True)),
                        (
                            "job",
                            models.ForeignKey(
                                db_constraint=False,
                                db_index=False,
                                on_delete=django.db.models.deletion.DO_NOTHING,
                                related_name="events",
                                to="jobs.job",
                            ),
                        ),
                    ],
                ),
            ],
            database_operations=[migrations.RunSQL(EVENTS, DROP_EVENTS)],
        ),
        migrations.CreateModel(
            name="Attempt",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "job_id", "number", blank=True, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("number", models.IntegerField()),
                ("worker_id", models.UUIDField()),
                ("sandbox", models.TextField(default="")),
                ("started_at", models.DateTimeField()),
                ("ended_at", models.DateTimeField(null=True)),
                (
                    "outcome",
                    models.CharField(
                        choices=[
                            ("running", "Running"),
                            ("completed", "Completed"),
                            ("failed", "Failed"),
                            ("suspended", "Suspended"),
                            ("cancelled", "Cancelled"),
                            ("handed_back", "Handed Back"),
                            ("lost", "Lost"),
                        ],
                        default="running",
                        max_length=12,
                    ),
                ),
                ("error", models.JSONField(null=True)),
                (
                    "job",
                    models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        related_name="attempts",
                        to="jobs.job",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Artifact",
            fields=[
                ("id", models.UUIDField(default=uuid_utils.compat.uuid7, primary_key=True, serialize=False)),
                ("attempt", models.IntegerField()),
                ("name", models.TextField()),
                ("media_type", models.TextField()),
                ("size", models.BigIntegerField()),
                ("sha256", models.CharField(max_length=64)),
                ("storage_key", models.TextField()),
                ("created_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                (
                    "project",
                    models.ForeignKey(
                        db_index=False, on_delete=django.db.models.deletion.PROTECT, to="apikeys.project"
                    ),
                ),
                (
                    "job",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        related_name="artifacts",
                        to="jobs.job",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="MinuteStat",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("minute", models.DateTimeField()),
                ("agent_id", models.UUIDField(null=True)),
                ("queue", models.TextField()),
                ("outcome", models.TextField()),
                ("error_code", models.TextField(default="")),
                ("count", models.IntegerField()),
                ("wait_ms", models.BigIntegerField()),
                ("run_ms", models.BigIntegerField()),
                (
                    "wait_histogram",
                    django.contrib.postgres.fields.ArrayField(base_field=models.IntegerField(), size=None),
                ),
                (
                    "run_histogram",
                    django.contrib.postgres.fields.ArrayField(base_field=models.IntegerField(), size=None),
                ),
                (
                    "project",
                    models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        to="apikeys.project",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Question",
            fields=[
                ("id", models.UUIDField(default=uuid_utils.compat.uuid7, primary_key=True, serialize=False)),
                ("attempt", models.IntegerField()),
                ("key", models.TextField()),
                (
                    "kind",
                    models.CharField(
                        choices=[
                            ("text", "Text"),
                            ("choice", "Choice"),
                            ("multi_choice", "Multi Choice"),
                            ("confirm", "Confirm"),
                            ("form", "Form"),
                            ("approval", "Approval"),
                        ],
                        max_length=12,
                    ),
                ),
                ("prompt", models.TextField()),
                ("choices", models.JSONField(blank=True, null=True)),
                ("schema", models.JSONField(default=dict)),
                ("details", models.JSONField(blank=True, default=dict)),
                ("has_default", models.BooleanField(default=False)),
                ("default", models.JSONField(blank=True, null=True)),
                (
                    "assignees",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.TextField(), blank=True, default=list, size=None
                    ),
                ),
                ("expires_at", models.DateTimeField(blank=True, null=True)),
                (
                    "on_timeout",
                    models.CharField(
                        choices=[("wait", "Wait"), ("default", "Default"), ("fail", "Fail")],
                        default="wait",
                        max_length=8,
                    ),
                ),
                (
                    "status",
                    models.CharField(
                        choices=[
                            ("open", "Open"),
                            ("answered", "Answered"),
                            ("expired", "Expired"),
                            ("superseded", "Superseded"),
                        ],
                        default="open",
                        max_length=10,
                    ),
                ),
                ("answer", models.JSONField(blank=True, null=True)),
                ("answered_at", models.DateTimeField(blank=True, null=True)),
                ("answered_by", models.TextField(blank=True, default="")),
                ("answered_via", models.TextField(blank=True, default="")),
                ("created_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                (
                    "job",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        related_name="questions",
                        to="jobs.job",
                    ),
                ),
                (
                    "project",
                    models.ForeignKey(
                        db_index=False, on_delete=django.db.models.deletion.PROTECT, to="apikeys.project"
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Step",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "job_id", "key", blank=True, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("key", models.TextField()),
                ("ordinal", models.IntegerField()),
                ("kind", models.CharField(max_length=8)),
                ("signature", models.TextField(default="")),
                ("once", models.BooleanField(default=False)),
                ("attempt", models.IntegerField()),
                ("begun_at", models.DateTimeField()),
                ("ended_at", models.DateTimeField(null=True)),
                ("result", models.JSONField(null=True)),
                ("files", models.JSONField(default=list)),
                ("deleted", models.JSONField(default=list)),
                (
                    "job",
                    models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        related_name="steps",
                        to="jobs.job",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Worker",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, primary_key=True, serialize=False)),
                ("host", models.TextField()),
                ("pid", models.IntegerField()),
                ("version", models.TextField(default="")),
                (
                    "queues",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.TextField(), default=list, size=None
                    ),
                ),
                ("slots", models.IntegerField()),
                ("running", models.IntegerField(default=0)),
                ("started_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ("heartbeat_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ("lease_until", models.DateTimeField()),
                ("drain_requested_at", models.DateTimeField(blank=True, null=True)),
                ("stopped_at", models.DateTimeField(blank=True, null=True)),
                ("can_run", models.BooleanField(default=False)),
                ("health", models.JSONField(default=dict)),
            ],
            options={
                "indexes": [models.Index(fields=["lease_until"], name="worker_lease_idx")],
            },
        ),
        migrations.AddIndex(
            model_name="job",
            index=models.Index(
                condition=models.Q(("status", "queued")),
                fields=["queue", "sort_at", "id"],
                name="job_due_idx",
            ),
        ),
        migrations.AddIndex(
            model_name="job",
            index=models.Index(
                condition=models.Q(("lost_count__gte", 2), ("status", "queued")),
                fields=["queue"],
                name="job_suspect_idx",
            ),
        ),
        migrations.AddIndex(
            model_name="job",
            index=models.Index(
                condition=models.Q(("status", "running")), fields=["worker_id"], name="job_held_idx"
            ),
        ),
        migrations.AddIndex(
            model_name="job",
            index=models.Index(
                condition=models.Q(("status", "scheduled")), fields=["run_at"], name="job_scheduled_idx"
            ),
        ),
        migrations.AddIndex(
            model_name="job",
            index=models.Index(
                condition=models.Q(("deadline_at__isnull", False), ("finished_at__isnull", True)),
                fields=["deadline_at"],
                name="job_deadline_idx",
            ),
        ),
        migrations.AddIndex(
            model_name="job",
            index=models.Index(
                condition=models.Q(("status", "running")), fields=["project", "queue"], name="job_running_idx"
            ),
        ),
        migrations.AddIndex(
            model_name="job",
            index=models.Index(
                condition=models.Q(("parent__isnull", False)), fields=["parent"], name="job_parent_idx"
            ),
        ),
        migrations.AddIndex(
            model_name="job",
            index=models.Index(
                condition=models.Q(("finished_at__isnull", False)),
                fields=["finished_at"],
                name="job_finished_idx",
            ),
        ),
        migrations.AddIndex(
            model_name="job",
            index=models.Index(
                models.F("project"), models.OrderBy(models.F("id"), descending=True), name="job_list_idx"
            ),
        ),
        migrations.AddIndex(
            model_name="job",
            index=models.Index(
                models.F("project"),
                models.F("status"),
                models.OrderBy(models.F("id"), descending=True),
                name="job_status_list_idx",
            ),
        ),
        migrations.AddConstraint(
            model_name="job",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    (
                        "status__in",
                        [
                            "scheduled",
                            "queued",
                            "running",
                            "waiting_for_input",
                            "completed",
                            "failed",
                            "cancelled",
                            "rejected",
                        ],
                    )
                ),
                name="job_status_known",
            ),
        ),
        migrations.AddConstraint(
            model_name="job",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("attempt__gt", 0), ("status", "running"), ("worker_id__isnull", False)),
                    models.Q(models.Q(("status", "running"), _negated=True), ("worker_id__isnull", True)),
                    _connector="OR",
                ),
                name="job_running_has_worker",
            ),
        ),
        migrations.AddConstraint(
            model_name="job",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        ("finished_at__isnull", False),
                        ("status__in", ["completed", "failed", "cancelled", "rejected"]),
                    ),
                    models.Q(
                        ("finished_at__isnull", True),
                        ("status__in", ["scheduled", "queued", "running", "waiting_for_input"]),
                    ),
                    _connector="OR",
                ),
                name="job_final_is_finished",
            ),
        ),
        migrations.AddConstraint(
            model_name="job",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("status", "scheduled"), _negated=True),
                    ("run_at__isnull", False),
                    _connector="OR",
                ),
                name="job_scheduled_has_time",
            ),
        ),
        migrations.AddConstraint(
            model_name="job",
            constraint=models.CheckConstraint(
                condition=models.Q(("result__isnull", True), ("status", "completed"), _connector="OR"),
                name="job_result_if_completed",
            ),
        ),
        migrations.AddConstraint(
            model_name="job",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("error__isnull", True),
                    ("status__in", ["failed", "cancelled", "rejected"]),
                    _connector="OR",
                ),
                name="job_error_if_ended_badly",
            ),
        ),
        migrations.AddConstraint(
            model_name="job",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("agent_version__isnull", False),
                    ("status__in", ["rejected", "waiting_for_input", "cancelled", "failed"]),
                    _connector="OR",
                ),
                name="job_agent_unless_rejected",
            ),
        ),
        migrations.AddConstraint(
            model_name="job",
            constraint=models.CheckConstraint(
                condition=models.Q(("priority__in", ["low", "normal", "high", "urgent"])),
                name="job_priority_known",
            ),
        ),
        migrations.AddConstraint(
            model_name="job",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("progress__isnull", True),
                    models.Q(("progress__gte", 0), ("progress__lte", 1)),
                    _connector="OR",
                ),
                name="job_progress_in_range",
            ),
        ),
        migrations.AddConstraint(
            model_name="inputfile",
            constraint=models.UniqueConstraint(fields=("job", "name"), name="input_file_name_once"),
        ),
        migrations.AddConstraint(
            model_name="artifact",
            constraint=models.UniqueConstraint(fields=("job", "name"), name="artifact_name_once"),
        ),
        migrations.AddIndex(
            model_name="minutestat",
            index=models.Index(fields=["minute"], name="minute_stat_idx"),
        ),
        migrations.AddIndex(
            model_name="question",
            index=models.Index(
                condition=models.Q(("status", "open")), fields=["project", "id"], name="question_inbox_idx"
            ),
        ),
        migrations.AddIndex(
            model_name="question",
            index=models.Index(
                condition=models.Q(("expires_at__isnull", False), ("status", "open")),
                fields=["expires_at"],
                name="question_expiry_idx",
            ),
        ),
        migrations.AddConstraint(
            model_name="question",
            constraint=models.UniqueConstraint(fields=("job", "key"), name="question_once_per_ask"),
        ),
        migrations.AddConstraint(
            model_name="question",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("status", "answered"), _negated=True),
                    models.Q(("answered_at__isnull", False), models.Q(("answered_by", ""), _negated=True)),
                    _connector="OR",
                ),
                name="question_answered_has_answerer",
            ),
        ),
        migrations.RunSQL(GUARDS, DROP_GUARDS),
        migrations.RunSQL(STORAGE, KEEP_STORAGE),
    ]
