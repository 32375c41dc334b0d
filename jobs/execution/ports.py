"""What an attempt is given, and the pen it writes with. The worker provides both (`loading.py`, `recorder.py`)."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import UUID

from jobs.execution.outcomes import ChildSpec, StepBegin, StepEnd, StoredArtifact, StoredFile, Used


class LeaseLostError(Exception):
    """The fence refused a write: this attempt no longer holds its job."""


@dataclass(frozen=True)
class AgentSpec:
    """The version of an agent that a job is pinned to."""

    agent_id: UUID
    slug: str
    number: int
    kind: str  # python | llm | noop
    source: Mapping[str, str]  # file name -> text; agent.py holds main(task, inputs)
    requirements: tuple[str, ...] = ()
    limits: Mapping[str, Any] = field(default_factory=dict)  # names of sandboxes.base.Limits
    output_schema: Mapping[str, Any] | None = None
    # Of kind llm:
    instructions: str = ""
    model: str = ""  # empty: the configured one
    tools: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)  # see agents/cards.py


@dataclass(frozen=True)
class InputFile:
    """A file handed to the job, its bytes in storage."""

    name: str
    storage_key: str
    size: int
    sha256: str
    media_type: str


@dataclass(frozen=True)
class JournalStep:
    """An entry that an earlier attempt wrote. `result` is `StepEnd.result`, None until it ended."""

    key: str
    kind: str  # step | ask | value
    signature: str
    once: bool = False
    ended: bool = False
    result: dict[str, Any] | None = None
    files: tuple[StoredFile, ...] = ()
    deleted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Journal:
    """All that earlier attempts made durable: entries in the order of their beginning, answers by question key."""

    steps: tuple[JournalStep, ...] = ()
    answers: Mapping[str, Any] = field(default_factory=dict)  # defaults of expired questions included


@dataclass(frozen=True)
class ClaimedJob:
    """A job as one attempt of it sees it."""

    id: UUID
    project_id: UUID
    attempt: int
    task: str
    input: Mapping[str, Any]
    agent: AgentSpec
    files: tuple[InputFile, ...] = ()
    journal: Journal = Journal()
    artifacts: Mapping[str, str] = field(default_factory=dict)  # of earlier attempts: name -> sha256
    # Where the agent's chance, idempotency keys and signatures come from: the same in every attempt, and in a job that
    # continues another from its checkpoint. Empty: the job's own id.
    seed: str = ""
    timeout_seconds: int | None = None  # wall time of this attempt, where the job sets its own
    logged_lines: int = 0  # by earlier attempts: caps hold per job
    logged_bytes: int = 0
    parked: str = ""  # provider:ref of the sandbox in which the last attempt began to wait
    budget: Mapping[str, Any] | None = None  # {"cost_usd", "tokens", "on_exceeded"}
    used: Used = field(default_factory=Used)  # so far, with all jobs that it started


@dataclass
class AttemptControl:
    """What the worker asks of a running attempt."""

    cancel: asyncio.Event = field(default_factory=asyncio.Event)
    hand_back: asyncio.Event = field(default_factory=asyncio.Event)  # at the next step boundary
    lease_lost: asyncio.Event = field(default_factory=asyncio.Event)


class Recorder(Protocol):
    """The fenced pen of one attempt. It stores in the order of the calls; awaited methods raise LeaseLostError."""

    def event(
        self,
        type: str,
        *,
        message: str = "",
        level: str = "info",
        source: str = "system",
        data: dict[str, Any] | None = None,
    ) -> None:
        """Number and queue one event."""

    def progress(self, fraction: float | None, message: str) -> None:
        """Keep the latest progress."""

    def opened(self, sandbox: str) -> None:
        """Note which sandbox the attempt runs in, as `provider:ref`."""

    async def ready(self) -> None:
        """Wait while too much is unwritten."""

    async def begin_step(self, step: StepBegin) -> None:
        """Durable on return."""

    async def end_step(self, step: StepEnd) -> None:
        """Durable on return."""

    async def record(self, step: StepEnd, *, used: Used | None = None, model: str = "") -> None:
        """An entry that begins and ends at once, and what it used. Durable on return."""

    async def add_artifact(self, artifact: StoredArtifact) -> None:
        """Durable on return."""


@dataclass(frozen=True)
class KeySpending:
    """The budget of the key that submitted the job, and what its jobs have used of it this month."""

    budget: Mapping[str, Any]  # {"cost_usd", "tokens"}, either may be missing
    used: Used


@dataclass(frozen=True)
class ChildRequest:
    """What a model wants another agent to do."""

    id: UUID
    key: str
    task: str
    agent: str | None  # slug or slug@version; None: discovery picks
    input: dict[str, Any]
    files: tuple[str, ...]
    budget: dict[str, Any] | None
    before: int = 0  # others that are about to be started with it


class ChildRefused(Exception):
    """No such job may be started; the message is for the model."""


class Platform(Protocol):
    """What of the platform a model may use through its job: always with the rights of the job's own caller."""

    async def key_spending(self) -> KeySpending | None:
        """None where the key has no budget."""

    async def find_agents(self, task: str) -> list[dict[str, Any]]:
        """The agents that could do this, best first."""

    async def prepare_child(self, request: ChildRequest) -> ChildSpec:
        """Find the agent and check the request. Raises ChildRefused."""

    async def child_ending(self, child_id: UUID) -> dict[str, Any] | None:
        """How a child has ended, for the model: status, result, error, artifacts. None while it has not, or is not."""
