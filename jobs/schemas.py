"""JSON Schema checks whose faults a client can act on."""

from typing import Any

from jsonschema import Draft202012Validator

from engine.errors import FieldError


def faults(value: Any, schema: dict[str, Any] | None, *, at: str = "") -> list[FieldError]:
    """What is wrong with `value`, each fault with its JSON pointer below `at`; at most 20."""
    if not schema:
        return []
    found: list[FieldError] = []
    for error in Draft202012Validator(schema).iter_errors(value):
        if len(found) == 20:
            break
        path = "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in error.absolute_path)
        found.append({"pointer": at + path, "detail": error.message[:500]})
    return found
