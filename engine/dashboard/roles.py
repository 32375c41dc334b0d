"""The roles of people in the dashboard: Django groups that `migrate` makes, for an operator to put people into.

What a permission allows stands in `apikeys.callers.STAFF_PERMISSIONS` and at each page. A superuser needs no role.
"""

from typing import Any

from django.apps import apps as installed

_VIEWER = ("jobs.view_job", "jobs.view_question", "jobs.view_worker", "agents.view_agent")
# Submit, cancel, retry and answer; pause queues and drain workers.
_OPERATOR = ("jobs.add_job", "jobs.change_question", "jobs.change_queue", "jobs.change_worker")
# Register, change, try and archive agents, and so run code in sandboxes.
_AUTHOR = ("agents.change_agent",)
# Keys, projects and where events are sent. Who may change projects may give out every right.
_ADMIN = (
    "apikeys.view_apikey",
    "apikeys.change_apikey",
    "apikeys.view_project",
    "apikeys.add_project",
    "apikeys.change_project",
    "apikeys.view_auditrow",
    "jobs.view_webhookendpoint",
    "jobs.change_webhookendpoint",
)

ROLES: dict[str, tuple[str, ...]] = {
    "viewer": _VIEWER,
    "operator": _VIEWER + _OPERATOR,
    "author": _VIEWER + _AUTHOR,
    "admin": _VIEWER + _OPERATOR + _AUTHOR + _ADMIN,
}


def make_roles(using: str, apps: Any = installed, **_: Any) -> None:
    """Make the roles that are missing; one that is there stays as its installation wants it.

    After each `migrate` (a signal's receiver), not in one migration: Django makes permissions only after the
    migrations of their app, and a database emptied of rows gets its roles back.
    """
    try:
        groups, permissions = apps.get_model("auth", "Group"), apps.get_model("auth", "Permission")
    except LookupError:  # migrated back to before there were people
        return
    for name, held in ROLES.items():
        group, is_new = groups.objects.using(using).get_or_create(name=name)
        if not is_new:
            continue
        for permission in held:
            app, codename = permission.split(".")
            found = permissions.objects.using(using).filter(content_type__app_label=app, codename=codename)
            group.permissions.add(*found)
