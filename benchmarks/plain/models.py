"""One table, as a tutorial would write it."""

from django.db import models


class Row(models.Model):
    """A row to create."""

    task = models.TextField()
    data = models.JSONField(default=dict)
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.task
