"""What follows the question mark: filters and orderings from closed lists, with typed errors."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Any
from uuid import UUID

from django.utils.dateparse import parse_datetime
from rest_framework.request import Request

from engine.errors import EngineError, FieldError
from engine.gate import text_fault
from engine.problems import in_short, pointer_part

MAX_PARAMETER_CHARS = 2000

# Turns one parameter's text into its value; raises ValueError with a sentence for the client.
Convert = Callable[[str], Any]


class InvalidQuery(EngineError):
    """A parameter in the address is unknown or not valid; each pointer is `?` and the parameter's name."""

    status, code, title = HTTPStatus.BAD_REQUEST, "invalid_query", "A query parameter is not valid"


def query_params(request: Request, spec: Mapping[str, Convert]) -> dict[str, Any]:
    """The query parameters that are there, converted; a name outside `spec` is refused.

    Raises InvalidQuery. A parameter made with `Several` gives a list, and may be repeated; others may not.
    """
    values: dict[str, Any] = {}
    errors: list[FieldError] = []
    for name, texts in request.query_params.lists():
        try:
            values[name] = _parameter(spec.get(name), texts)
        except ValueError as exc:
            errors.append({"pointer": f"?{pointer_part(name)}", "detail": str(exc)})
    if errors:
        raise InvalidQuery(in_short(errors), errors=errors)
    return values


def _parameter(convert: Convert | None, texts: list[str]) -> Any:
    if convert is None:
        raise ValueError("There is no such parameter here")
    for text in texts:
        if len(text) > MAX_PARAMETER_CHARS:
            raise ValueError(f"Longer than {MAX_PARAMETER_CHARS} characters")
        if fault := text_fault(text):
            raise ValueError(fault)
    if isinstance(convert, Several):
        return [value for text in texts for value in convert(text)]
    if len(texts) > 1:
        raise ValueError("Given more than once")
    return convert(texts[0])


@dataclass(frozen=True)
class Several:
    """A parameter that may be repeated, or lists its values with commas between."""

    convert: Convert

    def __call__(self, text: str) -> list[Any]:
        """The values in one occurrence."""
        return [self.convert(part) for part in text.split(",")]


def one_of(*choices: str) -> Callable[[str], str]:
    """A parameter with a closed list of values."""

    def convert(value: str) -> str:
        if value not in choices:
            raise ValueError(f"Not one of {', '.join(choices)}")
        return value

    return convert


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """A parameter that is an integer within bounds."""

    def convert(value: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,19}", value) or not least <= int(value) <= most:
            raise ValueError(f"Not a whole number from {least} to {most}")
        return int(value)

    return convert


def text(most: int = 200) -> Callable[[str], str]:
    """A parameter that is any text of at most `most` characters."""

    def convert(value: str) -> str:
        if len(value) > most:
            raise ValueError(f"Longer than {most} characters")
        return value

    return convert


def flag(value: str) -> bool:
    """A parameter that is `true` or `false`."""
    if value not in ("true", "false"):
        raise ValueError("Not true or false")
    return value == "true"


def instant(value: str) -> datetime:
    """A parameter that is a point in time: ISO 8601 with an offset."""
    try:
        # A plus sign that nobody escaped arrives as a space.
        found = parse_datetime(value.replace(" ", "+"))
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise ValueError("Not a time like 2027-01-31T09:00:00Z")
    return found


def identifier(value: str) -> UUID:
    """A parameter that is an id of ours."""
    try:
        return UUID(value)
    except ValueError:
        raise ValueError("Not an id") from None
