"""A question as a form: one field or several, by its kind, and the answer that was meant."""

import json
from collections.abc import Mapping
from typing import Any

from django import forms
from django.core.validators import MaxValueValidator, MinValueValidator
from django.http import HttpRequest

from engine.dashboard.text import escaped, plain
from engine.errors import FieldError
from jobs.models import Question

# More choices than this are a list to pick from, not buttons to read.
MOST_RADIOS = 8
DECISIONS = {
    "approve": "Approve",
    "edit": "Approve as changed",
    "reject": "Reject",
    "respond": "Reply without deciding",
}


class JSONText(forms.CharField):
    """JSON that a person edits."""

    widget = forms.Textarea

    def to_python(self, value: Any) -> Any:
        """The value it means. ValidationError says where the text stops being JSON."""
        text = super().to_python(value)
        if not text:
            return None
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise forms.ValidationError(
                f"This is not JSON: line {error.lineno}, column {error.colno}: {error.msg}."
            ) from error
        except RecursionError as error:
            raise forms.ValidationError("This is nested too deeply.") from error


class AnswerForm(forms.Form):
    """The form of one open question."""

    def __init__(self, question: Question, data: Mapping[str, Any] | None = None) -> None:
        super().__init__(data, prefix=f"q{question.id.hex[-12:]}")
        self.question = question
        self.fields.update(_fields(question))

    @property
    def decisions(self) -> list[tuple[str, str]]:
        """The buttons of an approval. One approves, with the arguments as they stand in the form."""
        allowed = self._allowed()
        shown = [name for name in allowed if name != "edit" or "approve" not in allowed]
        return [(name, label) for name, label in DECISIONS.items() if name in shown]

    def _allowed(self) -> list[str]:
        return self.question.details.get("allowed") or list(DECISIONS)

    @property
    def error_id(self) -> str:
        """The element that says what is wrong, for `aria-describedby`."""
        return f"{self.prefix}-error"

    def is_complete(self, request: HttpRequest) -> bool:
        """Whether the fields that matter to the button that was pressed hold what they should."""
        match self.question.kind:
            case Question.Kind.CONFIRM:
                return True
            case Question.Kind.APPROVAL:
                return self.is_valid() or request.POST.get("answer") not in ("approve", "edit")
            case _:
                return self.is_valid()

    def answer(self, request: HttpRequest) -> Any:
        """What was answered, in the form that `jobs.services.respond` takes."""
        match self.question.kind:
            case Question.Kind.CONFIRM:
                return {"yes": True, "no": False}.get(request.POST.get("answer", ""))
            case Question.Kind.APPROVAL:
                return self._decision(request.POST.get("answer", ""))
            case Question.Kind.FORM:
                return {name: value for name, value in self._members() if value is not None}
            case Question.Kind.CHOICE | Question.Kind.MULTI_CHOICE:
                return _chosen(self.question.choices or [], self.cleaned_data["answer"])
            case _:
                return self.cleaned_data["answer"]

    def _decision(self, decision: str) -> dict[str, Any]:
        """Approving arguments that were changed is an `edit`: nobody approves what they did not see."""
        answer: dict[str, Any] = {"decision": decision}
        arguments = self.cleaned_data.get("arguments")
        is_changed = "arguments" in self.fields and arguments != self.question.details.get("arguments")
        if decision == "edit" or (decision == "approve" and is_changed):
            answer = {"decision": "edit", "arguments": arguments}
        message = self.cleaned_data.get("message")
        return answer | ({"message": message} if message else {})

    def _members(self) -> list[tuple[str, Any]]:
        """A form's values by the schema's own names. What was left empty is left out."""
        members = []
        for index, (name, schema) in enumerate(_properties(self.question).items()):
            value = self.cleaned_data.get(f"f{index}")
            options = _options(schema)
            if value is None or value in ("", []):
                members.append((name, None))
            else:
                members.append((name, value if options is None else _chosen(options, value)))
        return members

    def take_faults(self, detail: str, errors: list[FieldError]) -> None:
        """Show at each field what the question's schema has against it."""
        if nothing := self._nothing_chosen():
            self.add_error(None, nothing)
            return
        names = {f"/answer/{name}": f"f{index}" for index, name in enumerate(_properties(self.question))}
        for error in errors:
            self.add_error(names.get(error["pointer"]), error["detail"])
        if not errors:
            self.add_error(None, detail)

    def _nothing_chosen(self) -> str:
        """What to do where the form came without a button or a choice; empty if there was one."""
        match self.question.kind:
            case Question.Kind.CONFIRM if self.data.get("answer") not in ("yes", "no"):
                return "Choose yes or no."
            case Question.Kind.APPROVAL if not self.data.get("answer"):
                return "Choose what to do: press one of the buttons."
            case Question.Kind.MULTI_CHOICE if not self.cleaned_data.get("answer"):
                return "Choose at least one."
            case _:
                return ""


def _fields(question: Question) -> dict[str, forms.Field]:
    match question.kind:
        case Question.Kind.TEXT:
            area = forms.Textarea({"rows": 3})
            return {"answer": forms.CharField(label="Your answer", widget=area, initial=question.default)}
        case Question.Kind.CHOICE:
            return {"answer": _choice(question.choices or [], question.default)}
        case Question.Kind.MULTI_CHOICE:
            return {"answer": _choices(question.choices or [], question.default)}
        case Question.Kind.FORM:
            required = set(question.schema.get("required", []))
            given = question.default if isinstance(question.default, dict) else {}
            return {
                f"f{index}": _member(name, schema, is_required=name in required, initial=given.get(name))
                for index, (name, schema) in enumerate(_properties(question).items())
            }
        case Question.Kind.APPROVAL:
            return _approval(question)
        case _:
            return {}


def _properties(question: Question) -> dict[str, dict[str, Any]]:
    """The schema's members, required ones first in their order: the database keeps no order within an object."""
    found = question.schema.get("properties", {})
    if not isinstance(found, dict):
        return {}
    first = [name for name in question.schema.get("required", []) if name in found]
    return {name: found[name] for name in [*first, *found]}


# The values of buttons and lists are places in the list of options: options may be of any type, and hold any text.


def _pairs(options: list[Any]) -> list[tuple[str, str]]:
    return [(str(place), plain(option)) for place, option in enumerate(options)]


def _places(options: list[Any], given: Any) -> list[str]:
    return [str(options.index(item)) for item in given if item in options] if isinstance(given, list) else []


def _chosen(options: list[Any], given: str | list[str]) -> Any:
    return [options[int(place)] for place in given] if isinstance(given, list) else options[int(given)]


def _choice(options: list[Any], initial: Any) -> forms.Field:
    common: dict[str, Any] = {
        "label": "Your answer",
        "initial": next(iter(_places(options, [initial])), None),
    }
    if len(options) > MOST_RADIOS:
        return forms.ChoiceField(choices=[("", "Choose…"), *_pairs(options)], **common)
    return forms.ChoiceField(choices=_pairs(options), widget=forms.RadioSelect, **common)


def _choices(options: list[Any], initial: Any) -> forms.Field:
    return forms.MultipleChoiceField(
        label="Your answer",
        choices=_pairs(options),
        widget=forms.CheckboxSelectMultiple,
        initial=_places(options, initial),
        required=False,
    )


def _options(schema: dict[str, Any]) -> list[Any] | None:
    """What a member of a form is to be chosen from; None if it is typed."""
    found = schema.get("items", {}).get("enum", []) if schema.get("type") == "array" else schema.get("enum")
    return found if isinstance(found, list) else None


def _approval(question: Question) -> dict[str, forms.Field]:
    fields: dict[str, forms.Field] = {}
    allowed = question.details.get("allowed") or list(DECISIONS)
    if "edit" in allowed:
        arguments = escaped(json.dumps(question.details.get("arguments"), indent=2, ensure_ascii=False))
        rows = min(16, arguments.count("\n") + 2)
        fields["arguments"] = JSONText(
            label="Arguments",
            initial=arguments,
            widget=forms.Textarea(
                {"rows": rows, "class": "e-code", "spellcheck": "false", "data-diff": "yes"}
            ),
            required=False,
            help_text="You may change them: what stands here is what is approved.",
        )
    fields["message"] = forms.CharField(
        label="Message to the agent", required=False, widget=forms.Textarea({"rows": 2})
    )
    return fields


def _member(name: str, schema: dict[str, Any], *, is_required: bool, initial: Any) -> forms.Field:
    """One property of a flat JSON Schema. What this makes of it is help; the schema itself decides."""
    common: dict[str, Any] = {
        "label": plain(schema.get("title") or name.replace("_", " ").capitalize()),
        "help_text": plain(schema.get("description", "")),
        "initial": schema.get("default") if initial is None else initial,
        "required": is_required,
    }
    options = _options(schema)
    if options is not None:
        return _chosen_member(schema, options, common)
    match schema.get("type"):
        case "boolean":
            return forms.BooleanField(**common | {"required": False})
        case "integer" | "number" as kind:
            limits = [
                check(schema[word])
                for word, check in (("minimum", MinValueValidator), ("maximum", MaxValueValidator))
                if isinstance(schema.get(word), int | float)
            ]
            numbers = forms.IntegerField if kind == "integer" else forms.FloatField
            return numbers(validators=limits, **common)
        case _:
            return _text(schema, common)


def _chosen_member(schema: dict[str, Any], options: list[Any], common: dict[str, Any]) -> forms.Field:
    initial = common.pop("initial")
    if schema.get("type") == "array":
        return forms.MultipleChoiceField(
            choices=_pairs(options),
            widget=forms.CheckboxSelectMultiple,
            initial=_places(options, initial),
            **common,
        )
    pairs = _pairs(options) if common["required"] else [("", "–"), *_pairs(options)]
    return forms.ChoiceField(choices=pairs, initial=next(iter(_places(options, [initial])), None), **common)


def _text(schema: dict[str, Any], common: dict[str, Any]) -> forms.Field:
    kinds = {"email": "email", "uri": "url", "date": "date", "date-time": "datetime-local", "time": "time"}
    kind = kinds.get(str(schema.get("format")), "text")
    widget: forms.Widget = forms.TextInput({"type": kind})
    if kind == "text" and int(schema.get("maxLength") or 0) > 200:
        widget = forms.Textarea({"rows": 3})
    return forms.CharField(widget=widget, max_length=schema.get("maxLength"), **common)
