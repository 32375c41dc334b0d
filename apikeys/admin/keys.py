"""Keys in the dashboard: made, changed, rotated, switched off, revoked; the secret is shown once."""

from collections.abc import Iterable
from datetime import date, timedelta
from typing import Any
from uuid import UUID

from django import forms
from django.contrib import admin, messages
from django.db.models import Case, CharField, QuerySet, Value, When
from django.db.models.functions import Now
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils import timezone
from django.views.decorators.http import require_http_methods, require_POST

from apikeys import services
from apikeys.admin.connect import connect
from apikeys.admin.key_forms import SCOPE_WORDS, ChangeKeyForm, NewKeyForm
from apikeys.callers import Caller
from apikeys.errors import KeyNotFound
from apikeys.models import ApiKey, KeyUse
from apikeys.scopes import Scope
from engine.dashboard.access import acting
from engine.dashboard.lists import ListAdmin
from engine.errors import EngineError

USE_DAYS = 30
OVERLAPS = [("0", "At once"), ("3600", "In an hour"), ("86400", "In a day"), ("604800", "In a week")]
STATE = Case(
    When(revoked_at__isnull=False, then=Value(ApiKey.State.REVOKED)),
    When(disabled_at__isnull=False, then=Value(ApiKey.State.DISABLED)),
    When(expires_at__lte=Now(), then=Value(ApiKey.State.EXPIRED)),
    default=Value(ApiKey.State.ACTIVE),
    output_field=CharField(),
)


class RotateForm(forms.Form):
    """For how much longer the old secret is accepted."""

    overlap = forms.ChoiceField(label="The old secret ends", choices=OVERLAPS, initial="86400")


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
        """The list, the page of each key, and what its buttons do."""
        own = self.admin_site.admin_view
        return [
            path("add/", own(new_key), name="apikeys_apikey_add"),
            path("connect/", own(connect), name="apikeys_connect"),
            path("<uuid:key_id>/change/", own(key_page), name="apikeys_apikey_change"),
            path("<uuid:key_id>/revoke/", own(revoke_key), name="apikeys_apikey_revoke"),
            path("<uuid:key_id>/rotate/", own(rotate_key), name="apikeys_apikey_rotate"),
            *(
                path(
                    f"<uuid:key_id>/{action}/",
                    own(switch_key),
                    {"action": action},
                    f"apikeys_apikey_{action}",
                )
                for action in ("disable", "enable")
            ),
            path("", own(self.changelist_view), name="apikeys_apikey_changelist"),
        ]

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """All keys, newest first, each with its use."""
        may_manage = request.user.has_perm("apikeys.change_apikey")
        response = super().changelist_view(request, {"may_manage": may_manage, **(extra_context or {})})
        if isinstance(response, TemplateResponse) and response.context_data:
            keys = response.context_data["cl"].result_list
            uses = _uses(key.id for key in keys)
            response.context_data["rows"] = [(key, uses[key.id]) for key in keys]
        return response


def _uses(keys: Iterable[UUID]) -> dict[UUID, list[int]]:
    """Minutes in use on each of the last days, the oldest first."""
    today = timezone.now().date()
    first = today - timedelta(days=USE_DAYS - 1)
    days: dict[UUID, dict[date, int]] = {key: {} for key in keys}
    rows = KeyUse.objects.filter(api_key_id__in=list(days), day__gte=first)
    for use in rows:
        days[use.api_key_id][use.day] = use.minutes
    span = [first + timedelta(days=n) for n in range(USE_DAYS)]
    return {key: [used.get(day, 0) for day in span] for key, used in days.items()}


@require_http_methods(["GET", "HEAD", "POST"])
def new_key(request: HttpRequest) -> HttpResponse:
    """The form; and the answer to it, the only page that ever shows the secret (no admin page is cached)."""
    by = acting(request, Scope.ADMIN_KEYS)
    form = NewKeyForm(by, request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        values = form.cleaned_data
        try:
            key, secret = services.create_key(
                by, project=values["project"], mode=values["mode"], **form.columns()
            )
        except EngineError as error:
            form.add_error(None, f"{error.title}. {error.detail}")
        else:
            return _secret(request, key, secret)
    context = {**admin.site.each_context(request), "title": "New API key", "form": form}
    return TemplateResponse(request, "apikeys/new.html", context, status=422 if form.errors else 200)


@require_http_methods(["GET", "HEAD", "POST"])
def key_page(request: HttpRequest, key_id: UUID) -> HttpResponse:
    """One key: its use, what it may, and changing that."""
    by = acting(request, Scope.ADMIN_KEYS)
    key = _key(by, key_id)
    form = ChangeKeyForm(by, key, request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        try:
            services.change_key(by, key_id, **form.columns(key))
        except EngineError as error:
            form.add_error(None, f"{error.title}. {error.detail}")
        else:
            messages.success(request, f"The key {key.name} is changed: it holds from the next request on.")
            return redirect("admin:apikeys_apikey_change", key_id)
    state = ApiKey.objects.annotate(state=STATE).values_list("state", flat=True).get(id=key_id)
    context = {
        **admin.site.each_context(request),
        "title": "API key",
        "key": key,
        "state": state,
        "use": _uses([key.id])[key.id],
        "form": form,
        "rotation": RotateForm(),
        "may_change": state != ApiKey.State.REVOKED,
        "may_rotate": state in (ApiKey.State.ACTIVE, ApiKey.State.DISABLED) and key.replaced_by_id is None,
        "scope_words": [
            (scope, SCOPE_WORDS.get(Scope(scope), "")) for scope in key.scopes if scope in SCOPE_WORDS
        ],
    }
    return TemplateResponse(request, "apikeys/key.html", context, status=422 if form.errors else 200)


@require_POST
def rotate_key(request: HttpRequest, key_id: UUID) -> HttpResponse:
    """A successor with a new secret, which this page alone shows."""
    by = acting(request, Scope.ADMIN_KEYS)
    form = RotateForm(request.POST)
    overlap = form.cleaned_data["overlap"] if form.is_valid() else "86400"
    _key(by, key_id)
    try:
        key, secret = services.rotate_key(by, key_id, overlap=timedelta(seconds=int(overlap)))
    except EngineError as error:
        messages.error(request, f"{error.title}. {error.detail}")
        return redirect("admin:apikeys_apikey_change", key_id)
    return _secret(request, key, secret)


@require_POST
def switch_key(request: HttpRequest, key_id: UUID, action: str) -> HttpResponse:
    """Refuse the key for a while, or accept it again."""
    by = acting(request, Scope.ADMIN_KEYS)
    key = _key(by, key_id)
    try:
        (services.disable_key if action == "disable" else services.enable_key)(by, key_id)
    except EngineError as error:
        messages.error(request, f"{error.title}. {error.detail}")
    else:
        said = "is refused until it is enabled" if action == "disable" else "is accepted again"
        messages.success(request, f"The key {key.name} {said}.")
    return redirect("admin:apikeys_apikey_change", key_id)


@require_http_methods(["GET", "HEAD", "POST"])
def revoke_key(request: HttpRequest, key_id: UUID) -> HttpResponse:
    """Ask once more, then refuse the key for good."""
    by = acting(request, Scope.ADMIN_KEYS)
    key = _key(by, key_id)
    if request.method == "POST":
        services.revoke_key(by, key_id)
        messages.success(request, f"The key {key.name} is revoked: its next request is refused.")
        return redirect("admin:apikeys_apikey_changelist")
    context = {**admin.site.each_context(request), "title": "Revoke API key", "key": key}
    return TemplateResponse(request, "apikeys/revoke.html", context)


def _key(by: Caller, key_id: UUID) -> ApiKey:
    try:
        return services.get_key(by, key_id)
    except KeyNotFound as error:
        raise Http404 from error


def _secret(request: HttpRequest, key: ApiKey, secret: str) -> HttpResponse:
    address = request.build_absolute_uri("/")[:-1]
    context = {**admin.site.each_context(request), "title": "New API key"}
    return TemplateResponse(
        request, "apikeys/secret.html", context | {"key": key, "secret": secret, "address": address}
    )
