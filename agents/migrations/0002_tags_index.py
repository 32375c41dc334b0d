"""An index for discovery among the agents of some tags."""

from django.contrib.postgres.indexes import GinIndex
from django.db import migrations

from engine.indexes import BuildIndex


class Migration(migrations.Migration):
    atomic = False  # an index that is built concurrently cannot be part of a transaction

    dependencies = [("agents", "0001_agents_and_versions")]

    operations = [
        BuildIndex("agentversion", GinIndex(fields=["tags"], name="agentversion_tags_idx")),
    ]
