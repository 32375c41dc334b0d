"""What every log line carries beside its message: the request, job, attempt or worker it belongs to."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType

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
        record.named_fields = dict(_fields.get())
        return True


def printable(text: str) -> str:
    """The text as one line without effect on a terminal: control characters are shown, not sent."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class OneLine(logging.Formatter):
    """A record as one line, so that no text from outside can pass for a line of ours (tracebacks excepted)."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The formatted line with nothing in it that is not printable."""
        return printable(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        """The line, and a traceback if there is one, without secrets."""
        return of_installation()(super().format(record))


class JsonLine(logging.Formatter):
    """A record as one JSON object: at, level, logger, message, what it belongs to, a traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "named_fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return of_installation()(json.dumps(line, ensure_ascii=False))
