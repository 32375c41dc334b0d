"""Documents to Markdown: PDF by pdfplumber, Word by mammoth, web pages and Word's HTML by markdownify."""

import re
from pathlib import Path
from xml.parsers.expat import ExpatError
from zipfile import BadZipFile
from zlib import error as ZlibError

from engine_agent import UserError
from files import kind_of, read_text

LIGATURES = str.maketrans({"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "\xad": "", "\xa0": " "})
TITLES = "p[style-name='Title'] => h1:fresh\np[style-name='Subtitle'] => h2:fresh"
LEFT_OUT = ["script", "style", "noscript", "template", "svg", "iframe", "nav", "form", "button", "head"]
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
        from pdf import pdf_to_markdown

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
    for tag in page(LEFT_OUT):
        tag.decompose()
    for image in page("img", src=re.compile(r"^data:", re.I)):
        image.decompose()
    for text in [text for cell in page(["td", "th"]) for text in cell.find_all(string=re.compile(r"\|"))]:
        text.replace_with(text.replace("|", "\\|"))
    main = page.find("main") or page.find("article") or page.body or page
    try:
        return MarkdownConverter(heading_style="ATX", bullets="-", table_infer_header=True).convert_soup(main)
    except RecursionError as error:
        raise UserError("The page is nested too deep.", remedy="Print it to a PDF and send that.") from error


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
    except (KeyError, ValueError, OSError, BadZipFile, ExpatError, ZlibError) as error:
        raise UserError(
            f"{path.name} is damaged: {error}", remedy="Open it in Word and save it again."
        ) from error
