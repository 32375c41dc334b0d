"""The secret of a key: `engine_live_` + 256 random bits in base 62 + a checksum.

The fixed first part lets secret scanners find leaked keys; the checksum lets them, and us, tell a real one
from noise without asking the database.
"""

import hashlib
import re
import secrets
import string
import zlib

MODES = ("live", "test")
_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_RANDOM_CHARS = 43  # 62**43 > 2**256
_CHECKSUM_CHARS = 6  # 62**6 > 2**32
_SHAPE = re.compile(rf"engine_(?:live|test)_[0-9A-Za-z]{{{_RANDOM_CHARS + _CHECKSUM_CHARS}}}")
_SHOWN_CHARS = 6


def new_secret(mode: str = "live") -> str:
    """A secret that nobody has had before."""
    body = f"engine_{mode}_{_base62(secrets.randbits(256), _RANDOM_CHARS)}"
    return body + _checksum(body)


def is_well_formed(secret: str) -> bool:
    """Whether this could be one of ours at all."""
    return (
        _SHAPE.fullmatch(secret) is not None
        and _checksum(secret[:-_CHECKSUM_CHARS]) == secret[-_CHECKSUM_CHARS:]
    )


def digest(secret: str) -> bytes:
    """What is stored: SHA-256."""
    return hashlib.sha256(secret.encode()).digest()


def prefix(secret: str) -> str:
    """The part that may be shown, for people to tell keys apart."""
    return secret[: len("engine_live_") + _SHOWN_CHARS]


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECKSUM_CHARS)


def _base62(number: int, width: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, len(_ALPHABET))
        digits = _ALPHABET[digit] + digits
    return digits.rjust(width, _ALPHABET[0])
