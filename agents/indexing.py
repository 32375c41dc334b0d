"""Keeps what discovery reads in step with the registry: words, and vectors space by space."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
from django.db import IntegrityError, connection, transaction
from django.db.models import Exists, F, OuterRef, QuerySet
from django.db.models.functions import Collate

from agents import background, embeddings, queries
from agents.cards import Card
from agents.embeddings import Embedder, EmbedderUnavailable, Progress, Vector
from agents.errors import SpaceIncomplete
from agents.models import Agent, AgentEmbedding, AgentTerm, AgentVersion, EmbeddingSpace, Part
from agents.parts import embedded_parts, lexical_parts

logger = logging.getLogger(__name__)

# A text holds one core; more threads than this would starve the web process that they may run in.
EMBEDDING_THREADS = 2
# Agents per transaction while a space is filled: what a crash costs, and how often progress is shown.
FILL_BATCH = 20

# Waits for a flip that is under way, and keeps the next one waiting until this transaction ends.
HOLD_ACTIVE_SPACE = "SELECT name FROM agents_embeddingspace WHERE is_active FOR KEY SHARE"
LOCK_SPACES = "SELECT name FROM agents_embeddingspace ORDER BY name FOR UPDATE"


@dataclass(frozen=True)
class Vectors:
    """Vectors of texts in one space, made before the transaction that stores them.

    Without `by_text` there are none: the model is not there, and agents are found by their words alone until
    `embed_agents` has run.
    """

    space: str | None = None  # that was active then; None before the first agent is embedded
    by_text: Mapping[str, Vector] | None = None  # by the text's hash


def active_space() -> EmbeddingSpace | None:
    """The space that discovery asks; None before the first agent is embedded."""
    return EmbeddingSpace.objects.filter(is_active=True).first()


def prepare(cards: Iterable[Card]) -> Vectors:
    """Embed what texts of these cards have no vector in the active space. Without the model the answer is empty."""
    cards = list(cards)
    space = active_space()
    try:
        space = space or _first_space(embeddings.configured())
        embedder = embeddings.of_space(space.name)
        return Vectors(space.name, _vectors(cards, space, embedder))
    except EmbedderUnavailable as error:
        logger.warning("Agents are registered without vectors: %s", error.detail)
        return Vectors(space.name if space else None)


def index(version: AgentVersion, card: Card, vectors: Vectors) -> None:
    """Make a new current version findable in place of the one before. Call it in the transaction that stores it."""
    if version.number > 1:
        replaced = AgentVersion.objects.filter(agent_id=version.agent_id).exclude(id=version.id)
        AgentTerm.objects.filter(agent_version__in=replaced).delete()
        AgentEmbedding.objects.filter(agent_version__in=replaced).delete()
    queries.write_terms(version.id, lexical_parts(card))
    with connection.cursor() as cursor:
        cursor.execute(HOLD_ACTIVE_SPACE)
        active = cursor.fetchone()
    if active is not None and active[0] != vectors.space:
        vectors = prepare([card])  # discovery has moved to another space since these were made
    _write_vectors(version, card, vectors)


def complete(progress: Progress) -> bool:
    """Fill what is missing in the active space, background tasks included; False without the model."""
    try:
        space = active_space() or _first_space(embeddings.configured())
        fill(embeddings.of_space(space.name), progress)
    except EmbedderUnavailable:
        return False
    return True


def unembedded(space: str) -> QuerySet[AgentVersion]:
    """Current versions that have no vectors in a space, oldest first."""
    embedded = AgentEmbedding.objects.in_space(space).filter(agent_version=OuterRef("id"), part=Part.FULL)
    current = AgentVersion.objects.filter(agent__current_version_id=F("id"))
    return current.filter(~Exists(embedded)).select_related("agent").order_by("id")


def fill(embedder: Embedder, progress: Progress) -> EmbeddingSpace:
    """Embed every current version in this embedder's space; call it again after a crash and it goes on.

    Discovery answers from the active space meanwhile. Raises EmbedderUnavailable.
    """
    space = _space_of(embedder, patient=True)
    background.fill(space.name, embedder)
    left = unembedded(space.name).count()
    done = 0
    progress(done, left)
    for batch in _batches(space.name):
        cards = {version: Card.of(version) for version in batch}
        vectors = Vectors(space.name, _vectors(cards.values(), space, embedder, patient=True))
        with transaction.atomic():
            for version, card in cards.items():
                _write_vectors(version, card, vectors)
            # Draws new revisions, so that calibrations notice that these agents have moved. Locked in the order that
            # registrations take: each would wait for the other's agents for ever.
            moved = Agent.objects.filter(current_version__in=batch).order_by(Collate("slug", "C"), "id")
            Agent.objects.filter(id__in=[agent.id for agent in moved.select_for_update(no_key=True)]).update(
                revision=0
            )
        done += len(batch)
        progress(done, max(left, done))
    return space


def _batches(space: str) -> Iterator[list[AgentVersion]]:
    """What has no vectors, until nothing is left; each run in an order of its own, so that several share the work."""
    while ids := list(unembedded(space).values_list("id", flat=True)):
        random.shuffle(ids)
        for start in range(0, len(ids), FILL_BATCH):
            if batch := list(unembedded(space).filter(id__in=ids[start : start + FILL_BATCH])):
                yield batch


@transaction.atomic
def activate(space: str) -> None:
    """Let discovery ask this space from now on. Raises SpaceIncomplete while an active agent has no vectors in it."""
    with connection.cursor() as cursor:
        cursor.execute(LOCK_SPACES)
    missing = unembedded(space).filter(agent__status=Agent.Status.ACTIVE).count()
    if missing:
        raise SpaceIncomplete(f"{missing} agents have no vectors in {space} yet", missing=missing)
    EmbeddingSpace.objects.filter(is_active=True).update(is_active=False)
    EmbeddingSpace.objects.filter(name=space).update(is_active=True)


def _write_vectors(version: AgentVersion, card: Card, vectors: Vectors) -> None:
    if vectors.space is None or vectors.by_text is None:
        return
    rows = [
        AgentEmbedding(
            agent_version=version,
            part=part.part,
            ordinal=part.ordinal,
            text=part.text,
            text_hash=part.text_hash,
            space_id=vectors.space,
            dims=vectors.by_text[part.text_hash].size,
            embedding=vectors.by_text[part.text_hash],
        )
        for part in embedded_parts(card)
    ]
    AgentEmbedding.objects.bulk_create(rows, ignore_conflicts=True)  # two processes may fill one space


def _vectors(
    cards: Iterable[Card], space: EmbeddingSpace, embedder: Embedder, *, patient: bool = False
) -> dict[str, Vector]:
    """A vector for each text of the cards: the stored one if any card has said the same before."""
    texts = {part.text_hash: part.text for card in cards for part in embedded_parts(card)}
    stored = AgentEmbedding.objects.in_space(space.name).filter(text_hash__in=list(texts))
    known: dict[str, Vector] = {
        key: np.asarray(vector, dtype=np.float32)
        for key, vector in stored.order_by("text_hash")
        .distinct("text_hash")
        .values_list("text_hash", "embedding")
    }
    missing = {key: text for key, text in texts.items() if key not in known}
    made = dict(zip(missing, _embed_all(embedder, list(missing.values()), patient=patient), strict=True))
    if any(vector.size != space.dims for vector in made.values()):
        raise EmbedderUnavailable(
            f"The model's vectors no longer have the {space.dims} dimensions of {space.name}"
        )
    return known | made


def _embed_all(embedder: Embedder, texts: Sequence[str], *, patient: bool) -> list[Vector]:
    embed = partial(embedder.embed_documents, patient=patient)
    share = -(-len(texts) // EMBEDDING_THREADS)
    if share <= 1:
        return embed(texts)
    shares = [texts[start : start + share] for start in range(0, len(texts), share)]
    with ThreadPoolExecutor(len(shares)) as pool:
        return list(chain.from_iterable(pool.map(embed, shares)))


def _first_space(embedder: Embedder) -> EmbeddingSpace:
    """The configured embedder's space, made active unless another process was faster."""
    space = _space_of(embedder)
    try:
        with transaction.atomic():
            EmbeddingSpace.objects.filter(name=space.name).update(is_active=True)
    except IntegrityError:
        pass  # space_one_active: the other one holds
    return active_space() or space


def _space_of(embedder: Embedder, *, patient: bool = False) -> EmbeddingSpace:
    """The embedder's space, made at its first use: only a vector tells how many dimensions it has."""
    space = EmbeddingSpace.objects.filter(name=embedder.space).first()
    if space is None:
        (vector,) = embedder.embed_documents(["How many dimensions does this have?"], patient=patient)
        dims = vector.size
        space, _ = EmbeddingSpace.objects.get_or_create(name=embedder.space, defaults={"dims": dims})
    return space
