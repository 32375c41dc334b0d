"""Filters of the list of jobs that a member of staff keeps under a name; each sees their own."""

from typing import Any

from django.contrib import messages
from django.db import transaction
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect
from django.urls import reverse
from django.views.decorators.http import require_POST

from apikeys.scopes import Scope
from apikeys.services import audit
from engine.dashboard.access import acting
from jobs.admin.narrowing import canonical
from jobs.models import SavedView

MOST_VIEWS = 20
MOST_NAME, MOST_QUERY = 40, 500


def of(person: Any) -> QuerySet[SavedView]:
    """A person's views by name."""
    return SavedView.objects.filter(owner=person).order_by("name")[:MOST_VIEWS]


@require_POST
def save(request: HttpRequest) -> HttpResponse:
    """Keep the list's filters under a name; a name that is known is given anew."""
    by = acting(request, Scope.JOBS_READ)
    query = canonical(QueryDict(request.POST.get("query", "")))
    name = " ".join(request.POST.get("name", "").split())
    if not name or len(name) > MOST_NAME:
        messages.error(request, f"Give the view a name of up to {MOST_NAME} characters.")
    elif not query or len(query) > MOST_QUERY:
        messages.error(request, "There is no filter to keep.")
    elif SavedView.objects.filter(owner_id=request.user.pk).exclude(name=name).count() >= MOST_VIEWS:
        messages.error(request, f"You have {MOST_VIEWS} views already: forget one first.")
    else:
        with transaction.atomic():
            SavedView.objects.update_or_create(owner_id=request.user.pk, name=name, defaults={"query": query})
            audit(by, "view.saved", f"view:{name}", query=query)
        messages.success(request, "The view is kept.")
    return redirect(f"{reverse('admin:jobs_job_changelist')}?{query}")


@require_POST
def forget(request: HttpRequest, view_id: int) -> HttpResponse:
    """Forget one of one's own views."""
    by = acting(request, Scope.JOBS_READ)
    view = SavedView.objects.filter(owner_id=request.user.pk, id=view_id).first()
    if view is None:
        raise Http404
    with transaction.atomic():
        view.delete()
        audit(by, "view.forgotten", f"view:{view.name}")
    return redirect("admin:jobs_job_changelist")
