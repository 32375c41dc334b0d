"""A model server for tests: real Chat Completions over real HTTP, its replies written down beforehand.

    with ModelServer(call("run_python", code="1 + 1"), say("two")) as server:
        ...  # OPENAI_BASE_URL=server.url

Each request takes the next item of the script. What a strict server would refuse is answered 400 and kept in `faults`.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from types import TracebackType
from typing import Any

KEY = "sk-test-0123456789abcdef"


@dataclass(frozen=True)
class Said:
    """One reply of the model, and how it is sent."""

    text: str = ""
    calls: tuple[tuple[str, Any], ...] = ()  # name, arguments (a text is sent as it is)
    usage: tuple[int, int] | None = (100, 20)
    piece: int = 7  # characters a chunk
    cut_after: int | None = None  # chunks, then the connection closes
    first_token_after: float = 0.0
    pause: float = 0.0  # between chunks
    without_ids: bool = False
    finish: str | None = None  # empty: it never says
    usage_with_choice: bool = False  # in the last chunk that has one, as some servers do
    as_json: bool = False  # though a stream was asked for
    done: bool = True


@dataclass(frozen=True)
class Refused:
    """An error status."""

    status: int
    message: str = "it is not your day"
    headers: tuple[tuple[str, str], ...] = ()
    code: str | None = None


Item = Said | Refused
Choose = Callable[[dict[str, Any]], Item]


def say(text: str, **more: Any) -> Said:
    """A reply without calls."""
    return Said(text, **more)


def call(name: str, /, **arguments: Any) -> Said:
    """A reply that calls one tool."""
    return Said(calls=((name, arguments),))


def calls(*named: tuple[str, Any], text: str = "", **more: Any) -> Said:
    """A reply that calls several tools."""
    return Said(text, tuple(named), **more)


class ModelServer:
    """Listens while its context is open. `requests` are the bodies that came, in order, `at` when (monotonic)."""

    def __init__(self, *script: Item | Choose, knows_stream_options: bool = True) -> None:
        self.script = list(script)
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.at: list[float] = []
        self.faults: list[str] = []
        self.knows_stream_options = knows_stream_options
        self._lock = threading.Lock()
        self.gate = threading.Event()  # replies wait for it
        self.gate.set()

    def __enter__(self) -> "ModelServer":
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                try:
                    server.answer(self, body)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                return

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.gate.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def environment(self) -> dict[str, str]:
        """For processes of Engine."""
        return {"OPENAI_BASE_URL": self.url, "OPENAI_API_KEY": KEY, "ENGINE_MODEL": "scripted"}

    def answer(self, http: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        with self._lock:
            self.at.append(time.monotonic())
            self.requests.append(body)
            self.headers.append({name.lower(): value for name, value in http.headers.items()})
            item: Item | Choose = self.script.pop(0) if self.script else Refused(500, "the script is over")
        if isinstance(item, Said) and (fault := self._fault(http, body)):
            self.faults.append(fault)
            with self._lock:
                self.script.insert(0, item)  # the model has not been asked
            item = Refused(400, fault)
        if callable(item):
            item = item(body)
        self.gate.wait(30)
        if isinstance(item, Refused):
            _refuse(http, item)
        elif body.get("stream") and not item.as_json:
            self._stream(http, item, body)
        else:
            _whole(http, item, body)

    def _fault(self, http: BaseHTTPRequestHandler, body: dict[str, Any]) -> str | None:
        if http.path != "/v1/chat/completions":
            return f"no such path: {http.path}"
        if http.headers.get("Authorization") != f"Bearer {KEY}":
            return "the key is wrong"
        if "stream_options" in body and not self.knows_stream_options:
            return "unrecognized request argument: stream_options"
        return _fault_of(body)

    def _stream(self, http: BaseHTTPRequestHandler, said: Said, body: dict[str, Any]) -> None:
        http.send_response(200)
        http.send_header("Content-Type", "text/event-stream; charset=utf-8")
        http.send_header("Transfer-Encoding", "chunked")
        http.end_headers()
        time.sleep(said.first_token_after)
        wants_usage = bool(body.get("stream_options", {}).get("include_usage"))
        for number, chunk in enumerate(_chunks(said, wants_usage=wants_usage)):
            if number == said.cut_after:
                http.wfile.flush()
                http.close_connection = True
                http.connection.close()
                return
            _send(http, f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n")
            time.sleep(said.pause)
        if said.done:
            _send(http, "data: [DONE]\n\n")
        http.wfile.write(b"0\r\n\r\n")


def _send(http: BaseHTTPRequestHandler, text: str) -> None:
    data = text.encode()
    http.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
    http.wfile.flush()


def _refuse(http: BaseHTTPRequestHandler, refused: Refused) -> None:
    error = {"message": refused.message, "type": "error", "code": refused.code, "param": None}
    _answer(http, refused.status, {"error": error}, refused.headers)


def _answer(
    http: BaseHTTPRequestHandler, status: int, body: Any, headers: Sequence[tuple[str, str]] = ()
) -> None:
    data = json.dumps(body).encode()
    http.send_response(status)
    http.send_header("Content-Type", "application/json")
    http.send_header("Content-Length", str(len(data)))
    for name, value in headers:
        http.send_header(name, value)
    http.end_headers()
    http.wfile.write(data)


def _tool_calls(said: Said) -> list[dict[str, Any]]:
    return [
        {
            "index": index,
            **({} if said.without_ids else {"id": f"call_{index}_{name}"}),
            "type": "function",
            "function": {
                "name": name,
                "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments),
            },
        }
        for index, (name, arguments) in enumerate(said.calls)
    ]


def _finish(said: Said) -> str | None:
    usual = "tool_calls" if said.calls else "stop"
    return usual if said.finish is None else said.finish or None


def _usage(said: Said) -> dict[str, int] | None:
    if said.usage is None:
        return None
    prompt, completion = said.usage
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _whole(http: BaseHTTPRequestHandler, said: Said, body: dict[str, Any]) -> None:
    message: dict[str, Any] = {"role": "assistant", "content": said.text or None}
    if said.calls:
        message["tool_calls"] = _tool_calls(said)
    choice = {"index": 0, "message": message, "finish_reason": _finish(said)}
    answer = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": body["model"]}
    _answer(http, 200, {**answer, "choices": [choice], "usage": _usage(said)})


def _chunks(said: Said, *, wants_usage: bool) -> Iterator[dict[str, Any]]:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "scripted"}

    def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
        return {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}

    yield chunk({"role": "assistant", "content": ""})
    for start in range(0, len(said.text), said.piece):
        yield chunk({"content": said.text[start : start + said.piece]})
    for whole in _tool_calls(said):
        arguments = whole["function"]["arguments"]
        yield chunk({"tool_calls": [{**whole, "function": {**whole["function"], "arguments": ""}}]})
        for start in range(0, len(arguments), said.piece):
            piece = {"arguments": arguments[start : start + said.piece]}
            yield chunk({"tool_calls": [{"index": whole["index"], "function": piece}]})
    if said.usage_with_choice:
        yield chunk({}, _finish(said), usage=_usage(said))
        return
    yield chunk({}, _finish(said))
    if wants_usage and said.usage is not None:
        yield {**head, "choices": [], "usage": _usage(said)}


def _fault_of(body: dict[str, Any]) -> str | None:
    """What a strict server would refuse, or None."""
    messages = body.get("messages")
    if not body.get("model") or not isinstance(messages, list) or not messages:
        return "model and messages are required"
    if body.keys() - {"model", "messages", "tools", "stream", "stream_options", "temperature"}:
        return f"unrecognized request arguments: {sorted(body)}"
    if "tools" in body and not body["tools"]:
        return "tools may not be empty"
    if [message["role"] for message in messages[:2]] != ["system", "user"]:
        return "the first messages are system and user"
    for before, after in pairwise(messages):
        if after["role"] == "assistant" and before["role"] == "assistant":
            return "two assistant messages in a row"
    return _fault_of_calls(messages)


def _fault_of_calls(messages: list[dict[str, Any]]) -> str | None:
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            if not waiting or message["tool_call_id"] != waiting.pop(0):
                return "a tool message that answers no call, or out of order"
            if not isinstance(message["content"], str):
                return "a tool message without text"
            continue
        if waiting:
            return f"calls without an answer: {waiting}"
        if message["role"] == "assistant":
            for made in message.get("tool_calls", ()):
                if not isinstance(json.loads(made["function"]["arguments"]), dict):
                    return "arguments must be an object"
                waiting.append(made["id"])
            if len(set(waiting)) < len(waiting):
                return "call ids must differ"
            if not message.get("tool_calls") and not isinstance(message.get("content"), str):
                return "an assistant message without content"
    return "calls without an answer" if waiting else None
