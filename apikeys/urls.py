"""Addresses below /api/v1/admin/ that this app answers."""

from django.urls import path

from apikeys import views

urlpatterns = [
    path("keys", views.KeysView.as_view()),
    path("keys/<uuid:key_id>", views.KeyView.as_view()),
    path("keys/<uuid:key_id>/rotate", views.RotateKeyView.as_view()),
    path("keys/<uuid:key_id>/disable", views.DisableKeyView.as_view()),
    path("keys/<uuid:key_id>/enable", views.EnableKeyView.as_view()),
    path("projects", views.ProjectsView.as_view()),
    path("projects/<slug:slug>", views.ProjectView.as_view()),
]
