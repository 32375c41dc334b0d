"""Shortens a text to its most important sentences and finds its keywords, in the text's own words."""

import re
from pathlib import Path

from documents import to_markdown
from engine_agent import log, outputs_dir, progress, step
from files import choose_file, input_files, text_in_task

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def main(task, inputs):
    """Read the text, rank its sentences section by section, then among the best of each."""
    log("Looking for the text")
    name = step("read the text", read, task, inputs.get("text", ""), find(task, inputs))
    text = Path("text.md").read_text(encoding="utf-8")
    progress(0.3, "Splitting into sentences")
    from ranking import keywords, sentences_of, summarise
    from words import language_of

    sentences = sentences_of(text)
    language = inputs.get("language") or language_of(text)
    words = sum(len(sentence.split()) for sentence in sentences)
    log(f"{name}: {words:,} words in {len(sentences):,} sentences, language: {language}")
    wanted = inputs.get("sentences") or wanted_in(task) or min(max(round(len(sentences) * 0.15), 3), 8)
    chosen = summarise(sentences, language, wanted)
    progress(0.8, "Finding the keywords")
    terms = step("find the keywords", keywords, "text.md", language)
    log("Keywords: " + ", ".join(terms[:8]))
    summary = [sentences[at] for at in chosen]
    bullets = bool(re.search(r"bullet|point|list", task.lower()))
    result = {
        "file": name,
        "language": language,
        "words": words,
        "sentences": len(sentences),
        "summary": "\n".join(f"- {sentence}" for sentence in summary) if bullets else " ".join(summary),
        "share": round(sum(len(sentence.split()) for sentence in summary) / max(words, 1), 4),
        "keywords": terms,
    }
    (outputs_dir / "summary.md").write_text(markdown(result), encoding="utf-8")
    return result


def find(task, inputs):
    """The file with the text; none where the input or the task itself carries it."""
    if inputs.get("text") or (not input_files() and text_in_task(task)):
        return None
    return choose_file(task, what="text", sample="sample_article.txt")[0]


def read(task, given, path):
    """Keep the text as Markdown in the workspace; returns where it came from."""
    text = given or (to_markdown(path) if path else text_in_task(task))
    Path("text.md").write_text(text, encoding="utf-8")
    return path.name if path else "the text of the task"


def wanted_in(task):
    """How many sentences the task asks for: `in three sentences`, `5 bullet points`."""
    match = re.search(
        rf"\b(\d+|{'|'.join(NUMBERS)})\s+(?:\w+\s+)?(?:sentences?|bullets?|points?|lines?)\b", task.lower()
    )
    if match is None:
        return None
    return min(max(NUMBERS.index(match[1]) + 1 if match[1] in NUMBERS else int(match[1]), 1), 50)


def markdown(result):
    """The summary as a document."""
    return (
        f"# Summary of {result['file']}\n\n{result['summary']}\n\n**Keywords:** {', '.join(result['keywords'])}\n\n"
        f"The sentences are the text's own: {result['share']:.0%} of its {result['words']:,} words.\n"
    )
