from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("agents", "0001_agents_and_versions"),
        ("apikeys", "0001_keys_and_projects"),
        ("jobs", "0003_continued_jobs"),
    ]

    operations = [
        migrations.RemoveIndex(
            model_name="job",
            name="job_status_list_idx",
        ),
        migrations.AddIndex(
            model_name="job",
            index=models.Index(
                models.F("project"),
                models.F("status"),
                models.OrderBy(models.F("id"), descending=True),
                condition=models.Q(("status", "running"), _negated=True),
                name="job_status_list_idx",
            ),
        ),
    ]
