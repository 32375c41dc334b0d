"""The addresses of jobs, below /api/v1/."""

from django.urls import path, re_path

from jobs import control_views, operation_views, question_views, transcript_views, views
from jobs.notifying import views as webhooks
from jobs.serializers import QUEUE_NAME

urlpatterns = [
    path("jobs", views.JobsView.as_view()),
    path("jobs/bulk", control_views.BulkView.as_view()),
    path("jobs/<uuid:job_id>", views.JobView.as_view()),
    path("jobs/<uuid:job_id>/checkpoints", control_views.CheckpointsView.as_view()),
    path("jobs/<uuid:job_id>/retry", control_views.RetryView.as_view()),
    path("jobs/<uuid:job_id>/fork", control_views.ForkView.as_view()),
    path("jobs/<uuid:job_id>/transcript", transcript_views.TranscriptView.as_view()),
    path("jobs/<uuid:job_id>/logs", views.LogsView.as_view()),
    path("jobs/<uuid:job_id>/artifacts", views.ArtifactsView.as_view()),
    path("jobs/<uuid:job_id>/artifacts/<uuid:artifact_id>", views.ArtifactView.as_view()),
    path("jobs/<uuid:job_id>/respond", question_views.RespondView.as_view()),
    path("questions", question_views.QuestionsView.as_view()),
    path("questions/<uuid:question_id>/answer", question_views.AnswerView.as_view()),
    path("questions/<uuid:question_id>/link", question_views.LinkView.as_view()),
    path("webhooks", webhooks.WebhooksView.as_view()),
    path("webhooks/job-secret", webhooks.JobSecretView.as_view()),
    path("webhooks/deliveries", webhooks.DeliveriesView.as_view()),
    path("webhooks/deliveries/<uuid:delivery_id>/redeliver", webhooks.RedeliverView.as_view()),
    path("webhooks/<uuid:webhook_id>", webhooks.WebhookView.as_view()),
    path("webhooks/<uuid:webhook_id>/rotate", webhooks.RotateWebhookView.as_view()),
    path("webhooks/<uuid:webhook_id>/ping", webhooks.PingWebhookView.as_view()),
    path("stream-tickets", views.StreamTicketsView.as_view()),
    re_path(
        r"^agents/(?P<slug>[a-z0-9-]{1,80})/(?P<action>pause|resume)$", control_views.HoldAgentView.as_view()
    ),
    path("admin/queues", control_views.QueuesView.as_view()),
    re_path(
        rf"^admin/queues/(?P<name>{QUEUE_NAME})/(?P<action>pause|resume)$",
        control_views.HoldQueueView.as_view(),
    ),
    path("admin/workers", operation_views.WorkersView.as_view()),
    path("admin/metrics", operation_views.MetricsView.as_view()),
]
