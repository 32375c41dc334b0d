"""The approximate index over vectors of one space: only for registries in which an exact search takes too long.

Below LEAST_AGENTS an index only loses results; above, it finds the candidates, which are then scored exactly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from django.db import connection
from django.db.models import Count, Q

from agents import indexing
from agents.models import Agent, EmbeddingSpace

# An exact search over so many agents takes about as long as the rest of a request.
LEAST_AGENTS = 20_000
# What pgvector's HNSW takes of the type halfvec, which is half the size of vector and as good for candidates.
MOST_DIMS = 4000

# Over the vectors of whole cards: one per agent. Their parts are compared exactly for the candidates.
BUILD = """
CREATE INDEX CONCURRENTLY {name} ON agents_agentembedding
 USING hnsw ((embedding::halfvec({dims})) halfvec_ip_ops) WITH (m = 24, ef_construction = 128)
 WHERE space_id = {space} AND part = 'full'
"""
# An interrupted build leaves an index that is there and not valid.
IS_VALID = """
SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)
"""


@dataclass(frozen=True)
class Plan:
    """What should become of a space's index, and why."""

    space: str
    dims: int
    agents: int  # in the largest view: one project's agents and the shared ones
    wanted: bool
    why: str


def name_of(space: str) -> str:
    """The index's name: PostgreSQL cuts names at 63 bytes, and spaces are named at more length."""
    return f"agents_vector_{hashlib.sha256(space.encode()).hexdigest()[:16]}"


def is_there(space: str) -> bool:
    """Whether discovery can ask the index of a space."""
    with connection.cursor() as cursor:
        cursor.execute(IS_VALID, [name_of(space)])
        row = cursor.fetchone()
    return bool(row and row[0])


def plan(space: EmbeddingSpace) -> Plan:
    """Whether a space should have an index: it depends on the largest registry that one caller sees."""
    agents = largest_view()
    if agents <= LEAST_AGENTS:
        wanted, why = False, f"an exact search of {agents:,} agents is fast and finds everything"
    elif space.dims > MOST_DIMS:
        wanted, why = (
            False,
            f"pgvector indexes at most {MOST_DIMS:,} dimensions, this space has {space.dims:,}",
        )
    else:
        wanted, why = True, f"an exact search of {agents:,} agents takes too long (above {LEAST_AGENTS:,})"
    return Plan(space.name, space.dims, agents, wanted, why)


def unwanted(planned: Plan) -> Plan:
    """The same plan where somebody wants no index, whatever the size."""
    return replace(planned, wanted=False, why="it was asked for")


def apply(wanted: Plan, say: Callable[[str], None]) -> bool:
    """Build or drop the index as planned, without locking anybody out; whether that was needed. In no transaction."""
    name, there = name_of(wanted.space), is_there(wanted.space)
    if wanted.wanted == there:
        state = "has an index" if there else "has no index"
        say(f"{wanted.space} {state} and needs no change: {wanted.why}")
        return False
    with connection.cursor() as cursor:
        cursor.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
        if not wanted.wanted:
            say(f"{wanted.space}: the index is dropped: {wanted.why}")
            return True
        say(f"{wanted.space}: building the index: {wanted.why}")
        cursor.execute(BUILD.format(name=name, dims=wanted.dims, space=literal(wanted.space)))
    say(f"{wanted.space}: the index is built")
    return True


def drop_idle(say: Callable[[str], None]) -> None:
    """Drop the indexes of spaces that discovery does not ask: they slow down each registration there."""
    for space in EmbeddingSpace.objects.filter(is_active=False):
        if is_there(space.name):
            with connection.cursor() as cursor:
                cursor.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name_of(space.name)}")
            say(f"{space.name}: the index is dropped: discovery asks another space")


def largest_view() -> int:
    """Active agents in the largest registry that a project sees."""
    counts = Agent.objects.active().aggregate(shared=Count("id", filter=Q(project=None)))
    owned = (
        Agent.objects.active()
        .filter(project__isnull=False)
        .order_by()
        .values("project")
        .annotate(agents=Count("id"))
        .order_by("-agents")
        .values_list("agents", flat=True)
        .first()
    )
    return int(counts["shared"]) + int(owned or 0)


def active_plan() -> Plan | None:
    """The plan for the space that discovery asks; None before the first agent is embedded."""
    space = indexing.active_space()
    return plan(space) if space else None


def literal(text: str) -> str:
    """A text inside SQL that takes no parameters: the predicate of an index, and what has to match it."""
    return "'" + text.replace("'", "''") + "'"
