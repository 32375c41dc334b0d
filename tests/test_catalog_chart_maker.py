"""The agent that draws what the task describes."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from tests.catalog import CARDS, SHARED, Run, in_sandbox_python, run_agent

SLUG = "chart-maker"
SALES = SHARED / "sample_sales.csv"
KINDS = {"order_id": "id", "date": "date", "region": "category", "product": "category", "quantity": "number"}
KINDS |= {"unit_price": "number", "revenue": "number", "rating": "number", "channel": "category"}


def points(run: Run) -> list[dict[str, str]]:
    """The numbers that were drawn."""
    return list(csv.DictReader(io.StringIO(run.text("chart_data.csv"))))


def test_a_task_that_says_all_needs_no_question(tmp_path: Path) -> None:
    table = "region,revenue\nNorth,10\nSouth,5\nnorth,2\nNorth,1\nSouth,\n"

    run = run_agent(tmp_path, SLUG, "Make a bar chart of revenue by region", files={"sales.csv": table})

    assert run.result["title"] == "Total revenue by region"
    assert points(run) == [{"region": "North", "revenue": "13.0"}, {"region": "South", "revenue": "5.0"}]
    assert run.result["notes"] == ["1 rows lack a value and are left out"]
    assert run.is_png("chart.png")


def test_groups_are_drawn_side_by_side_under_one_spelling(tmp_path: Path) -> None:
    table = "region,channel,revenue\nN,shop,1\nN,Shop,2\nN,shop,4\nN,online,8\nN,online,16\n"

    run = run_agent(tmp_path, SLUG, "revenue by region and channel", files={"sales.csv": table})

    assert [(row["channel"], row["revenue"]) for row in points(run)] == [("online", "24"), ("shop", "7")]


def test_it_asks_for_the_columns_that_the_task_leaves_open(tmp_path: Path) -> None:
    run = run_agent(
        tmp_path, SLUG, "Draw me a chart", files={"sales.csv": SALES}, answers=["channel", "rating"]
    )

    assert run.result["title"] == "Average rating by channel"
    assert len(points(run)) == 3


PLANS = {
    "monthly revenue by product as a line chart": ("line", "date", "revenue", "product", "sum", "M"),
    "revenue over time": ("line", "date", "revenue", "", "sum", ""),
    "scatter plot of revenue vs quantity": ("scatter", "quantity", "revenue", "", "", ""),
    "revenue against quantity": ("scatter", "quantity", "revenue", "", "", ""),
    "histogram of the ratings": ("histogram", "rating", "", "", "", ""),
    "average rating per product": ("bar", "product", "rating", "", "mean", ""),
    "How many orders per channel? As a pie": ("pie", "channel", "number of rows", "", "count", ""),
    "how many orders per day": ("line", "date", "number of rows", "", "count", "D"),
    "box plot of unit price by region": ("box", "region", "unit_price", "", "", ""),
    "compare the highest price across regions": ("bar", "region", "unit_price", "", "max", ""),
    "revenue by region and channel": ("bar", "region", "revenue", "channel", "sum", ""),
}


def test_a_task_is_read_as_a_plan(tmp_path: Path) -> None:
    (tmp_path / "plan.py").write_text(CARDS[SLUG]["source"]["plan.py"], encoding="utf-8")
    program = f"""
import json, sys; sys.path.insert(0, ".")
from plan import open_choices, read_task
kinds = {KINDS!r}
def settle(task):
    plan = read_task(task, {{}}, kinds)
    for part in ("x", "y"):
        choices = open_choices(plan, part, kinds)
        assert len(choices) < 2, (task, choices)
        plan = plan.having(part, choices[0]) if choices else plan
    plan = plan.completed(kinds)
    return plan.kind, plan.x, plan.y, plan.group, plan.aggregate, plan.period
print(json.dumps({{task: settle(task) for task in {list(PLANS)!r}}}))
"""

    found = in_sandbox_python(program, tmp_path)

    assert {task: tuple(plan) for task, plan in found.items()} == PLANS


@pytest.mark.parametrize("kind", ["line", "scatter", "histogram", "box", "pie"])
def test_every_kind_of_chart_is_drawn(tmp_path: Path, kind: str) -> None:
    columns = {"histogram": {"x": "rating"}, "scatter": {"x": "quantity", "y": "revenue", "group": "channel"}}
    inputs: dict[str, Any] = {"kind": kind, **columns.get(kind, {"x": "region", "y": "revenue"})}

    run = run_agent(tmp_path, SLUG, "Chart", files={"sales.csv": SALES}, inputs=inputs)

    assert run.error == ""
    assert run.is_png("chart.png")


def test_a_table_with_nothing_to_draw_says_so(tmp_path: Path) -> None:
    run = run_agent(tmp_path, SLUG, "Scatter plot", files={"names.csv": "name\nAda\nGrace\n"})

    assert "No column fits this chart. Columns: name (category)." in run.error


def test_an_unknown_column_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    run = run_agent(tmp_path, SLUG, "Chart", files={"sales.csv": SALES}, inputs={"x": "planet"})

    assert "There is no column “planet”. Use one of: order_id, date, region" in run.error
