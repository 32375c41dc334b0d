"""Function words and languages, by the lists that YAKE ships."""

import re
from collections import Counter
from functools import cache
from importlib.util import find_spec
from pathlib import Path

NO_SPACES = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")  # Japanese and Chinese


def language_of(text):
    """The language, as a two-letter code, whose function words are the most frequent."""
    if NO_SPACES.search(text[:2000]):
        return "ja" if re.search(r"[\u3040-\u30ff]", text[:2000]) else "zh"
    counts = Counter(re.findall(r"[^\W\d_]+", text[:100_000].lower()))
    shares = {lang: sum(counts[word] for word in stopwords(lang)) for lang in languages()}
    return max(shares, key=lambda lang: (shares[lang], lang == "en"))


def languages():
    """The languages for which YAKE ships a list of function words."""
    return sorted(path.stem.removeprefix("stopwords_") for path in lists().glob("stopwords_??.txt"))


def lists():
    """YAKE's folder of word lists, found without importing it."""
    return Path(find_spec("yake").origin).parent / "core" / "StopwordsList"


@cache
def stopwords(language):
    """The function words of a language; none where there is no list."""
    path = lists() / f"stopwords_{language}.txt"
    return (
        frozenset(path.read_text(encoding="utf-8", errors="replace").split())
        if path.exists()
        else frozenset()
    )
