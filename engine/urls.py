"""Every address Engine answers."""

from django.contrib import admin
from django.urls import URLPattern, URLResolver, include, path, re_path
from django.views.decorators.cache import cache_page
from django.views.generic import RedirectView
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerSplitView

from engine import openapi  # noqa: F401, it registers itself
from engine.anonymous import login, page
from engine.dashboard.system import system
from engine.problems import handler400, handler403, handler404, handler500, unknown_address
from jobs.answering import answer_page
from jobs.mcp.views import McpView

__all__ = ["handler400", "handler403", "handler404", "handler500", "urlpatterns"]

urlpatterns: list[URLPattern | URLResolver] = [
    path("", RedirectView.as_view(url="/admin/")),
    path("admin/login/", login),  # before the admin's own, which nothing limits
    path("admin/system/", admin.site.admin_view(system), name="system"),
    path("admin/", admin.site.urls),
    path("answer/<str:token>", answer_page),
    path("mcp", McpView.as_view()),
    path("api/v1/admin/", include("apikeys.urls")),
    path("api/v1/agents", include("agents.urls")),
    path("api/v1/", include("jobs.urls")),
    # Made from the code, which does not change while we run.
    path(
        "api/schema",
        page(cache_page(3600, cache="memory")(SpectacularAPIView.as_view(throttle_classes=[]))),
        name="schema",
    ),
    # The split view keeps its script out of the page, which the content security policy demands.
    path("api/docs", page(SpectacularSwaggerSplitView.as_view(throttle_classes=[]))),
    re_path("^api/", unknown_address),  # last under api/: nothing there answers with a page
]
