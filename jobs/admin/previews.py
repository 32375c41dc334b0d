"""Which artifacts a page shows in place, and how. Whatever is not listed here is only ever downloaded."""

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from django.core.files.storage import storages

from engine.dashboard.text import document
from jobs.models import Artifact

# Raster formats that browsers draw in <img>; SVG is a document with scripts, and stays a download.
IMAGE_TYPES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
MOST_IMAGE_BYTES = 20 * 1024 * 1024
# Shown as text of one kind or another; HTML is not among them.
READ_TYPES = {
    "text/csv": "table",
    "text/tab-separated-values": "table",
    "application/json": "json",
    "text/markdown": "markdown",
    "text/plain": "text",
    "text/x-log": "text",
    "application/x-ndjson": "text",
    "application/yaml": "text",
    "text/yaml": "text",
    "text/x-python": "text",
}
# By name, where the type says nothing.
ENDINGS = {
    ".csv": "table",
    ".tsv": "table",
    ".json": "json",
    ".md": "markdown",
    ".txt": "text",
    ".log": "text",
}
MOST_READ_BYTES = 256 * 1024
MOST_ROWS, MOST_COLUMNS = 200, 40

ICONS = {
    "text/csv": "table",
    "application/json": "data_object",
    "text/markdown": "article",
    "application/pdf": "picture_as_pdf",
    "application/zip": "folder_zip",
}


@dataclass(frozen=True)
class Preview:
    """An artifact as the page shows it."""

    artifact: Artifact
    is_image: bool
    reads_as: str  # table | json | markdown | text, or empty: only a download

    @property
    def icon(self) -> str:
        """The symbol of its kind."""
        kind = self.artifact.media_type
        if kind in ICONS:
            return ICONS[kind]
        return "image" if kind.startswith("image/") else "description"


@dataclass(frozen=True)
class Contents:
    """What is shown of an artifact that can be read."""

    reads_as: str
    is_cut: bool
    text: str = ""
    html: str = ""  # rendered here, and safe
    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)


def previews(artifacts: Iterable[Artifact]) -> list[Preview]:
    """Pictures first: they are what one looks at."""
    found = [Preview(artifact, is_shown_as_image(artifact), reads_as(artifact)) for artifact in artifacts]
    return sorted(found, key=lambda preview: not preview.is_image)


def is_shown_as_image(artifact: Artifact) -> bool:
    """Whether the page may put it into an <img>."""
    return artifact.media_type in IMAGE_TYPES and artifact.size <= MOST_IMAGE_BYTES


def reads_as(artifact: Artifact) -> str:
    """How the page shows it in place; empty where it does not."""
    kind = artifact.media_type.partition(";")[0].strip().lower()
    if kind in ("application/octet-stream", "text/plain"):
        ending = artifact.name[artifact.name.rfind(".") :].lower() if "." in artifact.name else ""
        return ENDINGS.get(ending, READ_TYPES.get(kind, ""))
    return READ_TYPES.get(kind, "")


def contents(artifact: Artifact) -> Contents:
    """The beginning of it, as it is shown. FileNotFoundError where the file is gone."""
    with storages["artifacts"].open(artifact.storage_key, "rb") as file:
        raw = file.read(MOST_READ_BYTES + 1)
    is_cut = len(raw) > MOST_READ_BYTES
    text = raw[:MOST_READ_BYTES].decode("utf-8-sig", errors="replace")
    match reads_as(artifact):
        case "table":
            return _table(text, is_cut=is_cut)
        case "json" if not is_cut:
            return Contents("text", is_cut=False, text=_indented(text))
        case "markdown":
            return Contents("markdown", is_cut, html=document(text))
        case _:
            return Contents("text", is_cut, text=text)


def _indented(text: str) -> str:
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text  # it says it is JSON, and is not


def _table(text: str, *, is_cut: bool) -> Contents:
    first = text.partition("\n")[0]
    delimiter = max(",;\t|", key=first.count)
    lines = text.rpartition("\n")[0] if is_cut else text  # no half row
    rows = []
    try:
        for row in csv.reader(io.StringIO(lines, newline=""), delimiter=delimiter):
            rows.append(row[:MOST_COLUMNS])
            if len(rows) > MOST_ROWS + 1:
                break
    except csv.Error:
        return Contents("text", is_cut, text=text)
    header, body = (rows[0], rows[1:]) if rows else ([], [])
    return Contents("table", is_cut or len(body) > MOST_ROWS, header=header, rows=body[:MOST_ROWS])
