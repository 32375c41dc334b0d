"""What a person handed over: which file, what it really is, its text. Every error says what to do next."""

import re
import zipfile
from pathlib import Path

from engine_agent import UserError, ask, inputs_dir, log

# What a file is by its first bytes, whatever its name says.
MAGIC = {
    b"\x89PNG\r\n": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"PK\x03\x04": "a damaged Office or ZIP file",  # a sound one has been recognised before
    b"RIFF": "an audio, video or WebP file",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf": "a 7-Zip archive",
    b"Rar!": "a RAR archive",
    b"SQLite format 3": "an SQLite database",
    b"PAR1": "a Parquet file",
    b"\x7fELF": "a program",
    b"MZ": "a program",
    b"{\\rtf": "an RTF document",
    b"\xd0\xcf\x11\xe0": "an old Office file (.doc, .xls)",
}
ZIP_MEMBERS = {
    "word/document.xml": "a Word document",
    "xl/workbook.xml": "an Excel workbook",
    "ppt/presentation.xml": "a PowerPoint file",
}
BOMS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe\0\0": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
HTML = re.compile(
    r"\s*(<!--.*?-->\s*|<\?xml[^>]*>\s*)*<(!doctype html|html|head|body|main|article|div|h1|p)\b", re.I | re.S
)
CONTROLS = re.compile(r"[\0-\x08\x0e-\x1a\x1c-\x1f\ufffd]")
HEAD_BYTES = 256 * 1024
LONG_PASSAGE = 25  # words

YES = {"yes", "y", "yep", "yeah", "ok", "okay", "sure", "proceed", "continue", "go", "sample", "demo"}
NO = {"no", "n", "nope", "stop", "cancel", "nothing", "none"}
FILLER = {
    "a", "ahead", "analyse", "analysis", "analyze", "and", "chart", "convert", "data", "demo", "do", "document",
    "example", "file", "for", "it", "job", "just", "log", "me", "my", "on", "page", "please", "profile", "report",
    "reviews", "run", "shipped", "show", "start", "summarise", "summarize", "summary", "table", "text", "thank",
    "thanks", "that", "the", "then", "this", "to", "try", "use", "using", "with", "you", "your",
}  # fmt: skip


def choose_file(task: str, *, what: str, sample: str) -> tuple[Path, str]:
    """The file to work on, and where it comes from: `file`, `pasted` or `sample`.

    One file: that one. Several: the one the task names, or a question. None: a person pastes `what`
    (kept in the workspace), or agrees to the sample, a file beside the agent.
    """
    files = input_files()
    if not files:
        return paste_or_sample(what, Path(__file__).with_name(sample))
    named = [path for path in files if path.name.lower() in task.lower()]
    if len(named) != 1 and len(files) > 1:
        name = ask(
            f"{len(files)} files came along. Which one holds the {what}?", choices=[p.name for p in files]
        )
        named = [path for path in files if path.name == name]
    path = named[0] if named else files[0]
    log(f"Working on {path.name} ({size_of(path)})")
    return path, "file"


def input_files() -> list[Path]:
    """The files that came with the job, by name."""
    return sorted(path for path in inputs_dir.iterdir() if path.is_file())


def text_in_task(task: str) -> str:
    """The text that a task carries: its further lines, a quotation, or a long passage after a colon; else nothing.

    A short second line or a few words after a colon are rather part of what is asked.
    """
    first, _, rest = task.strip().partition("\n")
    quoted = re.search(r"[\"\u201c](.+)[\"\u201d]", first)
    if len(rest.strip().splitlines()) > 1 or len(rest.split()) >= LONG_PASSAGE:
        return rest.strip()
    if quoted and len(quoted[1].split()) >= 3:
        return quoted[1]
    after = first.partition(":")[2].strip()
    return after if len(after.split()) >= LONG_PASSAGE else ""


def paste_or_sample(what: str, sample: Path) -> tuple[Path, str]:
    """Ask for the `what` itself; a yes means the shipped sample."""
    log(f"No file came with this job: asking for the {what}", level="warning")
    answer = ask(
        f"No file came with this job. Paste the {what} here, "
        "or answer **Yes, proceed with the analysis** to see the result on a shipped sample."
    )
    words = set(re.findall(r"\w+", answer.lower()))
    if words & YES and words <= YES | FILLER:
        log(f"Going on with the shipped sample {sample.name}")
        return sample, "sample"
    if not words or words <= NO | FILLER:
        raise UserError(
            f"There is nothing to work on: no {what} came.",
            remedy="Start a new job and attach the file to it.",
        )
    pasted = Path("pasted.txt")
    pasted.write_text(answer.strip() + "\n", encoding="utf-8")
    log(f"Working on the pasted text ({len(answer.splitlines()):,} lines)")
    return pasted, "pasted"


def size_of(path: Path) -> str:
    """The size of a file for people: `312 KB`."""
    size = float(path.stat().st_size)
    for unit in ("bytes", "KB", "MB"):
        if size < 1024:
            return f"{size:,.0f} {unit}"
        size /= 1024
    return f"{size:,.1f} GB"


def kind_of(path: Path) -> str:
    """What the file is by its content: `empty`, `text`, or a phrase such as `a PDF document` or `a web page`."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head.strip():
        return "empty"
    if b"%PDF-" in head[:1024]:
        return "a PDF document"
    if head.startswith(b"PK") and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
        return next((kind for member, kind in ZIP_MEMBERS.items() if member in names), "a ZIP archive")
    for magic, kind in MAGIC.items():
        if head.startswith(magic):
            return kind
    start = head.decode(
        wide_encoding(head) or "latin-1", errors="replace"
    )  # tags are ASCII in any other encoding
    return "a web page" if HTML.match(start) else "text"


def read_text(path: Path) -> str:
    """The whole text of a text file, whatever its encoding."""
    return path.read_text(encoding=encoding_of(path), errors="replace")


def encoding_of(path: Path) -> str:
    """The encoding of a text file, tried on all of it. Raises UserError when it is not text.

    Order: byte order mark, strict UTF-8, UTF-16 by its zero bytes, then a guess that is said in the log.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    encoding = wide_encoding(head)
    if encoding is None:
        encoding = "utf-8" if decodes(path, "utf-8") else guess_encoding(head)
    text = head.decode(encoding, errors="replace")
    if len(CONTROLS.findall(text)) > len(text) / 50:
        raise UserError(
            f"{path.name} is not text: it holds binary data.",
            remedy="Open it in the program it came from and save it as UTF-8 text (or CSV, for a table).",
        )
    return encoding


def wide_encoding(head: bytes) -> str | None:
    """The encoding that a byte order mark, or the zero bytes of UTF-16, give away."""
    for bom, name in BOMS.items():
        if head.startswith(bom):
            return name
    if head.count(0) > len(head) / 4:
        return "utf-16-le" if head[1::2].count(0) > head[0::2].count(0) else "utf-16-be"
    return None


def decodes(path: Path, encoding: str) -> bool:
    """Whether the whole file is valid in this encoding."""
    try:
        with path.open(encoding=encoding) as file:
            while file.read(1 << 20):
                pass
    except UnicodeDecodeError:
        return False
    return True


def guess_encoding(head: bytes) -> str:
    """A likely encoding for text that is not valid UTF-8."""
    text = head.decode("utf-8", errors="replace")
    broken = text.count("\ufffd")
    if sum(char > "\x7f" for char in text) > 10 * broken:
        encoding = "utf-8"  # a few broken bytes in a file that is UTF-8 otherwise
    elif sum(byte > 0x7F for byte in head) < len(head) / 8:
        encoding = (
            "cp1252"  # mostly ASCII: detectors have too little to go by, Western European is the best bet
        )
    else:
        from charset_normalizer import from_bytes

        best = from_bytes(head).best()
        encoding = best.encoding if best else "cp1252"
    log(
        f"The file is not clean UTF-8: reading it as {encoding}. Save it as UTF-8 if letters look wrong.",
        level="warning",
    )
    return encoding
