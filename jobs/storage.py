"""The bytes that belong to jobs: input files, checkpoint files, artifacts. All lie in `storages["artifacts"]`.

A file is received into a spool file beside the storage and moved there when it is whole, so that a crash leaves no half
file under a name that a row could hold. Keys are `folder/sha256`: equal content of one folder is stored once.
"""

import asyncio
import contextlib
import hashlib
import os
import shutil
import tempfile
import unicodedata
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any
from uuid import UUID

from django.conf import settings
from django.core.files import File
from django.core.files.storage import FileSystemStorage, Storage, storages

from jobs import failpoints

BLOCK_BYTES = 1024 * 1024
HEAD_BYTES = 4096
# Between a worker's tries to store a file: the program that made it has run, and would have to run again.
PAUSES = (0.5, 1.0, 2.0)


class StorageFailed(Exception):
    """The storage could not be read or written: the platform's trouble, not the job's."""


class BlobMissing(StorageFailed):
    """Nothing is stored under this key (any more)."""


class TooLarge(Exception):
    """More bytes came than were allowed."""


@dataclass(frozen=True)
class Blob:
    """Stored bytes. `head` is their beginning, to tell the media type by."""

    key: str
    size: int
    sha256: str
    head: bytes


def storage() -> Storage:
    """Where the bytes of all jobs lie."""
    return storages["artifacts"]


def job_folder(project_id: UUID, job_id: UUID) -> str:
    """The folder of one job's files; retention deletes by it."""
    return f"{project_id}/{job_id}"


class Spool:
    """A file being received. Use as a context: what was not stored is deleted at its end."""

    def __init__(self, *, most_bytes: int) -> None:
        self.size = 0
        self.head = b""
        self._most = most_bytes
        self._digest = hashlib.sha256()
        folder = Path(settings.ENGINE_HOME) / "spool"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=folder)
        except OSError as error:
            raise StorageFailed(f"No spool file could be made: {error.strerror}") from error
        self.path = Path(name)
        self._file = os.fdopen(descriptor, "wb")

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        self.path.unlink(missing_ok=True)

    def write(self, data: bytes) -> None:
        """Take the next bytes. Raises TooLarge."""
        self.size += len(data)
        if self.size > self._most:
            raise TooLarge
        if len(self.head) < HEAD_BYTES:
            self.head += data[: HEAD_BYTES - len(self.head)]
        self._digest.update(data)
        try:
            self._file.write(data)
        except OSError as error:
            raise StorageFailed(f"The spool file could not be written: {error.strerror}") from error

    def store(self, folder: str) -> Blob:
        """Move what came into the storage. After a StorageFailed it may be tried again."""
        sha256 = self._digest.hexdigest()
        try:
            if not self._file.closed:
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
            key = _save(self.path, f"{folder}/{sha256}", self.size)
        except Exception as error:  # each storage backend raises classes of its own
            raise StorageFailed(f"A file could not be stored: {error}") from error
        return Blob(key=key, size=self.size, sha256=sha256, head=self.head)


class _Whole(File):  # type: ignore[type-arg]  # generic in the stubs alone
    """A finished file on disk; FileSystemStorage renames it instead of copying."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.open("rb"), name=path.name)
        self._path = path

    def temporary_file_path(self) -> str:
        return str(self._path)


def _save(path: Path, key: str, size: int) -> str:
    target = storage()
    if target.exists(key) and target.size(key) == size:
        return key
    failpoints.hit("storage.before_save")
    with _Whole(path) as whole:
        saved = target.save(key, whole)
    if isinstance(target, FileSystemStorage):
        _sync_folder(Path(target.path(saved)).parent)
    failpoints.hit("storage.after_save")
    return saved


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def store(blocks: AsyncIterator[bytes], *, folder: str, most_bytes: int) -> Blob:
    """Store a stream. Raises TooLarge, StorageFailed, and what the stream raises."""
    spool = await asyncio.to_thread(lambda: Spool(most_bytes=most_bytes))
    with spool:
        waiting = bytearray()
        async for block in blocks:
            waiting += block
            if len(waiting) >= BLOCK_BYTES:
                await asyncio.to_thread(spool.write, bytes(waiting))
                waiting.clear()
        spool.write(bytes(waiting))
        for pause in (*PAUSES, None):
            try:
                return await asyncio.to_thread(spool.store, folder)
            except StorageFailed:
                if pause is None:
                    raise
                await asyncio.sleep(pause)
        raise AssertionError("the last try returns or raises")


def store_blocks(blocks: Iterable[bytes], *, folder: str, most_bytes: int) -> Blob:
    """Store what comes in blocks, such as an upload's chunks. Raises TooLarge, StorageFailed."""
    with Spool(most_bytes=most_bytes) as spool:
        for block in blocks:
            spool.write(block)
        return spool.store(folder)


@contextlib.contextmanager
def local_file(key: str) -> Iterator[Path]:
    """A path to read stored bytes from, good inside the context. Raises BlobMissing, StorageFailed."""
    target = storage()
    if not isinstance(target, FileSystemStorage):
        with _fetched(target, key) as path:
            yield path
        return
    path = Path(target.path(key))
    if not path.is_file():
        raise BlobMissing(f"The stored file {key} is gone.")
    yield path


@contextlib.contextmanager
def _fetched(target: Storage, key: str) -> Iterator[Path]:
    folder = Path(settings.ENGINE_HOME) / "spool"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder) as copy:
        try:
            with target.open(key, "rb") as stored:
                shutil.copyfileobj(stored, copy, BLOCK_BYTES)
        except FileNotFoundError as error:
            raise BlobMissing(f"The stored file {key} is gone.") from error
        except Exception as error:  # each storage backend raises classes of its own
            raise StorageFailed(f"A stored file could not be read: {error}") from error
        copy.flush()
        yield Path(copy.name)


async def read_text(key: str) -> str | None:
    """Stored bytes as UTF-8 text, or None if they are none. Raises BlobMissing, StorageFailed."""

    def read() -> str | None:
        with local_file(key) as path:
            data = path.read_bytes()
        try:
            return None if b"\x00" in data else data.decode("utf-8-sig")
        except UnicodeDecodeError:
            return None

    return await asyncio.to_thread(read)


def delete(keys: Iterable[str]) -> None:
    """Forget stored bytes; those that are gone already are no error."""
    target = storage()
    try:
        for key in keys:
            target.delete(key)
    except Exception as error:  # each storage backend raises classes of its own
        raise StorageFailed(f"A stored file could not be deleted: {error}") from error


def read_part(key: str, start: int, length: int) -> IO[bytes]:
    """Stored bytes to be read from `start` on; close it. Raises BlobMissing, StorageFailed."""
    target = storage()
    try:
        if stream := getattr(target, "stream", None):  # see jobs/s3.py
            body: IO[bytes] = stream(key, start, length) if length else BytesIO()
            return body
        file = target.open(key, "rb")
        file.seek(start)
        return file
    except FileNotFoundError as error:
        raise BlobMissing(f"The stored file {key} is gone.") from error
    except Exception as error:  # each storage backend raises classes of its own
        raise StorageFailed(f"A stored file could not be read: {error}") from error


# --- what a file is ---

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"%PDF-", "application/pdf"),
    (b"\x1f\x8b", "application/gzip"),
    (b"PAR1", "application/vnd.apache.parquet"),
    (b"SQLite format 3\x00", "application/vnd.sqlite3"),
)
_OFFICE = "application/vnd.openxmlformats-officedocument."
_IN_ZIP = {
    ".docx": f"{_OFFICE}wordprocessingml.document",
    ".xlsx": f"{_OFFICE}spreadsheetml.sheet",
    ".pptx": f"{_OFFICE}presentationml.presentation",
    ".odt": "application/vnd.oasis.opendocument.text",
    ".ods": "application/vnd.oasis.opendocument.spreadsheet",
    ".epub": "application/epub+zip",
}
_TEXT = {
    ".csv": "text/csv",
    ".tsv": "text/tab-separated-values",
    ".json": "application/json",
    ".ndjson": "application/x-ndjson",
    ".jsonl": "application/x-ndjson",
    ".md": "text/markdown",
    ".html": "text/html",
    ".htm": "text/html",
    ".svg": "image/svg+xml",
    ".xml": "application/xml",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".py": "text/x-python",
    ".css": "text/css",
    ".js": "text/javascript",
}
UNKNOWN = "application/octet-stream"


def media_type(name: str, head: bytes) -> str:
    """What a file is by its first bytes; the name only chooses among kinds that these allow. Never trust it."""
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return kind
    suffix = PurePosixPath(name).suffix.lower()
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "image/webp"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _IN_ZIP.get(suffix, "application/zip")
    return _TEXT.get(suffix, "text/plain") if _is_text(head) else UNKNOWN


def _is_text(head: bytes) -> bool:
    if any(byte < 32 and byte not in b"\t\n\x0c\r\x1b" for byte in head):
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data" and len(head) == HEAD_BYTES  # a character cut in two
    return True


def clean_name(name: Any) -> str | None:
    """A relative name that is safe to show, store and download under, `/` between folders; None if there is none."""
    if not isinstance(name, str) or not 0 < len(name) <= 400:
        return None
    name = unicodedata.normalize("NFC", name)
    parts = name.split("/")
    if (
        not name.isprintable()
        or "\\" in name
        or any(part.strip(". ") == "" or len(part) > 200 for part in parts)
    ):
        return None
    return "/".join(part.strip() for part in parts)
