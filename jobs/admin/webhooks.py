"""Webhooks in the dashboard: who hears of a project's jobs, what was sent, and another try of it."""

from typing import Any
from uuid import UUID

from django import forms
from django.contrib import admin, messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.views.decorators.http import require_http_methods, require_POST

from apikeys.models import Project
from apikeys.scopes import Scope
from engine.dashboard.access import acting
from engine.dashboard.lists import ListAdmin
from engine.dashboard.live import parts, wants_parts
from engine.errors import EngineError, NotFound
from jobs.notifying import services
from jobs.notifying.models import EVENTS, Delivery, WebhookEndpoint
from jobs.services import database_time

PARTS = {"deliveries": "jobs/webhooks/deliveries.html"}
MOST_ENDPOINTS, MOST_DELIVERIES = 200, 50


class NewWebhookForm(forms.Form):
    """An address, and what it is to hear."""

    url = forms.CharField(
        label="Address", max_length=2000, widget=forms.TextInput({"type": "url", "placeholder": "https://…"})
    )
    project = forms.ModelChoiceField(
        Project.objects.filter(archived_at=None).order_by("slug"), to_field_name="slug", empty_label=None
    )
    events = forms.MultipleChoiceField(
        label="Events",
        choices=[(event, event) for event in EVENTS],
        widget=forms.CheckboxSelectMultiple,
        required=False,
        help_text="None chosen: all of them.",
    )
    description = forms.CharField(max_length=500, required=False)


@admin.register(WebhookEndpoint)
class WebhookAdmin(ListAdmin):
    """One page: endpoints above, deliveries below."""

    def get_urls(self) -> list[URLPattern]:
        """The page, and what its buttons do."""
        own = self.admin_site.admin_view
        return [
            path("", own(self.changelist_view), name="jobs_webhookendpoint_changelist"),
            path("add/", own(new_webhook), name="jobs_webhookendpoint_add"),
            path("<uuid:webhook_id>/<slug:action>/", own(change_webhook), name="jobs_webhook_do"),
            path("deliveries/<uuid:delivery_id>/redeliver/", own(redeliver), name="jobs_delivery_redeliver"),
        ]

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Endpoints, and the latest deliveries; `?state=failed` and `?job=ID` show some of them."""
        by = acting(request, Scope.ADMIN_WEBHOOKS)
        endpoints = WebhookEndpoint.objects.visible_to(by).select_related("project").order_by("-id")
        deliveries = Delivery.objects.visible_to(by).select_related("project").order_by("-id")
        state = request.GET.get("state", "")
        if state in Delivery.State.values:
            deliveries = deliveries.filter(state=state)
        context = {
            **self.admin_site.each_context(request),
            "title": "Webhooks",
            "now": database_time(),
            "endpoints": endpoints[:MOST_ENDPOINTS],
            "deliveries": deliveries[:MOST_DELIVERIES],
            "state": state,
            "states": Delivery.State.values,
        }
        if wants_parts(request):
            return parts(request, PARTS, context)
        return TemplateResponse(request, "jobs/webhooks/page.html", context)


@require_http_methods(["GET", "HEAD", "POST"])
def new_webhook(request: HttpRequest) -> HttpResponse:
    """The form; and the answer to it, the only page that shows the secret."""
    by = acting(request, Scope.ADMIN_WEBHOOKS)
    context = {**admin.site.each_context(request), "title": "New webhook"}
    form = NewWebhookForm(request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        try:
            endpoint, secret = services.create(by, **form.cleaned_data)
        except EngineError as error:
            for fault in error.errors or [{"pointer": "", "detail": error.detail}]:
                form.add_error("url" if fault["pointer"] == "/url" else None, fault["detail"])
        else:
            return _secret(request, context, endpoint, secret)
    context["form"] = form
    return TemplateResponse(request, "jobs/webhooks/new.html", context, status=422 if form.errors else 200)


@require_POST
def change_webhook(request: HttpRequest, webhook_id: UUID, action: str) -> HttpResponse:
    """Switch an endpoint on or off, ping it, make a new secret, or delete it."""
    by = acting(request, Scope.ADMIN_WEBHOOKS)
    try:
        match action:
            case "enable" | "disable":
                services.change(by, webhook_id, enabled=action == "enable")
                messages.success(request, f"The webhook is switched {'on' if action == 'enable' else 'off'}.")
            case "ping":
                services.ping(by, webhook_id)
                messages.success(request, "A ping is on its way: see the deliveries.")
            case "rotate":
                endpoint, secret = services.rotate(by, webhook_id)
                context = {**admin.site.each_context(request), "title": "New secret"}
                return _secret(request, context, endpoint, secret)
            case "delete":
                services.delete(by, webhook_id)
                messages.success(request, "The webhook is deleted.")
            case _:
                raise Http404
    except NotFound as error:
        raise Http404 from error
    return redirect("admin:jobs_webhookendpoint_changelist")


@require_POST
def redeliver(request: HttpRequest, delivery_id: UUID) -> HttpResponse:
    """Send a delivery again."""
    by = acting(request, Scope.ADMIN_WEBHOOKS)
    try:
        services.redeliver(by, delivery_id)
    except NotFound as error:
        raise Http404 from error
    except EngineError as error:
        messages.error(request, error.title)
    else:
        messages.success(request, "It is sent again, under the same id.")
    return redirect("admin:jobs_webhookendpoint_changelist")


def _secret(
    request: HttpRequest, context: dict[str, Any], endpoint: WebhookEndpoint, secret: str
) -> HttpResponse:
    return TemplateResponse(
        request, "jobs/webhooks/secret.html", context | {"endpoint": endpoint, "secret": secret}
    )
