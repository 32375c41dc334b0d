from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("apikeys", "0002_key_budget"),
    ]

    operations = [
        migrations.AddField(
            model_name="project",
            name="month",
            field=models.DateField(editable=False, null=True),
        ),
        migrations.AddField(
            model_name="project",
            name="month_jobs",
            field=models.PositiveIntegerField(db_default=0, default=0, editable=False),
        ),
        migrations.AddField(
            model_name="project",
            name="stored_at",
            field=models.DateTimeField(editable=False, null=True),
        ),
        migrations.AddField(
            model_name="project",
            name="stored_bytes",
            field=models.PositiveBigIntegerField(db_default=0, default=0, editable=False),
        ),
    ]
