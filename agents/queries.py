"""The SQL that discovery runs for every task."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db import connection
from django.db.models import QuerySet

from agents.embeddings import Vector
from agents.models import Agent

# Words of a part that repeats itself count no more often than this: BM25 levels off by itself, but a card
# that is nothing but one keyword would still win it.
MAX_FREQUENCY = 4
MAX_TERM_CHARS = 200

# Within the usual range; b a little lower than the customary 0.75 because cards that explain
# themselves at length are no worse for it (measured on three public registries).
K1, B = 1.0, 0.65
# Share of the words' score beside the meaning's, both in standard deviations over the candidates.
WORDS_WEIGHT = 0.5
# A rare word stands out of a large registry by tens of deviations; meaning never by more than about 8.
WORDS_MAX_DEVIATIONS = 8.0
# Of a project's own agent and a shared one that fit about as well, the own one is meant: it was registered for them.
# With one standard deviation three public registries are searched as if the shipped agents were not beside them, but
# for 4 of 2,533 tasks; and tasks of the shipped agents find these, except where an own agent does the same.
OWN_BONUS = 1.0
# The spread of cosines in ordinary registries is .06 to .1; in one of two agents it may be nothing.
LEAST_SPREAD = 0.05

# Each posting carries the text's length, so that ranking needs no second lookup per agent. The length counts every
# repetition, the frequency only some: repeating words makes a card weaker, not stronger.
WRITE_TERMS = """
INSERT INTO agents_agentterm (agent_version_id, term, frequency, length)
SELECT %(version)s, term, frequency, sum(occurrences) OVER ()
  FROM (
    SELECT left(lexeme, %(max_chars)s) AS term, sum(least(counted, %(max_frequency)s)) AS frequency,
           sum(counted) AS occurrences
      FROM unnest(%(texts)s::text[]) AS part (text), unnest(to_tsvector('english', part.text)),
           coalesce(array_length(positions, 1), 1) AS counted
     GROUP BY 1
  ) AS word
"""

# BM25 is computed here because ts_rank knows no document frequency (up to 33 points of recall@1 worse).
# Frequencies and spread are taken over what the caller sees: no project learns another's words. `eligible`
# filters after that, so that a filter changes who is ranked but not what a word weighs.
# Candidates are put together by grouping, not by outer joins: without statistics, right after a bulk
# registration, the planner takes those for joins of single rows (measured: 80 ms in place of 6).
# Agents without vectors in this space stand at the mean of the others and are ranked by their words.
# Every distance is exact: below about 20,000 agents an index only loses results.
RANK = """
WITH visible AS MATERIALIZED ({visible}),
word AS MATERIALIZED (
    SELECT lexeme AS term FROM unnest(to_tsvector('english', %(task)s))
),
hit AS MATERIALIZED (
    SELECT posting.agent_version_id AS version, term, posting.frequency, posting.length, visible.eligible
      FROM word JOIN agents_agentterm AS posting USING (term)
      JOIN visible ON visible.version = posting.agent_version_id
),
weight AS MATERIALIZED (
    SELECT term, ln(1 + (all_agents - its_agents + 0.5::float8) / (its_agents + 0.5::float8)) AS idf
      FROM (SELECT count(*) AS all_agents FROM visible) AS registry,
           (SELECT term, count(hit.version) AS its_agents FROM word LEFT JOIN hit USING (term) GROUP BY term) AS known
),
lexical AS (
    SELECT version, sum(idf) AS covered, array_agg(term ORDER BY idf DESC, term) AS terms,
           sum(idf * frequency * (%(k1)s + 1)
               / (frequency + %(k1)s * (1 - %(b)s + %(b)s * length / %(average_length)s))) AS bm25
      FROM hit JOIN weight USING (term) WHERE eligible GROUP BY version
),
near AS MATERIALIZED (
    SELECT vector.agent_version_id AS version, vector.part,
           -(vector.embedding <#> %(vector)s::vector) AS cosine
      FROM agents_agentembedding AS vector JOIN visible ON visible.version = vector.agent_version_id
     WHERE vector.space_id = %(space)s AND eligible
),
meaning AS (
    SELECT version, (max(cosine) FILTER (WHERE part = 'full') + max(cosine) FILTER (WHERE part <> 'full')) / 2
                    AS cosine
      FROM near GROUP BY version
),
candidate AS (
    SELECT version, max(cosine) AS cosine, max(bm25) AS bm25, max(covered) AS covered, max(terms) AS terms,
           (max(ok) + 2) / (max(ok) + max(failed) + 4) AS success, bool_or(own) AS own
      FROM (
        SELECT version, NULL::float8 AS cosine, 0::float8 AS bm25, 0::float8 AS covered, NULL::text[] AS terms,
               coalesce(ok, 0)::float8 AS ok, coalesce(failed, 0) AS failed, own
          FROM visible WHERE eligible
        UNION ALL SELECT version, cosine, NULL, NULL, NULL, NULL, NULL, NULL FROM meaning
        UNION ALL SELECT version, NULL, bm25, covered, terms, NULL, NULL, NULL FROM lexical
      ) AS evidence
     GROUP BY version
),
deviation AS (
    SELECT candidate.*,
           (cosine - avg(cosine) OVER registry) / greatest(stddev_pop(cosine) OVER registry, %(least_spread)s)
               AS cosine_deviation,
           (bm25 - avg(bm25) OVER registry) / nullif(stddev_pop(bm25) OVER registry, 0) AS bm25_deviation
      FROM candidate WINDOW registry AS ()
),
weighed AS (
    SELECT deviation.*, coalesce(cosine_deviation, 0) AS by_meaning,
           %(words_weight)s * coalesce(
               bm25_deviation * least(1, %(words_max)s / nullif(max(bm25_deviation) OVER (), 0)), 0
           ) AS by_words,
           %(prior)s * (2 * success - 1) AS by_success, %(own_bonus)s * own::int AS by_ownership
      FROM deviation
),
ranked AS (
    SELECT weighed.*, by_meaning + by_words + by_success + by_ownership AS score
      FROM weighed ORDER BY score DESC, version LIMIT %(limit)s
)
SELECT ranked.version, ranked.score, ranked.cosine, ranked.covered, ranked.terms,
       coalesce((SELECT sum(idf) FROM weight), 0) AS asked, best.part, best.text,
       by_meaning, by_words, by_success, by_ownership
  FROM ranked LEFT JOIN LATERAL (
    SELECT part, text FROM agents_agentembedding
     WHERE agent_version_id = ranked.version AND space_id = %(space)s AND part <> 'full'
     ORDER BY embedding <#> %(vector)s::vector, id LIMIT 1
  ) AS best ON true
 ORDER BY ranked.score DESC, ranked.version
"""

AVERAGE_LENGTH = """
WITH visible AS ({visible})
SELECT avg(length) FROM (
    SELECT min(length) AS length FROM agents_agentterm JOIN visible ON version = agent_version_id GROUP BY version
) AS document
"""


@dataclass(frozen=True)
class Ranked:
    """One agent's place for a task, and what it rests on."""

    version: UUID
    score: float
    cosine: float | None  # None: no vector in this space yet
    covered: float  # summed idf of the task's words that the agent has
    terms: list[str]  # those words as lexemes, rarest first
    asked: float  # summed idf of all the task's words
    part: str | None
    text: str | None
    # What the score is the sum of, in standard deviations over the candidates.
    by_meaning: float
    by_words: float
    by_success: float
    by_ownership: float


def write_terms(version: UUID, texts: list[str]) -> None:
    """Store the words of a version's texts. It must have none yet."""
    with connection.cursor() as cursor:
        cursor.execute(
            WRITE_TERMS,
            {
                "version": version,
                "texts": texts,
                "max_chars": MAX_TERM_CHARS,
                "max_frequency": MAX_FREQUENCY,
            },
        )


def rank(
    visible: QuerySet[Agent, Any],
    task: str,
    vector: Vector | None,
    *,
    space: str,
    average_length: float,
    limit: int,
    prior: float = 0.0,
) -> list[Ranked]:
    """The best agents for a task, best first. `visible` has the columns version, eligible, own, ok, failed.

    Without a vector the words alone decide. `prior` is how much past success may add or take, in
    standard deviations.
    """
    sql, params = with_visible(RANK, visible)
    params |= weights(task, vector, average_length=average_length, limit=limit, prior=prior)
    with connection.cursor() as cursor:
        cursor.execute(sql, params | {"space": space})
        return [Ranked(*row) for row in cursor.fetchall()]


def weights(
    task: str, vector: Vector | None, *, average_length: float, limit: int, prior: float
) -> dict[str, Any]:
    """The parameters of a ranking that do not depend on the registry's size."""
    return {
        "task": task,
        "vector": None if vector is None else literal(vector),
        "average_length": average_length,
        "k1": K1,
        "b": B,
        "words_weight": WORDS_WEIGHT,
        "words_max": WORDS_MAX_DEVIATIONS,
        "least_spread": LEAST_SPREAD,
        "prior": prior,
        "own_bonus": OWN_BONUS,
        "limit": limit,
    }


def average_length(visible: QuerySet[Agent, Any]) -> float:
    """Words per agent over what a caller sees; at least 1."""
    sql, params = with_visible(AVERAGE_LENGTH, visible)
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        (length,) = cursor.fetchone() or (None,)
    return max(1.0, float(length or 0))


def with_visible(statement: str, visible: QuerySet[Agent, Any]) -> tuple[str, dict[str, Any]]:
    """The statement with the ORM's own query in it: who may see what is asked in `visible_to` alone."""
    sql, values = visible.query.sql_with_params()
    params = {f"visible_{number}": value for number, value in enumerate(values)}
    names = iter(params)
    named = re.sub("%s", lambda _: f"%({next(names)})s", sql)
    return statement.replace("{visible}", named), params


def literal(vector: Vector) -> str:
    """A vector as PostgreSQL reads it."""
    return "[" + ",".join(map(repr, vector.tolist())) + "]"


# Newer runs weigh more: at this many, both counts are halved before the new ones are added.
RUNS_REMEMBERED = 1000
DURATION_BUCKETS = 16

# One row per agent, taken in the order of their ids so that two workers cannot wait for each other.
RECORD_RUNS = """
INSERT INTO agents_agentstats AS stats (agent_id, ok, failed, durations)
VALUES (%(agent)s, %(ok)s, %(failed)s, %(durations)s)
ON CONFLICT (agent_id) DO UPDATE
   SET (ok, failed, durations) = (
    SELECT (stats.ok >> halved) + excluded.ok, (stats.failed >> halved) + excluded.failed,
           ARRAY(
            SELECT (coalesce(old, 0) >> halved) + coalesce(new, 0)
              FROM unnest(stats.durations, excluded.durations) WITH ORDINALITY AS bucket (old, new, number)
             ORDER BY number
           )
      FROM (SELECT (stats.ok + stats.failed >= %(remembered)s)::int AS halved) AS age
   )
"""


@dataclass(frozen=True)
class Run:
    """How one run of an agent ended."""

    agent: UUID
    ok: bool
    seconds: float


def record_runs(runs: Iterable[Run]) -> None:
    """Add runs to their agents' statistics. Holds a lock per agent until the transaction ends: call it last."""
    by_agent: dict[UUID, list[Run]] = {}
    for run in runs:
        by_agent.setdefault(run.agent, []).append(run)
    with connection.cursor() as cursor:
        for agent, its_runs in sorted(by_agent.items()):
            durations = [0] * DURATION_BUCKETS
            for run in its_runs:
                durations[_bucket(run.seconds)] += 1
            ok = sum(run.ok for run in its_runs)
            cursor.execute(
                RECORD_RUNS,
                {
                    "agent": agent,
                    "ok": ok,
                    "failed": len(its_runs) - ok,
                    "durations": durations,
                    "remembered": RUNS_REMEMBERED,
                },
            )


def _bucket(seconds: float) -> int:
    """The first n with 2^n >= seconds, at most the last."""
    return min(DURATION_BUCKETS - 1, max(0, math.ceil(math.log2(max(seconds, 1.0)))))
