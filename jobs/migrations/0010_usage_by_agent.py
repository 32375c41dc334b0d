from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models


class Migration(migrations.Migration):
    """What an agent's jobs have used is shown on its page."""

    atomic = False
    dependencies = [("jobs", "0009_list_indexes")]

    operations = [
        AddIndexConcurrently(
            model_name="usage",
            index=models.Index(fields=["agent_version_id", "at"], name="usage_agent_idx"),
        )
    ]
