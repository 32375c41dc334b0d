"""Input files of a job: what comes as multipart is named safely, measured, told by its content, and stored."""

import contextlib
import logging
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from uuid import UUID

from django.conf import settings
from django.core.files.uploadedfile import UploadedFile
from django.db import DatabaseError, InterfaceError

from engine.errors import ValidationFailed
from jobs import storage
from jobs.errors import FilesTooLarge, StorageUnavailable
from jobs.models import Job
from jobs.serializers import MOST_FILES
from jobs.services import StoredUpload

log = logging.getLogger("engine.storage")

# Bytes: ext4, NTFS and S3 keys take 255 and more; room is left for the number that tells twins apart.
LONGEST_NAME = 200
LONGEST_SUFFIX = 20

# What some file system or shell gives a meaning to.
_UNSAFE = re.compile(r'[<>:"|?*]')
NAMELESS = "file"

Keep = Callable[[], None]


@contextmanager
def stored(
    files: Sequence[UploadedFile], *, project_id: UUID, job_id: UUID
) -> Iterator[tuple[list[StoredUpload], Keep]]:
    """Store files for a job to be. They are deleted again unless `keep` is called inside the context.

    After a fault of the database nobody knows whether the job was committed. Then they stay: a file too many costs
    less than a job without its files.

    Raises FilesTooLarge or ValidationFailed before anything is stored, and StorageUnavailable.
    """
    check(files)
    kept = False

    def keep() -> None:
        nonlocal kept
        kept = True

    uploads: list[StoredUpload] = []
    try:
        for file, name in zip(files, unique_names([file.name or "" for file in files]), strict=True):
            uploads.append(_store(file, name, folder=storage.job_folder(project_id, job_id)))
        yield uploads, keep
    except (DatabaseError, InterfaceError):
        keep()
        raise
    finally:
        if not kept and uploads and not Job.objects.filter(id=job_id).exists():
            with contextlib.suppress(
                storage.StorageFailed
            ):  # it is away: a few files stay, the answer is another
                storage.delete({upload.storage_key for upload in uploads})


def check(files: Sequence[UploadedFile]) -> None:
    """Raise FilesTooLarge or ValidationFailed for more than a job may have."""
    if len(files) > MOST_FILES:
        raise ValidationFailed(errors=[{"pointer": "/files", "detail": f"At most {MOST_FILES} files."}])
    limit = settings.ENGINE_MAX_UPLOAD_BYTES
    total = sum(file.size or 0 for file in files)
    if total > limit:
        raise FilesTooLarge(
            f"All files together may have {limit:,} bytes; these have {total:,}.", limit=limit
        )


def _store(file: UploadedFile, name: str, *, folder: str) -> StoredUpload:
    try:
        blob = storage.store_blocks(
            file.chunks(storage.BLOCK_BYTES), folder=folder, most_bytes=settings.ENGINE_MAX_UPLOAD_BYTES
        )
    except storage.StorageFailed as error:
        log.warning("%s", error)  # the caller need not know where files lie
        raise StorageUnavailable("The files cannot be stored right now") from error
    return StoredUpload(
        name=name,
        media_type=storage.media_type(name, blob.head),
        size=blob.size,
        sha256=blob.sha256,
        storage_key=blob.key,
    )


def unique_names(names: Sequence[str]) -> list[str]:
    """Safe names, no two of which any file system would take for the same."""
    taken: set[str] = set()
    given: list[str] = []
    for name in map(safe_name, names):
        stem, suffix = _split(name)
        candidate, number = name, 1
        while candidate.casefold() in taken:
            number += 1
            candidate = f"{stem} ({number}){suffix}"
        taken.add(candidate.casefold())
        given.append(candidate)
    return given


def safe_name(name: str) -> str:
    """The last part of what a client calls its file, in NFC, without what cannot be seen or means something else."""
    name = unicodedata.normalize("NFC", name).replace("\\", "/").rsplit("/", 1)[-1]
    name = "".join(char if char.isprintable() else " " for char in name)
    name = " ".join(_UNSAFE.sub("_", name).split()).rstrip(". ")
    if not name.strip("._ "):
        return NAMELESS
    stem, suffix = _split(name)
    return _cut(stem, LONGEST_NAME - len(suffix.encode())) + suffix


def _split(name: str) -> tuple[str, str]:
    """Stem and suffix; what is too long to be a suffix belongs to the stem."""
    stem, dot, suffix = name.rpartition(".")
    if not stem or len(suffix.encode()) > LONGEST_SUFFIX:
        return name, ""
    return stem, dot + suffix


def _cut(text: str, most_bytes: int) -> str:
    """At most so many bytes of UTF-8, no character cut in two."""
    return text.encode()[:most_bytes].decode(errors="ignore").rstrip()
