from django.db import migrations, models

from engine.indexes import BuildIndex


class Migration(migrations.Migration):
    """What an agent's jobs have used is shown on its page."""

    atomic = False
    dependencies = [("jobs", "0009_list_indexes")]

    operations = [
        BuildIndex(
            model_name="usage",
            index=models.Index(fields=["agent_version_id", "at"], name="usage_agent_idx"),
        )
    ]
