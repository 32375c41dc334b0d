"""The sentences that carry a text, by LexRank (Erkan and Radev, 2004) with a bonus for early ones; keywords by YAKE."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
from engine_agent import UserError, progress, step
from words import NO_SPACES, stopwords

STOPS = "\u3002\uff01\uff1f"  # full stop, exclamation and question mark of Chinese and Japanese
SECTION = 800  # sentences that are ranked together: the cost grows with the square
BEST_OF_SECTION = 60
LONGEST_SENTENCE = 600  # characters


def sentences_of(text):
    """The sentences of a Markdown text, without headings, tables and code."""
    from segtok.segmenter import split_multi

    text = re.sub(r"```.*?```", "", text, flags=re.S)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)  # links and pictures: their words only
    found = []
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-*+]|\d+[.)])\s)", text):
        if re.match(r"\s*(#|\||\[\^)", paragraph):
            continue
        plain = re.sub(r"^\s*(?:[-*+>]|\d+[.)])\s+|[*`]|(?<!\w)_+|_+(?!\w)", "", paragraph, flags=re.M)
        if NO_SPACES.search(plain):
            sentences = re.split(rf"(?<=[{STOPS}])", plain)
        else:
            sentences = list(split_multi(" ".join(plain.split())))
        if (
            max(map(len, sentences), default=0) > LONGEST_SENTENCE
        ):  # notes without full stops: each line stands alone
            sentences = plain.splitlines()
        found += [" ".join(s.split())[:LONGEST_SENTENCE] for s in sentences if re.search(r"\w", s)]
    if not found:
        raise UserError("There are no sentences in this text.", remedy="Send a text of several sentences.")
    return found


def summarise(sentences, language, wanted):
    """The positions of the chosen sentences, in the order of the text."""
    sections = range(0, len(sentences), SECTION)
    best = []
    for number, first in enumerate(sections, start=1):
        best += step(f"rank section {number}", rank_section, sentences, language, first)
        progress(0.3 + 0.5 * number / len(sections), f"section {number} of {len(sections)} ranked")
    best.sort()
    vectors = tf_idf([sentences[at] for at in best], language)
    scores = centrality(vectors) * np.array([fitness(sentences[at], at) for at in best])
    return sorted(best[at] for at in different(vectors, scores, wanted))


def rank_section(sentences, language, first):
    """The positions of the best sentences of one section."""
    section = sentences[first : first + SECTION]
    scores = centrality(tf_idf(section, language)) * np.array(
        [fitness(s, first + at) for at, s in enumerate(section)]
    )
    return sorted(first + int(at) for at in np.argsort(-scores, kind="stable")[:BEST_OF_SECTION])


def fitness(sentence, position):
    """Titles, fragments and run-on sentences are poor summaries; what comes first says more."""
    length = len(sentence.split()) if not NO_SPACES.search(sentence) else len(sentence) / 2
    whole = (
        re.match(r"[\"'\u201c\u2018«(]?\w", sentence)
        and not sentence[0].islower()
        and re.search(rf"[.!?…{STOPS}][\"'\u201d\u2019»)]?$", sentence)
    )
    return (1.0 if whole and 6 <= length <= 50 else 0.3) * (1 + 0.5 / (1 + position))


def tf_idf(sentences, language):
    """A row of weighted words for each sentence, of length one."""
    words = [words_of(sentence, language) for sentence in sentences]
    within = Counter(word for bag in words for word in set(bag))
    place = {word: at for at, word in enumerate(within)}
    rows = np.zeros((len(sentences), max(len(place), 1)), dtype="float32")
    for row, bag in zip(rows, words, strict=True):
        for word, count in Counter(bag).items():
            row[place[word]] = count * np.log(1 + len(sentences) / within[word])
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def words_of(sentence, language):
    """The words that carry meaning; pairs of characters where a language writes no spaces."""
    if NO_SPACES.search(sentence):
        plain = re.sub(r"\W", "", sentence)
        return [plain[at : at + 2] for at in range(len(plain) - 1)]
    return [word for word in re.findall(r"[^\W_]{2,}", sentence.lower()) if word not in stopwords(language)]


def centrality(vectors):
    """How central each sentence is: PageRank over the similarity of all pairs, by power iteration."""
    similar = vectors @ vectors.T
    np.fill_diagonal(similar, 0)
    similar[similar < 0.05] = 0
    total = similar.sum(axis=1, keepdims=True)
    count = len(vectors)
    steps = np.where(total > 0, similar / np.maximum(total, 1e-9), 1 / count)
    scores = np.full(count, 1 / count)
    for _ in range(50):
        scores = 0.15 / count + 0.85 * scores @ steps
    return scores


def different(vectors, scores, wanted):
    """The best sentences that do not repeat each other (maximal marginal relevance)."""
    relevance = scores / scores.max()
    chosen = []
    while len(chosen) < min(wanted, len(scores)):
        overlap = (vectors @ vectors[chosen].T).max(axis=1) if chosen else np.zeros(len(scores))
        worth = 0.7 * relevance - 0.3 * overlap
        worth[chosen] = -np.inf
        chosen.append(int(worth.argmax()))
    return chosen


def keywords(file, language):
    """The terms that stand out, the strongest first."""
    from yake import KeywordExtractor

    text = re.sub(r"[#*_`|>\[\]()]|https?://\S+", " ", Path(file).read_text(encoding="utf-8"))[:1_000_000]
    kept: list[str] = []
    seen: set[str] = set()
    for term, _ in KeywordExtractor(lan=language, n=2, top=60).extract_keywords(text):
        if not set(term.lower().split()) <= seen:  # a term of words that stronger terms have says nothing new
            kept.append(term)
            seen.update(term.lower().split())
    return kept[:12]
