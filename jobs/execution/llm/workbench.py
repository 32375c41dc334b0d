"""Where a model's code runs and its files lie: one interpreter, opened when it is first needed.

Variables live as long as the interpreter. Files outlive it: after each call what changed in the workspace and the
outputs is stored with that call's journal entry, and put back into the next sandbox, on whatever worker that is.
"""

import asyncio
import base64
import binascii
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from jobs import storage
from jobs.execution import layout
from jobs.execution.llm.tools import clipped
from jobs.execution.outcomes import StoredArtifact, StoredFile
from jobs.execution.outputs import MOST_ARTIFACTS, ArtifactRefused, Artifacts
from jobs.execution.ports import AttemptControl, ClaimedJob, JournalStep, Recorder
from jobs.execution.waiting import first, stop
from jobs.sandboxes.base import (
    CodeOutput,
    CodeResult,
    Limits,
    Provider,
    Sandbox,
    SandboxFile,
    SandboxFileError,
    SandboxLost,
    SandboxSpec,
    kill_quietly,
)
from jobs.sandboxes.opening import open_sandbox

# What of the sandbox's files is carried over a pause or a crash.
MOST_KEPT_BYTES = 256 * 1024 * 1024
MOST_KEPT_FILES = 500
MOST_STREAM_CHARACTERS = 12_000
FIGURES = {"image/png": "png", "image/jpeg": "jpg", "image/svg+xml": "svg"}


class Stopping(Exception):
    """The attempt ended while a sandbox was being opened."""


@dataclass(frozen=True)
class Ran:
    """What a call brought: the text for the model, and what is kept with the call."""

    content: str
    figures: tuple[str, ...] = ()  # names of artifacts
    files: tuple[StoredFile, ...] = ()
    deleted: tuple[str, ...] = ()


@dataclass
class Workbench:
    """The sandbox of one attempt, and all that is handed back from it."""

    job: ClaimedJob
    recorder: Recorder
    provider: Provider
    control: AttemptControl
    limits: Limits
    figures: int = 0  # handed back so far, by all attempts
    _sandbox: Sandbox | None = None
    _artifacts: Artifacts | None = None
    _opened_at: float = 0.0
    _is_fresh: bool = False  # the model does not know yet that its variables are gone
    _kept: dict[str, StoredFile] = field(default_factory=dict)  # by path
    _names: set[str] = field(default_factory=set)
    seconds: float = 0.0  # that sandboxes of this attempt were open

    def __post_init__(self) -> None:
        self._folder = storage.job_folder(self.job.project_id, self.job.id)
        self._names = set(self.job.artifacts)
        for step in self.job.journal.steps:
            self._remember(step)

    def _remember(self, step: JournalStep) -> None:
        self._kept.update((file.path, file) for file in step.files)
        for path in step.deleted:
            self._kept.pop(path, None)

    # --- the sandbox ---

    async def open(self, *, is_first: bool) -> None:
        """Have a sandbox with the files of earlier calls in it. Raises SandboxError, StorageFailed, Stopping."""
        if self._sandbox is not None:
            return
        with ExitStack() as stack:
            spec = await asyncio.to_thread(self._spec, stack)
            opening = asyncio.create_task(open_sandbox(self.provider, spec))
            try:
                await first(opening, self.control.cancel, self.control.hand_back, self.control.lease_lost)
                if not opening.done():
                    raise Stopping
                self._sandbox = opening.result()
            finally:
                if self._sandbox is None:
                    await stop(opening)
                    if not opening.cancelled() and opening.exception() is None:
                        await kill_quietly(opening.result())
        self._opened_at = time.monotonic()
        self._is_fresh = not is_first
        self._artifacts = Artifacts(
            self._sandbox, self.recorder, self.limits, self._folder, dict(self.job.artifacts)
        )
        self.recorder.opened(f"{self.provider.name}:{self._sandbox.ref}")

    def _spec(self, stack: ExitStack) -> SandboxSpec:
        def stored(path: str, key: str) -> SandboxFile:
            return SandboxFile(path, stack.enter_context(storage.local_file(key)))

        files = [stored(f"inputs/{file.name}", file.storage_key) for file in self.job.files]
        files += [stored(file.path, file.storage_key) for file in self._kept.values()]
        return SandboxSpec(self.job.id, self.job.attempt, self.limits, files=files, env=layout.environment())

    async def close(self) -> None:
        """End the sandbox. Idempotent."""
        sandbox, self._sandbox = self._sandbox, None
        if sandbox is not None:
            self.seconds += time.monotonic() - self._opened_at
            await kill_quietly(sandbox)

    # --- run_python ---

    async def run(self, code: str, seconds: float) -> Ran:
        """Run code in the open sandbox. Raises StorageFailed."""
        assert self._sandbox is not None  # noqa: S101 (opened before the call was recorded)
        assert self._artifacts is not None  # noqa: S101
        was_fresh, self._is_fresh = self._is_fresh, False
        try:
            result = await self._sandbox.run_code(code, timeout_seconds=seconds)
            figures = [await self._figure(output) for output in result.outputs if _picture(output)]
            notes = await self._collect(self._artifacts)
            files, deleted, note = await self._keep(self._sandbox)
        except SandboxLost as lost:
            if self.control.lease_lost.is_set():
                raise
            await self.close()
            return Ran(
                f"The sandbox was lost while this ran ({lost}). Nobody knows how far it came. Variables are gone;"
                " files are as they were before this call."
            )
        content = _told(result, figures, [*notes, *note], was_fresh=was_fresh)
        return Ran(content, tuple(figures), files, deleted)

    async def _figure(self, output: CodeOutput) -> str:
        kind, suffix = next((kind, FIGURES[kind]) for kind in FIGURES if kind in output.data)
        data = output.data[kind]
        blob = data.encode() if suffix == "svg" else base64.b64decode(data)
        self.figures += 1
        name = f"figure-{self.figures}.{suffix}"
        await self.hand_back(name, blob)
        return name

    async def _collect(self, artifacts: Artifacts) -> list[str]:
        failed = await artifacts.collect()
        return [f"Not all files of the outputs were handed back: {failed.message}"] if failed else []

    async def _keep(self, sandbox: Sandbox) -> tuple[tuple[StoredFile, ...], tuple[str, ...], list[str]]:
        """Store what is new in the workspace and the outputs, and say what was deleted."""
        try:
            listed = {
                f"{folder}/{entry.path}": entry.size
                for folder in ("workspace", "outputs")
                for entry in await sandbox.list_files(folder, most=MOST_KEPT_FILES)
                if "__pycache__" not in entry.path
            }
        except SandboxFileError:
            listed = None
        if listed is None or sum(listed.values()) > MOST_KEPT_BYTES:
            return (
                (),
                (),
                [
                    f"The workspace holds more than {MOST_KEPT_FILES} files or {MOST_KEPT_BYTES >> 20} MB: it would not"
                    " outlive a pause of this job."
                ],
            )
        changed = []
        for path in listed:
            try:
                blob = await storage.store(
                    sandbox.read_file(path, most_bytes=MOST_KEPT_BYTES),
                    folder=self._folder,
                    most_bytes=MOST_KEPT_BYTES,
                )
            except (SandboxFileError, storage.TooLarge):
                continue
            known = self._kept.get(path)
            if known is None or known.sha256 != blob.sha256:
                self._kept[path] = StoredFile(path, blob.size, blob.sha256, blob.key)
                changed.append(self._kept[path])
        deleted = tuple(path for path in self._kept if path not in listed)
        for path in deleted:
            del self._kept[path]
        return tuple(changed), deleted, []

    # --- handing back ---

    async def hand_back(self, name: str, data: bytes) -> str:
        """Make these bytes an artifact, durably; gives its name. Raises ArtifactRefused, StorageFailed."""
        clean = storage.clean_name(name)
        if clean is None:
            raise ArtifactRefused(f"{name!a} is no name that a file can be handed back under.")
        if clean not in self._names and len(self._names) >= MOST_ARTIFACTS:
            raise ArtifactRefused(f"A job hands back {MOST_ARTIFACTS:,} files at most.")
        most = self.limits.disk_mb << 20
        try:
            blob = await asyncio.to_thread(storage.store_blocks, [data], folder=self._folder, most_bytes=most)
        except storage.TooLarge:
            raise ArtifactRefused(f"{name!a} is larger than {self.limits.disk_mb} MB.") from None
        self._names.add(clean)
        kind = storage.media_type(clean, blob.head)
        await self.recorder.add_artifact(StoredArtifact(clean, kind, blob.size, blob.sha256, blob.key))
        return clean

    async def hand_back_file(self, name: str, path: str) -> str:
        """Make a file of the sandbox an artifact under this name. Raises ArtifactRefused, StorageFailed."""
        if self._sandbox is None:
            raise ArtifactRefused("There is no file yet: run_python writes files.")
        parts = path.removeprefix("./").removeprefix("../").split("/")
        full = "/".join(parts if parts[0] in ("workspace", "outputs") else ("workspace", *parts))
        most = self.limits.disk_mb << 20
        try:
            data = b"".join([block async for block in self._sandbox.read_file(full, most_bytes=most)])
        except SandboxFileError as error:
            raise ArtifactRefused(
                f"{path!a} cannot be handed back: {error or 'there is no such file'}."
            ) from error
        return await self.hand_back(name, data)


def figures_in(results: Iterable[Mapping[str, Any]]) -> int:
    """How many figures these calls have handed back."""
    return sum(len(result.get("figures", ())) for result in results)


def _picture(output: CodeOutput) -> bool:
    """Whether it is a figure that can be handed back."""
    for kind in FIGURES:
        if kind in output.data:
            try:
                base64.b64decode(output.data[kind], validate=False)
            except (binascii.Error, ValueError):
                return kind == "image/svg+xml"
            return True
    return False


def _told(result: CodeResult, figures: list[str], notes: list[str], *, was_fresh: bool) -> str:
    """What the model reads of a run."""
    parts = []
    if was_fresh or result.state_lost:
        parts.append(
            "[The interpreter is a new one: variables of earlier calls are gone, files are still there.]"
        )
    if result.stdout:
        parts.append(clipped(result.stdout, MOST_STREAM_CHARACTERS))
    if result.stderr:
        parts.append(f"[stderr]\n{clipped(result.stderr, MOST_STREAM_CHARACTERS)}")
    parts += [
        clipped(output.data["text/plain"], MOST_STREAM_CHARACTERS)
        for output in result.outputs
        if "text/plain" in output.data and not _picture(output)
    ]
    if result.error is not None:
        error = result.error.traceback or f"{result.error.name}: {result.error.value}"
        parts.append(f"[error]\n{clipped(error, MOST_STREAM_CHARACTERS)}")
    if result.timed_out:
        parts.append("[It took too long and was interrupted.]")
    if figures:
        parts.append(f"[Figures handed back to the user: {', '.join(figures)}]")
    return clipped("\n".join([*parts, *notes]) or "[It ran, and printed nothing.]")
