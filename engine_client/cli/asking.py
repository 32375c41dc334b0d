"""A job's questions in the terminal, and what people type as JSON answers."""

import json
import sys
from collections.abc import Mapping
from typing import Any

from engine_client import Client, Question
from engine_client.cli.terminal import note, printable
from engine_client.errors import InvalidAnswer
from engine_client.sync import TOO_LATE


class NobodyAnswers(Exception):
    """The input has ended, and with it whoever could have answered."""


def ask(client: Client, question: Question) -> None:
    """Ask until an answer is taken, by us or by somebody else. Raises NobodyAnswers."""
    introduce(question)
    while True:
        try:
            answer = read_answer(question)
        except ValueError as error:
            note(f"  {printable(error)}")
            continue
        try:
            client.respond(question.job_id, answer, question_id=question.id)
        except InvalidAnswer as refused:
            note(f"  {printable(refused.detail)}")
            for fault in refused.errors:
                note(f"  {printable(fault['detail'])}")
        except TOO_LATE as late:
            note(f"  {printable(late)}")
            return
        else:
            return


def introduce(question: Question) -> None:
    """What is asked, and what can be answered."""
    note("")
    for line in question.prompt.splitlines():
        note(f"? {printable(line)}")
    for number, choice in enumerate(question.choices or [], 1):
        note(f"  {number}. {printable(choice)}")
    match question.kind:
        case "multi_choice":
            note("  several with commas between")
        case "confirm":
            note("  yes or no")
        case "approval":
            details = question.details or {}
            for line in json.dumps(details.get("arguments"), indent=2, ensure_ascii=False).splitlines():
                note(f"  {printable(line)}")
            note(
                f"  {' / '.join(map(printable, details.get('allowed') or []))}, then a message, or arguments as JSON"
            )
    if question.has_default:
        note(f"  Enter alone: {printable(json.dumps(question.default, ensure_ascii=False))}")


def read_answer(question: Question) -> Any:
    """What the person types. Raises ValueError for what cannot be meant, NobodyAnswers at the end of the input."""
    if question.kind == "form":
        return read_form(question.schema or {})
    return parse_answer(question, read_line("> "))


def read_line(prompt: str) -> str:
    """One line. Ctrl+C comes through as KeyboardInterrupt."""
    print(prompt, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        note("")
        raise NobodyAnswers
    if not sys.stdin.isatty():
        note(printable(line.rstrip("\n")))
    return line.strip()


def parse_answer(question: Question, text: str) -> Any:
    """An answer of the question's kind. Raises ValueError with what would be one."""
    if not text:
        if question.has_default:
            return question.default
        raise ValueError("an answer is wanted")
    match question.kind:
        case "choice":
            return choice(text, question.choices or [])
        case "multi_choice":
            return [choice(part.strip(), question.choices or []) for part in text.split(",") if part.strip()]
        case "confirm":
            if text.lower() not in ("y", "yes", "n", "no", "true", "false"):
                raise ValueError("yes or no")
            return text.lower() in ("y", "yes", "true")
        case "form":
            return json_object(text)
        case "approval":
            return approval(text)
        case _:
            return text


def choice(text: str, choices: list[Any]) -> Any:
    """One of the choices, by its text or its number."""
    for one in choices:
        if text == str(one):
            return one
    if text.isdecimal() and 1 <= int(text) <= len(choices):
        return choices[int(text) - 1]
    raise ValueError(f"one of the choices, or a number from 1 to {len(choices)}")


def approval(text: str) -> dict[str, Any]:
    """A decision, and what comes with it."""
    if text.startswith("{"):
        return json_object(text)
    decision, _, rest = text.partition(" ")
    if decision == "edit":
        return {"decision": decision, "arguments": json_object(rest)}
    return {"decision": decision} | ({"message": rest.strip()} if rest.strip() else {})


def json_object(text: str) -> dict[str, Any]:
    """A JSON object. Raises ValueError."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError('a JSON object, such as {"name": "Ann"}')
    return value


def read_form(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Field after field; a whole JSON object instead of the first field is taken, too."""
    values: dict[str, Any] = {}
    required = schema.get("required") or []
    for name, field in (schema.get("properties") or {}).items():
        hints = [str(field.get("type", "")), "required" if name in required else "Enter leaves it out"]
        if field.get("enum"):
            hints.insert(0, " / ".join(map(str, field["enum"])))
        while True:
            text = read_line(
                f"  {printable(field.get('title') or name)} ({printable(', '.join(filter(None, hints)))}): "
            )
            if not values and text.startswith("{"):
                return json_object(text)
            if not text and name not in required:
                break
            try:
                values[name] = form_value(text, str(field.get("type", "string")))
            except ValueError as error:
                note(f"  {error}")
            else:
                break
    return values


def form_value(text: str, kind: str) -> Any:
    """What was typed, as the field's type. Raises ValueError."""
    match kind:
        case "string":
            return text
        case "boolean":
            if text.lower() in ("y", "yes", "true", "n", "no", "false"):
                return text.lower() in ("y", "yes", "true")
            raise ValueError("yes or no")
        case "integer" | "number":
            try:
                return int(text) if kind == "integer" else float(text)
            except ValueError:
                raise ValueError("a number") from None
        case "array":
            return [part.strip() for part in text.split(",") if part.strip()]
        case _:
            return json.loads(text)
