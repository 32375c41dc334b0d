"""Files that an agent hands back: from its outputs into storage, whatever they and their names pretend to be."""

from dataclasses import dataclass, field

from jobs import storage
from jobs.execution.outcomes import Failed, StoredArtifact
from jobs.execution.ports import Recorder
from jobs.sandboxes.base import Limits, Sandbox, SandboxFileError

MOST_ARTIFACTS = 1000


REMEDY = "Hand back fewer or smaller files under plain names, or pack them into an archive."


class ArtifactRefused(Exception):
    """A file cannot become an artifact; the message says why to the agent's author."""


@dataclass
class Artifacts:
    """The artifacts of one attempt. One name holds the latest content; the same content again is not stored again."""

    sandbox: Sandbox
    recorder: Recorder
    limits: Limits
    folder: str  # in storage
    _stored: dict[str, str] = field(default_factory=dict)  # name -> sha256
    _bytes: int = 0

    async def add(self, path: str) -> None:
        """Store one file below `outputs/` and make it an artifact, durably. Raises ArtifactRefused."""
        name = storage.clean_name(path.removeprefix("outputs/"))
        if name is None:
            raise ArtifactRefused(f"{path!a} is no name that a file can be handed back under.")
        if name not in self._stored and len(self._stored) >= MOST_ARTIFACTS:
            raise ArtifactRefused(
                f"A job hands back {MOST_ARTIFACTS:,} files at most: pack them into an archive."
            )
        left = (self.limits.disk_mb << 20) - self._bytes
        try:
            blob = await storage.store(
                self.sandbox.read_file(path, most_bytes=left), folder=self.folder, most_bytes=left
            )
        except (SandboxFileError, storage.TooLarge) as error:
            raise ArtifactRefused(f"{path!a} cannot be handed back: {error or 'it is too large'}.") from error
        if self._stored.get(name) == blob.sha256:
            return
        self._bytes += blob.size
        self._stored[name] = blob.sha256
        kind = storage.media_type(name, blob.head)
        await self.recorder.add_artifact(StoredArtifact(name, kind, blob.size, blob.sha256, blob.key))

    async def collect(self) -> Failed | None:
        """After the program ended: everything in the outputs. A result without its files would be half a result."""
        try:
            files = await self.sandbox.list_files("outputs", most=MOST_ARTIFACTS)
        except SandboxFileError:
            return _too_many(f"The agent left more than {MOST_ARTIFACTS:,} files in its outputs.")
        for file in files:
            if "__pycache__" in file.path.split("/"):
                continue
            if storage.clean_name(file.path) is None:
                message = (
                    f"The file {file.path!a} is not handed back: its name is not one that others could open."
                )
                self.recorder.event("log", message=message, level="warning")
                continue
            try:
                await self.add(f"outputs/{file.path}")
            except ArtifactRefused as refusal:
                return _too_many(str(refusal))
            await self.recorder.ready()
        return None


def _too_many(message: str) -> Failed:
    return Failed("artifact_limit", message, REMEDY, retryable=False)
