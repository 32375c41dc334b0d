"""Questions as a program puts them: checked, and with the JSON Schema that an answer must meet."""

from datetime import timedelta
from typing import Any

from jobs.execution.fields import BadRecord, Fields
from jobs.execution.outcomes import QuestionSpec, StepBegin
from jobs.schemas import faults

MOST_CHOICES = 200
PROMPT_CHARACTERS = 20_000
ANSWER_CHARACTERS = 1_000_000
MOST_FIELDS = 50  # of a form
LONGEST_TIMEOUT = timedelta(days=366)
DECISIONS = ("approve", "edit", "reject", "respond")
KINDS = ("text", "choice", "multi_choice", "confirm", "form", "approval")


def question(fields: Fields) -> tuple[StepBegin, QuestionSpec]:
    """The question and the journal entry that waits for its answer. Raises BadRecord."""
    kind = fields.one_of("kind", KINDS)
    prompt = fields.text("prompt", most=PROMPT_CHARACTERS)
    if not prompt.strip():
        raise BadRecord("a question had no prompt")
    choices = fields.texts("choices", most=MOST_CHOICES, longest=500) if fields.data.get("choices") else None
    fields.data.pop("choices", None)
    details = fields.object("details") or {}
    schema = _answer_schema(kind, choices, fields.object("schema"), details)
    has_default = "default" in fields.data
    step = StepBegin(fields.key(), "ask", fields.text("signature", most=100))
    spec = QuestionSpec(
        key=step.key,
        kind=kind,
        prompt=prompt,
        schema=schema,
        choices=choices,
        details=details,
        has_default=has_default,
        default=fields.value("default"),
        assignees=fields.texts("assignees", most=50, longest=200),
        expires_in=_span(fields.data.pop("timeout", None)),
        on_timeout=fields.one_of("on_timeout", ("wait", "default", "fail")),
        remind_after=tuple(filter(None, map(_span, fields.items("remind", most=10)))),
    )
    if fields.data:
        raise BadRecord("a question had unknown fields")
    if spec.on_timeout != "wait" and spec.expires_in is None:
        raise BadRecord("a question said what happens after its timeout, but has none")
    if spec.on_timeout == "default" and not has_default:
        raise BadRecord("a question was to take its default, but has none")
    wrong = faults(spec.default, schema, at="default") if has_default else []
    if wrong:
        raise BadRecord(f"the question's default does not fit: {wrong[0]['pointer']}: {wrong[0]['detail']}")
    return step, spec


def _span(value: Any) -> timedelta | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 < value <= LONGEST_TIMEOUT.total_seconds():
        raise BadRecord("a question's time was not between 0 seconds and one year")
    return timedelta(seconds=value)


def _answer_schema(
    kind: str, choices: list[str] | None, form: dict[str, Any] | None, details: dict[str, Any]
) -> dict[str, Any]:
    """The JSON Schema that an answer to such a question must meet."""
    if (form is not None) != (kind == "form") or (choices is not None) != (
        kind in ("choice", "multi_choice")
    ):
        raise BadRecord(f"a {kind} question had the wrong parts")
    match kind:
        case "choice":
            return {"enum": choices}
        case "multi_choice":
            return {"type": "array", "items": {"enum": choices}, "uniqueItems": True}
        case "confirm":
            return {"type": "boolean"}
        case "form":
            return _form(form or {})
        case "approval":
            return _approval(details)
        case _:
            return {"type": "string", "maxLength": ANSWER_CHARACTERS}


def _approval(details: dict[str, Any]) -> dict[str, Any]:
    allowed = details.get("allowed")
    if not isinstance(allowed, list) or not allowed or not all(item in DECISIONS for item in allowed):
        raise BadRecord(f"an approval allowed something else than {', '.join(DECISIONS)}")
    if not isinstance(details.get("action"), str) or not isinstance(details.get("arguments"), dict):
        raise BadRecord("an approval did not say its action and arguments")
    return {
        "type": "object",
        "properties": {
            "decision": {"enum": allowed},
            "arguments": _edited(details["arguments"], details.get("schema")),
            "message": {"type": "string", "maxLength": 10_000},
        },
        "required": ["decision"],
        "additionalProperties": False,
        "allOf": [
            {
                "if": {"properties": {"decision": {"const": "edit"}}},
                "then": {"required": ["arguments"]},
                # Only an edit changes what is done, where edits are allowed at all.
                "else": {"properties": {"arguments": {"const": details["arguments"]}}},
            },
            {"if": {"properties": {"decision": {"const": "respond"}}}, "then": {"required": ["message"]}},
        ],
    }


_TYPES = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}


def _edited(arguments: dict[str, Any], schema: Any) -> dict[str, Any]:
    """What edited arguments must meet: the agent's own schema, or else that those it knows keep their types."""
    if schema is not None:
        if not isinstance(schema, dict):
            raise BadRecord("an approval's schema was not an object")
        return _form(schema)
    known = {name: {"type": _TYPES[type(value)]} for name, value in arguments.items() if value is not None}
    return {"type": "object", "properties": known}


# A form is flat, as in MCP's elicitation: fields of one value or a choice, so that every door can show it.
# No `pattern`: a hostile expression would stop the process that checks it.
_FIELD_KEYWORDS: dict[str, type | tuple[type, ...]] = {
    "title": str,
    "description": str,
    "default": (str, int, float, bool, list),
    "enum": list,
    "format": str,
    "minLength": int,
    "maxLength": int,
    "minimum": (int, float),
    "maximum": (int, float),
}
_FIELD_TYPES = ("string", "number", "integer", "boolean", "array")
_FORMATS = ("email", "uri", "date", "date-time")


def _form(form: dict[str, Any]) -> dict[str, Any]:
    properties, required = form.get("properties"), form.get("required", [])
    if form.get("type", "object") != "object" or not isinstance(properties, dict):
        raise BadRecord("a form's schema was not an object with properties")
    if not 0 < len(properties) <= MOST_FIELDS:
        raise BadRecord(f"a form had no fields, or more than {MOST_FIELDS}")
    if not isinstance(required, list) or not all(
        isinstance(name, str) and name in properties for name in required
    ):
        raise BadRecord("a form required fields that it does not have")
    unknown = form.keys() - {"type", "properties", "required", "title", "description", "additionalProperties"}
    if unknown:
        raise BadRecord(f"a form's schema had what forms cannot have: {', '.join(sorted(unknown))}")
    fields = {name: _form_field(name, field) for name, field in properties.items()}
    return {"type": "object", "properties": fields, "required": required, "additionalProperties": False}


def _form_field(name: str, field: Any) -> dict[str, Any]:
    kind = field.get("type", "string") if isinstance(field, dict) else None
    if kind not in _FIELD_TYPES:
        raise BadRecord(f"the form's field {name!r} was of none of the types {', '.join(_FIELD_TYPES)}")
    keywords = {key: value for key, value in field.items() if key not in ("type", "items", "uniqueItems")}
    for keyword, value in keywords.items():
        allowed = _FIELD_KEYWORDS.get(keyword)
        if allowed is None or not isinstance(value, allowed):
            raise BadRecord(f"the form's field {name!r} had a {keyword!r} that forms cannot have")
    if keywords.get("format", "date") not in _FORMATS:
        raise BadRecord(f"the form's field {name!r} had an unknown format")
    if "enum" in keywords:
        _check_choices(name, keywords["enum"])
    if kind != "array":
        return {**keywords, "type": kind}
    choices = field["items"].get("enum") if isinstance(field.get("items"), dict) else None
    _check_choices(name, choices)
    return {**keywords, "type": "array", "items": {"enum": choices}, "uniqueItems": True}


def _check_choices(name: str, choices: Any) -> None:
    if not isinstance(choices, list) or not 0 < len(choices) <= MOST_CHOICES:
        raise BadRecord(f"the form's field {name!r} had no choices, or too many")
    if not all(isinstance(choice, str | int | float) for choice in choices):
        raise BadRecord(f"the form's field {name!r} had choices that are neither texts nor numbers")
