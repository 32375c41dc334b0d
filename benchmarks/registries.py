"""Registries of any size, made from a real one: vectors near its vectors, words like its words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

import numpy as np
from django.db import connection
from pgvector import Vector as PgVector
from pgvector.psycopg import register_vector
from uuid_utils.compat import uuid7

from agents.embeddings import Vector
from agents.models import Agent, AgentEmbedding, AgentTerm

# A new card's vectors are some of one card's, some of another's, and noise that all parts of the new card share.
SHARES = (0.75, 0.35, 0.45)
# Which share of the first card's words it has, and of the second's.
WORDS_KEPT = (0.6, 0.25)
WORDS_OF_ITS_OWN = 10
VOCABULARY = 50_000
TAGGED_ONE_IN = 1_000
# input_schema to created_by.
EMPTY = ("{}", "{}", "{}", "[]", "{}", "", "", "[]", "{}", "", "")


@dataclass(frozen=True)
class Model:
    """What new cards are made from."""

    vectors: list[list[tuple[str, Vector]]]  # per card: part and vector
    words: list[list[str]]  # per card: its lexemes

    @classmethod
    def of(cls, project: UUID, space: str) -> Model:
        """The cards of a project that is there."""
        versions = list(Agent.objects.filter(project=project).values_list("current_version", flat=True))
        parts: dict[UUID, list[tuple[str, Vector]]] = {version: [] for version in versions if version}
        rows = AgentEmbedding.objects.in_space(space).filter(agent_version__in=parts)
        for version, part, vector in rows.values_list("agent_version", "part", "embedding"):
            parts[version].append((part, np.asarray(vector, dtype=np.float32)))
        words: dict[UUID, list[str]] = {version: [] for version in parts}
        for version, term in AgentTerm.objects.filter(agent_version__in=parts).values_list(
            "agent_version", "term"
        ):
            words[version].append(term)
        return cls([parts[version][:4] for version in parts], [words[version] for version in parts])


def grow(project: UUID, space: str, model: Model, *, start: int, end: int) -> None:
    """Add agents number `start` to `end`, straight into the tables."""
    random = np.random.default_rng(start)
    made = [(uuid7(), uuid7()) for _ in range(start, end)]
    parents = random.integers(len(model.vectors), size=(len(made), 2))
    connection.ensure_connection()
    register_vector(connection.connection)
    with connection.cursor() as cursor:
        with cursor.copy("COPY agents_agent (id, project_id, slug, status, revision) FROM STDIN") as rows:
            for number, (agent, _) in enumerate(made, start):
                rows.write_row((agent, project, f"made-{number}", "active", 0))
        with cursor.copy(
            "COPY agents_agentversion (id, agent_id, number, name, description, summary, kind, skills, examples, tags,"
            " input_schema, output_schema, limits, requirements, source, instructions, model, tools, settings,"
            " content_hash, created_by) FROM STDIN"
        ) as rows:
            for number, (agent, version) in enumerate(made, start):
                tags = "{rare}" if number % TAGGED_ONE_IN == 0 else "{}"
                rows.write_row(
                    (version, agent, 1, f"Made {number}", "Made up", "", "noop", "[]", "[]", tags, *EMPTY)
                )
        cursor.execute(
            "UPDATE agents_agent SET current_version_id = version.id FROM agents_agentversion AS version"
            " WHERE agent_id = agents_agent.id AND current_version_id IS NULL"
        )
        with cursor.copy(
            "COPY agents_agentembedding (agent_version_id, part, ordinal, text, text_hash, space_id, dims, embedding)"
            " FROM STDIN WITH (FORMAT BINARY)"
        ) as rows:
            rows.set_types(["uuid", "varchar", "int2", "text", "varchar", "varchar", "int4", "vector"])
            for (_, version), (first, second) in zip(made, parents, strict=True):
                for ordinal, (part, vector) in enumerate(_vectors(model, first, second, random)):
                    rows.write_row(
                        (version, part, ordinal, "made up", "", space, vector.size, PgVector(vector))
                    )
        with cursor.copy(
            "COPY agents_agentterm (agent_version_id, term, frequency, length) FROM STDIN"
        ) as rows:
            for (_, version), (first, second) in zip(made, parents, strict=True):
                words = _words(model, first, second, random)
                for word in words:
                    rows.write_row((version, word, 1.0, float(len(words))))
        cursor.execute(
            "VACUUM ANALYZE agents_agent, agents_agentversion, agents_agentembedding, agents_agentterm"
        )


def _vectors(
    model: Model, first: int, second: int, random: np.random.Generator
) -> Iterator[tuple[str, Vector]]:
    other = model.vectors[second][0][1]
    noise = random.standard_normal(other.size).astype(np.float32) / np.sqrt(other.size)
    for part, vector in model.vectors[first]:
        mixed = SHARES[0] * vector + SHARES[1] * other + SHARES[2] * noise
        yield part, (mixed / np.linalg.norm(mixed)).astype(np.float32)


def _words(model: Model, first: int, second: int, random: np.random.Generator) -> set[str]:
    """Words of the same two cards, for words and meaning go together, and some of a vocabulary of mostly rare ones."""
    kept = {
        word
        for card, share in zip((first, second), WORDS_KEPT, strict=True)
        for word in model.words[card]
        if random.random() < share
    }
    ranks = np.exp(random.random(WORDS_OF_ITS_OWN) * np.log(VOCABULARY)).astype(int)
    return kept | {f"word{rank}" for rank in ranks}
