"""Asks a model over Chat Completions: strict in what is sent, lenient in what is taken.

The `openai` client makes the requests; the stream is read here line by line, because compatible servers send what its
typed reader does not expect. The key goes into the request's header and nowhere else: whatever comes back, errors
included, is stripped of it.
"""

import asyncio
import email.utils
import json
import math
import random
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from django.conf import settings

from engine import tracing
from engine.meters import MODEL_SECONDS
from jobs.execution.llm.breaker import breakers
from jobs.execution.llm.replies import Assembly, Reply, ReplyTooLarge
from jobs.texts import clean

if TYPE_CHECKING:
    from httpx2 import Response
    from openai import APIStatusError, AsyncOpenAI

DEFAULT_BASE_URL = "https://api.openai.com/v1"
CONNECT_SECONDS = 10.0
MOST_TRIES = 6
FIRST_PAUSE_SECONDS = 0.5  # doubled with each try, plus up to a fifth
# A server that asks for more patience than this gets it without a slot: the job comes back later.
LONGEST_PAUSE_SECONDS = 60.0
LONGEST_RETRY_AFTER_SECONDS = 86_400.0
# A token is about four characters of English; only used where a server does not count.
TOKEN_CHARACTERS = 4
MOST_ERROR_CHARACTERS = 500
MOST_LINE_BYTES = 4 * 1024 * 1024


class ModelRefused(Exception):
    """The server will not answer this request, now or later; `code`, `remedy` are for the job's user."""

    def __init__(self, code: str, message: str, remedy: str) -> None:
        super().__init__(message)
        self.code = code
        self.remedy = remedy


class ModelUnavailable(Exception):
    """The server could not be had in all tries. `retry_after` are the seconds that it asked for, if it did."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class _TryAgain(Exception):
    def __init__(self, message: str, *, after: float | None = None, is_limit: bool = False) -> None:
        super().__init__(message)
        self.after = after
        self.is_limit = is_limit  # the server is well, and asks for less


class _OtherDialect(Exception):
    """The server does not know a part of the request that was left out now."""


@dataclass(frozen=True)
class Request:
    """One question to the model. `tools` are as Chat Completions has them; none are sent where there are none."""

    number: int  # of the reply within its job
    model: str
    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    temperature: float | None = None


@dataclass
class _Dialect:
    """What a server was found not to know. Kept per address and model while the worker lives."""

    streams: bool = True
    stream_options: bool = True
    temperature: bool = True


_dialects: dict[tuple[str, str], _Dialect] = {}


@dataclass
class Listener:
    """Who hears of a reply while it comes. `restart` says that the text begins again from its beginning."""

    text: Callable[[str], None]
    restart: Callable[[], None]
    trouble: Callable[[str], None]


@dataclass
class Client:
    """The connections of one attempt to the configured server. Close it at the end."""

    base_url: str = field(default_factory=lambda: settings.OPENAI_BASE_URL or DEFAULT_BASE_URL)
    _openai: "AsyncOpenAI | None" = None

    async def reply(self, request: Request, listener: Listener) -> Reply:
        """The model's reply, after as many tries as it takes. Raises ModelRefused, ModelUnavailable."""
        started = time.monotonic()
        outcome = "failed"
        try:
            with self._span(request) as span:
                reply = await self._reply(request, listener)
                _note(span, reply)
            outcome = "answered"
            return reply
        finally:
            MODEL_SECONDS.labels(outcome).observe(time.monotonic() - started)

    def _span(self, request: Request) -> tracing.Span:
        """In the words of OpenTelemetry's conventions for generative AI: what was asked and answered is not there."""
        if not tracing.is_on():
            return tracing.NO_SPAN
        at = urlsplit(self.base_url)
        about = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",  # whose API it is
            "gen_ai.request.model": request.model,
            "gen_ai.request.temperature": request.temperature,
            "gen_ai.request.stream": True,
            "server.address": at.hostname,
            "server.port": at.port or (80 if at.scheme == "http" else 443),
        }
        return tracing.span(f"chat {request.model}", about, kind="client")

    async def _reply(self, request: Request, listener: Listener) -> Reply:
        breaker = breakers[self.base_url]
        for number in range(1, MOST_TRIES + 1):
            while delay := breaker.delay():
                listener.trouble(
                    f"The model server failed several times and is left alone for {delay:.0f} s."
                )
                await asyncio.sleep(delay)
            try:
                reply = await self._in_its_dialect(request, listener)
            except _TryAgain as trouble:
                if not trouble.is_limit:
                    breaker.failed()
                await self._pause(trouble, number, listener)
            else:
                breaker.succeeded()
                return reply
        raise AssertionError  # the last pause raises

    async def close(self) -> None:
        """Close the connections."""
        if self._openai is not None:
            await self._openai.close()

    async def _pause(self, trouble: _TryAgain, number: int, listener: Listener) -> None:
        pause = FIRST_PAUSE_SECONDS * 2 ** (number - 1) * (1 + random.random() / 5)  # noqa: S311 (no secret)
        pause = max(pause, trouble.after or 0.0)
        if number == MOST_TRIES or pause > LONGEST_PAUSE_SECONDS:
            raise ModelUnavailable(str(trouble), retry_after=trouble.after)
        listener.trouble(f"{trouble} It is asked again in {pause:.1f} s.")
        await asyncio.sleep(pause)

    async def _in_its_dialect(self, request: Request, listener: Listener) -> Reply:
        while True:
            listener.restart()
            try:
                return await self._once(request, listener)
            except _OtherDialect:
                continue

    async def _once(self, request: Request, listener: Listener) -> Reply:
        import httpx2  # what the client below speaks HTTP with; it comes with it
        import openai

        client = await self._connected()
        dialect = _dialects.setdefault((self.base_url, request.model), _Dialect())
        assembly = Assembly()
        is_whole = False
        try:
            async with client.chat.completions.with_streaming_response.create(
                **_body(request, dialect), extra_headers=tracing.headers()
            ) as response:
                kind = response.headers.get("content-type", "")
                blocks = response.iter_bytes()
                async for data in _objects(blocks, _clean) if "json" not in kind else _whole(blocks, _clean):
                    is_whole = is_whole or data is _DONE
                    if new := assembly.take(data):
                        listener.text(new)
                is_whole = is_whole or "json" in kind
        except openai.APITimeoutError:
            raise _TryAgain("The model server did not answer in time.") from None
        except openai.APIConnectionError as error:
            raise _TryAgain(f"The model server could not be reached ({_reason(error)}).") from None
        except openai.APIStatusError as error:
            await _judge(error, dialect, request)
            raise AssertionError from error  # judging raises
        except httpx2.TimeoutException:
            raise _TryAgain("The model server fell silent in the middle of a reply.") from None
        except httpx2.HTTPError as error:
            raise _TryAgain(f"The model's reply was cut off ({type(error).__name__}).") from None
        except ReplyTooLarge:
            message = "The model's reply is larger than 1 MiB or calls more than 32 tools."
            raise ModelRefused(
                "reply_too_large", message, "Ask for less at once in the instructions."
            ) from None
        if assembly.error is not None:
            raise _TryAgain(f"The model server reported an error: {_shown(assembly.error)}")
        if not (is_whole or assembly.finish_reason):
            raise _TryAgain("The model's reply was cut off.")
        return _finished(assembly, request)

    async def _connected(self) -> "AsyncOpenAI":
        if self._openai is None:
            self._openai = await asyncio.to_thread(_connect, self.base_url)  # importing it takes 0.6 s
        return self._openai


def _note(span: tracing.Span, reply: Reply) -> None:
    span.note(
        {
            "gen_ai.usage.input_tokens": reply.input_tokens,
            "gen_ai.usage.output_tokens": reply.output_tokens,
            "engine.usage.is_estimated": reply.is_estimated or None,
        }
    )


def warm_up() -> None:
    """Import the client before the first job, where a model is configured: later it would hold up running jobs."""
    if settings.OPENAI_API_KEY or settings.OPENAI_BASE_URL:
        with suppress(ImportError):
            import openai  # noqa: F401


def _connect(base_url: str) -> "AsyncOpenAI":
    from openai import AsyncOpenAI, Timeout

    timeout = Timeout(settings.ENGINE_MODEL_TIMEOUT_SECONDS, connect=CONNECT_SECONDS)
    # A server of one's own may need no key; the client insists on one. Retries are made here: they are told of.
    key = settings.OPENAI_API_KEY or "none"
    return AsyncOpenAI(api_key=key, base_url=base_url, timeout=timeout, max_retries=0)


def _body(request: Request, dialect: _Dialect) -> dict[str, Any]:
    body: dict[str, Any] = {"model": request.model, "messages": list(request.messages)}
    if request.tools:
        body["tools"] = list(request.tools)
    if request.temperature is not None and dialect.temperature:
        body["temperature"] = request.temperature
    if dialect.streams:
        body["stream"] = True
        if dialect.stream_options:
            body["stream_options"] = {"include_usage": True}
    return body


# --- reading ---

_DONE = object()


async def _objects(blocks: AsyncIterator[bytes], clean: Callable[[str], str]) -> AsyncIterator[Any]:
    """The objects of an event stream, and `_DONE` where it says that it is over. Comments and noise are passed over.

    Not by lines of text: those would also end at U+2028, which JSON may hold.
    """
    rest = b""
    async for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        if len(rest) > MOST_LINE_BYTES:
            raise ReplyTooLarge
        for line in lines:
            if (data := _event(line, clean)) is not None:
                yield data
    if (data := _event(rest, clean)) is not None:
        yield data


def _event(line: bytes, clean: Callable[[str], str]) -> Any:
    text = line.decode("utf-8", "replace").strip()
    if not text.startswith("data:"):
        return None
    text = text.removeprefix("data:").strip()
    return _DONE if text == "[DONE]" else _json(clean(text))


async def _whole(blocks: AsyncIterator[bytes], clean: Callable[[str], str]) -> AsyncIterator[Any]:
    """The one object of an answer that is no stream, though a stream was asked for."""
    body = b""
    async for block in blocks:
        body += block
        if len(body) > MOST_LINE_BYTES:
            raise ReplyTooLarge
    yield _json(clean(body.decode("utf-8", "replace")))


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _finished(assembly: Assembly, request: Request) -> Reply:
    calls = tuple(replace(call, arguments=_clean(call.arguments)) for call in assembly.calls(request.number))
    reply = Reply(_clean(assembly.text), calls, assembly.finish_reason)
    if assembly.usage is not None:
        return replace(reply, input_tokens=assembly.usage[0], output_tokens=assembly.usage[1])
    wrote = len(assembly.text) + sum(len(call.name) + len(call.arguments) for call in calls)
    read = len(json.dumps([list(request.messages), list(request.tools)]))
    return replace(
        reply,
        input_tokens=read // TOKEN_CHARACTERS,
        output_tokens=max(1, wrote // TOKEN_CHARACTERS),
        is_estimated=True,
    )


# --- errors ---

_KEY_LIKE = re.compile(r"\bsk-[A-Za-z0-9_*-]{4,}")


def _clean(text: str) -> str:
    """The text without the key, which a server may quote, and without what cannot be stored."""
    key = settings.OPENAI_API_KEY
    text = text.replace(key, "[key]") if len(key) >= 8 else text
    return str(clean(text))


def _shown(value: Any) -> str:
    """A server's own words, fit for a log."""
    message = value.get("message") if isinstance(value, dict) else value
    text = message if isinstance(message, str) else json.dumps(message, default=str)
    return _KEY_LIKE.sub("[key]", _clean(text))[:MOST_ERROR_CHARACTERS]


def _reason(error: Exception) -> str:
    return type(error.__cause__ or error).__name__


async def _judge(error: "APIStatusError", dialect: _Dialect, request: Request) -> None:
    """What an error status means. Raises what it means."""
    code, headers = error.status_code, error.response.headers
    said = _shown(await _error_body(error.response))
    if code in (400, 422, 500, 501) and _adapt(dialect, said.lower(), request):
        raise _OtherDialect
    if code == 429 and "insufficient_quota" in said:
        remedy = "Top up the account of OPENAI_API_KEY, then retry the job."
        raise ModelRefused("model_quota", f"The model server's quota is used up: {said}", remedy)
    if code in (408, 409, 425, 429) or code >= 500:
        message = "The model server is busy" if code == 429 else "The model server failed"
        raise _TryAgain(f"{message} (HTTP {code}).", after=retry_after(headers), is_limit=code == 429)
    match code:
        case 401 | 403:
            message = f"The model server did not accept the key (HTTP {code})."
            raise ModelRefused("model_key_refused", message, "Check OPENAI_API_KEY and OPENAI_BASE_URL.")
        case 404:
            message = f"The model server does not know the model {request.model!r}: {said}"
            remedy = (
                "Set ENGINE_MODEL, or `model` in the agent's card, to one that it has; check OPENAI_BASE_URL."
            )
            raise ModelRefused("model_not_found", message, remedy)
        case _:
            message = f"The model server refused the request (HTTP {code}): {said}"
            remedy = (
                "Change what it names. A conversation that is too long needs a model with a larger context."
            )
            raise ModelRefused("model_request_refused", message, remedy)


async def _error_body(response: "Response") -> Any:
    from httpx2 import HTTPError, StreamError

    try:
        body = (await response.aread()).decode("utf-8", "replace")
    except (HTTPError, StreamError):
        return ""
    data = _json(body)
    if not isinstance(data, dict):
        return body
    error = data.get("error", data)
    if (
        isinstance(error, dict)
        and isinstance(error.get("code"), str)
        and isinstance(error.get("message"), str)
    ):
        return f"{error['message']} ({error['code']})"
    return error


_UNKNOWN = ("unknown", "unexpected", "unrecognized", "unrecognised", "extra", "not permitted")


def _adapt(dialect: _Dialect, said: str, request: Request) -> bool:
    """Leave out what the server says it does not know; whether there was something to leave out."""
    if (
        dialect.streams
        and dialect.stream_options
        and ("stream_options" in said or "include_usage" in said or any(word in said for word in _UNKNOWN))
    ):
        dialect.stream_options = False
        return True
    if dialect.streams and "stream" in said:
        dialect.streams = False
        return True
    if request.temperature is not None and dialect.temperature and "temperature" in said:
        dialect.temperature = False
        return True
    return False


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait: `retry-after-ms`, or `Retry-After` in seconds or as a date (RFC 9110)."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name, "")
        try:
            seconds = float(value) * unit
        except ValueError:
            date = email.utils.parsedate_tz(value)
            seconds = email.utils.mktime_tz(date) - time.time() if date else math.nan
        if math.isfinite(seconds):
            return min(max(0.0, seconds), LONGEST_RETRY_AFTER_SECONDS)
    return None
