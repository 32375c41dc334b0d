"""Every address Engine answers."""

from django.contrib import admin
from django.urls import URLPattern, URLResolver, include, path, re_path

from engine.problems import handler400, handler403, handler404, handler500, unknown_address

__all__ = ["handler400", "handler403", "handler404", "handler500", "urlpatterns"]

urlpatterns: list[URLPattern | URLResolver] = [
    path("admin/", admin.site.urls),
    path("api/v1/admin/", include("apikeys.urls")),
    re_path("^api/", unknown_address),  # last under api/: nothing there answers with a page
]
