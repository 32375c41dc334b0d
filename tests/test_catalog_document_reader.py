"""The agent that turns documents into Markdown."""

from pathlib import Path

import pytest

from tests.catalog import DATA, run_agent

SLUG = "document-reader"
PAGE = """<!doctype html><html><head><title>t</title><script>alert(1)</script></head><body><nav>Menu</nav><main>
<h1>Hours</h1><p>We are <b>open</b>, see <a href="https://example.org/map">the map</a>.</p>
<table><tr><th>Day</th><th>Hours</th></tr><tr><td>Mon | Tue</td><td>9-17</td></tr></table>
<ul><li>One</li><li>Two</li></ul></main></body></html>"""


def test_each_file_becomes_markdown(tmp_path: Path) -> None:
    files: dict[str, Path | str] = {
        "report.pdf": DATA / "report.pdf",
        "report.docx": DATA / "notes.docx",
        "page.html": PAGE,
    }

    run = run_agent(tmp_path, SLUG, "Convert these to Markdown", files=files)

    made = {one["file"]: one["markdown_file"] for one in run.result["documents"]}
    assert made == {"page.html": "page.md", "report.docx": "report.md", "report.pdf": "report-2.md"}
    assert run.text("page.md") == (
        "# Hours\n\nWe are **open**, see [the map](https://example.org/map).\n\n"
        "| Day | Hours |\n| --- | --- |\n| Mon \\| Tue | 9-17 |\n\n- One\n- Two\n"
    )


def test_a_pdf_keeps_headings_paragraphs_and_tables(tmp_path: Path) -> None:
    run = run_agent(tmp_path, SLUG, "Read", files={"report.pdf": DATA / "report.pdf"})

    text = run.text("report.md")
    assert text.startswith("# Quarterly report\n\n# Sales\n\nOrders grew in the second quarter")
    assert "| Quarter | Orders | Revenue |\n| --- | --- | --- |\n| Q1 | 1,204 | 48,160 |" in text
    assert run.result["documents"][0]["outline"] == ["Quarterly report", "Sales", "Outlook"]


def test_columns_are_read_one_after_the_other_without_running_heads(tmp_path: Path) -> None:
    run = run_agent(tmp_path, SLUG, "Read", files={"columns.pdf": DATA / "columns.pdf"})

    text = run.text("columns.md")
    places = [text.index(f"## Section {number}") for number in range(1, 5)]
    assert places == sorted(places)
    assert "Journal of Kettles" not in text
    assert "```\ndef boil(water):\n    return water.heat(100)\n```" in text


def test_word_keeps_styles_lists_tables_and_pictures(tmp_path: Path) -> None:
    run = run_agent(tmp_path, SLUG, "Read", files={"notes.docx": DATA / "notes.docx"})

    text = run.text("notes.md")
    assert text.startswith("# Meeting notes\n\n# Decisions\n")
    assert "- Write the release notes\n- Tell the customers" in text
    assert "| Ada | Tests \\| docs |" in text
    assert "![](notes/picture-1.png)" in text
    assert (run.outputs / "notes" / "picture-1.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_file_the_sample_can_be_seen(tmp_path: Path) -> None:
    run = run_agent(tmp_path, SLUG, "Convert", answers=["yes please"])

    assert run.result["documents"][0]["outline"][0] == "Ellmar town library"


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("locked.pdf", DATA / "locked.pdf", "is locked with a password. Save a copy without one"),
        ("scan.pdf", DATA / "scan.pdf", "holds pictures of pages, not text. Run text recognition (OCR)"),
        ("cut.pdf", (DATA / "report.pdf").read_bytes()[:1200], "cannot be read as a PDF"),
        ("cut.docx", (DATA / "notes.docx").read_bytes()[:9000], "is a damaged Office or ZIP file"),
        ("old.doc", b"\xd0\xcf\x11\xe0" + bytes(600), "is an old Office file (.doc, .xls)"),
        ("book.pdf", DATA / "revenue.xlsx", "is an Excel workbook, which this agent cannot read. For tables"),
        (
            "photo.pdf",
            b"\xff\xd8\xff\xe0" + bytes(600),
            "is a JPEG image, which this agent cannot read. Send a PDF",
        ),
        ("empty.pdf", b"", "empty.pdf is empty"),
        ("deep.html", "<html>" + "<div>" * 3000 + "x", "nested too deep. Print it to a PDF"),
    ],
)
def test_what_cannot_be_read_is_explained(
    tmp_path: Path, name: str, content: bytes | str | Path, error: str
) -> None:
    run = run_agent(tmp_path, SLUG, "Convert", files={name: content})

    assert error in run.error
