"""What each process has counted, as it said last."""

from uuid import uuid4

from django.db import models
from django.db.models.functions import Now


class ProcessMeter(models.Model):
    """The counts of one process since it began. Those of processes long dead are added up in one row, `past`."""

    id = models.UUIDField(primary_key=True, default=uuid4)
    kind = models.TextField()  # web | worker | past
    host = models.TextField(default="")
    pid = models.IntegerField(default=0)
    at = models.DateTimeField(db_default=Now())
    totals = models.JSONField()  # [[name, [[label, value], …], number], …]
    events_per_second = models.FloatField(default=0.0)  # since what it said before

    def __str__(self) -> str:
        return f"{self.kind} {self.host}:{self.pid}"
