"""Embeddings from OpenAI or any server with a compatible `/v1/embeddings`."""

from __future__ import annotations

import contextvars
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np

from agents.embeddings.base import EmbedderUnavailable, Vector, unit
from engine import tracing

if TYPE_CHECKING:
    from openai import OpenAI

DEFAULT_BASE_URL = "https://api.openai.com/v1"
# A task waits for its vector; after that it is ranked by its words alone.
QUERY_TIMEOUT_SECONDS = 2.0
# A registration waits for its card's vectors; after that the agent has none until `embed_agents` has run.
DOCUMENTS_TIMEOUT_SECONDS = 8.0
DOCUMENTS_RETRIES = 1
# `embed_agents` waits: a batch may take a while on a small machine, and a rate limit names a minute at most.
PATIENT_TIMEOUT_SECONDS = 60.0
PATIENT_RETRIES = 3
PATIENT_DEADLINE_SECONDS = 300.0
BATCH_SIZE = 64
# Below the 8,191 tokens that the models take, in every script.
MAX_CHARS = 8000
# After this many failures in a row the server is left alone for a while: a task should not wait for it each time.
BREAK_AFTER_FAILURES = 3
BREAK_SECONDS = 15.0
# Answers that are about the text, not about the server: whoever sends such texts cannot have it left alone.
REFUSED_TEXT = (400, 413, 422)
HINTS = {
    401: "see OPENAI_API_KEY",
    403: "see OPENAI_API_KEY",
    404: "see OPENAI_BASE_URL and ENGINE_EMBED_MODEL",
}


class OpenAIEmbedder:
    """A model behind the embeddings API. Safe to call from several threads."""

    def __init__(self, model: str, *, base_url: str = "", api_key: str = "", dims: int = 0) -> None:
        """`dims` asks the server for shorter vectors, where the model can give them; 0 takes what comes."""
        self._model = model
        self._base_url = base_url or DEFAULT_BASE_URL
        self._api_key = api_key
        self._dims = dims
        self._queries, self._documents = _Breaker(), _Breaker()

    @property
    def space(self) -> str:
        """Names model, server and size: one model name on two servers need not be one model."""
        size = f"/{self._dims}" if self._dims else ""
        return f"openai:{self._model}@{urlsplit(self._base_url).netloc.rpartition('@')[2]}{size}"

    @staticmethod
    def parts_of(space: str) -> tuple[str, int] | None:
        """Model and dims of a space of this kind, or None for any other."""
        found = re.fullmatch(r"openai:(?P<model>.+)@[^@/]+(/(?P<dims>[0-9]+))?", space)
        return (found["model"], int(found["dims"] or 0)) if found else None

    def embed_documents(self, texts: Sequence[str], *, patient: bool = False) -> list[Vector]:
        """One vector per text, in batches of at most 8 s. Raises EmbedderUnavailable, at once while it is failing.

        A patient caller is given more tries, and up to 5 minutes a batch.
        """
        return [vector for batch in _batches(texts) for vector in self._batch(batch, patient=patient)]

    def _batch(self, texts: Sequence[str], *, patient: bool) -> list[Vector]:
        client = self._client  # before the clock runs: its import is not the server's time
        if patient:
            return _within(
                PATIENT_DEADLINE_SECONDS,
                lambda: self._embed(client, texts, timeout=PATIENT_TIMEOUT_SECONDS, retries=PATIENT_RETRIES),
            )
        with self._documents:
            return _within(
                DOCUMENTS_TIMEOUT_SECONDS,
                lambda: self._embed(
                    client, texts, timeout=DOCUMENTS_TIMEOUT_SECONDS, retries=DOCUMENTS_RETRIES
                ),
            )

    def embed_query(self, text: str) -> Vector:
        """The vector of a task within 2 s. Raises EmbedderUnavailable, at once while the server is failing."""
        client = self._client
        with self._queries:
            (vector,) = _within(
                QUERY_TIMEOUT_SECONDS,
                lambda: self._embed(client, [text], timeout=QUERY_TIMEOUT_SECONDS, retries=0),
            )
        return vector

    def _embed(self, client: OpenAI, texts: Sequence[str], *, timeout: float, retries: int) -> list[Vector]:
        from openai import APIConnectionError, APIStatusError, APITimeoutError, OpenAIError, omit

        client = client.with_options(timeout=timeout, max_retries=retries)
        try:
            with self._span():
                answer = client.embeddings.create(
                    model=self._model,
                    input=[text[:MAX_CHARS] for text in texts],
                    dimensions=self._dims or omit,
                    encoding_format="float",  # the client's own default is base64, which few other servers know
                    extra_headers=tracing.headers(),
                )
            # By index: the API does not promise the order.
            rows = sorted(answer.data, key=lambda row: row.index)
            vectors = [np.array(row.embedding, dtype=np.float32) for row in rows]
        # Status and class alone: messages can quote the request and parts of the key.
        except APITimeoutError as error:
            raise EmbedderUnavailable(LATE) from error
        except APIConnectionError as error:
            raise EmbedderUnavailable("The embeddings server cannot be reached") from error
        except APIStatusError as error:
            status = error.status_code
            kind = _TextRefused if status in REFUSED_TEXT else EmbedderUnavailable
            hint = f": {HINTS[status]}" if status in HINTS else ""
            raise kind(f"The embeddings server answered {status}{hint}") from error
        except OpenAIError as error:
            raise EmbedderUnavailable(f"The embeddings server failed: {type(error).__name__}") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise EmbedderUnavailable("The embeddings server's answer cannot be read") from error
        if [row.index for row in rows] != list(range(len(texts))):
            raise EmbedderUnavailable("The embeddings server gave another number of vectors than of texts")
        if len({vector.shape for vector in vectors}) > 1 or vectors[0].ndim != 1 or vectors[0].size == 0:
            raise EmbedderUnavailable("The embeddings server gave vectors of different sizes")
        if self._dims and vectors[0].size != self._dims:
            raise EmbedderUnavailable(f"The embeddings server gave {vectors[0].size} dimensions")
        return [unit(vector) for vector in vectors]

    def _span(self) -> tracing.Span:
        about = {
            "gen_ai.operation.name": "embeddings",
            "gen_ai.provider.name": "openai",  # whose API it is
            "gen_ai.request.model": self._model,
            "server.address": urlsplit(self._base_url).hostname,
        }
        return tracing.span(f"embeddings {self._model}", about, kind="client")

    @cached_property
    def _client(self) -> OpenAI:
        try:
            from openai import OpenAI  # 0.65 s that only this embedder's users should pay
        except ImportError as error:
            raise EmbedderUnavailable("The package openai is not installed") from error
        # A server of one's own may need no key; the client insists on one.
        return OpenAI(api_key=self._api_key or "none", base_url=self._base_url)


LATE = "The embeddings server does not answer in time"


def _within(seconds: float, ask: Callable[[], list[Vector]]) -> list[Vector]:
    """What `ask` gives, or EmbedderUnavailable after so long.

    In a thread of its own: the client's timeout begins anew with each byte, so that a server that drips could hold a
    task for ever. A late thread is left to its own end; how many there are the breaker limits.
    """
    done: SimpleQueue[list[Vector] | BaseException] = SimpleQueue()

    def run() -> None:
        try:
            done.put(ask())
        except BaseException as error:  # whatever it is belongs to the thread that waits
            done.put(error)

    in_context = (
        contextvars.copy_context().run
    )  # what is logged in the thread and its span belong to the request
    threading.Thread(target=in_context, args=(run,), name="embeddings", daemon=True).start()
    try:
        answer = done.get(timeout=seconds)
    except Empty as error:
        raise EmbedderUnavailable(LATE) from error
    if isinstance(answer, BaseException):
        raise answer
    return answer


class _TextRefused(EmbedderUnavailable):
    """The server is there and does not take this text."""


class _Breaker:
    """Around each call: refuses at once for a while after several failures in a row."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures = 0
        self._closed_until = 0.0  # monotonic seconds

    def __enter__(self) -> None:
        if time.monotonic() < self._closed_until:
            raise EmbedderUnavailable(
                "The embeddings server has failed several times; it is left alone for a while"
            )

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is _TextRefused:
            return
        with self._lock:
            self._failures = self._failures + 1 if kind else 0
            broken = self._failures >= BREAK_AFTER_FAILURES
            self._closed_until = time.monotonic() + BREAK_SECONDS if broken else 0.0


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(texts), BATCH_SIZE):
        yield texts[start : start + BATCH_SIZE]
