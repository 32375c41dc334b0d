"""Limits for requests that bring no key: the login, and pages that anybody may open. Counted by address."""

from collections.abc import Callable
from functools import wraps
from http import HTTPStatus

from django.contrib import admin
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.template.loader import render_to_string
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django_ratelimit.core import is_ratelimited

from apikeys.addresses import client_ip
from engine.problems import TooManyRequests

# Tries of one address, and of one address at one name: guessing a password is to take years.
LOGINS, LOGINS_AT_A_NAME = "30/m", "10/5m"
# The description of the API is made once and cheap to send, but not free.
PAGES = "300/m"

View = Callable[..., HttpResponseBase]


def limited(request: HttpRequest, group: str, rate: str, *, value: str = "") -> bool:
    """Count a request of this address (and of this value of it); whether it is one too many."""
    return bool(
        is_ratelimited(
            request,
            group=group,
            key=lambda *_: f"{client_ip(request)} {value}",
            rate=rate,
            increment=True,
        )
    )


def page(view: View) -> View:
    """A view that anybody may open, so often and not more often from one address."""

    @wraps(view)
    def counted(request: HttpRequest, *args: object, **kwargs: object) -> HttpResponseBase:
        if limited(request, "page", PAGES):
            raise TooManyRequests("Wait a minute, then try again.", headers={"Retry-After": "60"})
        return view(request, *args, **kwargs)

    return counted


@sensitive_post_parameters()
@never_cache
def login(request: HttpRequest) -> HttpResponseBase:
    """The dashboard's login, so often and not more often from one address."""
    if request.method == "POST" and not _may_try(request):
        error = TooManyRequests("Too many tries to sign in. Wait five minutes, then try again.")
        page = render_to_string("jobs/answer/refused.html", {"error": error}, request)
        return HttpResponse(page, status=HTTPStatus.TOO_MANY_REQUESTS, headers={"Retry-After": "300"})
    return admin.site.login(request)


def _may_try(request: HttpRequest) -> bool:
    name = request.POST.get("username", "")[:150].casefold()
    return not limited(request, "login", LOGINS) and not limited(
        request, "login-name", LOGINS_AT_A_NAME, value=name
    )
