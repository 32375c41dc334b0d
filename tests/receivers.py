"""A receiver of webhooks: a real HTTP server that keeps what it is sent and answers as it is told."""

import hmac
import json
import threading
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LOOPBACK = ["127.0.0.0/8"]


@dataclass
class Call:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.body))

    def is_signed_by(self, secret: str) -> bool:
        """As the specification of Standard Webhooks says, written apart from the code that signs."""
        stamp, message = self.headers["webhook-timestamp"], self.headers["webhook-id"]
        signed = f"{message}.{stamp}.".encode() + self.body
        digest = hmac.new(b64decode(secret.removeprefix("whsec_")), signed, sha256).digest()
        return f"v1,{b64encode(digest).decode()}" in self.headers["webhook-signature"].split(" ")


@dataclass
class Receiver:
    """What came, and what is answered: the first of `answers`, then `status`."""

    url: str = ""
    calls: list[Call] = field(default_factory=list)
    status: int = 204
    answers: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    may_answer: threading.Event = field(default_factory=threading.Event)

    def types(self) -> list[str]:
        return [call.json["type"] for call in self.calls]


@contextmanager
def receiving(host: str = "127.0.0.1") -> Iterator[Receiver]:
    """A receiver on a free port; `may_answer.clear()` lets its callers wait."""
    receiver = Receiver()
    receiver.may_answer.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("content-length", 0))
            body = self.rfile.read(length)
            if len(body) < length:
                return  # its caller was killed in the middle of a word
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.calls.append(Call(self.path, headers, body))
            receiver.may_answer.wait(30)
            self.send_response(receiver.answers.pop(0) if receiver.answers else receiver.status)
            for name, value in receiver.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(receiver.body)))
            with suppress(ConnectionError):  # its caller was killed, or has read enough
                self.end_headers()
                self.wfile.write(receiver.body)

        def log_message(self, *args: Any) -> None:
            """The test's output is not the place."""

    server = ThreadingHTTPServer((host, 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    receiver.url = f"http://{host}:{server.server_port}/hook"
    try:
        yield receiver
    finally:
        receiver.may_answer.set()
        server.shutdown()
        server.server_close()
        thread.join()
