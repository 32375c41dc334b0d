"""What the shipped agents say about themselves, and that it finds them."""

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from agents import discovery, indexing, services, shipped
from agents.cards import Card
from tests.agents import staff
from tests.catalog import CARDS, in_sandbox_python

TASKS = {
    "review-sentiment": (
        "Analyze the sentiment of customer reviews",
        "What do our customers think about the new phone?",
    ),
    "csv-profiler": ("Are there missing values in my dataset?", "Profile sales.csv"),
    "chart-maker": (
        "Draw the number of visitors per country as bars",
        "Visualize the data in this spreadsheet",
    ),
    "document-reader": ("Turn report.pdf into markdown", "Get the text out of a Word document"),
    "log-analyser": (
        "Why did the server crash last night? Logs are attached",
        "Find the exceptions in app.log",
    ),
    "text-summariser": ("Make this long text shorter", "Extract the keywords from this paper"),
}
OTHER_TASKS = ("Book a flight to Paris", "Order pizza for the team", "Train a network to recognise faces")


def test_every_card_is_valid_and_says_enough_to_be_found() -> None:
    assert len(CARDS) >= 6
    for slug, fields in CARDS.items():
        card = Card.parse(fields)
        assert card.slug == slug
        assert 3 <= len(card.examples) <= 5
        assert len(card.skills) >= 2
        assert all(skill["examples"] for skill in card.skills)
        assert card.requirements == []
        assert card.limits["memory_mb"] <= 2048
        assert card.output_schema.get("required") or card.kind == "llm"


def test_agents_import_only_what_every_sandbox_has(tmp_path: Path) -> None:
    names = sorted({name for card in CARDS.values() for name in foreign_imports(card.get("source", {}))})
    program = f"import importlib.util, json; names = {names!r}\n" + (
        "print(json.dumps([name for name in names if importlib.util.find_spec(name) is None]))"
    )

    assert in_sandbox_python(program, tmp_path) == []


def foreign_imports(source: dict[str, str]) -> Iterator[str]:
    """Packages that an agent imports and does not bring along."""
    for name, text in source.items():
        if name.endswith(".py"):
            for node in ast.walk(ast.parse(text)):
                modules: list[str] = []
                if isinstance(node, ast.Import):
                    modules = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    modules = [node.module or ""]
                roots = {module.partition(".")[0] for module in modules}
                yield from (
                    root
                    for root in roots
                    if f"{root}.py" not in source and root not in sys.stdlib_module_names
                )


def test_the_lock_of_the_sandbox_is_hashed_and_names_no_host() -> None:
    lock = (settings.BASE_DIR / "requirements" / "sandbox.lock").read_text(encoding="utf-8")
    pins = re.findall(r"^[\w.-]+==", lock, re.M)

    assert "://" not in lock
    assert len(pins) > 20
    assert len(re.findall(r"--hash=sha256:", lock)) >= len(pins)


@pytest.mark.django_db(transaction=True)  # the model may think for longer than a transaction may idle
def test_a_task_in_plain_words_finds_its_agent_and_others_find_none() -> None:
    services.put_many(staff(), shipped.catalog(), lambda done, of: None)
    assert indexing.complete(lambda done, of: None)

    found = {task: found_for(task) for tasks in TASKS.values() for task in tasks}

    assert found == {task: ("match", slug) for slug, tasks in TASKS.items() for task in tasks}
    assert [found_for(task) for task in OTHER_TASKS] == [("none", None)] * len(OTHER_TASKS)


ANALYSES = (
    "Work out from these files why revenue fell and recommend what to do",
    "Simulate our cash flow under three scenarios and explain the differences",
)


@pytest.mark.django_db(transaction=True)
def test_the_analyst_is_found_where_a_model_is_configured_and_takes_nobodys_work(settings: Any) -> None:
    services.put_many(staff(), shipped.catalog(), lambda done, of: None)
    assert indexing.complete(lambda done, of: None)
    able = discovery.Filters(available_only=True)
    without = [discovery.discover(staff(), task, filters=able) for task in ANALYSES]
    told = discovery.discover(staff(), ANALYSES[1]).results[0]

    settings.OPENAI_API_KEY = "sk-test-0123456789"
    tasks = {task: slug for slug, tasks in TASKS.items() for task in tasks} | dict.fromkeys(
        ANALYSES, "analyst"
    )

    assert all(found.version.kind != "llm" for answer in without for found in answer.results)
    assert told.version.agent.slug == "analyst"
    assert (told.health.status, told.health.reason[:23]) == ("unavailable", "No model is configured:")
    assert {task: found_for(task)[1] for task in tasks} == tasks
    assert [found_for(task) for task in OTHER_TASKS] == [("none", None)] * len(OTHER_TASKS)


def found_for(task: str) -> tuple[str, Any]:
    """The decision, and the agent that ranks first."""
    answer = discovery.discover(staff(), task)
    return answer.decision, answer.results[0].version.agent.slug if answer.results else None


def test_samples_are_small_enough_to_travel_with_each_version() -> None:
    assert all(len(json.dumps(card.get("source", {}))) < 256 * 1024 for card in CARDS.values())
