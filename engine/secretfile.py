"""The one file that holds this installation's secrets, readable by its owner alone."""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured


class SecretFile:
    """Names and secrets in one JSON file of mode 0600. Any number of processes may use it at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, name: str) -> str | None:
        """The secret, or None. Raises ImproperlyConfigured if others can read the file or it is damaged."""
        return self._read().get(name)

    def get_or_create(self, name: str, make: Callable[[], str]) -> str:
        """The secret; the first caller of all processes makes it, every other gets the same one."""
        found = self.get(name)
        if found is not None:
            return found
        with self._locked():
            secrets = self._read()
            if name not in secrets:
                secrets[name] = make()
                self._write(secrets)
            return secrets[name]

    def put(self, name: str, value: str) -> None:
        """Store or replace one secret."""
        with self._locked():
            self._write({**self._read(), name: value})

    def _read(self) -> dict[str, str]:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return {}
        with os.fdopen(descriptor, encoding="utf-8") as file:
            if os.fstat(descriptor).st_mode & 0o077:
                raise ImproperlyConfigured(
                    f"{self.path} can be read by other users: run chmod 600 {self.path}."
                )
            try:
                secrets = json.load(file)
            except ValueError:
                raise ImproperlyConfigured(f"{self.path} is damaged: restore it from a backup.") from None
        return {str(name): str(value) for name, value in secrets.items()}

    def _write(self, secrets: dict[str, str]) -> None:
        new = self.path.with_name(self.path.name + ".new")
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(secrets, file, indent=2)
            file.flush()
            os.fsync(descriptor)
        new.replace(self.path)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        make_private(self.path.parent)
        # The folder carries the lock: the file itself is replaced at each write.
        descriptor = os.open(self.path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def make_private(folder: Path, variable: str = "ENGINE_HOME") -> None:
    """Make the folder and what is missing above it, for their owner alone; what exists keeps its mode.

    Raises ImproperlyConfigured, which names the variable that the folder comes from.
    """
    try:
        for missing in reversed([path for path in (folder, *folder.parents) if not path.is_dir()]):
            missing.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ImproperlyConfigured(
            f"{folder} cannot be made ({error.strerror}): set {variable} to a folder that this user may write."
        ) from error
