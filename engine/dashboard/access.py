"""Who acts when a page of the dashboard is asked for something."""

from dataclasses import replace

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest

from apikeys.addresses import client_ip
from apikeys.callers import Caller, staff_caller
from apikeys.scopes import Scope


def acting(request: HttpRequest, scope: Scope) -> Caller:
    """The member of staff behind this request. PermissionDenied unless they hold `scope`."""
    by = staff_caller(request.user)
    if not by.may(scope):
        raise PermissionDenied
    return replace(by, ip=client_ip(request) or None)
