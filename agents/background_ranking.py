"""Who comes first for each background task, for all of them in one pass over a registry.

Ranks as `queries.RANK` does, which would take as many statements as there are tasks: with 500 agents
seconds in place of a fraction of one, with 10,000 most of a minute.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from uuid import UUID

import numpy as np
import numpy.typing as npt
from django.db import connection
from django.db.models import QuerySet

from agents import queries
from agents.embeddings import Vector
from agents.models import Agent

Matrix: TypeAlias = npt.NDArray[np.float64]  # a row per agent, a column per task

READ_AT_ONCE = 2000

# As bytes: vectors as text take several times as long to write and to read.
VECTORS = """
WITH visible AS ({visible})
SELECT vector.agent_version_id, part = 'full', vector_send(embedding)
  FROM agents_agentembedding AS vector JOIN visible ON visible.version = vector.agent_version_id
 WHERE vector.space_id = %(space)s
"""
TASK_WORDS = """
SELECT number - 1, lexeme
  FROM unnest(%(tasks)s::text[]) WITH ORDINALITY AS task (text, number), unnest(to_tsvector('english', task.text))
"""
POSTINGS = """
WITH visible AS MATERIALIZED ({visible})
SELECT agent_version_id, term, frequency, length
  FROM agents_agentterm JOIN visible ON version = agent_version_id WHERE term = ANY(%(terms)s)
"""


@dataclass(frozen=True)
class Best:
    """What speaks for the first agent of one task."""

    cosine: float
    covered: float
    asked: float


def best(
    registry: QuerySet[Agent, Any],
    tasks: Sequence[str],
    vectors: Vector | None,
    *,
    space: str,
    average_length: float,
) -> list[Best]:
    """The first agent of each task. Without vectors, one row per task, words alone decide. Empty without agents."""
    own = {row["version"]: row["own"] for row in registry}
    if not own:
        return []
    rows = {version: row for row, version in enumerate(sorted(own))}
    cosines = _cosines(registry, rows, vectors, space) if vectors is not None else None
    bm25, covered, asked = _words(registry, rows, tasks, average_length)
    scores = queries.WORDS_WEIGHT * _words_deviation(bm25)
    if cosines is not None:
        scores = scores + _meaning_deviation(cosines)
    scores = scores + queries.OWN_BONUS * np.array([[own[version]] for version in rows])
    first = scores.argmax(axis=0)  # of equals the first: in order of their ids, as in SQL
    columns = np.arange(len(tasks))
    found = np.zeros(len(tasks)) if cosines is None else np.nan_to_num(cosines[first, columns])
    return [
        Best(float(cosine), float(cover), float(ask))
        for cosine, cover, ask in zip(found, covered[first, columns], asked, strict=True)
    ]


def _cosines(
    registry: QuerySet[Agent, Any], rows: dict[UUID, int], vectors: Vector, space: str
) -> Matrix | None:
    """Mean of the whole text's cosine and the best part's; NaN without vectors, None where nobody has any."""
    whole = np.full((len(rows), len(vectors)), -np.inf, dtype=np.float32)
    part = whole.copy()
    sql, params = queries.with_visible(VECTORS, registry)
    for chunk in _chunks(sql, params | {"space": space}):
        known = [(rows[version], is_whole, data) for version, is_whole, data in chunk if version in rows]
        # Two 16-bit numbers (dimensions, and one that is not used), then the values.
        stored = np.stack([np.frombuffer(data, dtype=">f4", offset=4) for *_, data in known])
        cosines = stored.astype(np.float32) @ vectors.T
        for (row, is_whole, _), values in zip(known, cosines, strict=True):
            target = whole if is_whole else part
            np.maximum(target[row], values, out=target[row])
    both = (whole.astype(np.float64) + part) / 2
    both[~np.isfinite(both)] = np.nan
    return None if np.isnan(both).all() else both


def _words(
    registry: QuerySet[Agent, Any], rows: dict[UUID, int], tasks: Sequence[str], average_length: float
) -> tuple[Matrix, Matrix, npt.NDArray[np.float64]]:
    """BM25, the summed idf of the words that agree, and per task that of all its words."""
    bm25, covered = (np.zeros((len(rows), len(tasks))) for _ in range(2))
    asked = np.zeros(len(tasks))
    with connection.cursor() as cursor:
        cursor.execute(TASK_WORDS, {"tasks": list(tasks)})
        asking: dict[str, list[int]] = {}
        for task, term in cursor.fetchall():
            asking.setdefault(term, []).append(task)
    sql, params = queries.with_visible(POSTINGS, registry)
    having: dict[str, list[tuple[int, float, float]]] = {term: [] for term in asking}
    for chunk in _chunks(sql, params | {"terms": list(asking)}):
        for version, term, frequency, length in chunk:
            if version in rows:
                having[term].append((rows[version], frequency, length))
    for term, postings in having.items():
        count = len(postings)
        idf = float(np.log(1 + (len(rows) - count + 0.5) / (count + 0.5)))
        asked[asking[term]] += idf
        if not postings:
            continue
        agents, frequency, length = (np.array(column) for column in zip(*postings, strict=True))
        saturation = frequency + queries.K1 * (1 - queries.B + queries.B * length / average_length)
        at = np.ix_(agents, np.array(asking[term]))
        bm25[at] += (idf * frequency * (queries.K1 + 1) / saturation)[:, None]
        covered[at] += idf
    return bm25, covered, asked


def _meaning_deviation(cosines: Matrix) -> Matrix:
    spread = np.maximum(np.nanstd(cosines, axis=0), queries.LEAST_SPREAD)
    return np.asarray(np.nan_to_num((cosines - np.nanmean(cosines, axis=0)) / spread))


def _words_deviation(bm25: Matrix) -> Matrix:
    spread = bm25.std(axis=0)
    deviation = (bm25 - bm25.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    highest = deviation.max(axis=0)
    capped = queries.WORDS_MAX_DEVIATIONS / np.where(highest > 0, highest, 1.0)
    return np.asarray(deviation * np.where(highest > 0, np.minimum(1.0, capped), 1.0))


def _chunks(sql: str, params: dict[str, Any]) -> Iterator[list[Any]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        while chunk := cursor.fetchmany(READ_AT_ONCE):
            yield chunk
