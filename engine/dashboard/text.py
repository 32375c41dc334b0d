"""Text from agents and callers, shown so that it cannot look like something else than it is."""

import re

from markdown_it import MarkdownIt

# What agents may mark up in a question or a remedy: emphasis, code, lists. No HTML; no pictures, which would be
# fetched from elsewhere; no links, whose text could name another place than they lead to; no headings of our page.
_MARKDOWN = MarkdownIt("commonmark", {"html": False, "breaks": True}).disable(
    ["image", "link", "autolink", "reference", "heading", "lheading", "html_inline", "html_block"]
)

# A document among the artifacts: its headings and tables too, under the same rules.
_DOCUMENT = (
    MarkdownIt("commonmark", {"html": False})
    .enable("table")
    .disable(["image", "link", "autolink", "reference", "html_inline", "html_block"])
)

# Controls (tab and line feed apart), and the marks that turn the direction of text or have no width: a name or a
# line could otherwise show something else than it holds. `static/engine/log.js` has the same list.
HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]"
)
_FIRST_16 = "NUL SOH STX ETX EOT ENQ ACK BEL BS TAB LF VT FF CR SO SI"
_NEXT_16 = "DLE DC1 DC2 DC3 DC4 NAK SYN ETB CAN EM SUB ESC FS GS RS US"
_CONTROLS = [*_FIRST_16.split(" "), *_NEXT_16.split(" ")]


def code_point(character: str) -> str:
    """A character by its number: "U+202E"."""
    return f"U+{ord(character):04X}"


def sign(character: str) -> str:
    """What is shown in place of a character that would not show: "ESC", or its code point."""
    code = ord(character)
    if code < len(_CONTROLS):
        return _CONTROLS[code]
    return "DEL" if code == 0x7F else code_point(character)


def plain(text: object) -> str:
    """The text with each hidden character as ‹ESC›, for places that take no markup."""
    return HIDDEN.sub(lambda found: f"‹{sign(found[0])}›", str(text))


def escaped(json_text: str) -> str:
    """JSON text with each hidden character as its \\u escape: the same value, and nothing hides in it."""
    return HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", json_text)


def markdown(text: object) -> str:
    """The text's Markdown as HTML, hidden characters shown."""
    return str(_MARKDOWN.render(plain(text)))


def document(text: object) -> str:
    """A whole Markdown document as HTML, hidden characters shown."""
    return str(_DOCUMENT.render(plain(text)))


def markdown_line(text: object) -> str:
    """The same within a line: emphasis and code alone."""
    return str(_MARKDOWN.renderInline(plain(text)))
