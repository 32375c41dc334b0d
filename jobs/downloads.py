"""Artifacts as downloads: whole or in part, never held in memory, and nothing that a browser would run."""

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import IO

from django.http import HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.utils.cache import get_conditional_response
from django.utils.http import content_disposition_header
from rest_framework.request import Request

from jobs import storage
from jobs.errors import ArtifactNotFound, RangeNotSatisfiable, StorageUnavailable
from jobs.models import Artifact

log = logging.getLogger("engine.storage")

# What a browser may show by itself, and as what: everything else is only ever downloaded.
SHOWN_AS = {
    "image/png": "image/png",
    "image/jpeg": "image/jpeg",
    "application/json": "application/json",
    "text/csv": "text/plain; charset=utf-8",
    "text/plain": "text/plain; charset=utf-8",
    "text/markdown": "text/plain; charset=utf-8",
}
BLOCK_BYTES = 256 * 1024


def download(request: Request, artifact: Artifact, *, inline: bool) -> HttpResponseBase:
    """The answer that carries an artifact's bytes: made by an agent, so nothing in them may run in a browser."""
    shown = SHOWN_AS.get(artifact.media_type) if inline else None
    headers = {
        "Content-Type": shown or artifact.media_type,
        "Content-Disposition": content_disposition_header(shown is None, artifact.name.rpartition("/")[2])
        or "",
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "private, no-cache",
        "Accept-Ranges": "bytes",
        "ETag": f'"{artifact.sha256}"',
    }
    unchanged = get_conditional_response(
        request._request, etag=headers["ETag"], response=HttpResponse(headers=headers)
    )
    if unchanged is not None and unchanged.status_code != HTTPStatus.OK:
        return unchanged
    part = wanted(request.headers, etag=headers["ETag"], size=artifact.size)
    headers["Content-Length"] = str(part.length)
    if part.is_partial:
        headers["Content-Range"] = f"bytes {part.start}-{part.start + part.length - 1}/{artifact.size}"
    status = HTTPStatus.PARTIAL_CONTENT if part.is_partial else HTTPStatus.OK
    if request.method == "HEAD":
        return HttpResponse(status=status, headers=headers)
    blocks = Blocks(opened(artifact, part), part.length)
    return StreamingHttpResponse(blocks, status=status, headers=headers)


def opened(artifact: Artifact, part: "Part") -> IO[bytes]:
    """The stored bytes. Raises ArtifactNotFound where they are gone, StorageUnavailable where the storage is away."""
    try:
        return storage.read_part(artifact.storage_key, part.start, part.length)
    except storage.BlobMissing:
        raise ArtifactNotFound("The file is no longer stored", artifact_id=str(artifact.id)) from None
    except storage.StorageFailed as error:
        log.warning("%s", error)  # the caller need not know where files lie
        raise StorageUnavailable("The file cannot be read right now") from error


class Blocks(Iterator[bytes]):
    """A file in blocks. Whoever sends them waits for the client between two, and closes it at the end."""

    def __init__(self, file: IO[bytes], length: int) -> None:
        self.file = file
        self.left = length

    def __next__(self) -> bytes:
        """The next block. Raises StorageFailed where the file ends early: the client was promised all of it."""
        if not self.left:
            raise StopIteration
        block = self.file.read(min(self.left, BLOCK_BYTES))
        if not block:
            raise storage.StorageFailed(f"A stored file ended {self.left} bytes early")
        self.left -= len(block)
        return block

    def close(self) -> None:
        """Close the file."""
        self.file.close()


# --- ranges (RFC 9110, section 14) ---

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
