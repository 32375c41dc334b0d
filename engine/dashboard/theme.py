"""How the dashboard looks and what its sidebar offers. Read by settings: nothing here may need the apps."""

from collections.abc import Callable
from typing import Any

from django.http import HttpRequest
from django.templatetags.static import static
from django.urls import reverse, reverse_lazy


def _asset(path: str) -> Callable[[HttpRequest], str]:
    """A static file's address, asked for when a page is made: its name may carry a hash."""
    return lambda request: static(path)


def _may(*permissions: str) -> Callable[[HttpRequest], bool]:
    return lambda request: request.user.has_perms(permissions)


def _entry(title: str, icon: str, link: str, *permissions: str, **more: Any) -> dict[str, Any]:
    return {
        "title": title,
        "icon": icon,
        "link": reverse_lazy(link),
        "permission": _may(*permissions),
        **more,
    }


def _is_below(link: str, *, besides: str) -> Callable[[HttpRequest], bool]:
    """Whether the page stands below one link and not below another, which has an entry of its own."""
    return lambda request: (
        request.path.startswith(str(reverse(link))) and not request.path.startswith(str(reverse(besides)))
    )


UNFOLD: dict[str, Any] = {
    "SITE_TITLE": "Engine",
    "SITE_HEADER": "Engine",
    "SITE_SUBHEADER": "Agent operations",
    "SITE_URL": None,
    "SITE_ICON": _asset("engine/icon.svg"),
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": _asset("engine/icon.svg")}],
    "SHOW_HISTORY": False,  # Django's own log of form edits; ours is the audit
    "SHOW_VIEW_ON_SITE": False,
    "BORDER_RADIUS": "8px",
    "STYLES": [_asset("engine/dashboard.css"), _asset("engine/registry.css")],
    "SCRIPTS": [_asset("engine/times.js"), _asset("engine/live.js"), _asset("engine/page.js")],
    "DASHBOARD_CALLBACK": "jobs.admin.overview.overview",
    "COLORS": {
        "primary": {
            "50": "oklch(96.2% .018 272.3)",
            "100": "oklch(93% .034 272.8)",
            "200": "oklch(87% .065 274)",
            "300": "oklch(78.5% .115 274.7)",
            "400": "oklch(67.3% .182 276.9)",
            "500": "oklch(58.5% .233 277.1)",
            "600": "oklch(51.1% .262 277)",
            "700": "oklch(45.7% .24 277)",
            "800": "oklch(39.8% .195 277.4)",
            "900": "oklch(35.9% .144 278.7)",
            "950": "oklch(25.7% .09 281.3)",
        },
    },
    "SIDEBAR": {"navigation": "engine.dashboard.theme.navigation"},
}


def navigation(request: HttpRequest) -> list[dict[str, Any]]:
    """The sidebar of whoever looks."""
    return [
        {
            "items": [
                _entry("Overview", "space_dashboard", "admin:index"),
                _entry("Jobs", "deployed_code", "admin:jobs_job_changelist", "jobs.view_job"),
                _entry(
                    "Inbox",
                    "inbox",
                    "admin:jobs_question_changelist",
                    "jobs.view_question",
                    **_open_questions(),
                ),
                _entry(
                    "Agents",
                    "smart_toy",
                    "admin:agents_agent_changelist",
                    "agents.view_agent",
                    active=_is_below("admin:agents_agent_changelist", besides="admin:agents_agent_discover"),
                ),
                _entry("Discovery lab", "travel_explore", "admin:agents_agent_discover", "agents.view_agent"),
                _entry(
                    "Webhooks",
                    "webhook",
                    "admin:jobs_webhookendpoint_changelist",
                    "jobs.change_webhookendpoint",
                ),
                _entry("Queues and workers", "memory", "admin:jobs_worker_changelist", "jobs.view_worker"),
                _entry("System", "monitor_heart", "system", "jobs.view_worker"),
            ]
        },
        {
            "title": "Access",
            "separator": True,
            "items": [
                _entry("Connect", "cable", "admin:apikeys_connect", "jobs.view_job"),
                _entry(
                    "API keys",
                    "key",
                    "admin:apikeys_apikey_changelist",
                    "apikeys.view_apikey",
                    active=_is_below("admin:apikeys_apikey_changelist", besides="admin:apikeys_connect"),
                ),
                _entry("Projects", "folder", "admin:apikeys_project_changelist", "apikeys.view_project"),
                _entry("People", "group", "admin:auth_user_changelist", "auth.view_user"),
                _entry("Audit", "history", "admin:apikeys_auditrow_changelist", "apikeys.view_auditrow"),
            ],
        },
    ]


def _open_questions() -> dict[str, Any]:
    """How many questions wait, beside the inbox; nothing where none does."""
    from jobs.figures import MOST_COUNTED, open_questions  # the apps are not there yet when settings are read

    count = open_questions()
    shown = f"{MOST_COUNTED:,}+" if count > MOST_COUNTED else f"{count:,}"
    return {"badge": shown, "badge_variant": "warning"} if count else {}
