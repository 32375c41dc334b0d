"""Agent cards: what an agent says about itself, checked before anything of it is stored."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from django.conf import settings
from django.utils.text import slugify
from jsonschema import Draft202012Validator, SchemaError
from jsonschema.exceptions import ValidationError

from agents.errors import InvalidCard
from agents.models import SLUG_MAX_LENGTH, SLUG_PATTERN, AgentVersion
from engine.errors import FieldError
from engine.gate import text_fault
from engine.problems import pointer_part

ENTRY_FILE = "agent.py"
MAX_SOURCE_BYTES = 512 * 1024  # all files of a version together
MAX_SCHEMA_BYTES = 64 * 1024
MAX_FAULTS = 20  # reported at once
RESERVED_SLUGS = ("bulk", "discover")

LLM_TOOLS = (
    "run_python",
    "list_files",
    "read_file",
    "ask_human",
    "save_artifact",
    "find_agents",
    "run_agent",
)
# When a person must agree to a call: to none, to each, or to those whose risk is high.
LLM_POLICIES = ("never", "always", "high_risk")

# A distribution's name, extras, and version pins (PEP 508 without URLs, markers and options): what is
# installed for an agent comes from the configured index and nowhere else.
REQUIREMENT_PATTERN = (
    r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?"
    r"(\[[A-Za-z0-9._-]+(,[A-Za-z0-9._-]+)*\])?"
    r"( *(==|>=|<=|~=|!=|>|<) *[A-Za-z0-9.*+!_-]+( *, *(==|>=|<=|~=|!=|>|<) *[A-Za-z0-9.*+!_-]+)*)?\Z"
)
FILE_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\Z"
# Nothing that breaks a line or steers a terminal, in what is shown on one line.
LINE_PATTERN = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*\Z"
HOST_PATTERN = (
    r"^(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(:[0-9]{1,5})?\Z"
)


def _text(most: int, *, least: int = 0) -> dict[str, Any]:
    return {"type": "string", "minLength": least, "maxLength": most}


def _line(most: int, *, least: int = 0) -> dict[str, Any]:
    return {**_text(most, least=least), "pattern": LINE_PATTERN}


def _list(items: dict[str, Any], most: int, *, unique: bool = False) -> dict[str, Any]:
    return {"type": "array", "items": items, "maxItems": most, "uniqueItems": unique}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


_TAGS = _list(_line(40, least=1), 20, unique=True)
# Ten examples are plenty: three to five good ones are what discovery gains most from.
_EXAMPLES = _list(_text(1000, least=1), 10)
_SKILL = {
    **_object(
        id={"type": "string", "pattern": r"^[a-z0-9][a-z0-9_.-]{0,79}\Z"},
        name=_line(120, least=1),
        description=_text(2000),
        tags=_TAGS,
        examples=_EXAMPLES,
    ),
    "required": ["name"],
}

CARD_SCHEMA: dict[str, Any] = {
    **_object(
        slug={"type": "string", "pattern": SLUG_PATTERN[:-1] + r"\Z", "maxLength": SLUG_MAX_LENGTH},
        name=_line(120, least=1),
        description=_text(4000, least=1),
        summary=_text(2000),
        kind={"enum": list(AgentVersion.Kind.values)},
        skills=_list(_SKILL, 40),
        examples=_EXAMPLES,
        tags=_TAGS,
        input_schema={"type": "object"},
        output_schema={"type": "object"},
        limits=_object(
            wall_seconds={"type": "integer", "minimum": 1, "maximum": 86_400},
            cpu_seconds={"type": "integer", "minimum": 1, "maximum": 86_400},
            memory_mb={"type": "integer", "minimum": 64, "maximum": 65_536},
            disk_mb={"type": "integer", "minimum": 1, "maximum": 65_536},
            processes={"type": "integer", "minimum": 1, "maximum": 1024},
            allow_hosts=_list({"type": "string", "pattern": HOST_PATTERN, "maxLength": 255}, 50, unique=True),
            retry=_object(
                max_attempts={"type": "integer", "minimum": 1, "maximum": 20},
                backoff_s={"type": "number", "minimum": 0.1, "maximum": 86_400},
                backoff_factor={"type": "number", "minimum": 1, "maximum": 10},
                max_backoff_s={"type": "number", "minimum": 0.1, "maximum": 86_400},
            ),
        ),
        requirements=_list({"type": "string", "pattern": REQUIREMENT_PATTERN, "maxLength": 200}, 50),
        source={
            "type": "object",
            "propertyNames": {"pattern": FILE_PATTERN},
            "additionalProperties": {"type": "string"},
            "maxProperties": 50,
        },
        instructions=_text(50_000),
        model=_line(120),
        tools=_list({"enum": list(LLM_TOOLS)}, len(LLM_TOOLS), unique=True),
        settings=_object(
            temperature={"type": "number", "minimum": 0, "maximum": 2},
            max_steps={"type": "integer", "minimum": 1, "maximum": 1000},
            max_tokens={"type": "integer", "minimum": 1, "maximum": 10_000_000},
            max_cost_usd={"type": "number", "minimum": 0, "maximum": 10_000},
            approve=_list({"enum": list(LLM_TOOLS)}, len(LLM_TOOLS), unique=True),  # policy: always
            policy={
                "oneOf": [
                    {"enum": list(LLM_POLICIES)},
                    _object(**{name: {"enum": list(LLM_POLICIES)} for name in LLM_TOOLS}),
                ]
            },
            in_doubt={"enum": ["ask", "run_again"]},
        ),
    ),
    "required": ["name", "description"],
}
_VALIDATOR = Draft202012Validator(CARD_SCHEMA)


@dataclass(frozen=True)
class Card:
    """A checked card. Its fields are those of AgentVersion, which says what each one means."""

    slug: str
    name: str
    description: str
    kind: str
    summary: str = ""
    skills: list[dict[str, Any]] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    input_schema: dict[str, Any] = field(default_factory=dict)
    output_schema: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)
    requirements: list[str] = field(default_factory=list)
    source: dict[str, str] = field(default_factory=dict)
    instructions: str = ""
    model: str = ""
    tools: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, data: Any) -> Card:
        """The card in this JSON value. Raises InvalidCard, with a pointer to each fault."""
        faults = {fault["pointer"]: fault for fault in _faults(data)}
        if faults:
            raise InvalidCard(errors=list(faults.values())[:MAX_FAULTS])
        fields = {"slug": slugify(data["name"])[:SLUG_MAX_LENGTH].strip("-"), "kind": _kind(data), **data}
        fields["skills"] = _with_ids(fields.get("skills", []))
        return cls(**fields)

    @classmethod
    def of(cls, version: AgentVersion) -> Card:
        """The card that this version was registered with."""
        return cls(slug=version.agent.slug, **{name: getattr(version, name) for name in VERSION_FIELDS})

    def version_fields(self) -> dict[str, Any]:
        """The columns of AgentVersion that come from the card."""
        return {name: getattr(self, name) for name in VERSION_FIELDS}

    def as_json(self) -> dict[str, Any]:
        """The card as `parse` takes it."""
        return asdict(self)

    def content_hash(self) -> str:
        """SHA-256 over everything but the slug: equal content needs no new version."""
        canonical = json.dumps(self.version_fields(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


VERSION_FIELDS = tuple(name for name in Card.__dataclass_fields__ if name != "slug")


def _faults(data: Any) -> Iterator[FieldError]:
    if unstorable := list(_text_faults(data, "")):
        yield from unstorable  # and nothing more: such text breaks the checks below
        return
    errors = list(_VALIDATOR.iter_errors(data))
    if errors:
        for error in errors:
            yield from _from_jsonschema(error)
        return
    yield from _slug_faults(data)
    yield from _kind_faults(data)
    yield from _source_faults(data.get("source", {}))
    for name in ("input_schema", "output_schema"):
        yield from _schema_faults(data.get(name, {}), f"/{name}")


def _text_faults(value: Any, pointer: str) -> Iterator[FieldError]:
    """Text that PostgreSQL cannot hold. The HTTP gate looks for it too; files and the dashboard pass here only."""
    if isinstance(value, str):
        if fault := text_fault(value):
            yield {"pointer": pointer, "detail": fault}
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _text_faults(str(name), pointer)
            yield from _text_faults(inner, f"{pointer}/{pointer_part(name)}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _text_faults(inner, f"{pointer}/{index}")


def _from_jsonschema(error: ValidationError) -> Iterator[FieldError]:
    pointer = "".join(f"/{pointer_part(step)}" for step in error.absolute_path)
    wanted: Any = error.validator_value
    instance: Any = error.instance
    schema: Any = error.schema
    match error.validator:
        case "required":
            for name in wanted:
                if name not in instance:
                    yield {"pointer": f"{pointer}/{pointer_part(name)}", "detail": "This is required"}
        case "additionalProperties" if wanted is False:
            for name in instance:
                if name not in schema["properties"]:
                    yield {"pointer": f"{pointer}/{pointer_part(name)}", "detail": "There is no such field"}
        case _:
            yield {"pointer": pointer, "detail": _sentence(error.validator, wanted, error.message)}


def _sentence(keyword: Any, wanted: Any, message: str) -> str:
    """What is wrong, without the value: jsonschema quotes all of it, and it may be a megabyte of source."""
    match keyword:
        case "maxLength":
            return f"Longer than {wanted:,} characters"
        case "minLength":
            return "This may not be empty"
        case "maxItems" | "maxProperties":
            return f"More than {wanted} entries"
        case "type":
            return f"This must be of type {wanted}"
        case "enum":
            return f"Not one of {', '.join(map(str, wanted))}"
        case "pattern" if wanted == REQUIREMENT_PATTERN:
            return "Not a package name with version pins, such as httpx==0.28.1"
        case "pattern" if wanted == LINE_PATTERN:
            return "Line breaks and control characters are not accepted here"
        case "pattern":
            return f"This must match {wanted.replace(chr(92) + 'Z', '$')}"
        case "oneOf":
            return f"Neither one of {', '.join(LLM_POLICIES)} nor an object of these by tool"
        case "uniqueItems":
            return "Two entries are the same"
    return message[:200]


def _slug_faults(data: Mapping[str, Any]) -> Iterator[FieldError]:
    if (data.get("slug") or slugify(data["name"])) in RESERVED_SLUGS:
        yield {"pointer": "/slug", "detail": "The API has an address of this name: take another slug"}
    if "slug" not in data and not re.fullmatch(
        SLUG_PATTERN, slugify(data["name"])[:SLUG_MAX_LENGTH].strip("-")
    ):
        yield {"pointer": "/slug", "detail": "This is required: no slug can be made from the name"}


def _kind(data: Mapping[str, Any]) -> str | None:
    """The kind that was named, or that which the card's content leaves no doubt about."""
    if "kind" in data:
        return str(data["kind"])
    if data.get("source"):
        return AgentVersion.Kind.PYTHON.value
    return AgentVersion.Kind.LLM.value if data.get("instructions") else None


def _kind_faults(data: Mapping[str, Any]) -> Iterator[FieldError]:
    kind = _kind(data)
    if kind is None:
        yield {"pointer": "/kind", "detail": "Give `source` (python) or `instructions` (llm)"}
    if kind == AgentVersion.Kind.NOOP and not settings.ENGINE_BENCHMARK:
        yield {
            "pointer": "/kind",
            "detail": "Agents of this kind only measure the queue: set ENGINE_BENCHMARK=1 where that is wanted",
        }
    if kind == AgentVersion.Kind.PYTHON and ENTRY_FILE not in data.get("source", {}):
        yield {"pointer": "/source", "detail": f"A python agent needs a file {ENTRY_FILE}"}
    if kind == AgentVersion.Kind.LLM and not data.get("instructions"):
        yield {"pointer": "/instructions", "detail": "An llm agent needs instructions"}
    if kind != AgentVersion.Kind.PYTHON:
        for name in ("source", "requirements"):
            if data.get(name):
                yield {"pointer": f"/{name}", "detail": "Only a python agent has this"}
    if kind != AgentVersion.Kind.LLM:
        for name in ("instructions", "model", "tools", "settings"):
            if data.get(name):
                yield {"pointer": f"/{name}", "detail": "Only an llm agent has this"}


def _source_faults(source: Mapping[str, str]) -> Iterator[FieldError]:
    if sum(len(text.encode()) for text in source.values()) > MAX_SOURCE_BYTES:
        yield {"pointer": "/source", "detail": f"More than {MAX_SOURCE_BYTES // 1024} KiB in all files"}
        return
    for name, text in source.items():
        if name.endswith(".py") and (fault := _python_fault(name, text)):
            yield {"pointer": f"/source/{pointer_part(name)}", "detail": fault}


def _python_fault(name: str, text: str) -> str | None:
    try:
        module = ast.parse(text, name)
    except SyntaxError as error:
        return f"Line {error.lineno}: {error.msg}"
    except (ValueError, RecursionError, MemoryError):
        return "Python cannot parse this file"  # a NUL, or nesting without end
    if name == ENTRY_FILE and not any(_is_main(node) for node in module.body):
        return "This must define main(task, inputs)"
    return None


def _is_main(node: ast.stmt) -> bool:
    if not isinstance(node, ast.FunctionDef) or node.name != "main":
        return False
    positional = [*node.args.posonlyargs, *node.args.args]
    required = len(positional) - len(node.args.defaults)
    required_keywords = [default for default in node.args.kw_defaults if default is None]
    return required <= 2 <= len(positional) + 2 * bool(node.args.vararg) and not required_keywords


def _schema_faults(schema: Mapping[str, Any], pointer: str) -> Iterator[FieldError]:
    if len(json.dumps(schema)) > MAX_SCHEMA_BYTES:
        yield {"pointer": pointer, "detail": f"Larger than {MAX_SCHEMA_BYTES // 1024} KiB"}
        return
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        inner = "".join(f"/{pointer_part(step)}" for step in error.absolute_path)
        yield {"pointer": pointer + inner, "detail": f"Not a JSON Schema: {error.message[:200]}"}
    for at, target in _references(schema, pointer):
        if not target.startswith("#"):
            yield {"pointer": at, "detail": "A reference may point only inside this schema, as #/$defs/NAME"}


def _references(value: Any, pointer: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            at = f"{pointer}/{pointer_part(name)}"
            if name in ("$ref", "$dynamicRef", "$id") and isinstance(inner, str):
                yield at, inner
            yield from _references(inner, at)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _references(inner, f"{pointer}/{index}")


def _with_ids(skills: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The skills, each with an id that no other has; those without one get it from their name."""
    taken: set[str] = set()
    named = []
    for number, skill in enumerate(skills, start=1):
        wanted = skill.get("id") or slugify(skill["name"])[:60].strip("-") or f"skill-{number}"
        skill_id = wanted if wanted not in taken else f"{wanted}-{number}"
        taken.add(skill_id)
        named.append(
            {"id": skill_id, "name": skill["name"], "description": skill.get("description", "")}
            | {name: skill[name] for name in ("tags", "examples") if skill.get(name)}
        )
    return named
