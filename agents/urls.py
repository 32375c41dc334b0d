"""Addresses below /api/v1/agents that this app answers."""

from django.urls import path

from agents import views

urlpatterns = [
    path("", views.AgentsView.as_view()),
    # Before the slugs, which these can be none of.
    path("/bulk", views.BulkView.as_view()),
    path("/discover", views.DiscoverView.as_view()),
    path("/<slug:slug>", views.AgentView.as_view()),
    path("/<slug:slug>/restore", views.RestoreAgentView.as_view()),
    path("/<slug:slug>/versions", views.VersionsView.as_view()),
    path("/<slug:slug>/versions/<int:number>", views.VersionView.as_view()),
    path("/<slug:slug>/versions/<int:older>/diff/<int:newer>", views.DiffView.as_view()),
]
