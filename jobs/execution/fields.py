"""The fields of a record, taken one by one and each checked."""

import json
import re
from typing import Any

RESULT_BYTES = 1024 * 1024  # one value, as JSON
KEY_CHARACTERS = 500
PATH_CHARACTERS = 400
FOLDERS = ("workspace", "outputs")


class BadRecord(Exception):
    """A record that cannot be taken; `ticket` is whom to tell, if anybody waits."""

    def __init__(self, message: str, *, ticket: int | None = None) -> None:
        super().__init__(message)
        self.ticket = ticket


_KEY = re.compile(r"[^#]{1,200}#[1-9]\d{0,6}(/[^#]{1,200}#[1-9]\d{0,6})*")


class Fields:
    """Takes the fields of a record one by one, each checked; what is left over was not expected."""

    def __init__(self, data: dict[str, Any], ticket: int | None) -> None:
        self.data = data
        self._ticket = ticket

    def ticket(self) -> int:
        """The ticket, which this record must have."""
        if self._ticket is None:
            raise BadRecord("a record that must be answered had no ticket")
        return self._ticket

    def maybe_ticket(self) -> int | None:
        """The ticket, if somebody waits."""
        return self._ticket

    def text(self, name: str, *, most: int, default: str | None = None) -> str:
        """A text of at most `most` characters."""
        value = self.data.pop(name, default)
        if not isinstance(value, str):
            raise BadRecord(f"{name} was not a text")
        if len(value) > most:
            raise BadRecord(f"{name} was longer than {most:,} characters")
        return value

    def key(self) -> str:
        """A journal key: `name#number`, below the keys of the steps around it."""
        value = self.text("key", most=KEY_CHARACTERS)
        if not _KEY.fullmatch(value) or not value.isprintable():
            raise BadRecord("a key was not of the form name#number")
        return value

    def one_of(self, name: str, allowed: tuple[str, ...]) -> str:
        """One of these words."""
        value = self.data.pop(name, None)
        if not isinstance(value, str) or value not in allowed:
            raise BadRecord(f"{name} was none of {', '.join(allowed)}")
        return value

    def flag(self, name: str) -> bool:
        """True or false; false when it is not there."""
        value = self.data.pop(name, False)
        if not isinstance(value, bool):
            raise BadRecord(f"{name} was not true or false")
        return value

    def number(self, name: str, *, least: float, most: float) -> float | None:
        """A number in this range, or None."""
        value = self.data.pop(name, None)
        if value is None:
            return None
        if type(value) not in (int, float) or not least <= value <= most:
            raise BadRecord(f"{name} was not a number from {least} to {most}")
        return float(value)

    def object(self, name: str) -> dict[str, Any] | None:
        """An object, or None."""
        value = self.data.pop(name, None)
        if value is not None and not isinstance(value, dict):
            raise BadRecord(f"{name} was not an object")
        return value

    def items(self, name: str, *, most: int) -> list[Any]:
        """A list of at most `most`; empty when it is not there."""
        value = self.data.pop(name, [])
        if not isinstance(value, list) or len(value) > most:
            raise BadRecord(f"{name} was not a list of at most {most:,}")
        return value

    def texts(self, name: str, *, most: int, longest: int) -> list[str]:
        """A list of texts."""
        value = self.items(name, most=most)
        if not all(isinstance(item, str) and len(item) <= longest for item in value):
            raise BadRecord(f"{name} held something else than texts of at most {longest:,} characters")
        return value

    def value(self, name: str) -> Any:
        """Any JSON value of at most RESULT_BYTES."""
        value = self.data.pop(name, None)
        if len(json.dumps(value, separators=(",", ":"))) > RESULT_BYTES:
            raise BadRecord(f"{name} was larger than 1 MiB")
        return value


def safe_path(value: Any) -> str:
    """A path below the workspace or the outputs as a record gives it. Raises BadRecord for any other."""
    if not isinstance(value, str) or len(value) > PATH_CHARACTERS or not value.isprintable() or "\\" in value:
        raise BadRecord("a path was no path of a file")
    parts = value.split("/")
    if len(parts) < 2 or parts[0] not in FOLDERS or any(part in ("", ".", "..") for part in parts):
        raise BadRecord("a path did not lead into the workspace or the outputs")
    return value
