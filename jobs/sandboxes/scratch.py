"""The folders on the host that hold what sandboxes see read-only. No program ever writes in them."""

import contextlib
import fcntl
import io
import itertools
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .base import SandboxFile
from .bubblewrap import READ_ONLY_FOLDERS


@dataclass
class Scratch:
    """This worker's folder for read-only inputs, and the lock that says it is alive."""

    path: Path
    lock: int

    def release(self) -> None:
        """Give the folder up; a later start deletes what is left of it."""
        os.close(self.lock)


def own_scratch(folder: Path) -> Scratch:
    """A new folder for this worker; folders of workers that are gone are deleted. Nothing in them is a program's."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)
    for old in folder.glob("run-*.lock"):
        with contextlib.suppress(BlockingIOError, FileNotFoundError), old.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(old.with_suffix(""), ignore_errors=True)
            old.unlink()
    for number in itertools.count(os.getpid() * 1000):
        path = folder / f"run-{number}"
        lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_nlink:  # else another worker has swept it before it was locked
                path.mkdir()
                path.chmod(0o711)
                return Scratch(path, lock)
        except (BlockingIOError, FileExistsError):
            pass  # another container's process of the same id
        os.close(lock)
    raise AssertionError("numbers do not end")


def make_box(folder: Path) -> None:
    """The folders that a sandbox sees read-only; the launcher opens the outer one to the sandbox's own group."""
    folder.mkdir(mode=0o750)
    for name in READ_ONLY_FOLDERS:
        (folder / name).mkdir()
        (folder / name).chmod(0o755)


def write_files(folder: Path, files: Sequence[SandboxFile]) -> None:
    """Write files that a sandbox will see read-only."""
    for file in files:
        target = folder / file.path
        for parent in reversed(target.relative_to(folder).parents[:-2]):
            (folder / parent).mkdir(exist_ok=True)
            (folder / parent).chmod(0o755)
        with open_source(file) as source, target.open("xb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
        target.chmod(0o755 if file.executable else 0o644)


def open_source(file: SandboxFile) -> BinaryIO:
    """A file's bytes as a stream."""
    return io.BytesIO(file.source) if isinstance(file.source, bytes) else file.source.open("rb")
