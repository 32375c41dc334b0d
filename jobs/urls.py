"""The addresses of jobs, below /api/v1/."""

from django.urls import path

from jobs import views

urlpatterns = [
    path("jobs", views.JobsView.as_view()),
    path("jobs/<uuid:job_id>", views.JobView.as_view()),
    path("jobs/<uuid:job_id>/logs", views.LogsView.as_view()),
    path("jobs/<uuid:job_id>/artifacts", views.ArtifactsView.as_view()),
    path("jobs/<uuid:job_id>/artifacts/<uuid:artifact_id>", views.ArtifactView.as_view()),
    path("jobs/<uuid:job_id>/respond", views.RespondView.as_view()),
    path("questions", views.QuestionsView.as_view()),
    path("questions/<uuid:question_id>/answer", views.AnswerView.as_view()),
    path("stream-tickets", views.StreamTicketsView.as_view()),
    path("admin/workers", views.WorkersView.as_view()),
    path("admin/metrics", views.MetricsView.as_view()),
]
