"""The index for large registries: built and dropped with a reason, and the same agents found with it."""

from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.db.models import Q

from agents import discovery, large, vector_index
from agents.discovery import Filters
from agents.models import Agent, Calibration, EmbeddingSpace
from apikeys.callers import Caller
from tests.agents import WordEmbedder, make_noop, member, register_all, words

__all__ = ["words"]
# An index is built concurrently, so in no transaction.
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("words")]

SUBJECTS = [
    "letters in French",
    "meals without meat",
    "servers that are down",
    "a good film",
    "tax",
    "my code",
]


@pytest.fixture
def by() -> Iterator[Caller]:
    by = member()
    register_all(
        by,
        [
            make_noop(
                f"agent-{n}",
                f"Helps with {SUBJECTS[n % 6]} and word{n}. Explains {SUBJECTS[n % 5]} too.",
                tags=["rare"] if n % 20 == 0 else [],
            )
            for n in range(60)
        ],
    )
    yield by
    for space in EmbeddingSpace.objects.all():  # emptying the tables leaves their indexes
        with connection.cursor() as cursor:
            cursor.execute(f"DROP INDEX IF EXISTS {vector_index.name_of(space.name)}")


def run(*arguments: str) -> str:
    said = StringIO()
    call_command("vector_index", *arguments, stdout=said)
    return said.getvalue()


def slugs(by: Caller, task: str, **filters: object) -> list[str]:
    found = discovery.discover(by, task, limit=10, filters=Filters(**filters))  # type: ignore[arg-type]  # by name
    return [one.version.agent.slug for one in found.results or found.nearest]


def test_it_is_built_above_a_size_dropped_below_and_says_why(
    by: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = EmbeddingSpace.objects.get().name
    small = run()
    assert "has no index and needs no change: an exact search of 60 agents is fast" in small

    monkeypatch.setattr(vector_index, "LEAST_AGENTS", 50)
    assert "should have an index" in run("--dry-run")
    assert not vector_index.is_there(space)
    assert "building the index: an exact search of 60 agents takes too long (above 50)" in run()
    assert Calibration.objects.filter(project=by.project, agents=60).exists()
    assert vector_index.is_there(space)
    assert "has an index and needs no change" in run()

    monkeypatch.setattr(vector_index, "LEAST_AGENTS", 100)
    assert "the index is dropped: an exact search of 60 agents is fast" in run()
    assert not vector_index.is_there(space)


def test_with_the_index_discovery_finds_what_it_finds_without(
    by: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = ["write letters in French", "find a good film", "word17", "what is down", "tax and my code"]
    exact = [slugs(by, task) for task in tasks]
    asked: list[int] = []
    rank = large.rank

    def counted(*given: Any, **named: Any) -> Any:
        asked.append(1)
        return rank(*given, **named)

    monkeypatch.setattr(large, "rank", counted)
    monkeypatch.setattr(vector_index, "LEAST_AGENTS", 50)
    run()
    asked.clear()

    found = [slugs(by, task) for task in tasks]

    assert len(asked) >= len(tasks)
    shares = [len(set(one) & set(other)) / len(other) for one, other in zip(found, exact, strict=True)]
    assert sum(shares) / len(shares) >= 0.97
    assert [one[0] for one in found] == [one[0] for one in exact]


def test_a_selective_filter_compares_each_agent(
    by: Caller, words: WordEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_index, "LEAST_AGENTS", 50)
    run()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("The index was asked")

    monkeypatch.setattr(large, "rank", refuse)

    assert sorted(slugs(by, "find a good film", tags=["rare"])) == ["agent-0", "agent-20", "agent-40"]


def test_an_archived_agent_is_not_found_through_the_index(
    by: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_index, "LEAST_AGENTS", 50)
    run()
    assert slugs(by, "word17")[0] == "agent-17"

    Agent.objects.filter(slug="agent-17").update(status="archived", archived_at="2026-01-01T00:00Z")

    assert "agent-17" not in slugs(by, "word17")


def test_a_survey_counts_common_words_and_draws_a_sample(by: Caller) -> None:
    registry = discovery._registry(by, Q())

    survey = large.survey(registry, registry.count())

    assert len(survey.sample) == 60
    assert survey.common["help"] == 60


def test_the_commonest_words_bring_up_no_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "MOST_POSTINGS", 100)
    counts = {"a": 70, "b": 30, "c": 30, "elsewhere": 1}

    assert large._too_common(["a", "b", "c", "rare"], counts) == ["a"]
    assert large._too_common(["b", "c"], counts) == []


@pytest.fixture
def crowded(by: Caller, monkeypatch: pytest.MonkeyPatch) -> Caller:
    """Another project has as many cards, all alike: an island in the graph, and ahead of all others by a word."""
    monkeypatch.setattr(vector_index, "LEAST_AGENTS", 50)
    others = member()
    register_all(others, [make_noop(f"theirs-{n}", "word17 word17 word17") for n in range(60)])
    run()
    return others


def test_cards_that_are_all_alike_are_found_as_others_are(by: Caller, crowded: Caller) -> None:
    tasks = [*SUBJECTS, "word"]  # the last is near them all, and no word of theirs
    with_index = [slugs(caller, task) for caller in (by, crowded) for task in tasks]
    vector_index.apply(vector_index.unwanted(vector_index.plan(EmbeddingSpace.objects.get())), print)

    assert with_index == [slugs(caller, task) for caller in (by, crowded) for task in tasks]


def test_cards_that_the_caller_does_not_see_crowd_none_of_theirs_out(
    by: Caller, crowded: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large, "BY_WORDS", 5)
    monkeypatch.setattr(large, "LOOKED_AT", 1)
    monkeypatch.setattr(large, "NEAREST", 1)

    assert slugs(by, "word17")[0] == "agent-17"
