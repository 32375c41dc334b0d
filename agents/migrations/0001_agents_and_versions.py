"""Agents, their immutable versions, and what discovery keeps about them."""

import django.contrib.postgres.fields
import django.db.models.deletion
import django.db.models.functions.datetime
import pgvector.django
import pgvector.django.vector
import uuid_utils.compat
from django.db import migrations, models

VERSIONS_ARE_IMMUTABLE = """
CREATE FUNCTION agents_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'an agent version is immutable: register a new one'
        USING ERRCODE = 'integrity_constraint_violation';
END $$;
CREATE TRIGGER agentversion_is_immutable BEFORE UPDATE OR DELETE ON agents_agentversion
    FOR EACH ROW EXECUTE FUNCTION agents_refuse_change();
"""
VERSIONS_ARE_MUTABLE = """
DROP TRIGGER agentversion_is_immutable ON agents_agentversion;
DROP FUNCTION agents_refuse_change();
"""

# A sequence, not a counter row: registrations must not queue behind each other. Numbers may become
# visible out of order; the calibration that reads them is statistical and bears a missed one.
REVISIONS = """
CREATE SEQUENCE agents_revision;
CREATE FUNCTION agents_draw_revision() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.revision := nextval('agents_revision');
    RETURN NEW;
END $$;
CREATE TRIGGER agent_draws_revision BEFORE INSERT OR UPDATE ON agents_agent
    FOR EACH ROW EXECUTE FUNCTION agents_draw_revision();
"""
NO_REVISIONS = """
DROP TRIGGER agent_draws_revision ON agents_agent;
DROP FUNCTION agents_draw_revision();
DROP SEQUENCE agents_revision;
"""

# Keeps vectors of up to about 480 dimensions in the row: an exact scan that has to fetch each one from
# the TOAST table is several times slower. The text beside it moves out first; it is read for winners only.
VECTORS_INLINE = "ALTER TABLE agents_agentembedding ALTER COLUMN embedding SET STORAGE MAIN"


class Migration(migrations.Migration):
    initial = True

    dependencies = [
        ("apikeys", "0001_keys_and_projects"),
    ]

    operations = [
        pgvector.django.VectorExtension(),
        migrations.CreateModel(
            name="Agent",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=uuid_utils.compat.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("slug", models.CharField(max_length=63)),
                (
                    "status",
                    models.CharField(
                        choices=[("active", "Active"), ("archived", "Archived")],
                        default="active",
                        max_length=16,
                    ),
                ),
                ("revision", models.BigIntegerField(default=0, editable=False)),
                (
                    "created_at",
                    models.DateTimeField(
                        db_default=django.db.models.functions.datetime.Now(), editable=False
                    ),
                ),
                ("archived_at", models.DateTimeField(blank=True, null=True)),
                (
                    "project",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="agents",
                        to="apikeys.project",
                    ),
                ),
            ],
            options={
                "ordering": ("slug", "id"),
            },
        ),
        migrations.CreateModel(
            name="AgentStats",
            fields=[
                (
                    "agent",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        related_name="stats",
                        serialize=False,
                        to="agents.agent",
                    ),
                ),
                ("ok", models.PositiveIntegerField(default=0)),
                ("failed", models.PositiveIntegerField(default=0)),
                (
                    "durations",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.PositiveIntegerField(), default=list, size=None
                    ),
                ),
            ],
            options={
                "verbose_name_plural": "agent stats",
            },
        ),
        migrations.CreateModel(
            name="AgentVersion",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=uuid_utils.compat.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("number", models.PositiveIntegerField()),
                ("name", models.CharField(max_length=120)),
                ("description", models.TextField()),
                ("summary", models.TextField(blank=True, default="")),
                (
                    "kind",
                    models.CharField(
                        choices=[("python", "Python"), ("llm", "Llm"), ("noop", "Noop")], max_length=16
                    ),
                ),
                ("skills", models.JSONField(default=list)),
                ("examples", models.JSONField(default=list)),
                (
                    "tags",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.CharField(max_length=40), default=list, size=None
                    ),
                ),
                ("input_schema", models.JSONField(default=dict)),
                ("output_schema", models.JSONField(default=dict)),
                ("limits", models.JSONField(default=dict)),
                ("requirements", models.JSONField(default=list)),
                ("source", models.JSONField(default=dict)),
                ("instructions", models.TextField(blank=True, default="")),
                ("model", models.CharField(blank=True, default="", max_length=120)),
                ("tools", models.JSONField(default=list)),
                ("settings", models.JSONField(default=dict)),
                ("content_hash", models.CharField(editable=False, max_length=64)),
                (
                    "created_at",
                    models.DateTimeField(
                        db_default=django.db.models.functions.datetime.Now(), editable=False
                    ),
                ),
                ("created_by", models.CharField(blank=True, default="", max_length=160)),
                (
                    "agent",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="versions",
                        to="agents.agent",
                    ),
                ),
            ],
            options={
                "ordering": ("agent", "-number"),
            },
        ),
        migrations.CreateModel(
            name="AgentTerm",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("term", models.CharField(max_length=200)),
                ("frequency", models.FloatField()),
                ("length", models.FloatField()),
                (
                    "agent_version",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="terms",
                        to="agents.agentversion",
                    ),
                ),
            ],
        ),
        migrations.AddField(
            model_name="agent",
            name="current_version",
            field=models.ForeignKey(
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to="agents.agentversion",
            ),
        ),
        migrations.CreateModel(
            name="Calibration",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("space", models.CharField(blank=True, max_length=200)),
                ("revision", models.BigIntegerField()),
                ("agents", models.PositiveIntegerField()),
                ("values", models.JSONField()),
                ("computed_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                (
                    "project",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="+",
                        to="apikeys.project",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="EmbeddingSpace",
            fields=[
                ("name", models.CharField(max_length=200, primary_key=True, serialize=False)),
                ("dims", models.PositiveIntegerField()),
                ("is_active", models.BooleanField(default=False)),
                (
                    "created_at",
                    models.DateTimeField(
                        db_default=django.db.models.functions.datetime.Now(), editable=False
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("is_active", True)),
                        fields=("is_active",),
                        name="space_one_active",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="BackgroundEmbedding",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("text_hash", models.CharField(max_length=64)),
                ("embedding", pgvector.django.vector.VectorField()),
                (
                    "space",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="background",
                        to="agents.embeddingspace",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="AgentEmbedding",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "part",
                    models.CharField(
                        choices=[
                            ("full", "Full"),
                            ("description", "Description"),
                            ("skill", "Skill"),
                            ("example", "Example"),
                        ],
                        max_length=16,
                    ),
                ),
                ("ordinal", models.PositiveSmallIntegerField(default=0)),
                ("text", models.TextField()),
                ("text_hash", models.CharField(max_length=64)),
                ("dims", models.PositiveIntegerField()),
                ("embedding", pgvector.django.vector.VectorField()),
                (
                    "agent_version",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="embeddings",
                        to="agents.agentversion",
                    ),
                ),
                (
                    "space",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="embeddings",
                        to="agents.embeddingspace",
                    ),
                ),
            ],
        ),
        migrations.AddConstraint(
            model_name="agentversion",
            constraint=models.UniqueConstraint(fields=("agent", "number"), name="agentversion_number"),
        ),
        migrations.AddConstraint(
            model_name="agentversion",
            constraint=models.CheckConstraint(
                condition=models.Q(("number__gte", 1)), name="agentversion_number_from_one"
            ),
        ),
        migrations.AddConstraint(
            model_name="agentversion",
            constraint=models.CheckConstraint(
                condition=models.Q(("kind__in", ("python", "llm", "noop"))), name="agentversion_kind_known"
            ),
        ),
        migrations.AddConstraint(
            model_name="agentterm",
            constraint=models.UniqueConstraint(
                fields=("term", "agent_version"),
                include=("frequency", "length"),
                name="term_once_per_version",
            ),
        ),
        migrations.AddIndex(
            model_name="agent",
            index=models.Index(fields=["project", "revision"], name="agent_revision_idx"),
        ),
        migrations.AddConstraint(
            model_name="agent",
            constraint=models.UniqueConstraint(fields=("project", "slug"), name="agent_slug_in_project"),
        ),
        migrations.AddConstraint(
            model_name="agent",
            constraint=models.UniqueConstraint(
                condition=models.Q(("project", None)), fields=("slug",), name="agent_slug_among_shared"
            ),
        ),
        migrations.AddConstraint(
            model_name="agent",
            constraint=models.CheckConstraint(
                condition=models.Q(("slug__regex", "^[a-z0-9]+(-[a-z0-9]+)*$")), name="agent_slug_pattern"
            ),
        ),
        migrations.AddConstraint(
            model_name="agent",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("archived_at", None), ("status", "active")),
                    models.Q(("archived_at__isnull", False), ("status", "archived")),
                    _connector="OR",
                ),
                name="agent_archived_has_time",
            ),
        ),
        migrations.AddConstraint(
            model_name="calibration",
            constraint=models.UniqueConstraint(
                fields=("project", "space"), name="calibration_one_per_view", nulls_distinct=False
            ),
        ),
        migrations.AddConstraint(
            model_name="backgroundembedding",
            constraint=models.UniqueConstraint(fields=("space", "text_hash"), name="background_one_per_text"),
        ),
        migrations.AddIndex(
            model_name="agentembedding",
            index=models.Index(fields=["space", "text_hash"], name="embedding_text_idx"),
        ),
        migrations.AddConstraint(
            model_name="agentembedding",
            constraint=models.UniqueConstraint(
                fields=("space", "agent_version", "part", "ordinal"), name="embedding_one_per_text"
            ),
        ),
        migrations.AddConstraint(
            model_name="agentembedding",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    (
                        "dims",
                        models.Func(
                            models.F("embedding"), function="vector_dims", output_field=models.IntegerField()
                        ),
                    )
                ),
                name="embedding_has_its_dims",
            ),
        ),
        migrations.RunSQL(VERSIONS_ARE_IMMUTABLE, VERSIONS_ARE_MUTABLE),
        migrations.RunSQL(REVISIONS, NO_REVISIONS),
        migrations.RunSQL(VECTORS_INLINE, migrations.RunSQL.noop),
    ]
