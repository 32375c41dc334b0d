"""Engine's addresses, and the plain one beside them."""

from django.urls import path

from benchmarks.plain.views import RowsView
from engine.urls import handler400, handler403, handler404, handler500
from engine.urls import urlpatterns as engine_urls

__all__ = ["handler400", "handler403", "handler404", "handler500", "urlpatterns"]

urlpatterns = [path("plain/rows", RowsView.as_view()), *engine_urls]
