"""Text as PostgreSQL can store it."""

from typing import Any


def clean(value: Any) -> Any:
    """The same value without NUL and lone surrogates in any text."""
    if isinstance(value, str):
        return value.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {clean(str(key)): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return value
