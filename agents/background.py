"""The shipped background tasks: what people ask for that no agent is meant for."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from agents.embeddings import Embedder, Vector
from agents.models import BackgroundEmbedding
from agents.parts import text_hash

TASKS_FILE = Path(__file__).with_name("background_tasks.txt")
# How many of the most alike background tasks say how ordinary a task is.
NEIGHBOURS = 5
# Stored as they come: a crash loses little, and a transaction that this runs in is never idle for long.
STORED_AT_ONCE = 32


@dataclass(frozen=True)
class Background:
    """The background tasks with their vectors in one space; those of the yardstick come first."""

    tasks: list[str]
    yardstick_size: int
    vectors: Vector  # one row per task

    def familiarity(self, vector: Vector) -> float:
        """How much a task resembles ordinary requests: mean cosine to the five most alike ones."""
        return _mean_of_top(self.vectors @ vector)

    def own_familiarity(self, index: int) -> float:
        """The same for one of the background tasks, which does not count as its own neighbour."""
        return _mean_of_top(np.delete(self.vectors @ self.vectors[index], index))


@lru_cache(maxsize=1)
def tasks() -> tuple[list[str], int]:
    """All background tasks, and how many of them, from the first on, make up the yardstick."""
    sections: dict[str, list[str]] = {}
    for line in TASKS_FILE.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            current = sections.setdefault(line, [])
        elif line and not line.startswith("#"):
            current.append(line)
    yardstick, everyday = sections["[yardstick]"], sections["[everyday]"]
    return yardstick + everyday, len(yardstick)


@lru_cache(maxsize=4)
def in_space(space: str, embedder: Embedder) -> Background:
    """The background in a space, embedded once per installation and kept by the process.

    Raises EmbedderUnavailable when vectors are missing and the model is not there.
    """
    all_tasks, yardstick_size = tasks()
    vectors = _vectors(space, embedder, all_tasks)
    return Background(all_tasks, yardstick_size, np.stack([vectors[text_hash(task)] for task in all_tasks]))


def fill(space: str, embedder: Embedder) -> None:
    """Embed what background tasks a space lacks, however long the model takes. Raises EmbedderUnavailable."""
    _vectors(space, embedder, tasks()[0], patient=True)


def _vectors(
    space: str, embedder: Embedder, all_tasks: list[str], *, patient: bool = False
) -> dict[str, Vector]:
    known = _stored(space)
    missing = [task for task in all_tasks if text_hash(task) not in known]
    random.shuffle(missing)  # so that two processes at once share the work
    while some := [task for task in missing if text_hash(task) not in known][:STORED_AT_ONCE]:
        made = dict(zip(map(text_hash, some), embedder.embed_documents(some, patient=patient), strict=True))
        BackgroundEmbedding.objects.bulk_create(
            (BackgroundEmbedding(space_id=space, text_hash=key, embedding=made[key]) for key in sorted(made)),
            ignore_conflicts=True,  # two processes may fill it at once, with the same vectors; one order: no deadlock
        )
        known |= made | _stored(space)
    return known


def _stored(space: str) -> dict[str, Vector]:
    rows = BackgroundEmbedding.objects.filter(space_id=space).values_list("text_hash", "embedding")
    return {key: np.asarray(vector, dtype=np.float32) for key, vector in rows}


def _mean_of_top(cosines: Vector) -> float:
    return float(np.partition(cosines, -NEIGHBOURS)[-NEIGHBOURS:].mean())
