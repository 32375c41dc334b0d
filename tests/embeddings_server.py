"""A server with the embeddings API of OpenAI, on a real socket, with faults to order."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.agents import WordEmbedder


class EmbeddingsServer:
    """Answers with WordEmbedder's vectors. `fault` is applied to the next answers until it is reset."""

    def __init__(self) -> None:
        self.fault = ""
        self.requests: list[dict[str, Any]] = []
        self.authorizations: list[str | None] = []
        self.traceparents: list[str | None] = []
        self.release = threading.Event()  # ends the faults "silence" and "drip"
        self.words = WordEmbedder()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}/v1"

    @contextmanager
    def running(self) -> Iterator["EmbeddingsServer"]:
        """Serve until the block ends."""
        thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self
        finally:
            self.release.set()
            self._http.shutdown()
            thread.join()
            self._http.server_close()

    def answer(self, body: dict[str, Any]) -> tuple[int, bytes]:
        """Status and body for a request."""
        texts = body["input"]
        data: list[dict[str, Any]] = [
            {"object": "embedding", "index": index, "embedding": self.words.embed_query(text).tolist()}
            for index, text in enumerate(texts)
        ]
        match self.fault:
            case "400" | "401" | "404" | "429" | "500" | "503":
                message = {"error": {"message": f"secret: {self.authorizations[-1]}", "type": "fault"}}
                return int(self.fault), json.dumps(message).encode()
            case "html":
                return 200, b"<html>proxy login</html>"
            case "cut":
                return 200, b'{"object": "list", "data": [{"index": 0, "embed'
            case "shuffled":
                data.reverse()
            case "one too few":
                data.pop()
            case "one twice":
                data[-1] = data[0]
            case "nan":
                data[0]["embedding"][0] = float("nan")
            case "zero":
                data[0]["embedding"] = [0.0] * 64
            case "ragged":
                data[-1]["embedding"] = [1.0, 2.0]
            case "empty":
                data[0]["embedding"] = []
            case "text":
                data[0]["embedding"] = "AAAA"
            case "null":
                data[0]["embedding"] = None
            case "no data":
                return 200, json.dumps({"object": "list", "model": body["model"]}).encode()
            case "silence":
                self.release.wait(60)
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        return 200, json.dumps(
            {"object": "list", "data": data, "model": body["model"], "usage": usage}
        ).encode()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.requests.append({"path": self.path, **body})
                server.authorizations.append(self.headers["Authorization"])
                server.traceparents.append(self.headers.get("traceparent"))
                status, content = server.answer(body)
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    while server.fault == "drip" and not server.release.wait(0.02):
                        self.wfile.write(b" ")  # JSON may begin with spaces: no single read is ever late
                    self.wfile.write(content)
                except OSError:
                    pass  # the client has given up waiting, as a test wants it to

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        return Handler
