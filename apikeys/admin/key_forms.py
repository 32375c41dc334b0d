"""What a key is and may do, as a form: for a new one and for changes."""

from datetime import datetime, timedelta
from ipaddress import ip_network
from typing import Any

from django import forms
from django.utils import timezone

from apikeys.callers import Caller
from apikeys.models import ApiKey, Project, default_windows
from apikeys.scopes import Scope, agent_of, is_scope, run_scope

SCOPE_WORDS = {
    Scope.JOBS_READ: "See jobs, logs, artifacts and questions",
    Scope.JOBS_WRITE: "Submit, cancel and retry jobs",
    Scope.JOBS_RESPOND: "Answer the questions that agents ask",
    Scope.AGENTS_READ: "See agents and find them by meaning",
    Scope.AGENTS_WRITE: "Register agents, and so run code of its own in sandboxes",
    Scope.ADMIN_KEYS: "Create and revoke keys of its project, with no more rights than its own",
    Scope.ADMIN_WEBHOOKS: "Send its project's events to addresses of its choice",
    Scope.ADMIN_WORKERS: "See the workers of the whole installation",
    Scope.ADMIN_METRICS: "Read metrics of the whole installation",
    Scope.ADMIN: "Everything, new projects and limits included: for whoever runs Engine",
}
LIFETIMES = [
    ("", "Never"),
    ("1", "In a day"),
    ("30", "In 30 days"),
    ("90", "In 90 days"),
    ("365", "In a year"),
]
KEEP = ("keep", "As it is now")
# The windows that the form offers; a key may have others, which stay.
WINDOWS = {"per_minute": 60, "per_hour": 3600, "per_day": 86_400}
MOST = 1_000_000_000


class KeyForm(forms.Form):
    """A key for a program: what it is called, what it may do, and how much."""

    name = forms.CharField(
        max_length=100, help_text="What will use it, such as “nightly import”. Jobs and answers show it."
    )
    scopes = forms.MultipleChoiceField(
        label="What it may do",
        required=False,
        widget=forms.CheckboxSelectMultiple,
        initial=[Scope.JOBS_READ, Scope.JOBS_WRITE, Scope.JOBS_RESPOND, Scope.AGENTS_READ],
    )
    agents = forms.CharField(
        label="Run these agents",
        required=False,
        help_text="For a key without jobs:write: slugs of the only agents it may run, separated by spaces.",
    )
    days = forms.ChoiceField(label="Expires", choices=LIFETIMES, required=False)
    per_minute = forms.IntegerField(label="Requests a minute", required=False, min_value=1, max_value=MOST)
    per_hour = forms.IntegerField(label="Requests an hour", required=False, min_value=1, max_value=MOST)
    per_day = forms.IntegerField(label="Requests a day", required=False, min_value=1, max_value=MOST)
    max_concurrent_jobs = forms.IntegerField(
        label="Unfinished jobs at once", required=False, min_value=1, max_value=2**31 - 1
    )
    budget_cost = forms.FloatField(
        label="Money for models a month, in USD",
        required=False,
        min_value=0,
        max_value=MOST,
        help_text="A job that would pass it stops before the call. Months begin at midnight UTC.",
    )
    budget_tokens = forms.IntegerField(
        label="Tokens of models a month", required=False, min_value=0, max_value=10**15
    )
    allowed_cidrs = forms.CharField(
        label="Accepted from these networks alone",
        required=False,
        widget=forms.Textarea({"rows": 2, "class": "e-code", "placeholder": "10.0.0.0/8"}),
        help_text="One a line. Empty: from anywhere.",
    )

    def __init__(self, by: Caller, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        offered = [(scope.value, SCOPE_WORDS[scope]) for scope in Scope if by.may(scope)]
        self.fields["scopes"].choices = offered  # type: ignore[attr-defined]  # a MultipleChoiceField

    def clean_agents(self) -> list[str]:
        """The scopes of the agents that are named."""
        scopes = [run_scope(slug) for slug in self.cleaned_data["agents"].replace(",", " ").split()]
        if unknown := [scope for scope in scopes if not is_scope(scope)]:
            raise forms.ValidationError(f"{agent_of(unknown[0]) or unknown[0]} cannot be an agent's slug.")
        return scopes

    def clean_allowed_cidrs(self) -> list[str]:
        """Networks in their usual spelling; a single address is a network of one."""
        try:
            return [str(ip_network(line.strip())) for line in self.cleaned_data["allowed_cidrs"].split()]
        except ValueError as error:
            raise forms.ValidationError("Not a network like 10.0.0.0/8 or 2001:db8::/32.") from error

    def clean(self) -> dict[str, Any]:
        """At least one right."""
        values = super().clean() or {}
        if not self.errors and not (values["scopes"] or values["agents"]):
            self.add_error("scopes", "Choose at least one.")
        return values

    @property
    def limits(self) -> list[forms.BoundField]:
        """How much it may do."""
        names = ("max_concurrent_jobs", "budget_cost", "budget_tokens", *WINDOWS, "allowed_cidrs")
        return [self[name] for name in names]

    @property
    def has_limit_faults(self) -> bool:
        """Whether the closed part of the form holds something to correct."""
        return any(field.errors for field in self.limits)

    def columns(self, key: ApiKey | None = None) -> dict[str, Any]:
        """The key's columns as the form says; of a key that is there, those that differ alone."""
        values = self.cleaned_data
        budget = {"cost_usd": values["budget_cost"], "tokens": values["budget_tokens"]}
        columns = {
            "name": values["name"],
            "scopes": list(values["scopes"]) + values["agents"],
            "windows": self._windows(key),
            "max_concurrent_jobs": values["max_concurrent_jobs"],
            "budget": {name: most for name, most in budget.items() if most is not None} or None,
            "allowed_cidrs": values["allowed_cidrs"],
        }
        if values["days"] != KEEP[0]:
            columns["expires_at"] = _in_days(values["days"])
        if key is None:
            return columns
        return {name: value for name, value in columns.items() if value != getattr(key, name)}

    def _windows(self, key: ApiKey | None) -> list[dict[str, int]]:
        offered = [
            {"limit": self.cleaned_data[name], "seconds": seconds}
            for name, seconds in WINDOWS.items()
            if self.cleaned_data[name] is not None
        ]
        others = (
            [window for window in key.windows if window["seconds"] not in WINDOWS.values()] if key else []
        )
        return sorted(offered + others, key=lambda window: window["seconds"])


class NewKeyForm(KeyForm):
    """A key that is to be made."""

    project = forms.ModelChoiceField(
        Project.objects.filter(archived_at=None).order_by("slug"), to_field_name="slug", empty_label=None
    )
    mode = forms.ChoiceField(
        label="Kind",
        choices=[("live", "Live (engine_live_…)"), ("test", "Test (engine_test_…)")],
        help_text="Both work alike; the prefix tells people and secret scanners which one they found.",
    )

    def __init__(self, by: Caller, *args: Any, **kwargs: Any) -> None:
        super().__init__(by, *args, **kwargs)
        self.fields["per_minute"].initial = default_windows()[0]["limit"]

    field_order = ("name", "project", "scopes")


class ChangeKeyForm(KeyForm):
    """A key as it is, to be changed."""

    def __init__(self, by: Caller, key: ApiKey, *args: Any, **kwargs: Any) -> None:
        super().__init__(by, *args, initial=_as_it_is(key), **kwargs)
        self.fields["days"].choices = [KEEP, *LIFETIMES]  # type: ignore[attr-defined]  # a ChoiceField


def _as_it_is(key: ApiKey) -> dict[str, Any]:
    windows = {window["seconds"]: window["limit"] for window in key.windows}
    budget = key.budget or {}
    return {
        "name": key.name,
        "scopes": [scope for scope in key.scopes if agent_of(scope) is None],
        "agents": " ".join(slug for scope in key.scopes if (slug := agent_of(scope))),
        "days": KEEP[0],
        **{name: windows.get(seconds) for name, seconds in WINDOWS.items()},
        "max_concurrent_jobs": key.max_concurrent_jobs,
        "budget_cost": budget.get("cost_usd"),
        "budget_tokens": budget.get("tokens"),
        "allowed_cidrs": "\n".join(key.allowed_cidrs),
    }


def _in_days(days: str) -> datetime | None:
    return timezone.now() + timedelta(days=int(days)) if days else None
