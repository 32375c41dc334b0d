"""What every log line carries beside its message: the request, job, attempt or worker it belongs to."""

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from django.conf import settings

from engine import tracing
from engine.redaction import of_installation

_fields: ContextVar[Mapping[str, str]] = ContextVar("log_fields", default=MappingProxyType({}))


@contextmanager
def log_fields(**fields: object) -> Iterator[None]:
    """Add these to each line logged inside the block, in this thread or task: `log_fields(job=job.id)`."""
    token = _fields.set({**_fields.get(), **{name: str(value) for name, value in fields.items()}})
    try:
        yield
    finally:
        _fields.reset(token)


class AddFields(logging.Filter):
    """Give each record a `fields` attribute for the formatter; lines of text stay one line each."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep every record."""
        record.fields = "".join(f" {name}={value}" for name, value in _fields.get().items())
        record.named_fields = {**_fields.get(), **tracing.log_fields()}
        return True


def printable(text: str) -> str:
    """The text as one line without effect on a terminal: control characters are shown, not sent."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class OneLine(logging.Formatter):
    """A record as one line, so that no text from outside can pass for a line of ours; a traceback is indented below."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The formatted line with nothing in it that is not printable."""
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        """The traceback, each line printable and indented: an exception's text may hold lines of its own."""
        return "\n".join(f"    {printable(line)}" for line in super().formatException(ei).split("\n"))

    def format(self, record: logging.LogRecord) -> str:
        """The line, and a traceback if there is one, without secrets."""
        return of_installation()(super().format(record))


class JsonLine(logging.Formatter):
    """A record as one JSON object: at, level, logger, message, what it belongs to, a traceback if there is one."""

    def document(self, record: logging.LogRecord) -> dict[str, Any]:
        """What the line says."""
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "named_fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        return line

    def format(self, record: logging.LogRecord) -> str:
        """One line, in ASCII: some readers end lines at U+2028 or U+0085, and terminals obey U+009B."""
        # Before it is JSON, where a secret with a quotation mark would look different.
        return json.dumps(of_installation().inside(self.document(record)))


def message_of(line: str) -> str:
    """What a line of a program's log says, whichever way it is written."""
    try:
        return str(json.loads(line)["message"])
    except (ValueError, TypeError, KeyError):
        return line


def is_json() -> bool:
    """Whether each line is an object for machines."""
    return bool(settings.LOG_FORMAT == "json")


def tell(text: str, *, level: int = logging.INFO) -> None:
    """Say how a program fares: a line on the terminal, or among the objects where lines are those."""
    if not is_json():
        print(text, flush=True, file=sys.stdout)
    elif text.strip():
        told.log(level, "%s", text.strip())


told = logging.getLogger("engine")
