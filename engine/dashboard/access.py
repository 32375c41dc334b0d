"""Who acts when a page of the dashboard is asked for something."""

from dataclasses import replace

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest

from apikeys.addresses import client_ip
from apikeys.callers import Caller, staff_caller
from apikeys.scopes import Scope


def acting(request: HttpRequest, scope: Scope) -> Caller:
    """The member of staff behind this request. PermissionDenied unless they hold `scope`."""
    by = acting_as(request)
    if not by.may(scope):
        raise PermissionDenied
    return by


def acting_with(request: HttpRequest, permission: str) -> Caller:
    """The member of staff behind this request. PermissionDenied unless they have this permission of Django's.

    For what no scope stands for: queues and workers belong to the whole installation.
    """
    by = acting_as(request)
    if not request.user.has_perm(permission):
        raise PermissionDenied
    return by


def acting_as(request: HttpRequest) -> Caller:
    """The member of staff behind this request, for a page that Django has checked the permission of."""
    return replace(
        staff_caller(request.user),
        ip=client_ip(request) or None,
        request_id=getattr(request, "request_id", ""),
    )
