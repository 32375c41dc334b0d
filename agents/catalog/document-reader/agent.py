"""Turns documents into Markdown: PDF, Word (.docx), web pages; what people and language models read best."""

import re
from pathlib import Path

from documents import to_markdown
from engine_agent import artifact, log, outputs_dir, progress, step
from files import input_files, paste_or_sample, size_of

MOST_IN_RESULT = 4000  # characters of each text; the artifacts hold all


def main(task, inputs):
    """Convert each file in a step of its own."""
    log("Looking for documents")
    files = input_files()
    if not files:
        files = [paste_or_sample("HTML or text", Path(__file__).with_name("sample_page.txt"))[0]]
    documents = []
    for number, path in enumerate(files, start=1):
        log(f"Reading {path.name} ({size_of(path)})")
        target = outputs_dir / unused_name(path.stem, documents)
        step(f"convert document {number}", convert, path, target)
        documents.append(describe(path, target))
        artifact(target)
        log("{file}: {words:,} words, {headings} headings, {tables} tables".format(**documents[-1]))
        progress(0.05 + 0.95 * number / len(files), f"{number} of {len(files)} documents")
    return {"documents": documents, "words": sum(one["words"] for one in documents)}


def unused_name(stem, documents):
    """A name for the Markdown file: `report.docx` and `report.pdf` may come together."""
    taken = {one["markdown_file"] for one in documents}
    name = f"{stem}.md"
    while name in taken:
        name = f"{name.removesuffix('.md')}-2.md"
    return name


def convert(path, target):
    """Write the document's Markdown, and the pictures of a Word file beside it."""
    target.write_text(to_markdown(path, media=target.with_suffix("")), encoding="utf-8")


def describe(path, target):
    """What the document holds."""
    text = target.read_text(encoding="utf-8")
    outline = re.findall(r"^#{1,6} +(.+)$", text, re.M)
    return {
        "file": path.name,
        "markdown_file": target.name,
        "words": len(re.findall(r"\w+", text)),
        "headings": len(outline),
        "tables": len(re.findall(r"^\|(?: ?:?-+:? ?\|)+ *$", text, re.M)),
        "outline": outline[:50],
        "markdown": text[:MOST_IN_RESULT],
        "cut": len(text) > MOST_IN_RESULT,
    }
