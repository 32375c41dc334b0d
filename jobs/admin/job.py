"""Jobs in the dashboard: the list, and the addresses of everything else about a job."""

from typing import Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path

from agents.models import Agent, AgentVersion
from apikeys.models import Project
from engine.dashboard.lists import ListAdmin, ParameterFilter
from engine.dashboard.live import parts, wants_parts
from jobs import figures
from jobs.admin import files, job_page, new_job, overview
from jobs.models import Job

# Words are looked for in this many of the newest jobs: no index serves them, and a search has to end.
SEARCHED = 50_000
ROWS = {"job-rows": "jobs/list/rows.html", "job-states": "jobs/list/states.html"}
STATES = [
    ("running", "Running"),
    ("queued", "Queued"),
    ("waiting_for_input", "Waiting"),
    ("scheduled", "Scheduled"),
    ("completed", "Completed"),
    ("failed", "Failed"),
    ("cancelled", "Cancelled"),
    ("rejected", "Rejected"),
]


class ByStatus(ParameterFilter):
    """Jobs in one state."""

    title, parameter_name = "state", "status"

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Narrow the list."""
        return queryset.filter(status=self.value()) if self.value() else queryset


class ByProject(ParameterFilter):
    """Jobs of one project, by its slug."""

    title, parameter_name = "project", "project"

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Narrow the list."""
        return queryset.filter(project__slug=self.value()) if self.value() else queryset


class ByAgent(ParameterFilter):
    """Jobs of one agent, all its versions, by its slug."""

    title, parameter_name = "agent", "agent"

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Narrow the list."""
        if not self.value():
            return queryset
        versions = AgentVersion.objects.filter(agent__slug=self.value()).values_list("id", flat=True)
        return queryset.filter(agent_version__in=list(versions))


@admin.register(Job)
class JobAdmin(ListAdmin):
    """The list of jobs, newest first. A job's own page is in `job_page.py`."""

    list_filter = (ByStatus, ByProject, ByAgent)
    list_select_related = ("agent_version__agent", "project")
    search_fields = ("task",)
    change_list_template = "jobs/list/page.html"
    list_title = "Jobs"

    def get_urls(self) -> list[URLPattern]:
        """The pages about one job stand below it."""
        own = self.admin_site.admin_view
        job = "<uuid:job_id>/"
        return [
            path("overview/", own(overview.overview_parts), name="jobs_overview_parts"),
            path("new/", own(new_job.new_job), name="jobs_job_new"),
            path(job, own(job_page.job_page), name="jobs_job_change"),
            path(f"{job}parts/", own(job_page.job_parts), name="jobs_job_parts"),
            path(f"{job}cancel/", own(job_page.cancel), name="jobs_job_cancel"),
            path(f"{job}retry/", own(job_page.retry), name="jobs_job_retry"),
            path(f"{job}questions/<uuid:question_id>/", own(job_page.answer), name="jobs_job_answer"),
            path(f"{job}log.txt", own(files.log_text), name="jobs_job_log"),
            path(f"{job}events.ndjson", own(files.raw_events), name="jobs_job_events"),
            path(f"{job}artifacts/<uuid:artifact_id>/", own(files.artifact), name="jobs_job_artifact"),
            path(f"{job}inputs/<uuid:file_id>/", own(files.input_file), name="jobs_job_input"),
            path("", own(self.changelist_view), name="jobs_job_changelist"),
        ]

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """By id, by tag, or by words of the task among the newest jobs."""
        term = search_term.strip()
        if not term:
            return queryset, False
        job_id = _as_uuid(term)
        if job_id:
            return queryset.filter(id=job_id), False
        floor = Job.objects.order_by("-id").values_list("id", flat=True)[SEARCHED : SEARCHED + 1].first()
        recent = queryset.filter(id__gt=floor) if floor else queryset
        return recent.filter(Q(task__icontains=term) | Q(tags__contains=[term])), False

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The page, or the parts of it that refresh themselves."""
        response = super().changelist_view(request, extra_context)
        if isinstance(response, TemplateResponse) and response.context_data:
            response.context_data |= self._around(request, response.context_data["cl"])
            if wants_parts(request):
                return parts(request, ROWS, response.context_data)
        return response

    def _around(self, request: HttpRequest, changelist: ChangeList) -> dict[str, Any]:
        """What the list's own toolbar needs: states with counts, projects, agents."""
        counts = figures.states()
        chosen = request.GET.get("status", "")
        states = [
            {
                "value": value,
                "label": label,
                "count": counts.get(value),
                "is_chosen": value == chosen,
                "query": changelist.get_query_string({"status": value}, ["p"]),
            }
            for value, label in STATES
        ]
        return {
            "states": states,
            "all_query": changelist.get_query_string(remove=["status", "p"]),
            "chosen": {name: request.GET.get(name, "") for name in ("status", "project", "agent", "q")},
            "is_filtered": any(request.GET.get(name) for name in ("status", "project", "agent", "q")),
            "projects": Project.objects.order_by("slug").values_list("slug", flat=True)[:500],
            "agents": Agent.objects.order_by("slug").values_list("slug", flat=True).distinct()[:500],
            "searched": SEARCHED,
        }


def _as_uuid(term: str) -> str | None:
    digits = term.replace("-", "").lower()
    return digits if len(digits) == 32 and all(digit in "0123456789abcdef" for digit in digits) else None
