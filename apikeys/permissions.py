"""May this caller use this view: REST framework's door, closed unless the view names a scope."""

from typing import TYPE_CHECKING

from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from apikeys.callers import Caller
from apikeys.errors import ScopeMissing
from apikeys.throttling import count
from engine.problems import Forbidden, NotAuthenticated
from engine.query import query_params

if TYPE_CHECKING:
    from rest_framework.views import APIView  # it imports this module: DEFAULT_..._CLASSES


METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})


class HasScope(BasePermission):
    """Reads `view.required_scope`: a Scope, or a dict from method to Scope.

    A view with `takes_run_scope = True` also lets in keys that may run single agents only
    (`agents:SLUG:run`); its service then asks `caller.may(Scope.JOBS_WRITE, agent_slug=…)`.
    """

    def has_permission(self, request: Request, view: "APIView") -> bool:
        """True, or an error that names what is missing."""
        by = request.auth
        if not isinstance(by, Caller):
            raise NotAuthenticated
        method = "GET" if request.method == "HEAD" else str(request.method)
        if method not in METHODS or not hasattr(view, method.lower()):
            return True  # nothing is there to protect: the answer is a 405
        scope = required_scope(view, method)
        if scope is None:
            raise Forbidden
        if by.may(scope) or (getattr(view, "takes_run_scope", False) and by.runs_only()):
            self._refuse_query(request, method)
            return True
        count(request)  # a refused request counts as one all the same
        raise ScopeMissing(f"This needs the scope {scope}", missing_scope=scope)

    def _refuse_query(self, request: Request, method: str) -> None:
        """What changes something takes no query parameters; each GET names its own."""
        if method != "GET" and request.query_params:
            count(request)
            query_params(request, {})


def required_scope(view: "type[APIView] | APIView", method: str) -> str | None:
    """The scope that a view asks of a method, or None if it names none, which denies."""
    declared = getattr(view, "required_scope", None)
    return declared.get(method) if isinstance(declared, dict) else declared
