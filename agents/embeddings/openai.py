"""Embeddings from OpenAI or any server with a compatible `/v1/embeddings`."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
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
DOCUMENTS_TIMEOUT_SECONDS = 30.0
DOCUMENTS_RETRIES = 3
BATCH_SIZE = 64
# Below the 8,191 tokens that the models take, in every script.
MAX_CHARS = 8000
# After this many failures in a row the server is left alone for a while: a task should not wait for it each time.
BREAK_AFTER_FAILURES = 3
BREAK_SECONDS = 15.0


class OpenAIEmbedder:
    """A model behind the embeddings API. Safe to call from several threads."""

    def __init__(self, model: str, *, base_url: str = "", api_key: str = "", dims: int = 0) -> None:
        """`dims` asks the server for shorter vectors, where the model can give them; 0 takes what comes."""
        self._model = model
        self._base_url = base_url or DEFAULT_BASE_URL
        self._api_key = api_key
        self._dims = dims
        self._breaker = _Breaker()

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

    def embed_documents(self, texts: Sequence[str]) -> list[Vector]:
        """One vector per text, in batches. Raises EmbedderUnavailable after its retries."""
        return [
            vector
            for batch in _batches(texts)
            for vector in self._embed(batch, timeout=DOCUMENTS_TIMEOUT_SECONDS, retries=DOCUMENTS_RETRIES)
        ]

    def embed_query(self, text: str) -> Vector:
        """The vector of a task within 2 s. Raises EmbedderUnavailable, at once while the server is failing."""
        self._breaker.check()
        try:
            (vector,) = self._embed([text], timeout=QUERY_TIMEOUT_SECONDS, retries=0)
        except EmbedderUnavailable:
            self._breaker.failed()
            raise
        self._breaker.succeeded()
        return vector

    def _embed(self, texts: Sequence[str], *, timeout: float, retries: int) -> list[Vector]:
        from openai import OpenAIError, omit

        client = self._client.with_options(timeout=timeout, max_retries=retries)
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
        except OpenAIError as error:
            # The class alone: messages can quote the request and parts of the key.
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


class _Breaker:
    """Refuses at once for a while after several failures in a row."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures = 0
        self._closed_until = 0.0  # monotonic seconds

    def check(self) -> None:
        if time.monotonic() < self._closed_until:
            raise EmbedderUnavailable(
                "The embeddings server has failed several times; it is left alone for a while"
            )

    def failed(self) -> None:
        with self._lock:
            self._failures += 1
            if self._failures >= BREAK_AFTER_FAILURES:
                self._closed_until = time.monotonic() + BREAK_SECONDS

    def succeeded(self) -> None:
        with self._lock:
            self._failures = 0
            self._closed_until = 0.0


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(texts), BATCH_SIZE):
        yield texts[start : start + BATCH_SIZE]
