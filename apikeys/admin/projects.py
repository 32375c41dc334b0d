"""Projects and the audit in the dashboard. Changes go through `services`, which write the audit."""

from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Count, Model, Q, QuerySet
from django.http import HttpRequest
from django.urls import URLPattern, path

from apikeys import services
from apikeys.models import AuditRow, Project
from apikeys.scopes import Scope
from engine.dashboard.access import acting
from engine.dashboard.lists import ListAdmin


class ProjectForm(forms.ModelForm):  # type: ignore[type-arg]  # generic in the stubs alone
    """A project's columns in words."""

    class Meta:
        model = Project
        fields = (
            "slug",
            "name",
            "on_weak_match",
            "discovery_cut",
            "max_running",
            "max_queued",
            "monthly_jobs",
            "storage_bytes",
            "weight",
        )
        labels = {
            "on_weak_match": "If only a weak match is found",
            "discovery_cut": "An agent fits from",
            "max_running": "Jobs running at once",
            "max_queued": "Jobs queued or scheduled",
            "monthly_jobs": "Jobs a month",
            "storage_bytes": "Bytes of files",
            "weight": "Share of the workers",
        }
        help_texts = {
            "slug": "Lower-case letters, digits and hyphens. Scripts use it, and it stays.",
            "discovery_cut": "Stricter means more jobs without an agent, and fewer with the wrong one.",
            "max_queued": "One more is refused with 429.",
            "monthly_jobs": "In a calendar month, UTC.",
            "storage_bytes": "Input files and artifacts together.",
            "weight": "When several projects have work waiting, twice the number gets twice the workers.",
        }


@admin.register(Project)
class ProjectAdmin(ListAdmin):
    """Tenants and their limits."""

    form = ProjectForm
    change_list_template = "apikeys/projects.html"
    list_title = "Projects"
    show_add_link = False
    search_fields = ("slug", "name")
    ordering = ("slug",)
    compressed_fields = True
    fieldsets = (
        (None, {"fields": ("slug", "name")}),
        ("When no agent fits well", {"fields": ("on_weak_match", "discovery_cut")}),
        (
            "Limits (empty: none)",
            {"fields": ("max_running", "max_queued", "monthly_jobs", "storage_bytes", "weight")},
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Each project with the number of keys that are not revoked."""
        keys = Count("keys", filter=Q(keys__revoked_at__isnull=True))
        rows: QuerySet[Any] = super().get_queryset(request).annotate(active_keys=keys)
        return rows

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> tuple[str, ...]:
        """Keys, jobs and audit rows name a project by its slug: it stays."""
        return ("slug",) if obj else ()

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Through the services, which check the rights and write the audit."""
        by = acting(request, Scope.ADMIN)
        values = {name: form.cleaned_data[name] for name in form.changed_data}
        if change:
            services.change_project(by, obj.slug, **values)
        else:
            slug = values.pop("slug")
            obj.id = services.create_project(by, slug=slug, **values).id

    def log_addition(self, request: HttpRequest, obj: Model, message: Any) -> Any:
        """The audit has it."""

    def log_change(self, request: HttpRequest, obj: Model, message: Any) -> Any:
        """The audit has it."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Projects and limits are for whoever runs the installation."""
        return request.user.has_perm("apikeys.change_project")

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """As for adding."""
        return self.has_add_permission(request)


@admin.register(AuditRow)
class AuditAdmin(ListAdmin):
    """Who did what, newest first. A trigger in the database keeps anybody from changing it."""

    change_list_template = "apikeys/audit.html"
    list_title = "Audit"
    list_select_related = ("project",)
    search_fields = ("actor", "action", "object")

    def get_urls(self) -> list[URLPattern]:
        """The list alone."""
        return [
            path("", self.admin_site.admin_view(self.changelist_view), name="apikeys_auditrow_changelist")
        ]
