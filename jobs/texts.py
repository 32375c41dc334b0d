"""Text as PostgreSQL can store it, and times as text."""

from datetime import UTC, datetime
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


def instant(value: datetime) -> str:
    """A time as all our JSON writes it: UTC, ISO 8601, with a Z."""
    return value.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"
