"""How an attempt ended, and what it wrote on the way: the words between execution and the worker."""

from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID


@dataclass(frozen=True)
class StoredFile:
    """A file of the workspace or the outputs as a step left it. `path` begins with one of these folders' names."""

    path: str
    size: int
    sha256: str
    storage_key: str

    def as_json(self) -> dict[str, Any]:
        """As it is kept with its step."""
        return asdict(self)


@dataclass(frozen=True)
class StoredArtifact:
    """A file handed back, its bytes in storage already. Unique by (job, name): new content replaces the old."""

    name: str
    media_type: str
    size: int
    sha256: str
    storage_key: str


@dataclass(frozen=True)
class StepBegin:
    """A journal entry that begins. `signature` must be the same whenever the agent comes here again."""

    key: str  # name#occurrence, below the key of the step around it
    kind: str  # step | ask | value
    signature: str
    once: bool = False


@dataclass(frozen=True)
class StepEnd:
    """A journal entry that ended, with a value or with an exception that the agent survived."""

    begin: StepBegin
    value: Any = None
    error: dict[str, Any] | None = None  # {"type", "message", "args"}
    files: tuple[StoredFile, ...] = ()  # new or changed since the last entry that ended
    deleted: tuple[str, ...] = ()
    result_file: str = ""  # the sha256 of one of the job's files, which holds the value in its place

    @property
    def result(self) -> dict[str, Any]:
        """Its stored form, which tells a value from an exception and from a value in a file."""
        if self.error is not None:
            return {"error": self.error}
        return {"file": self.result_file} if self.result_file else {"value": self.value}


@dataclass(frozen=True)
class Used:
    """What something used of models and sandboxes."""

    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0  # of what has a known price
    sandbox_seconds: float = 0.0
    unpriced_tokens: int = 0  # of models whose price is not known

    @property
    def tokens(self) -> int:
        """Both ways."""
        return self.input_tokens + self.output_tokens

    def __add__(self, other: "Used") -> "Used":
        return Used(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cost_usd + other.cost_usd,
            self.sandbox_seconds + other.sandbox_seconds,
            self.unpriced_tokens + other.unpriced_tokens,
        )


@dataclass(frozen=True)
class ChildSpec:
    """A job that a job starts, its agent already found and its input checked."""

    id: UUID
    key: str  # the journal entry that waits for its end
    agent_version_id: UUID
    task: str
    input: dict[str, Any]
    files: tuple[str, ...]  # names of the parent's input files
    budget: dict[str, Any] | None
    explanation: dict[str, Any]  # why this agent
    traceparent: str = ""  # of its span


@dataclass(frozen=True)
class QuestionSpec:
    """A question for a person, checked. `schema` is the JSON Schema that an answer must meet."""

    key: str  # of the journal entry that waits for the answer
    kind: str  # text | choice | multi_choice | confirm | form | approval
    prompt: str
    schema: dict[str, Any]
    choices: list[str] | None = None
    details: dict[str, Any] = field(default_factory=dict)  # approval: action, arguments, allowed, risk
    has_default: bool = False
    default: Any = None
    assignees: list[str] = field(default_factory=list)
    expires_in: timedelta | None = None
    on_timeout: str = "wait"  # wait | default | fail
    remind_after: tuple[timedelta, ...] = ()


@dataclass(frozen=True)
class Completed:
    """The agent returned a result that meets its output schema, and all its outputs are stored."""

    result: Any


@dataclass(frozen=True)
class Failed:
    """The attempt failed by the agent's doing. `message` and `remedy` are for the job's user."""

    code: str
    message: str
    remedy: str = ""
    retryable: bool = True
    data: dict[str, Any] = field(default_factory=dict)  # traceback, last lines, … for whoever looks closer
    retry_after: timedelta | None = None  # an outside service asked for this much patience

    def as_json(self) -> dict[str, Any]:
        """As it is kept with the attempt and the job."""
        error: dict[str, Any] = {"code": self.code, "message": self.message, "remedy": self.remedy}
        return {**error, "data": self.data} if self.data else error


@dataclass(frozen=True)
class Suspended:
    """The agent waits for answers, or for jobs that it starts with this; nothing of it is held here."""

    questions: tuple[QuestionSpec, ...] = ()
    children: tuple[ChildSpec, ...] = ()


@dataclass(frozen=True)
class Cancelled:
    """The job was cancelled and its program is stopped."""


@dataclass(frozen=True)
class LeaseLost:
    """Another worker may own the job: nothing more may be written for it here."""


@dataclass(frozen=True)
class HandedBack:
    """The job goes back to the queue as it is; no budget is charged."""

    reason: str


@dataclass(frozen=True)
class Unavailable:
    """No sandbox can be had on this worker until an operator acts; `remedy` is the line that fixes it."""

    reason: str
    remedy: str = ""


@dataclass(frozen=True)
class Lost:
    """The sandbox vanished: a platform loss, not a failure of the agent."""

    reason: str


Outcome = Completed | Failed | Suspended | Cancelled | LeaseLost | HandedBack | Unavailable | Lost
