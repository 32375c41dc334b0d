"""Projects, keys and the audit in the dashboard. Changes go through `services`, which write the audit."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from django import forms
from django.contrib import admin, messages
from django.db.models import Case, CharField, Count, Model, Q, QuerySet, Value, When
from django.db.models.functions import Now
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils import timezone
from django.views.decorators.http import require_http_methods

from apikeys import services
from apikeys.callers import Caller
from apikeys.errors import KeyNotFound
from apikeys.models import ApiKey, AuditRow, Project
from apikeys.scopes import Scope
from engine.dashboard.access import acting
from engine.dashboard.lists import ListAdmin
from engine.errors import EngineError

SCOPE_WORDS = {
    Scope.JOBS_READ: "See jobs, logs, artifacts and questions",
    Scope.JOBS_WRITE: "Submit, cancel and retry jobs",
    Scope.JOBS_RESPOND: "Answer the questions that agents ask",
    Scope.AGENTS_READ: "See agents and find them by meaning",
    Scope.AGENTS_WRITE: "Register agents, and so run code of its own in sandboxes",
    Scope.ADMIN_KEYS: "Create and revoke keys of its project, with no more rights than its own",
    Scope.ADMIN_WEBHOOKS: "Send its project's events to addresses of its choice",
    Scope.ADMIN_WORKERS: "See the workers of the whole installation",
    Scope.ADMIN_METRICS: "Read metrics of the whole installation",
    Scope.ADMIN: "Everything, new projects and limits included: for whoever runs Engine",
}
LIFETIMES = [("", "Never"), ("30", "In 30 days"), ("90", "In 90 days"), ("365", "In a year")]


class NewKeyForm(forms.Form):
    """A key for a program: who it is for, and what it may do."""

    name = forms.CharField(
        max_length=100, help_text="What will use it, such as “nightly import”. Jobs and answers show it."
    )
    project = forms.ModelChoiceField(
        Project.objects.filter(archived_at=None).order_by("slug"), to_field_name="slug", empty_label=None
    )
    scopes = forms.MultipleChoiceField(
        label="What it may do",
        widget=forms.CheckboxSelectMultiple,
        initial=[Scope.JOBS_READ, Scope.JOBS_WRITE, Scope.JOBS_RESPOND, Scope.AGENTS_READ],
    )
    days = forms.ChoiceField(label="Expires", choices=LIFETIMES, required=False)
    mode = forms.ChoiceField(
        label="Kind",
        choices=[("live", "Live (engine_live_…)"), ("test", "Test (engine_test_…)")],
        help_text="Both work alike; the prefix tells people and secret scanners which one they found.",
    )

    def __init__(self, by: Caller, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        offered = [(scope.value, SCOPE_WORDS[scope]) for scope in Scope if by.may(scope)]
        self.fields["scopes"].choices = offered  # type: ignore[attr-defined]  # a MultipleChoiceField

    def settings(self) -> dict[str, Any]:
        """The columns of the key to be, besides name, project and scopes."""
        days = self.cleaned_data["days"]
        return {"expires_at": timezone.now() + timedelta(days=int(days))} if days else {}


@admin.register(ApiKey)
class ApiKeyAdmin(ListAdmin):
    """Keys: made here, shown once, refused from the next request on."""

    change_list_template = "apikeys/keys.html"
    list_title = "API keys"
    list_select_related = ("project",)
    search_fields = ("name", "prefix", "project__slug")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Each key with its state by the database's clock."""
        rows: QuerySet[Any] = super().get_queryset(request).annotate(state=STATE)
        return rows

    def get_urls(self) -> list[URLPattern]:
        """A key has no form: it is made, and revoked."""
        own = self.admin_site.admin_view
        return [
            path("add/", own(new_key), name="apikeys_apikey_add"),
            path("<uuid:key_id>/revoke/", own(revoke_key), name="apikeys_apikey_revoke"),
            path("", own(self.changelist_view), name="apikeys_apikey_changelist"),
        ]

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """All keys, newest first."""
        may_manage = request.user.has_perm("apikeys.change_apikey")
        return super().changelist_view(request, {"may_manage": may_manage, **(extra_context or {})})


STATE = Case(
    When(revoked_at__isnull=False, then=Value(ApiKey.State.REVOKED)),
    When(disabled_at__isnull=False, then=Value(ApiKey.State.DISABLED)),
    When(expires_at__lte=Now(), then=Value(ApiKey.State.EXPIRED)),
    default=Value(ApiKey.State.ACTIVE),
    output_field=CharField(),
)


@require_http_methods(["GET", "HEAD", "POST"])
def new_key(request: HttpRequest) -> HttpResponse:
    """The form; and the answer to it, the only page that ever shows the secret (no admin page is cached)."""
    by = acting(request, Scope.ADMIN_KEYS)
    context = {**admin.site.each_context(request), "title": "New API key"}
    form = NewKeyForm(by, request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        values = form.cleaned_data
        try:
            key, secret = services.create_key(
                by,
                name=values["name"],
                scopes=values["scopes"],
                project=values["project"],
                mode=values["mode"],
                **form.settings(),
            )
        except EngineError as error:
            form.add_error(None, f"{error.title}. {error.detail}")
        else:
            shown = context | {"key": key, "secret": secret, "address": request.build_absolute_uri("/")[:-1]}
            return TemplateResponse(request, "apikeys/secret.html", shown)
    context["form"] = form
    return TemplateResponse(request, "apikeys/new.html", context, status=422 if form.errors else 200)


@require_http_methods(["GET", "HEAD", "POST"])
def revoke_key(request: HttpRequest, key_id: UUID) -> HttpResponse:
    """Ask once more, then refuse the key for good."""
    by = acting(request, Scope.ADMIN_KEYS)
    try:
        key = services.get_key(by, key_id)
        if request.method == "POST":
            services.revoke_key(by, key_id)
            messages.success(request, f"The key {key.name} is revoked: its next request is refused.")
            return redirect("admin:apikeys_apikey_changelist")
    except KeyNotFound as error:
        raise Http404 from error
    context = {**admin.site.each_context(request), "title": "Revoke API key", "key": key}
    return TemplateResponse(request, "apikeys/revoke.html", context)


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
