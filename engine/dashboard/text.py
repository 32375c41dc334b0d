"""Text from agents and callers, shown so that it cannot look like something else than it is."""

import re

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
