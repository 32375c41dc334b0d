"""Traces: request → job → attempt → sandbox → model call, to the collector that the settings name.

Where none is named each function returns at once, and OpenTelemetry is not imported. Spans hold names, numbers and
outcomes: never a body, a prompt, a key, an address with its query, or what an exception says.
"""

import threading
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, Self, TypeAlias

from django.conf import settings

if TYPE_CHECKING:
    from engine.tracing.sdk import Sending

Attributes: TypeAlias = Mapping[str, str | int | float | bool | None]
Kind: TypeAlias = Literal["internal", "server", "client", "producer", "consumer"]


class Span:
    """A piece of work that is timed while its block runs. This one is of no trace: it notes nothing."""

    __slots__ = ()

    @property
    def traceparent(self) -> str:
        """As W3C's Trace Context writes it; empty: there is no trace."""
        return ""

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits, or nothing."""
        return ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return

    def note(self, attributes: Attributes) -> None:
        """Add attributes; those that are None are left out."""

    def rename(self, name: str) -> None:
        """Give it the name that was not known at its beginning."""

    def failed(self, reason: str) -> None:
        """Mark it as an error; `reason` is a code or a class, never a sentence."""


NO_SPAN: Final = Span()

_sending: "Sending | None" = None  # of this process, once it has begun
_beginning = threading.Lock()


def is_on() -> bool:
    """Whether a collector is named."""
    return bool(settings.OTEL_EXPORTER_OTLP_TRACES_ENDPOINT)


def start() -> None:
    """Begin to send, if a collector is named. Else the first span begins it, and waits for the import."""
    _of_this_process()


def stop() -> None:
    """Send what is left, within two seconds."""
    global _sending
    with _beginning:
        ending, _sending = _sending, None
    if ending is not None:
        ending.stop()


def _of_this_process() -> "Sending | None":
    global _sending
    if _sending is None and is_on():
        from engine.tracing.sdk import Sending

        with _beginning:
            if _sending is None:
                _sending = Sending()
    return _sending


def span(
    name: str,
    attributes: Attributes | None = None,
    *,
    kind: Kind = "internal",
    parent: str | None = None,
    link: str = "",
) -> Span:
    """A span for a `with` block; exceptions that leave the block mark it as failed.

    `parent` is a traceparent from elsewhere; one that is empty or malformed begins a trace, None continues the current
    one. `link` is the traceparent of another trace that this one came of.
    """
    sending = _of_this_process()
    return NO_SPAN if sending is None else sending.span(name, attributes or {}, kind, parent, link)


def current() -> Span:
    """The innermost span here, to be noted on."""
    return NO_SPAN if _sending is None else _sending.current()


def headers() -> dict[str, str]:
    """What a call to another service carries, so that its spans join the current trace."""
    traceparent = current().traceparent
    return {"traceparent": traceparent} if traceparent else {}


def environment() -> dict[str, str]:
    """The same for a program, as OpenTelemetry's tools read it."""
    return {name.upper(): value for name, value in headers().items()}


def log_fields() -> dict[str, str]:
    """What a log line carries."""
    trace_id = current().trace_id
    return {"trace_id": trace_id} if trace_id else {}
