import django.contrib.postgres.fields
import django.core.serializers.json
import django.db.models.deletion
import django.db.models.functions.datetime
import uuid_utils.compat
from django.db import migrations, models

import apikeys.models

# Counters need not outlive a crash, and without WAL an upsert costs half. Every request of a key updates
# its row: room in the page keeps those updates off the index, eager vacuum keeps the table small.
UNLOGGED = """
ALTER TABLE apikeys_ratecounter SET UNLOGGED;
ALTER TABLE apikeys_ratecounter SET (
    fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500
);
"""
LOGGED = "ALTER TABLE apikeys_ratecounter SET LOGGED"

APPEND_ONLY = """
CREATE FUNCTION apikeys_auditrow_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit rows are append-only' USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON apikeys_auditrow
    FOR EACH ROW EXECUTE FUNCTION apikeys_auditrow_append_only();
"""
CHANGEABLE = """
DROP TRIGGER append_only ON apikeys_auditrow;
DROP FUNCTION apikeys_auditrow_append_only();
"""


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="RateCounter",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "subject", "seconds", blank=True, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("subject", models.CharField(max_length=100)),
                ("seconds", models.PositiveIntegerField()),
                ("started_at", models.DateTimeField()),
                ("used", models.PositiveBigIntegerField()),
            ],
        ),
        migrations.CreateModel(
            name="Project",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=uuid_utils.compat.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("slug", models.SlugField(max_length=63, unique=True)),
                ("name", models.CharField(max_length=200)),
                ("max_running", models.PositiveIntegerField(blank=True, null=True)),
                ("max_queued", models.PositiveIntegerField(blank=True, null=True)),
                ("weight", models.PositiveIntegerField(db_default=1, default=1)),
                ("storage_bytes", models.PositiveBigIntegerField(blank=True, null=True)),
                ("monthly_jobs", models.PositiveIntegerField(blank=True, null=True)),
                (
                    "on_weak_match",
                    models.CharField(
                        choices=[
                            ("run", "Run the best agent"),
                            ("ask", "Ask a person first"),
                            ("reject", "Reject the job"),
                        ],
                        db_default="run",
                        default="run",
                        max_length=10,
                    ),
                ),
                (
                    "discovery_cut",
                    models.CharField(
                        choices=[
                            ("off", "Off: always the nearest agent"),
                            ("q80", "Balanced: the 80th percentile"),
                            ("q90", "Strict: the 90th percentile"),
                            ("q95", "Very strict: the 95th percentile"),
                        ],
                        db_default="q80",
                        default="q80",
                        max_length=10,
                    ),
                ),
                (
                    "created_at",
                    models.DateTimeField(
                        db_default=django.db.models.functions.datetime.Now(), editable=False
                    ),
                ),
                ("archived_at", models.DateTimeField(blank=True, null=True)),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("weight__gte", 1)), name="apikeys_project_weight"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="IdempotencyRecord",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("key", models.CharField(max_length=255)),
                ("method", models.CharField(max_length=10)),
                ("path", models.TextField()),
                ("request_hash", models.BinaryField(max_length=32)),
                ("scopes", models.JSONField(default=list)),
                ("status", models.PositiveSmallIntegerField(null=True)),
                ("headers", models.JSONField(default=dict)),
                ("body", models.BinaryField(default=b"")),
                ("created_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                (
                    "project",
                    models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, to="apikeys.project"),
                ),
            ],
            options={
                "indexes": [models.Index(fields=["created_at"], name="apikeys_idempotency_age_idx")],
                "constraints": [
                    models.UniqueConstraint(fields=("project", "key"), name="apikeys_idempotency_key")
                ],
            },
        ),
        migrations.CreateModel(
            name="AuditRow",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=uuid_utils.compat.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ("actor", models.CharField(max_length=200)),
                ("via", models.CharField(max_length=20)),
                ("action", models.CharField(max_length=60)),
                ("object", models.CharField(max_length=200)),
                (
                    "data",
                    models.JSONField(default=dict, encoder=django.core.serializers.json.DjangoJSONEncoder),
                ),
                ("ip", models.GenericIPAddressField(null=True)),
                ("request_id", models.CharField(blank=True, default="", max_length=128)),
                (
                    "project",
                    models.ForeignKey(
                        null=True, on_delete=django.db.models.deletion.PROTECT, to="apikeys.project"
                    ),
                ),
            ],
            options={
                "ordering": ["-id"],
                "indexes": [models.Index(fields=["project", "-id"], name="apikeys_audit_project_idx")],
            },
        ),
        migrations.CreateModel(
            name="ApiKey",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=uuid_utils.compat.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("name", models.CharField(max_length=100)),
                ("prefix", models.CharField(editable=False, max_length=24)),
                ("secret_hash", models.BinaryField(max_length=32, unique=True)),
                (
                    "scopes",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.CharField(max_length=100), default=list, size=None
                    ),
                ),
                ("windows", models.JSONField(blank=True, default=apikeys.models.default_windows)),
                ("max_concurrent_jobs", models.PositiveIntegerField(blank=True, null=True)),
                ("expires_at", models.DateTimeField(blank=True, null=True)),
                (
                    "allowed_cidrs",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.CharField(max_length=49), blank=True, default=list, size=None
                    ),
                ),
                ("last_used_at", models.DateTimeField(editable=False, null=True)),
                ("disabled_at", models.DateTimeField(blank=True, null=True)),
                ("revoked_at", models.DateTimeField(blank=True, null=True)),
                (
                    "created_at",
                    models.DateTimeField(
                        db_default=django.db.models.functions.datetime.Now(), editable=False
                    ),
                ),
                ("created_by", models.CharField(editable=False, max_length=200)),
                (
                    "replaced_by",
                    models.OneToOneField(
                        blank=True,
                        editable=False,
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="replaces",
                        to="apikeys.apikey",
                    ),
                ),
                (
                    "project",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="keys", to="apikeys.project"
                    ),
                ),
            ],
            options={
                "verbose_name": "API key",
                "indexes": [models.Index(fields=["project", "-id"], name="apikeys_key_project_idx")],
            },
        ),
        migrations.RunSQL(UNLOGGED, LOGGED),
        migrations.RunSQL(APPEND_ONLY, CHANGEABLE),
    ]
