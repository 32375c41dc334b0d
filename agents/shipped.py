"""The agents that ship with Engine: one folder each, a card.toml beside its source files."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

CATALOG = Path(__file__).parent / "catalog"
CARD_FILE = "card.toml"
# Files that several agents use; a card names those it wants under `shared`.
SHARED_FOLDER = "_shared"


def catalog() -> list[dict[str, Any]]:
    """The cards of all shipped agents, in the order of their folders' names."""
    return [read_card(path.parent) for path in sorted(CATALOG.glob(f"*/{CARD_FILE}"))]


def read_card(folder: Path) -> dict[str, Any]:
    """The card in a folder; every other file of the folder belongs to its source."""
    card = tomllib.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
    shared = [folder.parent / SHARED_FOLDER / name for name in card.pop("shared", [])]
    own = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name != CARD_FILE]
    source = {path.name: path.read_text(encoding="utf-8") for path in (*shared, *own)}
    return card | ({"source": source} if source else {})
