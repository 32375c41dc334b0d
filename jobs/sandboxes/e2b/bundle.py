"""What is uploaded into a sandbox: archives, made on the worker's disk when they are large."""

import io
import os
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from jobs.sandboxes import runtime
from jobs.sandboxes.base import RequirementsFailed, SandboxError, SandboxFile

FOLDERS = ("agent", "sdk", "inputs", "workspace", "outputs")
MEMORY_BYTES = 4 * 1024 * 1024  # an archive up to here is not written to the worker's disk
LAYER_FORMAT = "1"
GLIBC = "manylinux_2_28"  # of Debian 11 and whatever is newer


def check_paths(files: Sequence[SandboxFile]) -> None:
    """Raises SandboxError for a file that would not lie in one of the layout's folders."""
    for file in files:
        folder, *rest = file.path.split("/")
        if folder not in FOLDERS or not rest or any(part in ("", ".", "..") for part in rest):
            raise SandboxError(f"not a path for a sandbox: {file.path!r}")
        if "\0" in file.path:
            raise SandboxError(f"not a path for a sandbox: {file.path!r}")


def pack(files: Sequence[SandboxFile]) -> IO[bytes]:
    """These files as one archive, at its beginning. Blocks."""
    archive = tempfile.SpooledTemporaryFile(MEMORY_BYTES)  # noqa: SIM115  (the caller closes it)
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for file in files:
            member = tarfile.TarInfo(file.path)
            member.mode = 0o755 if file.executable else 0o644
            if isinstance(file.source, bytes):
                member.size = len(file.source)
                tar.addfile(member, io.BytesIO(file.source))
            else:
                with file.source.open("rb") as source:
                    member.size = source.seek(0, io.SEEK_END)
                    source.seek(0)
                    tar.addfile(member, source)
    archive.seek(0)
    return archive


def layer(folder: Path, requirements: Sequence[str], *, python: str, machine: str) -> Path:
    """The archive of these packages for a sandbox's Python ("3.13") and machine, made once. Blocks.

    Made out here, so that the sandbox needs no network for it; wheels only, so that nothing of theirs runs here.
    Raises RequirementsFailed.
    """
    lines = runtime.checked(requirements)
    layers = folder / "layers"
    layers.mkdir(parents=True, exist_ok=True)
    built = layers / f"e2b-{layer_key(requirements, python, machine)}.tar"
    if not built.is_file():
        with runtime.locked(built.with_suffix(".lock")):
            if not built.is_file():
                _build_layer(built, lines, python, machine)
    os.utime(built)  # what has not been used for long is deleted first
    return built


def layer_key(requirements: Sequence[str], python: str, machine: str) -> str:
    """Two layers with the same key hold the same packages."""
    return runtime.digest([LAYER_FORMAT, python, machine, *runtime.checked(requirements)])


def _build_layer(built: Path, lines: Sequence[str], python: str, machine: str) -> None:
    with runtime.scratch(built.parent) as new:
        listed = new / "requirements.txt"
        listed.write_text("\n".join(lines) + "\n")
        arguments = ["--only-binary", ":all:", "-r", str(listed), "--python-version", python]
        arguments += ["--python-platform", f"{machine}-{GLIBC}"]
        output = runtime.install(
            new / "layer", arguments, seconds=runtime.LAYER_SECONDS, most_mb=runtime.LAYER_MB
        )
        if output is not None:
            raise RequirementsFailed(
                f"the requirements {', '.join(lines)} could not be installed for Python {python}",
                output=output,
            )
        with tarfile.open(new / "layer.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            tar.add(new / "layer", "layer")
        (new / "layer.tar").rename(built)
