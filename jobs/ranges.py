"""`Range` requests on a file that never changes (RFC 9110, section 14)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from jobs.errors import RangeNotSatisfiable

_ONE_RANGE = re.compile(r"bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class Part:
    """Which bytes to send."""

    start: int
    length: int
    is_partial: bool


def wanted(headers: Mapping[str, str], *, etag: str, size: int) -> Part:
    """What the client asks for; everything, unless it is one range of the very file it means.

    Several ranges are answered with the whole file, as section 14.2 allows. Raises RangeNotSatisfiable.
    """
    whole = Part(0, size, is_partial=False)
    found = _ONE_RANGE.fullmatch(headers.get("Range", ""))
    if found is None or found[1] == found[2] == "":
        return whole
    if headers.get("If-Range", etag) != etag:
        return whole
    if found[1] == "":  # the last so many bytes
        length = min(int(found[2]), size)
        start = size - length
    else:
        start = int(found[1])
        end = min(int(found[2]), size - 1) if found[2] else size - 1
        if found[2] and int(found[2]) < start:
            return whole  # not a range at all
        length = end - start + 1
    if length <= 0 or start >= size:
        raise RangeNotSatisfiable(f"The file has {size} bytes", headers={"Content-Range": f"bytes */{size}"})
    return Part(start, length, is_partial=True)
