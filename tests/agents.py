"""Cards, registries and embedders for tests of agents."""

import hashlib
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, LiteralString

import numpy as np
import psycopg
import pytest
from django.db import connection

from agents import embeddings, services
from agents.embeddings import EmbedderUnavailable, Vector
from agents.embeddings.base import unit
from agents.models import AgentVersion
from apikeys.callers import Caller
from apikeys.models import Project
from apikeys.scopes import Scope
from engine.database import direct_dsn
from tests.factories import make_project
from tests.processes import eventually

MAIN = "def main(task, inputs):\n    return {}\n"


def make_card(slug: str = "echo", **fields: Any) -> dict[str, Any]:
    """A card of a python agent that does nothing."""
    card = {"slug": slug, "name": slug, "description": f"Does what {slug} does", "source": {"agent.py": MAIN}}
    return {**card, **fields}


def make_noop(slug: str, description: str, **fields: Any) -> dict[str, Any]:
    """A card without source: all that discovery needs."""
    return {"slug": slug, "name": slug, "kind": "noop", "description": description, **fields}


def member(project: Project | None = None) -> Caller:
    """A key's holder with every right on agents, in a project of its own unless one is given."""
    scopes = frozenset({Scope.AGENTS_READ, Scope.AGENTS_WRITE})
    return Caller(project=project or make_project(), scopes=scopes, via="api_key")


def staff() -> Caller:
    """Somebody in the dashboard, who sees every project."""
    return Caller(project=None, scopes=frozenset({Scope.ADMIN}), user_name="ada", via="dashboard")


def register_all(by: Caller, cards: Sequence[dict[str, Any]]) -> list[AgentVersion]:
    """Register several cards."""
    return services.put_many(by, cards, lambda done, of: None)


def meet_at(lock: LiteralString, parameters: Sequence[Any], works: Sequence[Callable[[], Any]]) -> list[Any]:
    """What several works return that begin while `lock` is held, and go on once all of them wait for a lock.

    Whoever takes locks in another order than the others is in a deadlock then.
    """

    def alone(work: Callable[[], Any]) -> Any:
        try:
            return work()
        finally:
            connection.close()

    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with psycopg.connect(direct_dsn()) as holder, psycopg.connect(direct_dsn(), autocommit=True) as watcher:
        holder.execute(lock, parameters)
        with ThreadPoolExecutor(len(works)) as pool:
            begun = [pool.submit(alone, work) for work in works]
            try:
                eventually(lambda: watcher.execute(waiting).fetchone() == (len(works),), what="all wait")
            finally:
                holder.rollback()
            return [one.result() for one in begun]


class WordEmbedder:
    """Texts that share words are near each other. Counts what it is asked, and can be switched off."""

    def __init__(self, space: str = "test:words", *, dims: int = 64, salt: str = "") -> None:
        self.space = space
        self.dims = dims
        self.salt = salt
        self.asked: list[str] = []
        self.is_down = False

    def embed_documents(self, texts: Sequence[str], *, patient: bool = False) -> list[Vector]:
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> Vector:
        if self.is_down:
            raise EmbedderUnavailable("switched off by the test")
        self.asked.append(text)
        vector = np.full(self.dims, 0.01, dtype=np.float32)
        for word in re.findall(r"[a-z]{4,}", text.lower()):
            digest = hashlib.sha256((self.salt + word[:6]).encode()).digest()
            vector[int.from_bytes(digest[:4], "big") % self.dims] += 1
        return unit(vector)


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> WordEmbedder:
    """In place of the real model: quick, and good enough where ranking is not what is tested."""
    embedder = WordEmbedder()
    use(monkeypatch, embedder)
    return embedder


def use(monkeypatch: pytest.MonkeyPatch, *embedders: WordEmbedder) -> None:
    """Let the first of these be the configured embedder, and each fill its space."""
    by_space = {embedder.space: embedder for embedder in embedders}

    def of_space(space: str) -> WordEmbedder:
        if space not in by_space:
            raise EmbedderUnavailable(f"nobody fills {space}")
        return by_space[space]

    monkeypatch.setattr(embeddings, "configured", lambda: embedders[0])
    monkeypatch.setattr(embeddings, "named", of_space)
    monkeypatch.setattr(embeddings, "of_space", of_space)
