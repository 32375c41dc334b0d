"""Which texts of a card discovery reads: what is indexed matters more than the model that embeds it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from itertools import islice

from agents.cards import Card
from agents.models import Part

# Caps per part, so that no card rises by saying more: a part competes as one text, however long it is.
MAX_SENTENCES = 8
MAX_EXAMPLES = 5
MAX_SKILLS = 20
MAX_CHARS = 2000
MIN_SENTENCE_CHARS = 16  # shorter ones say nothing by themselves

_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+|\n+")


@dataclass(frozen=True)
class PartText:
    """One text of a card that gets a vector of its own."""

    part: Part
    ordinal: int
    text: str

    @property
    def text_hash(self) -> str:
        """SHA-256 of the text: equal text is embedded once."""
        return text_hash(self.text)


def text_hash(text: str) -> str:
    """The key under which a text's vector is known."""
    return hashlib.sha256(text.encode()).hexdigest()


def embedded_parts(card: Card) -> list[PartText]:
    """The texts that get vectors: everything in one, then its name and description, sentences, examples, skills.

    Tags are left out: terse words in the embedded text made ranking worse (measured).
    """
    examples, skills = card.examples[:MAX_EXAMPLES], _skills(card)
    whole = "\n".join(filter(None, [_lead(card), card.summary, *examples, *skills]))
    return [
        PartText(part, ordinal, text[:MAX_CHARS])
        for part, texts in (
            (Part.FULL, [whole]),
            (Part.DESCRIPTION, [_lead(card), *_sentences(card)]),
            (Part.EXAMPLE, examples),
            (Part.SKILL, skills),
        )
        for ordinal, text in enumerate(texts)
    ]


def lexical_parts(card: Card) -> list[str]:
    """The texts whose words are counted, each once and with a cap of its own on how often a word counts."""
    lead = "\n".join(filter(None, [_lead(card), card.summary]))
    tags = " ".join(card.tags)
    texts = (lead, tags, *card.examples[:MAX_EXAMPLES], *_skills(card))
    return list(dict.fromkeys(text for text in texts if text))


def _lead(card: Card) -> str:
    return f"{card.name}: {card.description}"


def _sentences(card: Card) -> list[str]:
    texts = (text.strip() for text in _SENTENCE_END.split(f"{card.description}\n{card.summary}"))
    return list(islice((text for text in texts if len(text) >= MIN_SENTENCE_CHARS), MAX_SENTENCES))


def _skills(card: Card) -> list[str]:
    texts = []
    for skill in card.skills[:MAX_SKILLS]:
        text = ": ".join(filter(None, [skill["name"], skill["description"]]))
        texts.append("\n".join([text, *skill.get("examples", [])[:MAX_EXAMPLES]]))
    return texts
