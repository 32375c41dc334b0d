"""Jobs in the dashboard: the list, and the addresses of everything else about a job."""

from typing import Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path

from agents.models import Agent
from apikeys.models import Project
from engine.dashboard.lists import LAST_PAGE, ListAdmin
from engine.dashboard.live import parts, wants_parts
from jobs import figures
from jobs.admin import files, forking, job_page, many, new_job, overview, saved_views, trying
from jobs.admin.narrowing import PARAMETERS, SEARCHED, canonical, narrowed, order, parameter
from jobs.models import Job

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


@admin.register(Job)
class JobAdmin(ListAdmin):
    """The list of jobs, newest first. A job's own page is in `job_page.py`."""

    list_filter = tuple(parameter(name) for name in PARAMETERS if name != "q")
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
            path("many/", own(many.many), name="jobs_job_many"),
            path("views/", own(saved_views.save), name="jobs_job_view_save"),
            path("views/<int:view_id>/forget/", own(saved_views.forget), name="jobs_job_view_forget"),
            path("new/", own(new_job.new_job), name="jobs_job_new"),
            path("new/foresee/", own(new_job.foresee), name="jobs_job_foresee"),
            path("try/<uuid:agent_id>/", own(trying.try_agent), name="jobs_agent_try"),
            path("trials/<uuid:job_id>/", own(trying.trial), name="jobs_trial"),
            path("trials/<uuid:job_id>/stop/", own(trying.stop_trial), name="jobs_trial_stop"),
            path(job, own(job_page.job_page), name="jobs_job_change"),
            path(f"{job}parts/", own(job_page.job_parts), name="jobs_job_parts"),
            path(f"{job}cancel/", own(job_page.cancel), name="jobs_job_cancel"),
            path(f"{job}retry/", own(job_page.retry), name="jobs_job_retry"),
            path(f"{job}fork/", own(forking.fork), name="jobs_job_fork"),
            path(f"{job}questions/<uuid:question_id>/", own(job_page.answer), name="jobs_job_answer"),
            path(f"{job}log.txt", own(files.log_text), name="jobs_job_log"),
            path(f"{job}events.ndjson", own(files.raw_events), name="jobs_job_events"),
            path(f"{job}artifacts/<uuid:artifact_id>/", own(files.artifact), name="jobs_job_artifact"),
            path(f"{job}artifacts/<uuid:artifact_id>/preview/", own(files.preview), name="jobs_job_preview"),
            path(f"{job}inputs/<uuid:file_id>/", own(files.input_file), name="jobs_job_input"),
            path("", own(self.changelist_view), name="jobs_job_changelist"),
        ]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """The jobs that the address asks for, as far as its page goes."""
        page = request.GET.get("p", "1")
        number = min(int(page), LAST_PAGE) if page.isdecimal() and len(page) < 5 else 1
        return narrowed(request.GET, reach=number * self.list_per_page + 1)

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        """Newest first, or last ended first."""
        return order(request.GET)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """The words are taken into account already."""
        return queryset, False

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
                "query": changelist.get_query_string({"status": value}, ["p", "error", "ended", "used"]),
            }
            for value, label in STATES
        ]
        return {
            "states": states,
            "all_query": changelist.get_query_string(remove=["status", "p", "error", "ended", "used"]),
            "chosen": {name: request.GET.get(name, "") for name in PARAMETERS},
            "is_filtered": any(request.GET.get(name) for name in PARAMETERS),
            "query": canonical(request.GET),
            "views": saved_views.of(request.user),
            "periods": [("1h", "the last hour"), ("24h", "the last day"), ("7d", "the last week")],
            "may_act": request.user.has_perm("jobs.add_job"),
            "projects": Project.objects.order_by("slug").values_list("slug", flat=True)[:500],
            "agents": Agent.objects.order_by("slug").values_list("slug", flat=True).distinct()[:500],
            "searched": SEARCHED,
        }
