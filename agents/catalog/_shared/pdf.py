"""PDF to Markdown: pdfminer's layout analysis for the reading order, pdfplumber for tables, sizes for headings."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine_agent import UserError, progress, step

PAGES_AT_ONCE = 10
EDGE = 0.1  # of a page's height: where running heads and page numbers stand
SHORT = 160  # characters that a heading has at most
MONOSPACE = re.compile(r"mono|courier|consol|menlo|cmtt|typewriter", re.I)
BULLET = re.compile(r"^[•●▪◦‣∙·\u2013\u2014*-](\s+|$)")


def pdf_to_markdown(path: Path) -> str:
    """The text of a PDF, with headings, lists, code, and tables that have lines. Raises UserError."""
    pages = step("open the PDF", count_pages, path)
    blocks: list[dict] = []
    for first in range(1, pages + 1, PAGES_AT_ONCE):
        last = min(first + PAGES_AT_ONCE - 1, pages)
        part = step(f"read pages {first} to {last}", read_pages, path, first, last)
        blocks += json.loads(Path(part).read_text(encoding="utf-8"))
        progress(0.1 + 0.7 * last / pages, f"{last} of {pages} pages read")
    if sum(len(block["text"]) for block in blocks) < 10 * pages:
        remedy = "Run text recognition (OCR) on it and send the result."
        raise UserError(f"{path.name} holds pictures of pages, not text.", remedy=remedy)
    return as_markdown(without_edges(blocks))


@contextmanager
def open_pdf(path: Path, numbers: list[int] | None = None) -> Iterator:
    """A PDF, with pdfminer's many errors turned into one that tells the user what to do."""
    import pdfplumber
    from pdfminer.pdfdocument import PDFPasswordIncorrect
    from pdfminer.psexceptions import PSException
    from pdfplumber.utils.exceptions import MalformedPDFException, PdfminerException

    try:
        with pdfplumber.open(path, laparams={}, pages=numbers) as pdf:
            yield pdf
    except (MalformedPDFException, PdfminerException, PSException, ValueError, KeyError, TypeError) as error:
        if error.args and isinstance(error.args[0], PDFPasswordIncorrect):
            remedy = "Save a copy without one and send that."
            raise UserError(f"{path.name} is locked with a password.", remedy=remedy) from error
        remedy = "Open it, print it to a new PDF and send that."
        detail = str(error) or type(error).__name__
        raise UserError(f"{path.name} cannot be read as a PDF ({detail}).", remedy=remedy) from error


def count_pages(path: Path) -> int:
    """How many pages a PDF has."""
    with open_pdf(path) as pdf:
        return len(pdf.pages)


def read_pages(path: Path, first: int, last: int) -> str:
    """Write the blocks of some pages to a file of the workspace and return its name."""
    blocks = []
    with open_pdf(path, list(range(first, last + 1))) as pdf:
        for page in pdf.pages:
            blocks += page_blocks(page)
            page.close()
    name = f"pages-{first}.json"
    Path(name).write_text(json.dumps(blocks), encoding="utf-8")
    return name


def page_blocks(page) -> list[dict]:
    """Paragraphs and tables in reading order. `at` is the place on the page, from 0 at its top to 1."""
    from pdfminer.layout import LTTextBox

    tables = [table for table in page.find_tables() if len(table.rows) > 1 and len(table.rows[0].cells) > 1]
    blocks: list[dict] = []
    for box in page.layout:
        for line in box if isinstance(box, LTTextBox) else ():
            middle = float(page.height) - (line.y0 + line.y1) / 2
            place = {"page": page.page_number, "at": middle / float(page.height)}
            table = next((table for table in tables if holds(table, line.x0, middle)), None)
            text = text_of(line)
            if table is not None:
                block = {
                    "text": table_to_markdown(table.extract()),
                    "table": list(table.bbox),
                    "size": 0,
                    **place,
                }
                if all(other.get("table") != block["table"] for other in blocks):
                    blocks.append(block)
            elif text.strip():
                add_line(blocks, {"text": text, "left": line.x0, "box": id(box), **font_of(line), **place})
    return blocks


def holds(table, x: float, y: float) -> bool:
    """Whether a point lies in a table."""
    left, top, right, bottom = table.bbox
    return left - 2 <= x <= right and top <= y <= bottom


def text_of(line) -> str:
    """A line's text; only code keeps its spaces."""
    text = re.sub(r"\(cid:\d+\)", "", line.get_text())  # a glyph that stands for no letter
    if font_of(line)["code"]:
        return text.rstrip()
    text = " ".join(text.split())
    return re.sub(r"(\. ?){4,}", " … ", text)  # dots that lead to a page number


def font_of(line) -> dict:
    """The usual size of a line's characters, in half points, and whether they are bold or all of one width."""
    from pdfminer.layout import LTChar

    chars = [char for char in line if isinstance(char, LTChar)]
    if not chars:
        return {"size": 0, "bold": False, "code": False, "width": 1}
    name = Counter(char.fontname for char in chars).most_common(1)[0][0]
    return {
        "size": Counter(round(2 * char.size) / 2 for char in chars).most_common(1)[0][0],
        "bold": "bold" in name.lower(),
        "code": bool(MONOSPACE.search(name)) and not BULLET.match(line.get_text()),
        "width": chars[0].width or 1,
    }


def add_line(blocks: list[dict], line: dict) -> None:
    """Append a line to the paragraph it goes on with, else begin a new one."""
    last = blocks[-1] if blocks else {}
    together = ("page", "code") if line["code"] else ("box", "size", "bold", "code")
    if last.get("page") == line["page"] and BULLET.fullmatch(
        last["text"]
    ):  # the mark stood alone, here is its text
        last.update(line, text=f"{last['text']} {line['text']}")
    elif any(last.get(key) != line[key] for key in together) or (
        BULLET.match(line["text"]) and not line["code"]
    ):
        blocks.append(line)
    elif line["code"]:
        last["text"] += "\n" + " " * round((line["left"] - last["left"]) / line["width"]) + line["text"]
    elif last["text"].endswith("-") and line["text"][:1].islower():
        last["text"] = last["text"][:-1] + line["text"]
    else:
        last["text"] += " " + line["text"]


def table_to_markdown(rows: list[list[str | None]]) -> str:
    """Rows of cells as a Markdown table; the first row is its head."""
    cells = [[" ".join((cell or "").split()).replace("|", "\\|") for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + " --- |" * len(cells[0]), *lines[1:]])


def without_edges(blocks: list[dict]) -> list[dict]:
    """Leave out running heads and page numbers: what stands at the edge of three pages, whatever its digits."""

    def edge(block: dict) -> str:
        return re.sub(r"\d+", "0", block["text"]) if not EDGE < block["at"] < 1 - EDGE else ""

    on_pages = Counter(text for text, _ in {(edge(block), block["page"]) for block in blocks} if text)
    return [block for block in blocks if on_pages[edge(block)] < 3]


def as_markdown(blocks: list[dict]) -> str:
    """Blocks with heading marks by their size, list marks, and paragraphs that a page break cut joined again."""
    level = heading_levels(blocks)
    lines: list[str] = []
    unfinished = False
    for block in blocks:
        text = block["text"]
        if "table" in block:
            lines.append(text)
        elif block["code"] and "\n" in text:
            lines.append(f"```\n{text}\n```")
        elif level(block):
            lines.append("#" * level(block) + " " + text)
        elif BULLET.match(text):
            lines.append("- " + BULLET.sub("", text))
        elif unfinished and text[:1].islower():
            lines[-1] += " " + text
        else:
            lines.append("\\" + text if text[0] in "#>" else text)
        unfinished = not lines[-1].startswith(("#", "|", "`")) and lines[-1][-1] not in ".!?:"
    return re.sub(r"(?m)^(- .*)\n\n(?=- )", r"\1\n", "\n\n".join(lines))


def heading_levels(blocks: list[dict]):
    """A function that tells a block's heading level, 0 for none: larger than the body text, or bold in its size."""
    weights: Counter = Counter()
    for block in blocks:
        if "table" not in block:
            weights[block["size"], block["bold"]] += len(block["text"])
    (body, body_bold), _ = weights.most_common(1)[0] if weights else ((0, False), 0)
    larger = sorted({size for size, _ in weights if size > 1.1 * body}, reverse=True)[:4]

    def level(block: dict) -> int:
        text = block["text"]
        if len(text) > SHORT or block["code"] or not re.search(r"[^\W\d]", text):
            return 0
        if block["size"] in larger:
            return larger.index(block["size"]) + 1
        stands_out = block["bold"] and not body_bold and block["size"] >= body and text[-1] not in ".:,;"
        return len(larger) + 1 if stands_out else 0

    return level
