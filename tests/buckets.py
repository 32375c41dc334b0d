"""A server of S3's protocol (moto's) on a port of its own, and what can be wrong with it."""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "engine-artifacts"
FAULT = '<?xml version="1.0"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'


class Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        """Say nothing."""


class BucketServer:
    """`fault` is empty, or `full`, `slow` (answers once `release` is set), `broken`, `locked`; see also `go_down`."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.app = DomainDispatcherApplication(create_backend_app)
        self.fault = ""
        self.faults_left = -1  # how many more requests meet it; -1: all
        self.release = threading.Event()
        self.writes = 0
        self.listen(0)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def listen(self, port: int) -> None:
        self.server = make_server("127.0.0.1", port, self.answer, threaded=True, request_handler=Quiet)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        fault = self.fault if self.faults_left else ""
        if fault == "locked" or "Credential=wrong" in environ.get("HTTP_AUTHORIZATION", ""):
            return refuse(start_response, "403 Forbidden", "InvalidAccessKeyId")
        if fault and self.faults_left > 0:
            self.faults_left -= 1
        if fault == "slow":
            self.release.wait(30)
        if fault == "full" and environ["REQUEST_METHOD"] == "PUT":
            return refuse(start_response, "507 Insufficient Storage", "InsufficientStorage")
        if fault == "broken":
            return refuse(start_response, "500 Internal Server Error", "InternalError")
        self.writes += environ["REQUEST_METHOD"] == "PUT"
        answered: Iterable[bytes] = self.app(environ, start_response)
        return answered

    def go_down(self) -> None:
        """Refuse connections, until `listen` on the same port."""
        self.server.shutdown()
        self.server.server_close()

    def close(self) -> None:
        self.release.set()
        self.server.shutdown()
        self.server.server_close()


def refuse(start_response: Callable[..., Any], status: str, code: str) -> list[bytes]:
    start_response(status, [("Content-Type", "application/xml")])
    return [FAULT.format(code=code).encode()]


@contextmanager
def bucket_server() -> Iterator[BucketServer]:
    server = BucketServer()
    try:
        yield server
    finally:
        server.close()


def storages_in(server_url: str, *, key: str = "test", bucket: str = BUCKET) -> dict[str, Any]:
    """STORAGES["artifacts"] as the settings make it from ENGINE_S3_*."""
    return {
        "BACKEND": "jobs.s3.BucketStorage",
        "OPTIONS": {
            "bucket_name": bucket,
            "endpoint_url": server_url,
            "region_name": "us-east-1",
            "location": "files",
            "access_key": key,
            "secret_key": "test",
            "addressing_style": "path",
        },
    }
