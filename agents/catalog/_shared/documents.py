"""Documents to Markdown: PDF by pdfplumber, Word by mammoth, web pages and Word's HTML by markdownify."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine_agent import UserError, progress, step
from files import kind_of, read_text

PAGES_AT_ONCE = 10
LIGATURES = str.maketrans({"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "\xad": "", "\xa0": " "})
MONOSPACE = re.compile(r"mono|courier|consol|menlo|cmtt|typewriter", re.I)
TITLES = "p[style-name='Title'] => h1:fresh\np[style-name='Subtitle'] => h2:fresh"
BULLET = re.compile(r"^[•●▪◦‣∙·\u2013\u2014*-](\s+|$)")
REMEDIES = {
    "an old Office file (.doc, .xls)": "Save it as .docx or PDF and send it again.",
    "an RTF document": "Save it as .docx or PDF and send it again.",
    "an Excel workbook": "For tables, start a job such as “Profile this table”.",
}


def to_markdown(path: Path, media: Path | None = None) -> str:
    """The document as Markdown. Pictures of Word files are written into the folder `media`, where one is given.

    Raises UserError for what is no document, is locked, or holds only pictures of text.
    """
    kind = kind_of(path)
    if kind == "empty":
        raise UserError(f"{path.name} is empty.", remedy="Send a file with content.")
    if kind == "a PDF document":
        text = pdf_to_markdown(path)
    elif kind == "a Word document":
        text = html_to_markdown(docx_to_html(path, media))
    elif kind == "a web page":
        text = html_to_markdown(read_text(path))
    elif kind == "text":
        text = read_text(path)
    else:
        remedy = REMEDIES.get(kind, "Send a PDF, a Word document (.docx), a web page (.html) or a text file.")
        raise UserError(f"{path.name} is {kind}, which this agent cannot read.", remedy=remedy)
    text = re.sub(r"\n{3,}", "\n\n", text.translate(LIGATURES)).strip()
    if not text:
        raise UserError(f"{path.name} holds no text.", remedy="Check that the file is the one you meant.")
    return text + "\n"


def html_to_markdown(html: str) -> str:
    """The main part of a page as Markdown: scripts, styles, menus and embedded pictures are left out."""
    from bs4 import BeautifulSoup
    from markdownify import MarkdownConverter

    page = BeautifulSoup(html, "html.parser")
    for tag in page(
        ["script", "style", "noscript", "template", "svg", "iframe", "nav", "form", "button", "head"]
    ):
        tag.decompose()
    for image in page("img", src=re.compile(r"^data:", re.I)):
        image.decompose()
    for text in [text for cell in page(["td", "th"]) for text in cell.find_all(string=re.compile(r"\|"))]:
        text.replace_with(text.replace("|", "\\|"))
    main = page.find("main") or page.find("article") or page.body or page
    return MarkdownConverter(heading_style="ATX", bullets="-", table_infer_header=True).convert_soup(main)


def docx_to_html(path: Path, media: Path | None) -> str:
    """Word's content as HTML, by its styles."""
    import mammoth

    def save(image):
        if media is None:
            return {"src": "data:,"}
        media.mkdir(exist_ok=True)
        kind = re.sub(r"[^a-z]", "", image.content_type.partition("/")[2].lower()) or "bin"
        target = media / f"picture-{len(list(media.iterdir())) + 1}.{kind}"
        with image.open() as source:
            target.write_bytes(source.read())
        return {"src": f"{media.name}/{target.name}"}

    try:
        with path.open("rb") as file:
            pictures = mammoth.images.img_element(save)
            return mammoth.convert_to_html(file, convert_image=pictures, style_map=TITLES).value
    except (KeyError, ValueError, OSError) as error:
        raise UserError(
            f"{path.name} is damaged: {error}", remedy="Open it in Word and save it again."
        ) from error


def pdf_to_markdown(path: Path) -> str:
    """The text of a PDF in reading order, with headings by size, lists, and tables that have lines."""
    pages = step("open the PDF", count_pages, path)
    blocks: list[dict] = []
    for first in range(1, pages + 1, PAGES_AT_ONCE):
        last = min(first + PAGES_AT_ONCE - 1, pages)
        part = step(f"read pages {first} to {last}", read_pages, path, first, last)
        blocks += json.loads(Path(part).read_text(encoding="utf-8"))
        progress(0.1 + 0.7 * last / pages, f"{last} of {pages} pages read")
    if sum(len(block["text"]) for block in blocks) < 10 * pages:
        raise UserError(
            f"{path.name} holds pictures of pages, not text.",
            remedy="Run text recognition (OCR) on it and send the result.",
        )
    return as_markdown(drop_repeated(blocks))


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
            raise UserError(
                f"{path.name} is locked with a password.", remedy="Save a copy without one and send that."
            ) from error
        remedy = "Open it, print it to a new PDF and send that."
        raise UserError(
            f"{path.name} cannot be read as a PDF ({error or type(error).__name__}).", remedy=remedy
        ) from error


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
    """Paragraphs and tables in reading order, as pdfminer's layout analysis finds it (columns included)."""
    from pdfminer.layout import LTTextBox

    tables = [table for table in page.find_tables() if len(table.rows) > 1 and len(table.rows[0].cells) > 1]
    blocks: list[dict] = []
    for box in page.layout:
        for line in box if isinstance(box, LTTextBox) else ():
            text = re.sub(
                r"(\. ?){4,}", " … ", " ".join(line.get_text().split())
            )  # dots lead to a page number
            left, middle = line.x0, page.height - (line.y0 + line.y1) / 2
            table = next(
                (
                    t
                    for t in tables
                    if t.bbox[0] - 2 <= left <= t.bbox[2] and t.bbox[1] <= middle <= t.bbox[3]
                ),
                None,
            )
            place = {"page": page.page_number, "at": middle / float(page.height)}
            if table is not None:
                key = tables.index(table)
                if not any(
                    block.get("table") == key and block["page"] == page.page_number for block in blocks
                ):
                    blocks.append(
                        {"text": table_to_markdown(table.extract()), "table": key, "size": 0, **place}
                    )
            elif text:
                add_line(blocks, {"text": text, "left": left, "box": id(box), **font_of(line), **place})
    return blocks


def font_of(line) -> dict:
    """The usual size of a line's characters, in half points, and whether they are bold or of equal width."""
    from pdfminer.layout import LTChar

    chars = [char for char in line if isinstance(char, LTChar)]
    size = Counter(round(2 * char.size) / 2 for char in chars).most_common(1)
    fonts = Counter(char.fontname for char in chars).most_common(1)
    name, width = (fonts[0][0], chars[0].width) if chars else ("", 1)
    return {
        "size": size[0][0] if size else 0,
        "bold": "bold" in name.lower(),
        "code": bool(MONOSPACE.search(name)) and not BULLET.match(line.get_text()),
        "width": width,
    }


def add_line(blocks: list[dict], line: dict) -> None:
    """Append a line to the paragraph it goes on with, else begin a new one."""
    last = blocks[-1] if blocks else {}
    together = ("page", "code") if line["code"] else ("box", "size", "bold", "code")
    if any(last.get(key) != line[key] for key in together) or (
        BULLET.match(line["text"]) and not line["code"]
    ):
        blocks.append(line)
    elif line["code"]:
        last["text"] += (
            "\n" + " " * round((line["left"] - last["left"]) / (line["width"] or 1)) + line["text"]
        )
    elif last["text"].endswith("-") and line["text"][:1].islower():
        last["text"] = last["text"][:-1] + line["text"]
    else:
        last["text"] += " " + line["text"]


def table_to_markdown(rows: list[list[str | None]]) -> str:
    """Rows of cells as a Markdown table; the first row is its head."""
    cells = [[" ".join((cell or "").split()).replace("|", "\\|") for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + " --- |" * len(cells[0]), *lines[1:]])


def drop_repeated(blocks: list[dict]) -> list[dict]:
    """Leave out running heads and page numbers: what stands at the edge of three pages, whatever its digits."""

    def edge(block: dict) -> str:
        return re.sub(r"\d+", "0", block["text"]) if not 0.1 < block["at"] < 0.9 else ""

    on_pages = Counter(text for text, _ in {(edge(block), block["page"]) for block in blocks} if text)
    return [block for block in blocks if on_pages[edge(block)] < 3]


def as_markdown(blocks: list[dict]) -> str:
    """Blocks with heading marks by their size, list marks, and paragraphs that a page break cut joined again."""
    weights = Counter()
    for block in blocks:
        if "table" not in block:
            weights[block["size"], block["bold"]] += len(block["text"])
    (body, body_bold), _ = weights.most_common(1)[0]
    larger = sorted({size for size, _ in weights if size > 1.1 * body}, reverse=True)[:4]
    lines: list[str] = []
    unfinished = False
    for block in blocks:
        text = block["text"]
        heading = len(text) < 160 and re.search(r"[^\W\d]", text) and not block.get("code")
        if "table" not in block and re.match(r"[#>]", text) and not block["code"]:
            text = "\\" + text
        if "table" in block:
            lines.append(text)
        elif block["code"] and "\n" in text:
            lines.append(f"```\n{text}\n```")
        elif heading and block["size"] in larger:
            lines.append("#" * (larger.index(block["size"]) + 1) + " " + text)
        elif heading and block["bold"] and not body_bold and block["size"] >= body and text[-1] not in ".:,;":
            lines.append("#" * (len(larger) + 1) + " " + text)
        elif BULLET.match(text):
            lines.append("- " + BULLET.sub("", text))
        elif unfinished and text[:1].islower():
            lines[-1] += " " + text
        else:
            lines.append(text)
        unfinished = not lines[-1].startswith(("#", "|", "`")) and lines[-1][-1] not in ".!?:"
    return re.sub(r"(?m)^(- .*)\n\n(?=- )", r"\1\n", "\n\n".join(lines))
