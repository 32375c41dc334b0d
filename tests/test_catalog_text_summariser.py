"""The agent that shortens texts."""

from pathlib import Path

import pytest

from tests.catalog import CARDS, DATA, run_agent

SLUG = "text-summariser"
ARTICLE = CARDS[SLUG]["source"]["sample_article.txt"]
GERMAN = " ".join(
    [
        "Der Fluss hat der Stadt mehr als einmal großen Schaden gebracht.",
        "Nach der Flut wurden die Mauern am Fluss höher gebaut, aber das Wasser stieg weiter.",
        "Die Stadt gab dem Fluss darum mehr Raum und verlegte den Deich nach hinten.",
        "Im Rathaus gibt es seit dem Sommer einen neuen Kaffeeautomaten.",
        "Seitdem bleibt das Wasser auf den Wiesen, und die Stadt ist vor der Flut sicher.",
        "Andere Städte am Fluss fragen nun, wie der neue Deich gebaut wurde.",
    ]
)


def test_a_summary_is_sentences_of_the_text_in_their_order(tmp_path: Path) -> None:
    run = run_agent(
        tmp_path, SLUG, "Summarise this article in three sentences", files={"article.txt": ARTICLE}
    )

    plain = " ".join(ARTICLE.split())
    places = [plain.index(sentence.strip(" .")) for sentence in run.result["summary"].split(". ")]
    assert len(places) == 3
    assert places == sorted(places)
    assert not run.result["summary"].startswith("Why the town")  # a title is no sentence
    assert run.result["language"] == "en"
    assert any("river" in keyword.lower() for keyword in run.result["keywords"])
    assert run.result["summary"] in run.text("summary.md")


def test_bullet_points_and_their_number_are_taken_from_the_task(tmp_path: Path) -> None:
    run = run_agent(tmp_path, SLUG, "Give me 4 bullet points", answers=["yes"])

    assert [line[:2] for line in run.result["summary"].splitlines()] == ["- "] * 4


@pytest.mark.parametrize(
    ("task", "inputs"),
    [(f"Fasse zusammen: {GERMAN}", {}), ("Summarise", {"text": GERMAN, "sentences": 2})],
    ids=["in the task", "in the input"],
)
def test_a_text_may_come_without_a_file(tmp_path: Path, task: str, inputs: dict[str, object]) -> None:
    run = run_agent(tmp_path, SLUG, task, inputs=inputs)

    assert run.result["language"] == "de"
    assert run.result["sentences"] == 6
    assert "Kaffeeautomat" not in run.result["summary"]


def test_documents_are_summarised_too(tmp_path: Path) -> None:
    run = run_agent(tmp_path, SLUG, "tl;dr", files={"report.pdf": DATA / "report.pdf"})

    assert "Orders grew in the second quarter" in run.result["summary"]


def test_a_text_without_spaces_between_words_is_summarised(tmp_path: Path) -> None:
    text = "这个城市的河流经常泛滥。市政府决定给河流更多空间。堤坝被向后移动了四百米。咖啡很好喝。河流现在很安全。"

    run = run_agent(tmp_path, SLUG, "Summarise in two sentences", files={"text.txt": text})

    assert run.result["language"] == "zh"
    assert run.result["summary"].count("。") == 2


def test_notes_without_full_stops_are_taken_line_by_line(tmp_path: Path) -> None:
    notes = "\n".join(
        f"Point {at}: the kettle team will look at lid number {at} next week" for at in range(40)
    )

    run = run_agent(tmp_path, SLUG, "Summarise in 3 lines", files={"notes.txt": notes})

    assert run.result["sentences"] == 40


@pytest.mark.parametrize(
    ("content", "error"),
    [(b"", "is empty"), (b"\x89PNG\r\n\x1a\n" + bytes(90), "is a PNG image"), (b"# 1\n", "no sentences")],
)
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes, error: str) -> None:
    run = run_agent(tmp_path, SLUG, "Summarise", files={"text.txt": content})

    assert error in run.error
