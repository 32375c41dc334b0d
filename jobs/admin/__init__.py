"""The dashboard's pages about jobs, questions and workers. Importing this package registers them."""

from jobs.admin.inbox import QuestionAdmin
from jobs.admin.job import JobAdmin
from jobs.admin.webhooks import WebhookAdmin
from jobs.admin.workers import WorkerAdmin

__all__ = ["JobAdmin", "QuestionAdmin", "WebhookAdmin", "WorkerAdmin"]
