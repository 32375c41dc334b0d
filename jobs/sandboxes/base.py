"""What every sandbox provider offers. One sandbox carries one attempt of one job and is then destroyed.

Inside, whatever the provider, a program sees one layout below `HOME`:

    agent/      the agent's source, read-only           sdk/        engine_agent.py and the job file, read-only
    inputs/     the job's input files, read-only        workspace/  its working folder, empty or restored
    outputs/    what it hands back as artifacts

The program writes records (one JSON object a line) to the channel named by the environment variables that the
provider sets (`ENGINE_RECORDS`, `ENGINE_REPLIES`: `fd:N` or `file:PATH`); stdout and stderr are plain logs.
Everything that comes out is hostile: callers check schema, size and path of each thing they take.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from uuid import UUID


class SandboxError(Exception):
    """A provider could not do what was asked; the message is fit for a job's log."""


class SandboxUnavailable(SandboxError):
    """No sandbox can be had here until an operator acts (`remedy` is the line that fixes it). No attempt is charged."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


class SandboxBusy(SandboxError):
    """The provider is at its limit for now: hand the job back, try later. No attempt is charged."""


class SandboxRefused(SandboxError):
    """This provider cannot give what the spec asks for, now or later: the agent or its limits must change."""


class SandboxLost(SandboxError):
    """The sandbox is gone though nobody here closed it: a platform loss, not a failure of the agent."""


class SandboxFileError(SandboxError):
    """A file inside is missing, not a regular file, or larger than the caller allows."""


class RequirementsFailed(SandboxError):
    """The agent's requirements could not be installed; `output` is what the installer printed."""

    def __init__(self, message: str, *, output: str = "") -> None:
        super().__init__(message)
        self.output = output


@dataclass(frozen=True)
class Limits:
    """What one sandbox may use. Crossing one ends the program with the matching `EndReason`."""

    wall_seconds: float = 3600.0
    memory_mb: int = 1024
    cpu_seconds: int = 3600
    processes: int = 64
    disk_mb: int = 512  # workspace and outputs together
    output_bytes: int = 64 * 1024 * 1024  # stdout and stderr together
    record_bytes: int = 2 * 1024 * 1024  # one record, newline included
    allow_hosts: tuple[str, ...] = ()  # egress allow list; empty: no network at all


@dataclass(frozen=True)
class SandboxFile:
    """A file put in place before the program starts. `path` is relative to HOME, below one of the layout's folders."""

    path: str
    source: bytes | Path
    executable: bool = False


@dataclass(frozen=True)
class SandboxSpec:
    """Everything needed to open a sandbox. `job_id` and `attempt` are for the host's books and never go inside."""

    job_id: UUID
    attempt: int
    limits: Limits
    files: Sequence[SandboxFile] = ()
    requirements: Sequence[
        str
    ] = ()  # pip requirement lines; installed outside, into a cached read-only layer
    env: dict[str, str] = field(default_factory=dict)
    parked: str = ""  # ref of the sandbox that this job's last attempt parked; it may be gone


class EndReason(StrEnum):
    """Why a program ended."""

    EXITED = "exited"  # by itself; `exit_code` tells how
    KILLED = "killed"  # by `terminate` or `close`
    MEMORY = "memory"  # over Limits.memory_mb
    TIMEOUT = "timeout"  # over Limits.wall_seconds or cpu_seconds
    OUTPUT = "output"  # over Limits.output_bytes, or a record over record_bytes
    DISK = "disk"
    LOST = "lost"  # the sandbox vanished: a platform loss


@dataclass(frozen=True)
class Stdout:
    """A piece of standard output, cut anywhere."""

    data: bytes


@dataclass(frozen=True)
class Stderr:
    """A piece of standard error, cut anywhere."""

    data: bytes


@dataclass(frozen=True)
class Record:
    """One complete line from the record channel, without its newline, at most `Limits.record_bytes`."""

    line: bytes


@dataclass(frozen=True)
class Ended:
    """The program has ended and nothing more will come. Always the last output, exactly once."""

    reason: EndReason
    exit_code: int | None
    detail: str = ""


SandboxOutput = Stdout | Stderr | Record | Ended


@dataclass(frozen=True)
class FileEntry:
    """A regular file inside: `path` relative to the folder that was listed, `size` in bytes."""

    path: str
    size: int


@dataclass(frozen=True)
class CodeOutput:
    """One rich result of interpreter code, after Jupyter's MIME bundles: `{"text/plain": …, "image/png": base64}`."""

    data: dict[str, str]
    is_main_result: bool = False


@dataclass(frozen=True)
class CodeError:
    """An exception that interpreter code raised."""

    name: str
    value: str
    traceback: str


@dataclass(frozen=True)
class CodeResult:
    """What one call of `run_code` brought."""

    stdout: str
    stderr: str
    outputs: tuple[CodeOutput, ...] = ()
    error: CodeError | None = None
    timed_out: bool = False
    state_lost: bool = False  # the interpreter is a new one: earlier variables are gone


class Sandbox(ABC):
    """One open sandbox. Methods raise SandboxLost when it is gone."""

    ref: str  # the provider's own name for it, stored with the attempt

    @abstractmethod
    async def start(self, argv: Sequence[str]) -> None:
        """Start the program in `workspace/`. `argv[0]` "python" means the sandbox's own interpreter. Once only."""

    @abstractmethod
    def outputs(self) -> AsyncIterator[SandboxOutput]:
        """Everything the program brings forth, in order per channel, ending with one `Ended`.

        Reading slowly never grows the worker: it holds the program back, or the rest waits in the sandbox (where
        `Limits.output_bytes` ends a program that does not stop).
        """

    @abstractmethod
    async def send(self, line: bytes) -> None:
        """Give the program one reply line (no newline inside). Does nothing once it has ended."""

    @abstractmethod
    async def list_files(self, folder: str, *, most: int = 1000) -> list[FileEntry]:
        """Regular files below `outputs` or `workspace`; links, devices and odd names are left out.

        Also works after the program has ended. Raises SandboxFileError when there are more than `most`.
        """

    @abstractmethod
    def read_file(self, path: str, *, most_bytes: int) -> AsyncIterator[bytes]:
        """Stream one regular file below `outputs/` or `workspace/` (path relative to HOME), links never followed.

        Also works after the program has ended. Raises SandboxFileError (missing, not regular, over `most_bytes`).
        """

    @abstractmethod
    async def run_code(self, code: str, *, timeout_seconds: float) -> CodeResult:
        """Run Python in this sandbox's interpreter; variables stay between calls. Instead of `start`, not beside it."""

    @abstractmethod
    async def terminate(self) -> None:
        """Ask the program to end (SIGTERM). It may take its time: `close` does not."""

    @abstractmethod
    async def close(self) -> None:
        """Kill everything inside and free all it held. Idempotent, never raises, safe in any state."""

    async def park(self) -> None:
        """`close` for a job that waits for a person: a provider may keep the sandbox asleep, as a faster way back.

        Returns at once and never raises. Nothing depends on it: the journal is what the job comes back from.
        """
        await self.close()


@dataclass(frozen=True)
class ProviderHealth:
    """Whether a provider can open sandboxes. `remedy` is one line an operator can run or set."""

    ok: bool
    name: str
    detail: str
    remedy: str = ""


class Provider(ABC):
    """Opens sandboxes. One instance per worker process."""

    name: str

    @property
    def warm(self) -> int:
        """Sandboxes that stand ready, started before they are needed."""
        return 0

    @abstractmethod
    async def start(self) -> ProviderHealth:
        """Probe for real isolation, clean up what dead workers left on this host, fill the warm pool."""

    @abstractmethod
    async def open(self, spec: SandboxSpec) -> Sandbox:
        """A fresh sandbox with `spec.files` in place.

        Raises SandboxUnavailable, SandboxBusy, SandboxRefused, RequirementsFailed or SandboxError.
        """

    @abstractmethod
    def tick(self, seconds: float) -> None:
        """The worker's lease holds for `seconds` from now. Without a tick in that time every sandbox is killed,
        by a process that stays alive when the worker is stopped or hangs (invariant I5)."""

    @abstractmethod
    async def kill(self, ref: str) -> None:
        """Kill a sandbox of an earlier attempt by its ref, wherever that is possible from here. Never raises."""

    @abstractmethod
    async def close(self) -> None:
        """Kill what is left and stop. Idempotent."""


async def kill_quietly(sandbox: Sandbox | None) -> None:
    """Close a sandbox even while the caller is being cancelled."""
    if sandbox is not None:
        await asyncio.shield(sandbox.close())
