"""OpenTelemetry, and nothing else imports it. A collector that is dead, slow or wrong costs spans, and nothing more:
they wait in a bounded queue, a thread sends them, and the log tells of trouble once a minute."""

import logging
import os
import socket
import threading
import time
from contextvars import Token
from types import TracebackType
from typing import Final, Self
from uuid import uuid4

import requests
from django.conf import settings
from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider, sampling
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from engine import __version__
from engine.tracing import NO_SPAN, Attributes, Kind, Span

log = logging.getLogger("engine.tracing")

# About 4 MB. The oldest are dropped first.
MOST_WAITING = 2048
MOST_AT_ONCE = 512
SEND_EVERY_SECONDS = 1.0
# With all tries: after that the batch is dropped.
SEND_SECONDS = 10.0
FLUSH_SECONDS = 2.0
MOST_CHARACTERS = 256
# Version 00 has 55 characters. Later ones may have more, but what is much longer is none.
MOST_TRACEPARENT = 128

KINDS: Final[dict[Kind, trace.SpanKind]] = {
    "internal": trace.SpanKind.INTERNAL,
    "server": trace.SpanKind.SERVER,
    "client": trace.SpanKind.CLIENT,
    "producer": trace.SpanKind.PRODUCER,
    "consumer": trace.SpanKind.CONSUMER,
}
NOBODY: Final = context.Context()
propagator = TraceContextTextMapPropagator()


class Sending:
    """What one process needs to send spans: made once, after any fork."""

    def __init__(self) -> None:
        for name in TALKATIVE:
            logging.getLogger(name).addFilter(OnceAMinute())
        endpoint = settings.OTEL_EXPORTER_OTLP_TRACES_ENDPOINT
        # Given here, all of it: the SDK would read the environment itself, and ignore or raise on what is malformed.
        exporter = OTLPSpanExporter(
            endpoint,
            headers=settings.OTEL_EXPORTER_OTLP_HEADERS,
            timeout=SEND_SECONDS,
            compression=Compression(settings.OTEL_EXPORTER_OTLP_COMPRESSION),
            certificate_file=settings.OTEL_EXPORTER_OTLP_CERTIFICATE or None,
            session=_session(),
        )
        self._provider = TracerProvider(
            sampler=_sampler(), resource=_resource(), span_limits=_limits(), shutdown_on_exit=False
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                exporter,
                max_queue_size=MOST_WAITING,
                schedule_delay_millis=SEND_EVERY_SECONDS * 1000,
                max_export_batch_size=MOST_AT_ONCE,
                export_timeout_millis=SEND_SECONDS * 1000,
            )
        )
        self._tracer = self._provider.get_tracer("engine", __version__)

    def span(self, name: str, attributes: Attributes, kind: Kind, parent: str | None, link: str) -> Span:
        """See `engine.tracing.span`."""
        opened = self._tracer.start_span(
            name,
            None if parent is None else _context(parent),
            KINDS[kind],
            {key: value for key, value in attributes.items() if value is not None},
            [trace.Link(there)] if (there := _there(link)).is_valid else None,
            # Messages and tracebacks may hold what is not ours to keep.
            record_exception=False,
            set_status_on_exception=False,
        )
        return LiveSpan(opened)

    def current(self) -> Span:
        """See `engine.tracing.current`."""
        here = trace.get_current_span()
        return LiveSpan(here) if here.get_span_context().is_valid else NO_SPAN

    def stop(self) -> None:
        """Send what is left. A collector that does not answer is not waited for: the SDK would, for half a minute."""
        flushing = threading.Thread(target=self._provider.shutdown, name="tracing-stop", daemon=True)
        flushing.start()
        flushing.join(FLUSH_SECONDS)


class LiveSpan(Span):
    """A span that is sent when its block has ended, if it is sampled."""

    __slots__ = ("_span", "_token")
    _token: "Token[context.Context]"

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    @property
    def traceparent(self) -> str:
        """As W3C's Trace Context writes it."""
        at = self._span.get_span_context()
        return f"00-{at.trace_id:032x}-{at.span_id:016x}-{at.trace_flags & trace.TraceFlags.SAMPLED:02x}"

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""
        return f"{self._span.get_span_context().trace_id:032x}"

    def __enter__(self) -> Self:
        self._token = context.attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        context.detach(self._token)
        if isinstance(error, Exception):
            self.failed(type(error).__name__)
        self._span.end()

    def note(self, attributes: Attributes) -> None:
        """Add attributes; those that are None are left out."""
        self._span.set_attributes({key: value for key, value in attributes.items() if value is not None})

    def rename(self, name: str) -> None:
        """Give it the name that was not known at its beginning."""
        self._span.update_name(name)

    def failed(self, reason: str) -> None:
        """Mark it as an error."""
        self._span.set_attribute("error.type", reason)
        self._span.set_status(trace.Status(trace.StatusCode.ERROR))


def _session() -> requests.Session:
    """What HTTP is spoken with. With an authority of one's own the environment's (REQUESTS_CA_BUNDLE) would win."""
    session = requests.Session()
    session.trust_env = not settings.OTEL_EXPORTER_OTLP_CERTIFICATE
    return session


def _context(traceparent: str) -> context.Context:
    """Where the parent is; what is no traceparent is nobody's (W3C Trace Context, 3.2.2)."""
    if len(traceparent) > MOST_TRACEPARENT:
        return NOBODY
    return propagator.extract({"traceparent": traceparent}, NOBODY)


def _there(traceparent: str) -> trace.SpanContext:
    return trace.get_current_span(_context(traceparent)).get_span_context()


def _sampler() -> sampling.Sampler:
    base, name = settings.OTEL_TRACES_SAMPLER.removeprefix("parentbased_"), settings.OTEL_TRACES_SAMPLER
    root: sampling.Sampler
    match base:
        case "always_on":
            root = sampling.ALWAYS_ON
        case "always_off":
            root = sampling.ALWAYS_OFF
        case _:
            root = sampling.TraceIdRatioBased(settings.OTEL_TRACES_SAMPLER_ARG)
    return root if name == base else sampling.ParentBased(root)


def _resource() -> Resource:
    return Resource(
        {
            "service.version": __version__,
            "service.instance.id": str(uuid4()),
            "host.name": socket.gethostname(),
            "process.pid": os.getpid(),
            **settings.OTEL_RESOURCE_ATTRIBUTES,
            "service.name": settings.OTEL_SERVICE_NAME,
            "telemetry.sdk.language": "python",
            "telemetry.sdk.name": "opentelemetry",
        }
    )


def _limits() -> SpanLimits:
    return SpanLimits(
        max_attributes=64,
        max_events=16,
        max_links=16,
        max_span_attributes=64,
        max_event_attributes=16,
        max_link_attributes=16,
        max_attribute_length=MOST_CHARACTERS,
        max_span_attribute_length=MOST_CHARACTERS,
    )


# Each says why spans are lost, with every batch or with every span.
TALKATIVE: Final = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",
)
QUIET_SECONDS = 60.0


class OnceAMinute(logging.Filter):
    """Keeps one line of each kind a minute, and says how many were left out."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is kept."""
        kind, now = str(record.msg), time.monotonic()
        if now - self._last.get(kind, -QUIET_SECONDS) < QUIET_SECONDS:
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return False
        self._last[kind] = now
        if left_out := self._left_out.pop(kind, 0):
            record.msg = f"{kind} ({left_out} lines like this one were left out.)"
        return True
