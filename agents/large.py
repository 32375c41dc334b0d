"""The SQL that discovery runs for a task where the registry is too large to compare each agent.

Candidates come from the vector index and from the task's rare words; each is then scored as in `agents/queries.py`,
exactly. What there is taken over the whole registry is known from the calibration or taken over a sample of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.db import connection, transaction
from django.db.backends.utils import CursorWrapper
from django.db.models import QuerySet

from agents import queries, vector_index
from agents.embeddings import Vector
from agents.models import Agent, AgentVersion
from agents.queries import Ranked

# Candidates by meaning, and by words. More of them cost time and find hardly more (measured).
NEAREST = 400
BY_WORDS = 400
# How many the graph keeps in hand: the more, the more of the exact best are found, and the longer it takes.
EF_SEARCH = 400
# A word in more than this share of the agents is counted once per calibration.
KNOWN_SHARE = 0.001
# The task's words bring up candidates in the order of their rarity, until so many postings are to be read.
MOST_POSTINGS = 30_000
# For each candidate by words so many are looked at, times the share of all cards that the caller sees.
LOOKED_AT = 4
SAMPLE = 500

RANK = """
WITH visible AS NOT MATERIALIZED ({visible}),
{nearby},
word AS MATERIALIZED (SELECT lexeme AS term FROM unnest(to_tsvector('english', %(task)s))),
known AS (SELECT term, its_agents FROM unnest(%(known)s::text[], %(counts)s::int[]) AS known (term, its_agents)),
-- In few agents, most of which may be another project's: counted as they are seen.
seldom AS MATERIALIZED (
    SELECT term, (SELECT count(*) FROM agents_agentterm AS posting JOIN visible ON version = agent_version_id
                   WHERE posting.term = word.term) AS its_agents
      FROM word WHERE term <> ALL(%(known)s::text[])
),
weight AS MATERIALIZED (
    SELECT term, ln(1 + greatest(0, %(agents)s - its_agents + 0.5::float8) / (its_agents + 0.5::float8)) AS idf
      FROM (SELECT * FROM seldom UNION ALL SELECT term, its_agents FROM known) AS word
),
said AS NOT MATERIALIZED (
    SELECT agent_version_id AS version,
           sum(idf * frequency * (%(k1)s + 1)
               / (frequency + %(k1)s * (1 - %(b)s + %(b)s * length / %(average_length)s))) AS bm25
      FROM weight JOIN agents_agentterm USING (term) WHERE term <> ALL(%(common)s::text[])
     GROUP BY version
),
{worded},
chosen AS MATERIALIZED (SELECT version, own, ok, failed FROM nearby UNION SELECT version, own, ok, failed FROM worded),
asked AS MATERIALIZED (
    SELECT version, true AS is_candidate, own, ok, failed FROM chosen
    UNION ALL SELECT version, false, NULL, NULL, NULL FROM unnest(%(sample)s::uuid[]) AS sample (version)
     WHERE version NOT IN (SELECT version FROM chosen)
),
-- Candidates are far from the average and stand for themselves, the sample for all others (Horvitz and Thompson).
standing AS (
    SELECT greatest(%(agents)s - count(*) FILTER (WHERE is_candidate), 1)
           / greatest(count(*) FILTER (WHERE NOT is_candidate), 1)::float8 AS others
      FROM asked
),
-- One search per word for all of them, which skips what lies between: the commonest words stand in half the registry.
lexical AS (
    SELECT posting.version, sum(idf) AS covered, array_agg(term ORDER BY idf DESC, term) AS terms,
           sum(idf * frequency * (%(k1)s + 1)
               / (frequency + %(k1)s * (1 - %(b)s + %(b)s * length / %(average_length)s))) AS bm25
      FROM weight CROSS JOIN LATERAL (
        SELECT agent_version_id AS version, frequency, length FROM agents_agentterm AS posting
         WHERE posting.term = weight.term AND agent_version_id = ANY((SELECT array_agg(version) FROM asked)::uuid[])
      ) AS posting
     GROUP BY posting.version
),
near AS MATERIALIZED (
    SELECT asked.version, part, -(embedding <#> %(vector)s::vector) AS cosine
      FROM asked JOIN agents_agentembedding AS vector ON vector.agent_version_id = asked.version
     WHERE vector.space_id = {space}
),
meaning AS (
    SELECT version, (max(cosine) FILTER (WHERE part = 'full') + max(cosine) FILTER (WHERE part <> 'full')) / 2
                    AS cosine
      FROM near GROUP BY version
),
evidence AS MATERIALIZED (
    SELECT asked.*, cosine, coalesce(bm25, 0) AS bm25, coalesce(covered, 0) AS covered, terms
      FROM asked LEFT JOIN meaning USING (version) LEFT JOIN lexical USING (version)
),
moment AS (
    SELECT sum(stands) FILTER (WHERE cosine IS NOT NULL) AS with_vector, sum(stands) AS agents,
           sum(stands * cosine) AS cosine, sum(stands * cosine ^ 2) AS cosine_squared,
           sum(stands * bm25) AS bm25, sum(stands * bm25 ^ 2) AS bm25_squared
      FROM (SELECT evidence.*, CASE WHEN is_candidate THEN 1 ELSE others END AS stands FROM evidence, standing) AS one
),
usual AS MATERIALIZED (
    SELECT cosine / with_vector AS cosine, bm25 / agents AS bm25,
           greatest(sqrt(greatest(cosine_squared / with_vector - (cosine / with_vector) ^ 2, 0)), %(least_spread)s)
               AS cosine_spread,
           nullif(sqrt(greatest(bm25_squared / agents - (bm25 / agents) ^ 2, 0)), 0) AS bm25_spread
      FROM moment
),
deviation AS (
    SELECT evidence.*, (evidence.cosine - usual.cosine) / usual.cosine_spread AS cosine_deviation,
           (evidence.bm25 - usual.bm25) / coalesce(usual.bm25_spread, nullif(max(evidence.bm25) OVER (), 0))
               AS bm25_deviation
      FROM evidence, usual WHERE is_candidate
),
weighed AS (
    SELECT deviation.*, coalesce(cosine_deviation, 0) AS by_meaning,
           %(words_weight)s * coalesce(
               bm25_deviation * least(1, %(words_max)s / nullif(greatest(max(bm25_deviation) OVER (), 0), 0)), 0
           ) AS by_words,
           %(prior)s * (2 * (coalesce(ok, 0) + 2)::float8 / (coalesce(ok, 0) + coalesce(failed, 0) + 4) - 1)
               AS by_success,
           %(own_bonus)s * own::int AS by_ownership
      FROM deviation
),
ranked AS (
    SELECT weighed.*, by_meaning + by_words + by_success + by_ownership AS score
      FROM weighed ORDER BY score DESC, version LIMIT %(limit)s
)
SELECT ranked.version, ranked.score, ranked.cosine, ranked.covered, ranked.terms,
       coalesce((SELECT sum(idf) FROM weight), 0) AS asked, best.part, best.text,
       by_meaning, by_words, by_success, by_ownership, {complete}
  FROM ranked LEFT JOIN LATERAL (
    SELECT part, text FROM agents_agentembedding
     WHERE agent_version_id = ranked.version AND space_id = {space} AND part <> 'full'
     ORDER BY embedding <#> %(vector)s::vector, id LIMIT 1
  ) AS best ON true
 ORDER BY ranked.score DESC, ranked.version
"""

# Candidates that the index and the most telling words bring up. Who may be seen is looked up for the first of the
# latter only: for each posting it would take longer than all the rest.
QUICK = {
    "nearby": """nearby AS MATERIALIZED (
    SELECT vector.agent_version_id AS version, own, ok, failed
      FROM agents_agentembedding AS vector JOIN visible ON visible.version = vector.agent_version_id
     WHERE vector.space_id = {space} AND part = 'full' AND eligible
     ORDER BY embedding::halfvec({dims}) <#> %(vector)s::halfvec({dims}) LIMIT %(nearest)s
)""",
    "worded": """likely AS MATERIALIZED (SELECT version, bm25 FROM said ORDER BY bm25 DESC, version LIMIT %(likely)s),
worded AS MATERIALIZED (
    SELECT version, own, ok, failed FROM likely JOIN visible USING (version) WHERE eligible
     ORDER BY bm25 DESC, version LIMIT %(by_words)s
)""",
    "complete": """(SELECT count(*) FROM nearby) = %(nearest)s
       AND ((SELECT count(*) FROM worded) = %(by_words)s OR (SELECT count(*) FROM likely) < %(likely)s)""",
}
# The same by looking at everybody, for where those are too few. The graph does not lead everywhere: cards that are all
# alike are an island, and it gives up where nearly all cards near the task are another project's, as the words do.
THOROUGH = {
    "nearby": """nearby AS MATERIALIZED (
    SELECT vector.agent_version_id AS version, own, ok, failed
      FROM agents_agentembedding AS vector JOIN visible ON visible.version = vector.agent_version_id
     WHERE vector.space_id = {space} AND part = 'full' AND eligible
     ORDER BY embedding <#> %(vector)s::vector LIMIT %(nearest)s
)""",
    "worded": """worded AS MATERIALIZED (
    SELECT version, own, ok, failed FROM said JOIN visible USING (version) WHERE eligible
     ORDER BY bm25 DESC, version LIMIT %(by_words)s
)""",
    "complete": "true",
}

KNOWN = """
WITH visible AS MATERIALIZED ({visible})
SELECT term, count(*) FROM agents_agentterm JOIN visible ON version = agent_version_id
 GROUP BY term HAVING count(*) > %(least)s
"""
# By hash: the same agents in each run, and no sort by what they are about.
SAMPLED = """
WITH visible AS ({visible}) SELECT version FROM visible ORDER BY md5(version::text) LIMIT %(sample)s
"""
COUNT = "WITH visible AS ({visible}) SELECT count(*) FROM (SELECT FROM visible WHERE eligible LIMIT %(most)s) AS first"


@dataclass(frozen=True)
class Survey:
    """What is known of a large registry as a whole, taken with its calibration."""

    agents: int
    common: Mapping[str, int]  # in how many agents a word stands, of the words above KNOWN_SHARE
    sample: list[str]  # ids of versions that stand for all
    cards: int  # versions of everybody's agents, old ones included


def survey(visible: QuerySet[Agent, Any], agents: int) -> Survey:
    """Survey a registry: seconds, for 100,000 agents."""
    known_sql, params = queries.with_visible(KNOWN, visible)
    sample_sql, _ = queries.with_visible(SAMPLED, visible)
    with connection.cursor() as cursor:
        cursor.execute(known_sql, params | {"least": int(agents * KNOWN_SHARE)})
        known = dict(cursor.fetchall())
        cursor.execute(sample_sql, params | {"sample": SAMPLE})
        sample = [str(version) for (version,) in cursor.fetchall()]
    return Survey(agents, known, sample, AgentVersion.objects.count())


def is_selective(eligible: QuerySet[Agent, Any]) -> bool:
    """Whether few enough agents are left by the filters for each to be compared: then all are found."""
    sql, params = queries.with_visible(COUNT, eligible)
    with connection.cursor() as cursor:
        cursor.execute(sql, params | {"most": vector_index.LEAST_AGENTS + 1})
        (left,) = cursor.fetchone() or (0,)
    return int(left) <= vector_index.LEAST_AGENTS


def _too_common(terms: list[str], counts: Mapping[str, int]) -> list[str]:
    """The words that bring up no candidates: so many agents have them that reading all takes too long."""
    left = MOST_POSTINGS
    common = sorted((term for term in terms if term in counts), key=lambda term: (counts[term], term))
    for place, term in enumerate(common):
        left -= counts[term]
        if left < 0:
            return common[place:]
    return []


@transaction.atomic
def rank(
    visible: QuerySet[Agent, Any],
    task: str,
    vector: Vector,
    known: Survey,
    *,
    space: str,
    average_length: float,
    limit: int,
    prior: float = 0.0,
) -> list[Ranked]:
    """The best agents for a task, best first, as `queries.rank` gives them."""
    params = queries.weights(task, vector, average_length=average_length, limit=limit, prior=prior)
    with connection.cursor() as cursor:
        cursor.execute("SELECT lexeme FROM unnest(to_tsvector('english', %s))", [task])
        terms = [term for (term,) in cursor.fetchall() if term in known.common]
        params |= {
            "dims": vector.size,
            "agents": known.agents,
            "known": terms,
            "counts": [known.common[term] for term in terms],
            "common": _too_common(terms, known.common),
            "sample": known.sample,
            "nearest": max(NEAREST, 2 * limit),
            "by_words": max(BY_WORDS, limit),
            "likely": round(LOOKED_AT * max(BY_WORDS, limit) * max(1.0, known.cards / known.agents)),
        }
        # JIT would compile this for longer than it runs.
        cursor.execute("SET LOCAL jit = off")
        return _quick(cursor, visible, space, params) or _thorough(cursor, visible, space, params)


def _quick(
    cursor: CursorWrapper, visible: QuerySet[Agent, Any], space: str, params: dict[str, Any]
) -> list[Ranked]:
    """The best of the index's candidates; nothing where these are too few."""
    # The planner knows neither how many rows a CTE has nor that a sort of 100,000 vectors reads them all.
    cursor.execute(
        f"SET LOCAL hnsw.ef_search = {EF_SEARCH}; SET LOCAL hnsw.iterative_scan = 'relaxed_order';"
        "SET LOCAL enable_seqscan = off"
    )
    rows = _rows(cursor, visible, space, params, QUICK)
    cursor.execute("SET LOCAL enable_seqscan = on")
    return [Ranked(*row) for *row, is_complete in rows if is_complete]


def _thorough(
    cursor: CursorWrapper, visible: QuerySet[Agent, Any], space: str, params: dict[str, Any]
) -> list[Ranked]:
    return [Ranked(*row) for *row, _ in _rows(cursor, visible, space, params, THOROUGH)]


def _rows(
    cursor: CursorWrapper,
    visible: QuerySet[Agent, Any],
    space: str,
    params: dict[str, Any],
    candidates: Mapping[str, str],
) -> list[tuple[Any, ...]]:
    statement = RANK
    names = {"space": vector_index.literal(space).replace("%", "%%"), "dims": str(params["dims"])}
    for name, text in [*candidates.items(), *names.items()]:
        statement = statement.replace("{" + name + "}", text)
    sql, values = queries.with_visible(statement, visible)
    cursor.execute(sql, params | values)
    rows: list[tuple[Any, ...]] = cursor.fetchall()
    return rows
