"""All background tasks ranked in one pass: the same answer as one statement for each gives."""

from uuid import uuid4

import numpy as np
import pytest
from django.db.models import Q

from agents import background, background_ranking, discovery, queries
from agents.indexing import active_space
from agents.models import Agent, AgentEmbedding
from tests.agents import WordEmbedder, make_noop, member, register_all, words

__all__ = ["words"]
pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("words")]

SUBJECTS = [
    "letters in French",
    "meals without meat",
    "servers that are down",
    "a good film",
    "tax",
    "my code",
]


@pytest.mark.parametrize("by_meaning", [True, False])
def test_one_pass_finds_what_a_ranking_per_task_finds(words: WordEmbedder, by_meaning: bool) -> None:
    by = member()
    register_all(
        by,
        [
            make_noop(
                f"agent-{n}", f"Helps with {SUBJECTS[n % 6]} number {n}. Explains {SUBJECTS[n % 5]} too."
            )
            for n in range(30)
        ],
    )
    Agent.objects.filter(slug__regex="[13579]$").update(project=None)
    unembedded = Agent.objects.get(slug="agent-7").current_version_id
    AgentEmbedding.objects.filter(agent_version=unembedded).delete()
    space = active_space()
    assert space is not None
    known = background.in_space(space.name, words)
    tasks = [*known.tasks[:60], "write letters in French", "what is", "", "explain my tax code number 3"]
    vectors = np.stack([words.embed_query(task) for task in tasks])
    registry = discovery._registry(by, Q())
    length = queries.average_length(registry)
    asked = space.name if by_meaning else ""

    once = background_ranking.best(
        registry, tasks, vectors if by_meaning else None, space=asked, average_length=length
    )
    each = [
        queries.rank(
            registry, task, vector if by_meaning else None, space=asked, average_length=length, limit=1
        )[0]
        for task, vector in zip(tasks, vectors, strict=True)
    ]

    assert [(one.cosine, one.covered, one.asked) for one in once] == [
        pytest.approx((one.cosine or 0.0, one.covered, one.asked), abs=1e-5) for one in each
    ]


def test_an_empty_registry_has_no_best() -> None:
    registry = discovery._registry(member(), Q())

    assert background_ranking.best(registry, ["task"], None, space="", average_length=1.0) == []


def test_a_space_without_vectors_leaves_it_to_the_words(words: WordEmbedder) -> None:
    by = member()
    register_all(by, [make_noop(f"agent-{uuid4().hex[:6]}", "Helps with tax")])
    registry = discovery._registry(by, Q())

    (found,) = background_ranking.best(
        registry, ["tax"], words.embed_query("tax")[None, :], space="none", average_length=3.0
    )

    assert found.cosine == 0.0
    assert found.covered > 0
