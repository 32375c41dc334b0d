"""What an embedder promises, and how it fails."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from http import HTTPStatus
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from engine.errors import EngineError

Vector: TypeAlias = npt.NDArray[np.float32]
Progress: TypeAlias = Callable[[int, int], None]  # done, of all


class EmbedderUnavailable(EngineError):
    """The model is not there, not the file it should be, or its server does not answer in time."""

    status, code, title = (
        HTTPStatus.SERVICE_UNAVAILABLE,
        "embedder_unavailable",
        "The embedding model is not available",
    )


class Embedder(Hashable, Protocol):
    """Turns text into unit vectors of one named space. Safe to call from several threads."""

    @property
    def space(self) -> str:
        """The name of the space: family, model, revision. Vectors of two spaces are never compared."""
        ...

    def embed_documents(self, texts: Sequence[str], *, patient: bool = False) -> list[Vector]:
        """One vector per text, in order, for texts that will be searched. Raises EmbedderUnavailable.

        `patient` waits through a server's bad minutes, as a command may and a request may not.
        """
        ...

    def embed_query(self, text: str) -> Vector:
        """The vector of a text that searches. Raises EmbedderUnavailable."""
        ...


def unit(vector: Vector) -> Vector:
    """The vector scaled to length 1, so that the inner product is the cosine. Raises EmbedderUnavailable.

    Zero and non-finite vectors have no direction: a server that sends one is broken.
    """
    length = float(np.linalg.norm(vector))
    if not np.isfinite(length) or length == 0.0:
        raise EmbedderUnavailable("The embedding model gave a vector without a direction")
    return (vector / length).astype(np.float32)
