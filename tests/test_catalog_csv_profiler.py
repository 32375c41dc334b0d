"""The agent that looks at a table before anybody works with it."""

import csv
import io
from pathlib import Path

from tests.catalog import run_agent

SLUG = "csv-profiler"
HEADER = "order,date,region,price,note,always\n"
ROWS = [f"S-{at},2026-01-{1 + at % 28:02d},{'NS'[at % 2]}orth,{50 + at % 10},,same" for at in range(100)]


def test_a_profile_tells_kinds_gaps_outliers_duplicates_and_spellings(tmp_path: Path) -> None:
    odd = ["S-200,2026-02-01,NORTH,9000,,same", "S-201,2026-02-02,,n/v,hello,same"]

    run = run_agent(tmp_path, SLUG, "Profile", files={"a.csv": HEADER + "\n".join([*ROWS, *odd, odd[0]])})

    assert (run.result["rows"], run.result["columns"], run.result["duplicate_rows"]) == (103, 6, 1)
    kinds = {one["name"]: one["kind"] for one in run.result["profile"]}
    assert kinds["order"] == "id"
    assert kinds["date"] == "date"
    assert kinds["region"] == "category"
    assert kinds["price"] == "number"
    assert next(one for one in run.result["profile"] if one["name"] == "price")["median"] == 55
    findings = "\n".join(run.result["findings"])
    assert "“note” is missing in 102 rows (99.0%)" in findings
    assert "“price” holds numbers, with 1 exceptions such as “n/v”" in findings
    assert "“price” has 2 outliers (9,000 to 9,000" in findings
    assert "“region” spells the same value in several ways: North / NORTH" in findings
    assert "“always” holds the same value in every row" in findings
    assert "duplicate rows: 1 (1.0%)" in findings


def test_a_profile_comes_as_report_table_and_charts(tmp_path: Path) -> None:
    run = run_agent(tmp_path, SLUG, "Is this data clean?", answers=["ok"])

    assert run.result["sample"] is True
    assert "## Worth a look" in run.text("profile.md")
    columns = list(csv.DictReader(io.StringIO(run.text("columns.csv"))))
    assert [one["name"] for one in columns] == [one["name"] for one in run.result["profile"]]
    for chart in ("distributions.png", "missing.png", "correlations.png"):
        assert run.is_png(chart)


def test_columns_with_odd_names_and_values_are_profiled(tmp_path: Path) -> None:
    table = "cost $ per $100,a|b#1,inf\n1,$x$,inf\n2,| y,1e400\n3,$x$,-5\n"

    run = run_agent(tmp_path, SLUG, "Profile", files={"odd #1 $.csv": table})

    assert run.error == ""
    assert "| a\\|b#1 |" in run.text("profile.md")
    assert run.is_png("distributions.png")


def test_columns_are_read_in_batches_that_fit_the_memory(tmp_path: Path) -> None:
    wide = ",".join(f"c{at}" for at in range(60)) + "\n" + "\n".join(",".join(["7"] * 60) for _ in range(3))

    run = run_agent(tmp_path, SLUG, "Profile", files={"wide.csv": wide})

    journal = (run.outputs.parent / "journal.ndjson").read_text()
    assert "profile columns, part 3#1" in journal
    assert len(run.result["profile"]) == 60
