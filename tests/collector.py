"""A collector of traces: a real OTLP server over HTTP that keeps the spans it is sent."""

import gzip
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.processes import eventually


@dataclass(frozen=True)
class Seen:
    """One span as it came."""

    name: str
    trace_id: str
    id: str
    parent_id: str
    kind: int
    is_error: bool
    started_at: int  # nanoseconds
    ended_at: int
    attributes: dict[str, Any]
    resource: dict[str, Any]
    links: tuple[str, ...]
    text: str  # all of it

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id}-{self.id}-01"


@dataclass
class Collector:
    """What came, and how it answers."""

    url: str = ""
    spans: list[Seen] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    posts: int = 0
    status: int = 200
    may_answer: threading.Event = field(default_factory=threading.Event)

    def named(self, name: str, **attributes: Any) -> list[Seen]:
        """The spans of this name with these attributes, `_` for `.`."""
        wanted = {key.replace("_", "."): value for key, value in attributes.items()}
        return [
            span
            for span in list(self.spans)
            if span.name == name and all(span.attributes.get(key) == value for key, value in wanted.items())
        ]

    def one(self, name: str, **attributes: Any) -> Seen:
        """The one span of this name, once it has come."""
        what = f"the span {name} {attributes}"
        found = eventually(lambda: self.named(name, **attributes), seconds=60, what=what)
        assert len(found) == 1, found
        return found[0]

    def environment(self) -> dict[str, str]:
        """For processes of Engine."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.url,
            "OTEL_EXPORTER_OTLP_HEADERS": "x-team=s%2Cecret-of-collector",
        }


def _value(value: Any) -> Any:
    return getattr(value, value.WhichOneof("value"))


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _spans(body: bytes) -> Iterator[Seen]:
    for group in ExportTraceServiceRequest.FromString(body).resource_spans:
        for scope in group.scope_spans:
            for span in scope.spans:
                yield Seen(
                    span.name,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.kind,
                    span.status.code == span.status.STATUS_CODE_ERROR,
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    _attributes(span.attributes),
                    _attributes(group.resource.attributes),
                    tuple(link.trace_id.hex() for link in span.links),
                    str(span) + str(group.resource),
                )


def make_certificate(folder: Path) -> Path:
    """One for 127.0.0.1 that signs itself, with its key."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.now(UTC)
    address = x509.IPAddress(IPv4Address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    made = folder / "certificate.pem"
    made.write_bytes(secret + certificate.public_bytes(pem))
    return made


@contextmanager
def collecting(certificate: Path | None = None) -> Iterator[Collector]:
    """A collector on a free port; `may_answer.clear()` lets its callers wait. With a certificate it speaks TLS."""
    collector = Collector()
    collector.may_answer.set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            collector.posts += 1
            collector.may_answer.wait(30)
            if collector.status == 200 and self.path == "/v1/traces":
                is_packed = self.headers.get("content-encoding") == "gzip"
                collector.headers.append({name.lower(): value for name, value in self.headers.items()})
                collector.spans.extend(_spans(gzip.decompress(body) if is_packed else body))
            try:
                self.send_response(collector.status if self.path == "/v1/traces" else 404)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()
            except ConnectionError:  # its caller did not wait
                self.close_connection = True

        def log_message(self, *args: Any) -> None:
            """The test's output is not the place."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if certificate is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    collector.url = f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}"
    try:
        yield collector
    finally:
        collector.may_answer.set()
        server.shutdown()
        server.server_close()
        thread.join()
