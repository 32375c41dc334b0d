"""An agent's folder: a card (card.toml or card.json), and beside it its source."""

import ast
import json
import tomllib
from pathlib import Path
from typing import Any

import click

CARD_FILES = ("card.toml", "card.json")
SHARED_FOLDER = "_shared"


def read_card(folder: Path) -> dict[str, Any]:
    """The card with its source, as POST /api/v1/agents takes it. Raises click.ClickException."""
    path = next((folder / name for name in CARD_FILES if (folder / name).is_file()), None)
    if path is None:
        raise click.ClickException(
            f"There is no card.toml or card.json in {folder}. docs/agents.md shows one."
        )
    try:
        text = path.read_text(encoding="utf-8")
        card = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except ValueError as error:
        raise click.ClickException(f"{path} cannot be read: {error}") from error
    if not isinstance(card, dict):
        raise click.ClickException(f"{path} must hold an object.")
    shared = [folder.parent / SHARED_FOLDER / name for name in card.pop("shared", [])]
    own = [one for one in sorted(folder.iterdir()) if one.is_file() and one.name[0] != "." and one != path]
    source = {one.name: _text(one) for one in (*shared, *own) if one.suffix != ".pyc"}
    return card if "source" in card or not source or card.get("kind") == "llm" else card | {"source": source}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{path} is no text file that can be read: {error}") from error


def check_card(card: dict[str, Any]) -> None:
    """What can be seen without a server; it checks the rest. Raises click.ClickException."""
    missing = [name for name in ("name", "description") if not card.get(name)]
    if missing:
        raise click.ClickException(f"The card lacks {' and '.join(missing)}.")
    source = card.get("source", {})
    if card.get("kind") == "llm" or (card.get("instructions") and not source):
        raise click.ClickException(
            "An agent of kind llm needs a model and runs in Engine alone: `engine agents register`, then `engine run`."
        )
    if "agent.py" not in source:
        raise click.ClickException("A python agent needs a file agent.py.")
    for name, text in source.items():
        if name.endswith(".py"):
            try:
                tree = ast.parse(text, name)
            except (SyntaxError, ValueError) as error:
                raise click.ClickException(f"{name} is not valid Python: {error}") from error
            if name == "agent.py" and not any(
                isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == "main"
                for node in tree.body
            ):
                raise click.ClickException("agent.py must define main(task, inputs).")
