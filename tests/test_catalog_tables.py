"""What the catalog's table agents make of tables as people send them."""

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.catalog import DATA, in_sandbox_python

ROWS = "id,review\n" + "\n".join(f'{at},"The kettle works, and it is quick"' for at in range(30))
GERMAN = "nr;Urteil\n" + "\n".join(f"{at};Das Gerät ist völlig zuverlässig" for at in range(30))
RUSSIAN = "id,text\n" + "\n".join(f"{at},Очень хороший чайник, рекомендую всем" for at in range(30))
PROGRAM = textwrap.dedent("""
    import json, os
    from pathlib import Path
    import engine_agent
    engine_agent.log = lambda message, level="info": None
    import files, tables

    def look(path):
        try:
            table = tables.open_table(path)
        except engine_agent.UserError as error:
            return {"error": f"{error} {error.remedy}"}
        kinds = {name: tables.column_kind(table.sample()[name]) for name in table.columns}
        return {"rows": table.rows, "kinds": kinds, "first": table.sample().iloc[0].fillna("").to_list()}

    print(json.dumps({path.name: look(path) for path in sorted(Path("sent").iterdir())}))
""")

READABLE: dict[str, tuple[bytes, int, list[str]]] = {
    "plain.csv": (ROWS.encode(), 30, ["id", "review"]),
    "bom.csv": (ROWS.encode("utf-8-sig"), 30, ["id", "review"]),
    "utf16.csv": (ROWS.encode("utf-16"), 30, ["id", "review"]),
    "utf16-without-mark.csv": (ROWS.encode("utf-16-le"), 30, ["id", "review"]),
    "latin1.csv": (GERMAN.encode("latin-1"), 30, ["nr", "Urteil"]),
    "cyrillic.csv": (RUSSIAN.replace(", р", " р").encode("cp1251"), 30, ["id", "text"]),
    "tabs.tsv": (ROWS.replace(",", "\t", 1).replace(',"', '\t"').encode(), 30, ["id", "review"]),
    "spanning.csv": (
        b'id,review\n1,"two\nlines, one cell"\n2,"another ""quoted"" one"\n',
        2,
        ["id", "review"],
    ),
    "without-header.csv": (b"1,2.5\n2,3.5\n3,4.5\n", 3, ["column_1", "column_2"]),
    "same-names.csv": (b"a,a,a\nx,y,z\n", 1, ["a", "a_2", "a_3"]),
    "lines.txt": (b"I like it, really.\nNot for me.\nIt broke, twice, in May.\n", 3, ["text"]),
    "workbook.xlsx": ((DATA / "revenue.xlsx").read_bytes(), 12, ["region", "revenue"]),
    "workbook-called.csv": ((DATA / "revenue.xlsx").read_bytes(), 12, ["region", "revenue"]),
    "records.json": (json.dumps([{"a": 1, "b": "x"}, {"a": 2, "c": None}]).encode(), 2, ["a", "b", "c"]),
    "records.jsonl": (b'{"a": 1}\n{"a": 2}\n', 2, ["a"]),
}
REFUSED = {
    "empty.csv": (b"", "empty.csv is empty. Send a file with a header line"),
    "blank.csv": (b"\n \n", "is empty"),
    "header.csv": (b"id,review\n", "has a header line but no rows. Send a file with at least one row"),
    "picture.csv": (
        b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
        "is a PNG image, not a table. Send the table as CSV",
    ),
    "garbage.csv": (bytes(range(1, 256)) * 20, "is not text: it holds binary data. Open it in the program"),
    "page.csv": (b"<!doctype html><html><body>Sign in</body></html>", "is a web page, not a table"),
    "packed.csv": (b"\x1f\x8b\x08\x00" + bytes(50), "is a gzip archive, not a table"),
    "report.csv": ((DATA / "report.pdf").read_bytes(), "is a PDF document, not a table"),
    "cut-workbook.xlsx": ((DATA / "revenue.xlsx").read_bytes()[:3000], "is a damaged Office or ZIP file"),
    "open-quote.csv": (
        b'id,review\n1,fine\n2,"never closed\n' + b"3,fine\n" * 400,
        "quotation mark that never closes",
    ),
    "broken.json": (b'[{"a": 1},', "is not valid JSON"),
    "numbers.json": (b"[1, 2]", "is not a list of JSON objects"),
}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process makes of all the files."""
    home = tmp_path_factory.mktemp("tables")
    (home / "sent").mkdir()
    for name, content in {
        **{n: c[0] for n, c in READABLE.items()},
        **{n: c[0] for n, c in REFUSED.items()},
    }.items():
        (home / "sent" / name).write_bytes(content)
    found: dict[str, Any] = in_sandbox_python(PROGRAM, home)
    return found


@pytest.mark.parametrize("name", READABLE)
def test_a_table_is_read_however_it_is_written(seen: dict[str, Any], name: str) -> None:
    _, rows, columns = READABLE[name]

    assert (seen[name].get("rows"), list(seen[name].get("kinds", {}))) == (rows, columns), seen[name]


def test_letters_of_other_encodings_survive(seen: dict[str, Any]) -> None:
    assert seen["latin1.csv"]["first"][1] == "Das Gerät ist völlig zuverlässig"
    assert seen["cyrillic.csv"]["first"][1] == "Очень хороший чайник рекомендую всем"
    assert seen["spanning.csv"]["first"][1] == "two\nlines, one cell"


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_table_is_refused_with_words_that_help(seen: dict[str, Any], name: str) -> None:
    assert REFUSED[name][1] in seen[name]["error"]


CELLS = {
    "number": [["1,204.50", "$ 3", "7%", ""], ["1.204,50", "3,25", "17,00"]],
    "date": [
        ["2026-01-31", "2026-02-01"],
        ["31.01.2026", "01.02.2026"],
        ["13/01/2026", "01/02/2026"],
        ["Mar 4, 2026", "Apr 5, 2026"],
    ],
    "boolean": [["yes", "No", "yes"]],
    "category": [["North", "South", "North"]],
    "text": [["It boils quickly and quietly", "The lid fell off on Monday"]],
    "id": [[f"S-{at}" for at in range(50)]],
    "empty": [["", ""]],
}


def test_a_column_is_known_by_its_cells(tmp_path: Path) -> None:
    program = f"""
import json, pandas as pd, tables
kind = lambda cells: tables.column_kind(pd.Series(cells, dtype=str).replace("", None))
print(json.dumps({{name: [kind(cells) for cells in columns] for name, columns in {CELLS!r}.items()}}))
"""
    assert in_sandbox_python(program, tmp_path) == {
        name: [name] * len(columns) for name, columns in CELLS.items()
    }


def test_thousands_and_decimals_are_told_apart(tmp_path: Path) -> None:
    program = """
import json, pandas as pd, tables
read = lambda *cells: tables.numbers(pd.Series(cells, dtype=str)).to_list()
print(json.dumps([read("1,204.50", "1,000"), read("1.204,50", "1,5"), read("€ 12", "n/a")[:1]]))
"""
    assert in_sandbox_python(program, tmp_path) == [[1204.5, 1000.0], [1204.5, 1.5], [12.0]]
