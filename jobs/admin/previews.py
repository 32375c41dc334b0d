"""Which artifacts a page shows in place, and how. Whatever is not listed here is only ever downloaded."""

from collections.abc import Iterable
from dataclasses import dataclass

from jobs.models import Artifact

# Raster formats that browsers draw in <img>; SVG is a document with scripts, and stays a download.
IMAGE_TYPES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
MOST_IMAGE_BYTES = 20 * 1024 * 1024

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

    @property
    def icon(self) -> str:
        """The symbol of its kind."""
        kind = self.artifact.media_type
        if kind in ICONS:
            return ICONS[kind]
        return "image" if kind.startswith("image/") else "description"


def previews(artifacts: Iterable[Artifact]) -> list[Preview]:
    """Pictures first: they are what one looks at."""
    found = [Preview(artifact, is_shown_as_image(artifact)) for artifact in artifacts]
    return sorted(found, key=lambda preview: not preview.is_image)


def is_shown_as_image(artifact: Artifact) -> bool:
    """Whether the page may put it into an <img>."""
    return artifact.media_type in IMAGE_TYPES and artifact.size <= MOST_IMAGE_BYTES
