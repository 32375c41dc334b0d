from django.db import migrations, models
from django.db.models.fields.json import KeyTextTransform

from engine.indexes import BuildIndex


class Migration(migrations.Migration):
    atomic = False  # built beside the workers that write

    dependencies = [
        ("agents", "0001_agents_and_versions"),
        ("jobs", "0008_saved_views"),
    ]

    operations = [
        BuildIndex(
            model_name="job",
            index=models.Index(
                models.F("agent_version"),
                models.F("status"),
                models.OrderBy(models.F("id"), descending=True),
                condition=models.Q(("status", "running"), _negated=True),
                name="job_agent_list_idx",
            ),
        ),
        BuildIndex(
            model_name="job",
            index=models.Index(
                KeyTextTransform("code", "error"),
                models.OrderBy(models.F("id"), descending=True),
                condition=models.Q(("status", "failed")),
                name="job_error_list_idx",
            ),
        ),
    ]
