"""The commands about agents: what an operator types, sees and repeats."""

import json
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from agents import indexing, services, shipped
from agents.models import AgentVersion, EmbeddingSpace
from tests.agents import WordEmbedder, make_card, make_noop, member, register_all, staff, use, words
from tests.factories import make_project

__all__ = ["words"]
pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("words")]


def run(*arguments: str) -> str:
    """What a command prints."""
    out = StringIO()
    call_command(*arguments, stdout=out, stderr=out)
    return out.getvalue()


def test_the_catalog_is_registered_once_for_every_project() -> None:
    first, again = run("register_catalog"), run("register_catalog")

    slugs = [card["slug"] for card in shipped.catalog()]
    assert len(slugs) >= 6
    assert all(f"{slug}@1 registered" in first and f"{slug}@1 unchanged" in again for slug in slugs)
    assert AgentVersion.objects.count() == len(slugs)
    assert all(services.get(member(), slug).is_shared for slug in slugs)


def test_a_shipped_agent_that_was_archived_stays_so() -> None:
    run("register_catalog")
    services.archive(staff(), "chart-maker")

    assert "chart-maker is archived" in run("register_catalog")
    assert services.get(staff(), "chart-maker").status == "archived"


def test_without_the_model_the_catalog_is_registered_and_said_to_be_found_by_words(
    words: WordEmbedder,
) -> None:
    words.is_down = True
    degraded = run("register_catalog")
    words.is_down = False
    healed = run("register_catalog")

    assert "by their words alone" in degraded
    assert "by their words alone" not in healed
    assert not indexing.unembedded(words.space).exists()


def test_cards_can_be_exported_and_imported(tmp_path: Path) -> None:
    source, target = make_project(), make_project()
    register_all(member(source), [make_card("one"), make_noop("two", "Does two")])
    file = tmp_path / "cards.json"
    file.write_text(run("export_agents", "--project", source.slug))

    printed = run("import_agents", str(file), "--project", target.slug)

    assert "2 agents are registered" in printed
    assert "2/2 registered" in printed
    assert run("export_agents", "--project", target.slug) == file.read_text()


def test_one_card_a_line_will_do_too(tmp_path: Path) -> None:
    file = tmp_path / "cards.jsonl"
    file.write_text("\n".join(json.dumps(make_noop(f"a-{n}", "Does it")) for n in range(3)) + "\n\n")

    assert "3 agents are registered" in run("import_agents", str(file))
    assert services.get(staff(), "a-2").is_shared


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('[{"name": "a", "kind": "noop"}]', "/0/description"),
        ("{", "cannot be read"),
        ("[1]", "/0"),
        ("\x00\xff", "cannot be read"),
    ],
)
def test_a_bad_file_stops_with_the_place_and_registers_nothing(
    tmp_path: Path, content: str, complaint: str
) -> None:
    file = tmp_path / "cards.json"
    file.write_bytes(content.encode("latin-1"))

    with pytest.raises(CommandError, match=complaint):
        run("import_agents", str(file))
    assert not AgentVersion.objects.exists()


def test_a_project_that_is_not_there_is_named() -> None:
    with pytest.raises(CommandError, match="no project 'absent'"):
        run("export_agents", "--project", "absent")


def test_a_space_is_filled_shown_and_activated(monkeypatch: pytest.MonkeyPatch, words: WordEmbedder) -> None:
    other = WordEmbedder("test:other", dims=32, salt="other")
    use(monkeypatch, words, other)
    register_all(member(), [make_noop(f"a-{n}", f"Does number {n}") for n in range(3)])

    filled = run("embed_agents", "--space", "test:other")
    beside = run("embed_agents", "--list")
    activated = run("embed_agents", "--space", "test:other", "--activate")

    assert "0/3 embedded" in filled
    assert "test:other is complete" in filled
    assert "test:words: active, 64 dimensions, 0 agents missing" in beside
    assert "test:other: idle, 32 dimensions, 0 agents missing" in beside
    assert "active" in activated
    assert EmbeddingSpace.objects.get(is_active=True).name == "test:other"


def test_a_model_that_is_not_there_is_said_and_changes_nothing(words: WordEmbedder) -> None:
    register_all(member(), [make_noop("a", "Does a")])
    words.is_down = True
    words.space = "test:never"

    with pytest.raises(CommandError, match="switched off"):
        run("embed_agents", "--activate")
    assert EmbeddingSpace.objects.get(is_active=True).name == "test:words"
