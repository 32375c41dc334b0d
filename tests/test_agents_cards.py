"""What a card must be before anything of it is stored, and how its faults are named."""

from typing import Any

import pytest
from pytest_django import Settings

from agents.cards import MAX_SOURCE_BYTES, Card
from agents.errors import InvalidCard
from agents.shipped import catalog
from tests.agents import MAIN, make_card, make_noop


def faults(card: Any) -> dict[str, str]:
    with pytest.raises(InvalidCard) as caught:
        Card.parse(card)
    return {fault["pointer"]: fault["detail"] for fault in caught.value.errors}


def test_a_name_and_a_description_and_something_to_run_are_enough() -> None:
    card = Card.parse({"name": "Review Sentiment", "description": "Rates.", "source": {"agent.py": MAIN}})

    assert (card.slug, card.kind) == ("review-sentiment", "python")


def test_instructions_without_source_make_an_llm_agent() -> None:
    assert Card.parse({"name": "Helper", "description": "Helps.", "instructions": "Help."}).kind == "llm"


def test_a_card_survives_the_way_to_json_and_back() -> None:
    card = Card.parse(make_card(skills=[{"name": "Cut"}], examples=["Cut it"], limits={"memory_mb": 128}))

    assert Card.parse(card.as_json()) == card


@pytest.mark.parametrize("card", catalog(), ids=lambda card: card["slug"])
def test_every_shipped_agent_has_a_card_that_can_be_registered(card: dict[str, Any]) -> None:
    assert Card.parse(card).kind == ("python" if card.get("source") else "llm")


def test_an_llm_agents_policy_is_one_word_or_one_for_each_tool() -> None:
    thinking = {"slug": "mind", "name": "mind", "description": "Thinks", "instructions": "Think."}

    for policy in ("high_risk", {"run_python": "always", "run_agent": "never"}):
        assert Card.parse({**thinking, "settings": {"policy": policy}}).settings["policy"] == policy
    for policy in ("often", {"fly": "always"}):
        assert faults({**thinking, "settings": {"policy": policy}}).keys() == {"/settings/policy"}


def test_missing_fields_are_named_by_their_own_pointer() -> None:
    assert faults({"kind": "noop"}).keys() == {"/name", "/description"}


def test_an_unknown_field_is_refused() -> None:
    assert faults(make_card(descripton="typo", nmae=1)) == {
        "/descripton": "There is no such field",
        "/nmae": "There is no such field",
    }


def test_an_unknown_field_inside_a_skill_is_refused_where_it_stands() -> None:
    assert faults(make_card(skills=[{"name": "a"}, {"name": "b", "level": 9}])).keys() == {"/skills/1/level"}


@pytest.mark.parametrize(
    "slug",
    ["Echo", "echo_two", "-echo", "echo-", "a--b", "", "x" * 64, "echo\n", "écho", "echo@2", "../echo"],
)
def test_a_slug_is_lower_case_words_with_hyphens(slug: str) -> None:
    assert faults({**make_card(), "slug": slug}).keys() == {"/slug"}


def test_a_name_in_another_script_needs_a_slug_beside_it() -> None:
    assert faults({"name": "翻訳", "description": "訳す", "kind": "noop"}).keys() == {"/slug"}


def test_a_card_with_nothing_to_run_is_refused() -> None:
    assert faults({"name": "a", "description": "b"}).keys() == {"/kind"}


def test_a_python_agent_needs_its_entry_file() -> None:
    assert faults(make_card(source={"main.py": MAIN})).keys() == {"/source"}


def test_a_syntax_error_is_named_with_its_line() -> None:
    assert faults(make_card(source={"agent.py": "x = 1\ndef main(:\n"}))["/source/agent.py"].startswith(
        "Line 2"
    )


@pytest.mark.parametrize(
    "source",
    ["def run(task, inputs): ...", "main = 3", "def main(): ...", "def main(task): ...",
     "def main(a, b, c): ...", "def main(task, inputs, *, key): ...", "class main: ..."],
)  # fmt: skip
def test_the_entry_file_must_define_main_of_two_arguments(source: str) -> None:
    assert faults(make_card(source={"agent.py": source})).keys() == {"/source/agent.py"}


@pytest.mark.parametrize(
    "source",
    ["def main(task, inputs): ...", "def main(task, inputs, extra=1): ...", "def main(*arguments): ..."],
)
def test_any_main_that_takes_task_and_inputs_will_do(source: str) -> None:
    Card.parse(make_card(source={"agent.py": source}))


def test_source_that_breaks_the_parser_is_a_fault_and_no_crash() -> None:
    nested = "x = " + "-" * 100_000 + "1\n" + MAIN

    assert faults(make_card(source={"agent.py": nested})).keys() == {"/source/agent.py"}


def test_another_python_file_that_does_not_parse_is_found_too() -> None:
    assert faults(make_card(source={"agent.py": MAIN, "helper.py": "def"})).keys() == {"/source/helper.py"}


@pytest.mark.parametrize("name", ["../agent.py", "a/b.py", ".hidden", "a b.py", "", "x" * 101, "agent.py\n"])
def test_a_source_file_has_a_plain_name(name: str) -> None:
    assert any(
        pointer.startswith("/source") for pointer in faults(make_card(source={"agent.py": MAIN, name: ""}))
    )


def test_source_is_limited_over_all_files_together() -> None:
    half = "#" * (MAX_SOURCE_BYTES // 2)

    assert faults(make_card(source={"agent.py": MAIN, "a.py": half, "b.py": half})).keys() == {"/source"}


@pytest.mark.parametrize(
    "line", ["numpy", "numpy==2.1", "a.b-c_d[x,y]>=1,<2", "six ~= 1.16.0", "torch==2.0+cpu"]
)
def test_requirements_are_names_with_pins(line: str) -> None:
    Card.parse(make_card(requirements=[line]))


@pytest.mark.parametrize(
    "line",
    ["", "-r other.txt", "--index-url https://evil.example", "pkg @ https://evil.example/p.whl", "git+https://x/y",
     "./local", "numpy; python_version<'3'", "numpy==2\n--pre", "numpy==2.1\n", "https://evil.example/p.whl"],
)  # fmt: skip
def test_a_requirement_that_could_fetch_from_elsewhere_is_refused(line: str) -> None:
    assert faults(make_card(requirements=["numpy", line])).keys() == {"/requirements/1"}


@pytest.mark.parametrize(
    ("field", "value"),
    [("source", {"agent.py": MAIN}), ("requirements", ["numpy"])],
)
def test_an_llm_agent_has_no_source_of_its_own(field: str, value: Any) -> None:
    card = {"name": "a", "description": "b", "kind": "llm", "instructions": "c", field: value}

    assert faults(card).keys() == {f"/{field}"}


def test_a_python_agent_has_no_instructions() -> None:
    assert faults(make_card(instructions="Be kind")).keys() == {"/instructions"}


def test_an_unknown_tool_is_refused() -> None:
    card = {"name": "a", "description": "b", "instructions": "c", "tools": ["run_python", "rm"]}

    assert faults(card).keys() == {"/tools/1"}


def test_a_schema_that_is_none_is_refused_where_it_is_wrong() -> None:
    card = make_card(input_schema={"type": "object", "properties": {"n": {"type": "nonsense"}}})

    assert list(faults(card)) == ["/input_schema/properties/n/type"]


@pytest.mark.parametrize("target", ["https://evil.example/schema", "file:///etc/passwd", "other.json#/x"])
def test_a_schema_may_not_point_outside_itself(target: str) -> None:
    card = make_card(output_schema={"properties": {"x": {"$ref": target}}})

    assert list(faults(card)) == ["/output_schema/properties/x/$ref"]


@pytest.mark.parametrize("text", ["a\x00b", "a\ud800b"])
def test_text_that_postgres_cannot_hold_is_a_fault_wherever_it_stands(text: str) -> None:
    assert faults(make_card(skills=[{"name": text}])).keys() == {"/skills/0/name"}


def test_limits_have_bounds() -> None:
    card = make_card(limits={"memory_mb": 1, "wall_seconds": 10**9, "allow_hosts": ["a b"], "gpu": 1})

    assert faults(card).keys() == {
        "/limits/memory_mb", "/limits/wall_seconds", "/limits/allow_hosts/0", "/limits/gpu"
    }  # fmt: skip


def test_what_is_no_object_is_a_fault_at_the_root() -> None:
    assert faults(["card"]).keys() == {""}


def test_a_fault_never_quotes_the_whole_value() -> None:
    assert len(faults(make_card(description="x" * 100_000))["/description"]) < 100


def test_skills_without_an_id_get_one_each() -> None:
    card = Card.parse(make_noop("a", "b", skills=[{"name": "Cut"}, {"name": "Cut"}, {"name": "切る"}]))

    assert [skill["id"] for skill in card.skills] == ["cut", "cut-2", "skill-3"]


def test_agents_that_only_measure_are_refused_where_nothing_is_measured(settings: Settings) -> None:
    settings.ENGINE_BENCHMARK = False

    assert "ENGINE_BENCHMARK" in faults(make_noop("idle", "Does nothing"))["/kind"]
