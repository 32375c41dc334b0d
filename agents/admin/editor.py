"""Writing a Python agent in the browser: its card, its files, checked before anything is stored."""

import json
import re
from typing import Any
from uuid import UUID

from django import forms
from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse, JsonResponse, QueryDict
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.views.decorators.http import require_http_methods, require_POST

from agents import services
from agents.admin.acting_for import agent_of, in_place
from agents.cards import ENTRY_FILE, Card
from agents.errors import InvalidCard
from agents.models import SLUG_MAX_LENGTH, Agent, AgentVersion
from apikeys.callers import Caller
from apikeys.models import Project
from apikeys.scopes import Scope
from engine.dashboard.access import acting
from engine.errors import EngineError

STARTER = '''"""What this agent does, in one sentence."""

from engine_agent import artifact, inputs_dir, log, outputs_dir, progress, step


def main(task, inputs):
    log(f"The task: {task}")
    files = step("look", list_files)  # runs once per job, whatever crashes or pauses
    progress(0.5, f"{len(files)} files")
    report = outputs_dir / "report.txt"
    report.write_text("\\n".join(files) or "no files")
    artifact(report)
    return {"files": len(files)}


def list_files():
    return sorted(path.name for path in inputs_dir.iterdir())
'''
_LINE = re.compile(r"^Line (\d+): ")


class _StrictDecoder(json.JSONDecoder):
    """JSON as PostgreSQL takes it: Python's NaN and Infinity are none."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, parse_constant=self._refuse)

    @staticmethod
    def _refuse(name: str) -> Any:
        raise json.JSONDecodeError(f"{name} is not JSON", name, 0)


class JSONObject(forms.JSONField):
    """An object or a list written as JSON; empty is `empty`."""

    widget = forms.Textarea

    def __init__(self, empty: Any, **options: Any) -> None:
        attributes = {"rows": 4, "class": "e-code", "spellcheck": "false"}
        super().__init__(required=False, decoder=_StrictDecoder, widget=forms.Textarea(attributes), **options)
        self._empty = empty

    def to_python(self, value: Any) -> Any:
        """The value. Raises ValidationError also for what is nested without end."""
        try:
            found = super().to_python(value)
        except RecursionError as error:
            raise forms.ValidationError("This is nested too deeply.") from error
        return self._empty if found is None else found

    def bound_data(self, data: Any, initial: Any) -> Any:
        """What was sent, as it was written."""
        return data

    def prepare_value(self, value: Any) -> Any:
        """As it is edited: indented, and nothing for nothing."""
        if isinstance(value, str):
            return value
        return json.dumps(value, indent=2, ensure_ascii=False) if value else ""


class Lines(forms.CharField):
    """A list, one entry a line."""

    def __init__(self, rows: int = 3, **options: Any) -> None:
        super().__init__(required=False, widget=forms.Textarea({"rows": rows}), **options)

    def to_python(self, value: Any) -> Any:
        """The lines that hold something."""
        return [line.strip() for line in (value or "").splitlines() if line.strip()]

    def prepare_value(self, value: Any) -> Any:
        """As it is edited."""
        return value if isinstance(value, str) else "\n".join(value or [])


class CardForm(forms.Form):
    """A card's fields, besides its files."""

    name = forms.CharField(max_length=120)
    slug = forms.CharField(
        max_length=SLUG_MAX_LENGTH,
        required=False,
        help_text="Jobs and scripts name the agent by it, and it stays. Left empty: made from the name.",
    )
    project = forms.ModelChoiceField(
        Project.objects.filter(archived_at=None).order_by("slug"),
        to_field_name="slug",
        required=False,
        empty_label="Shared by all projects",
        label="Owner",
    )
    description = forms.CharField(
        widget=forms.Textarea({"rows": 3}),
        help_text="What it does and from what. Discovery compares tasks with this.",
    )
    examples = Lines(
        label="Tasks it is meant for",
        help_text="One a line, as a person would write them. Three to five gain discovery most.",
    )
    tags = Lines(rows=2, help_text="One a line.")
    requirements = Lines(label="Packages", help_text="One a line, with a version: httpx==0.28.1")
    limits = JSONObject({}, help_text='Such as {"wall_seconds": 600, "memory_mb": 1024}.')
    skills = JSONObject([], help_text='Such as [{"name": "Draw", "description": "Bars and lines"}].')
    input_schema = JSONObject({}, label="Input schema", help_text="What `inputs` must look like.")
    output_schema = JSONObject({}, label="Output schema", help_text="What `main` must return.")

    def __init__(self, agent: Agent | None, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if agent is not None:
            del self.fields["slug"], self.fields["project"]

    @property
    def details(self) -> list[forms.BoundField]:
        """What most agents leave as it is."""
        return [self[name] for name in ("tags", "limits", "skills", "input_schema", "output_schema")]

    @property
    def has_detail_faults(self) -> bool:
        """Whether the closed part of the form holds something to correct."""
        return any(field.errors for field in self.details)


class Draft:
    """What somebody has written so far: the form, the files, and what is wrong with them."""

    def __init__(self, agent: Agent | None, data: QueryDict | None) -> None:
        self.agent = agent
        version = agent.current_version if agent else None
        if data is None:
            self.form = CardForm(agent, initial=_card_of(version) if version else {})
            self.files = dict(version.source) if version else {ENTRY_FILE: STARTER}
            return
        self.form = CardForm(agent, data)
        names = [name.strip() for name in data.getlist("file_name")]
        texts = [text.replace("\r\n", "\n") for text in data.getlist("file_text")]  # as forms send lines
        self.files = {name: text for name, text in zip(names, texts, strict=False) if name or text.strip()}

    @property
    def is_valid(self) -> bool:
        """Whether the form could be read; what the card says is checked by `check`."""
        return self.form.is_valid()

    def card(self) -> dict[str, Any]:
        """The card as `services.put` takes it. The form is valid."""
        values = {name: value for name, value in self.form.cleaned_data.items() if name != "project"}
        if self.agent is not None:
            values["slug"] = self.agent.slug
        elif not values["slug"]:
            del values["slug"]
        version = self.agent.current_version if self.agent else None
        kept = {"summary": version.summary} if version else {}  # what this form does not show
        return {**kept, **values, "kind": AgentVersion.Kind.PYTHON.value, "source": self.files}

    def faults(self) -> list[dict[str, Any]]:
        """What is wrong, each with the field or file and, in a file, the line."""
        if not self.is_valid:
            return [
                {"field": name, "detail": str(detail)}
                for name, details in self.form.errors.items()
                for detail in details
            ]
        try:
            Card.parse(self.card())
        except InvalidCard as error:
            return [_fault(one["pointer"], one["detail"]) for one in error.errors]
        return []

    def take(self, error: EngineError) -> None:
        """Show at each field what a service has refused."""
        for one in error.errors or [{"pointer": "", "detail": error.detail or error.title}]:
            fault = _fault(one["pointer"], one["detail"])
            field = fault.get("field", "")
            where = f"{fault['file']}: " if "file" in fault else ""
            self.form.add_error(field if field in self.form.fields else None, f"{where}{one['detail']}")


def _card_of(version: AgentVersion) -> dict[str, Any]:
    return {name: getattr(version, name) for name in CardForm.base_fields if hasattr(version, name)}


def _fault(pointer: str, detail: str) -> dict[str, Any]:
    field, _, rest = pointer.removeprefix("/").partition("/")
    if field != "source" or not rest:
        return {"field": field, "detail": f"{rest}: {detail}" if rest else detail}
    line = _LINE.match(detail)
    return {"file": rest, "detail": detail} | ({"line": int(line[1])} if line else {})


@require_http_methods(["GET", "HEAD", "POST"])
def new_agent(request: HttpRequest) -> HttpResponse:
    """A new agent, from a few lines that already run."""
    by = acting(request, Scope.AGENTS_WRITE)
    draft = Draft(None, request.POST if request.method == "POST" else None)
    if request.method == "POST" and draft.is_valid:
        try:
            version = _register(by, draft)
        except EngineError as error:
            draft.take(error)
        else:
            messages.success(request, f"{version.ref} is registered. Try it.")
            return redirect("admin:agents_agent_edit", version.agent_id)
    return _page(request, draft)


@require_http_methods(["GET", "HEAD", "POST"])
def edit_agent(request: HttpRequest, agent_id: UUID) -> HttpResponse:
    """The editor; and saving, which makes a version that is current from then on."""
    by = acting(request, Scope.AGENTS_WRITE)
    agent = agent_of(by, agent_id)
    if agent.current_version is None or agent.current_version.kind != AgentVersion.Kind.PYTHON:
        messages.info(request, "Only Python agents are edited here; others change over the API.")
        return redirect("admin:agents_agent_change", agent_id)
    draft = Draft(agent, request.POST if request.method == "POST" else None)
    if request.method == "POST" and draft.is_valid:
        try:
            version, is_new = services.patch(in_place(by, agent), agent.slug, draft.card())
        except EngineError as error:
            draft.take(error)
        else:
            said = "is current from now on" if is_new else "says this already: nothing has changed"
            messages.success(request, f"Version {version.number} {said}.")
            return redirect("admin:agents_agent_edit", agent_id)
    return _page(request, draft)


@require_POST
def check_agent(request: HttpRequest) -> JsonResponse:
    """What is wrong with a draft, as JSON; stores nothing."""
    by = acting(request, Scope.AGENTS_WRITE)
    agent_id = request.GET.get("agent", "")
    agent = agent_of(by, UUID(agent_id)) if _is_uuid(agent_id) else None
    return JsonResponse({"faults": Draft(agent, request.POST).faults()})


@require_POST
def archive_agent(request: HttpRequest, agent_id: UUID, action: str) -> HttpResponse:
    """Take the agent out of service, or back into it."""
    by = acting(request, Scope.AGENTS_WRITE)
    agent = agent_of(by, agent_id)
    act = services.archive if action == "archive" else services.restore
    try:
        act(in_place(by, agent), agent.slug)
    except EngineError as error:
        messages.error(request, error.detail or error.title)
    else:
        messages.success(
            request,
            "The agent gets no more work. Its jobs that run go on; its versions stay."
            if action == "archive"
            else "The agent is back: discovery finds it again.",
        )
    return redirect("admin:agents_agent_change", agent_id)


def _register(by: Caller, draft: Draft) -> AgentVersion:
    """The first version. Raises InvalidCard, also for a slug that is taken: nobody means a new version by this form."""
    card = Card.parse(draft.card())
    project = draft.form.cleaned_data["project"]
    if Agent.objects.filter(project=project, slug=card.slug).exists():
        taken = "There is an agent of this slug already: edit that one, or take another slug"
        raise InvalidCard(errors=[{"pointer": "/slug", "detail": taken}])
    return services.register(in_place(by, Agent(project=project)), card.as_json())


def _is_uuid(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", text) is not None


def _page(request: HttpRequest, draft: Draft) -> HttpResponse:
    agent = draft.agent
    context = {
        **admin.site.each_context(request),
        "title": "Edit agent" if agent else "New agent",
        "agent": agent,
        "form": draft.form,
        "files": list(draft.files.items()),
        "projects": Project.objects.filter(archived_at=None).order_by("slug"),
    }
    return TemplateResponse(request, "agents/editor.html", context, status=422 if draft.form.errors else 200)
