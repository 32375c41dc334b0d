"""How well discovery finds the right agent, beside words alone, meaning alone and reciprocal rank fusion.

    ENGINE_BENCHMARK=1 .venv/bin/python benchmarks/discovery.py FOLDER [SET …] [--queries N] [--sizes N …]

FOLDER holds one folder per set with `agents.jsonl` (id, name, description, skills, examples) and `queries.jsonl`
(query, relevant: agent ids, none where no agent fits). Registers each set in a project of its own, in a database
that is made for the run and dropped after it. R is recall, refused the share answered with `none`.
With --sizes it measures instead how long the database takes in registries that are made from the first set.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any
from uuid import UUID

import django

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "engine.settings")

if TYPE_CHECKING:
    from agents.embeddings import Vector
    from apikeys.callers import Caller

DEPTH = 50
RRF_K = 60


@dataclass
class Score:
    """Running means over queries."""

    queries: int = 0
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, ranking: list[str], relevant: list[str]) -> None:
        """Count one answered query."""
        places = sorted(ranking.index(one) + 1 if one in ranking else math.inf for one in relevant)
        ideal = sum(1 / math.log2(place + 1) for place in range(1, min(10, len(relevant)) + 1))
        values = {
            **{f"R@{k}": sum(place <= k for place in places) / len(relevant) for k in (1, 5, 10)},
            "nDCG@10": sum(1 / math.log2(place + 1) for place in places if place <= 10) / ideal,
            "MRR": 1 / places[0],
        }
        self.queries += 1
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in values.items()}

    def __str__(self) -> str:
        return "  ".join(f"{name} {value / self.queries:.3f}" for name, value in self.sums.items())


@contextmanager
def scratch_database() -> Iterator[None]:
    """A database of the run's own."""
    from django.db import connection

    before = connection.settings_dict["NAME"]
    connection.creation.create_test_db(verbosity=0, autoclobber=True, serialize=False)
    try:
        yield
    finally:
        connection.creation.destroy_test_db(str(before), verbosity=0)


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def register(name: str, agents: list[dict[str, Any]]) -> Caller:
    """Register a set in a project of its own."""
    from agents import services
    from apikeys.callers import Caller
    from apikeys.models import Project

    project = Project.objects.create(slug=name, name=name)
    by = Caller(project=project, scopes=frozenset({"admin"}), via="cli")
    cards = [
        {
            "slug": agent["id"],
            "name": agent["name"],
            "description": agent["description"],
            "kind": "noop",
            "skills": agent.get("skills", []),
            "examples": agent.get("examples", []),
        }
        for agent in agents
    ]
    started = time.monotonic()
    services.put_many(by, cards, lambda done, of: None)
    print(f"{name}: {len(cards)} agents registered in {time.monotonic() - started:.1f} s")
    return by


def rankings(by: Caller) -> dict[str, Callable[[str], list[str]]]:
    """The single signals and their usual fusion, over the same index."""
    from django.db.models import Q

    from agents import discovery, queries
    from agents.models import Agent

    registry = discovery._registry(by, Q())
    slugs = dict(Agent.objects.values_list("current_version_id", "slug"))
    length = queries.average_length(registry)

    def words(task: str) -> list[str]:
        found = queries.rank(registry, task, None, space="", average_length=length, limit=DEPTH)
        return [slugs[one.version] for one in found]

    def meaning(task: str) -> list[str]:
        view = discovery._View.of(task)
        found = queries.rank(registry, "", view.vector, space=view.space, average_length=length, limit=DEPTH)
        return [slugs[one.version] for one in found]

    def fused(task: str) -> list[str]:
        points: dict[str, float] = {}
        for ranking in (words(task), meaning(task)):
            for place, slug in enumerate(ranking, start=1):
                points[slug] = points.get(slug, 0.0) + 1 / (RRF_K + place)
        return sorted(points, key=lambda slug: (-points[slug], slug))

    return {"BM25": words, "dense": meaning, f"RRF({RRF_K})": fused}


def measure(folder: Path, limit: int | None) -> None:
    """Print one set's table."""
    from agents import discovery

    queries_ = lines(folder / "queries.jsonl")
    random.Random(0).shuffle(queries_)
    queries_ = queries_[:limit]
    by = register(folder.name, lines(folder / "agents.jsonl"))
    started = time.monotonic()
    discovery.discover(by, "The first task calibrates")
    print(f"  calibrated in {time.monotonic() - started:.2f} s")
    scores = {name: Score() for name in (*rankings(by), "discover")}
    refused: dict[bool, list[bool]] = {True: [], False: []}
    sure: list[bool] = []
    seconds = []
    others = rankings(by)
    for query in queries_:
        started = time.monotonic()
        found = discovery.discover(by, query["query"], limit=10)
        seconds.append(time.monotonic() - started)
        relevant = query["relevant"]
        refused[bool(relevant)].append(found.decision == "none")
        if not relevant:
            continue
        sure.append(found.decision == "match")
        scores["discover"].add([one.version.agent.slug for one in found.results or found.nearest], relevant)
        for name, ranking in others.items():
            scores[name].add(ranking(query["query"])[:10], relevant)
    for name, score in scores.items():
        print(f"  {name:9s} {score}")
    shares = {kind: sum(answers) / len(answers) if answers else math.nan for kind, answers in refused.items()}
    print(
        f"  refused: answerable {shares[True]:.1%}, unanswerable {shares[False]:.1%}; "
        f"answerable and sure {sum(sure) / len(sure):.1%}"
    )
    cuts = quantiles(seconds, n=100)
    print(f"  discover(): p50 {cuts[49] * 1000:.1f} ms, p95 {cuts[94] * 1000:.1f} ms")


def latencies(folder: Path, sizes: list[int], count: int) -> None:
    """Print how long a ranking takes in the database by the number of agents, and what an index loses above 20,000."""
    from django.db.models import Q

    from agents import calibration, discovery, large, queries, vector_index
    from benchmarks import registries

    by = register(folder.name, lines(folder / "agents.jsonl")[:200])
    tasks = [query["query"] for query in lines(folder / "queries.jsonl")]
    random.Random(0).shuffle(tasks)
    views = [(task, discovery._View.of(task)) for task in tasks[:count]]
    space = views[0][1].space
    assert by.project is not None
    model = registries.Model.of(by.project.id, space)
    there = len(model.vectors)
    for size in sizes:
        registries.grow(by.project.id, space, model, start=there, end=size)
        there = size
        started = time.monotonic()
        if planned := vector_index.active_plan():
            vector_index.apply(planned, lambda said: print(f"  {said}", flush=True))
        built = time.monotonic()
        discovery.calibrate(by)
        print(f"{size:,} agents: index {built - started:.1f} s, calibrated {time.monotonic() - built:.1f} s")
        if vector_index.is_there(space):
            share = index_recall(space, [view.vector for _, view in views[:50] if view.vector is not None])
            print(f"  the index alone: recall@10 of the nearest cards {share:.3f}")
        stick = calibration.yardstick(by, discovery._registry(by, Q()), space, views[0][1].background)
        for name, filters in (("all", discovery.Filters()), ("1 in 1,000", discovery.Filters(tags=["rare"]))):
            registry = discovery._registry(by, discovery._conditions(filters))
            seconds: list[float] = []
            shares: list[float] = []
            for task, view in views:
                started = time.monotonic()
                found = discovery._rank(registry, task, view, stick, limit=10)
                seconds.append(time.monotonic() - started)
                if stick.survey is not None and len(shares) < 50:
                    exact = queries.rank(
                        registry,
                        task,
                        view.vector,
                        space=space,
                        average_length=stick.average_length,
                        limit=10,
                    )
                    shares.append(
                        len({one.version for one in exact} & {one.version for one in found}) / len(exact)
                    )
            cuts = quantiles(seconds, n=100)
            recall = f", recall@10 of the exact ranking {sum(shares) / len(shares):.3f}" if shares else ""
            way = "exact" if stick.survey is None or large.is_selective(registry) else "index"
            print(
                f"  {name}: {way}, p50 {cuts[49] * 1000:.1f} ms, p95 {cuts[94] * 1000:.1f} ms{recall}",
                flush=True,
            )


NEAREST = """
SELECT agent_version_id FROM agents_agentembedding WHERE space_id = {space} AND part = 'full'
 ORDER BY embedding::{type}({dims}) <#> %s::{type}({dims}) LIMIT 10
"""


def index_recall(space: str, vectors: list[Vector]) -> float:
    """Share of the ten nearest whole cards that the index finds, asked as discovery asks it."""
    from django.db import connection, transaction

    from agents import large, queries, vector_index

    def nearest(cursor: Any, vector: Vector, kind: str) -> set[UUID]:
        sql = NEAREST.format(space=vector_index.literal(space), type=kind, dims=vector.size)
        cursor.execute(sql, [queries.literal(vector)])
        return {version for (version,) in cursor.fetchall()}

    shares = []
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL hnsw.ef_search = {large.EF_SEARCH}; SET LOCAL enable_seqscan = off")
        for vector in vectors:
            exact = nearest(cursor, vector, "vector")  # of another type than the index: all are compared
            shares.append(len(exact & nearest(cursor, vector, "halfvec")) / len(exact))
    return sum(shares) / len(shares)


def main() -> None:
    """Read the arguments and measure each set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("sets", nargs="*", help="names of sets; all by default")
    parser.add_argument("--queries", type=int, help="measure on this many queries, drawn at random")
    parser.add_argument("--sizes", nargs="+", type=int, help="measure latency at these numbers of agents")
    arguments = parser.parse_args()
    django.setup()
    folders = sorted(path.parent for path in arguments.folder.glob("*/queries.jsonl"))
    with scratch_database():
        if arguments.sizes:
            chosen = [folder for folder in folders if not arguments.sets or folder.name in arguments.sets]
            latencies(chosen[0], arguments.sizes, arguments.queries or 200)
            return
        for folder in folders:
            if not arguments.sets or folder.name in arguments.sets:
                measure(folder, arguments.queries)


if __name__ == "__main__":
    main()
