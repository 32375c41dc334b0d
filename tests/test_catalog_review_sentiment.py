"""The agent that scores reviews: where it takes them from, what it asks, what it hands back."""

import csv
import io
import json
from pathlib import Path

import pytest

from tests.catalog import CARDS, in_sandbox_python, run_agent

SLUG = "review-sentiment"
TASK = "Analyze the sentiment of customer reviews"
PROCEED = "Yes, proceed with the analysis"
PASTED = "I love this kettle!\nIt broke after a day, terrible.\nIt boils water."
REVIEWS = "id,text,human_rating\n" + "\n".join(
    [
        "1,I love this kettle and my whole family is happy with it,4.0",
        "2,Terrible quality: it broke after a day and nobody helped,-3.5",
        "3,It boils water,0.1",
        "4,Great value and wonderful colours,3.2",
        "5,The worst purchase of the year: I hate it,-4.0",
        "6,It came on Tuesday,0.0",
        "7,Nice design but the lid is awful,-0.8",
        "8,Perfect,3.0",
    ]
)


def test_reviews_in_a_file_are_scored_without_a_question(tmp_path: Path) -> None:
    run = run_agent(tmp_path, SLUG, TASK, files={"reviews.csv": REVIEWS})

    assert run.error == ""
    assert run.result["column"] == "text"
    assert run.result["counts"] == {"positive": 3, "neutral": 2, "negative": 3}
    assert run.result["most_positive"][0]["row"] in {1, 4}
    assert run.result["agreement"]["column"] == "human_rating"
    assert run.result["agreement"]["r"] > 0.9
    rows = list(csv.DictReader(io.StringIO(run.text("sentiment.csv"))))
    assert list(rows[0]) == ["id", "text", "human_rating", "compound", "sentiment"]
    assert [row["sentiment"] for row in rows[:3]] == ["positive", "negative", "neutral"]
    assert "| positive | 3 | 37.5% |" in run.text("summary.md")
    assert run.is_png("sentiment.png")


def test_without_a_file_it_asks_and_a_yes_runs_the_shipped_sample(tmp_path: Path) -> None:
    run = run_agent(tmp_path, SLUG, TASK, answers=[PROCEED])

    sample = CARDS[SLUG]["source"]["sample_reviews.csv"]
    assert run.result["sample"] is True
    assert run.result["reviews"] == len(sample.splitlines()) - 1
    assert run.is_png("sentiment.png")


def test_an_answer_of_several_lines_is_reviews(tmp_path: Path) -> None:
    run = run_agent(tmp_path, SLUG, TASK, answers=[PASTED])

    assert run.result["sample"] is False
    assert run.result["counts"] == {"positive": 1, "neutral": 1, "negative": 1}


def test_an_answer_may_be_a_table_or_a_single_review(tmp_path: Path) -> None:
    table = run_agent(tmp_path / "a", SLUG, TASK, answers=["nr,review\n1,I love it\n2,I hate it so much"])
    single = run_agent(tmp_path / "b", SLUG, TASK, answers=["Yes, this is the best kettle I ever had"])

    assert (table.result["column"], table.result["reviews"]) == ("review", 2)
    assert (single.result["sample"], single.result["counts"]["positive"]) == (False, 1)


def test_a_no_ends_the_job_with_what_to_do(tmp_path: Path) -> None:
    run = run_agent(tmp_path, SLUG, TASK, answers=["no thanks"])

    assert "nothing to work on: no reviews came. Start a new job and attach the file" in run.error


def test_reviews_may_come_in_the_input(tmp_path: Path) -> None:
    run = run_agent(tmp_path, SLUG, TASK, inputs={"reviews": PASTED.splitlines()})

    assert run.result["reviews"] == 3


@pytest.mark.parametrize(
    ("task", "text"),
    [
        (f"Score these:\n{PASTED}", PASTED),
        ("Is “I love this kettle” a positive review?", "I love this kettle"),
        ("Summarise: " + "word " * 30, ("word " * 30).strip()),
        (TASK, ""),
        ("Sentiment analysis: are people happy with the kettle", ""),
        (f"{TASK}.\nBe quick about it please.", ""),
    ],
)
def test_a_text_in_the_task_is_told_from_what_is_asked(tmp_path: Path, task: str, text: str) -> None:
    program = f"import json, files; print(json.dumps(files.text_in_task({task!r})))"

    assert in_sandbox_python(program, tmp_path) == text


def test_it_asks_when_several_columns_could_hold_the_reviews(tmp_path: Path) -> None:
    header = "nr,liked,disliked\n"
    rows = "\n".join(
        f"{at},The {at} colours are really lovely,The lid is loose on day {at}" for at in range(30)
    )

    run = run_agent(tmp_path, SLUG, TASK, files={"survey.csv": header + rows}, answers=["disliked"])

    assert run.result["column"] == "disliked"
    assert "**liked**: The 0 colours" in run.log


def test_a_column_named_for_reviews_goes_before_other_texts(tmp_path: Path) -> None:
    rows = "\n".join(f"{at},Kettle with {at} litres and lid,I love number {at} so much" for at in range(30))

    run = run_agent(tmp_path, SLUG, TASK, files={"a.csv": "nr,product,Review Text\n" + rows})

    assert run.result["column"] == "Review Text"


def test_a_table_without_reviews_is_refused_with_its_columns(tmp_path: Path) -> None:
    run = run_agent(tmp_path, SLUG, TASK, files={"numbers.csv": "a,b\n1,2\n3,4\n"})

    assert "No column of numbers.csv holds written reviews. Columns: a (number), b (number)." in run.error
    assert "one review per row" in run.error


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    run = run_agent(tmp_path, SLUG, TASK, files={"reviews.csv": REVIEWS}, inputs={"text_column": "body"})

    assert "There is no column “body”. Use one of: id, text, human_rating." in run.error


def test_a_job_that_starts_again_scores_nothing_twice(tmp_path: Path) -> None:
    many = "text\n" + "\n".join(f"I love number {at}" for at in range(1200))
    run = run_agent(tmp_path, SLUG, TASK, files={"reviews.csv": many})
    journal = run.outputs.parent / "journal.ndjson"
    before = journal.read_text()

    again = run_agent(tmp_path, SLUG, TASK, resume=True)

    keys = {json.loads(line)["key"] for line in before.splitlines()}
    assert {"score part 1#1", "score part 2#1", "score part 3#1"} <= keys
    assert journal.read_text() == before
    assert again.result == run.result
