"""What Engine answers, typed. `data` holds the whole JSON object, whatever this release knows of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from engine_client.errors import EngineError

FINAL = frozenset({"completed", "failed", "cancelled", "rejected"})
M = TypeVar("M", bound="Model")


@dataclass(frozen=True)
class Model:
    """One JSON object."""

    data: Mapping[str, Any] = field(repr=False, compare=False)

    @classmethod
    def of(cls: type[M], data: Mapping[str, Any]) -> M:
        """Read it; members that this release does not know stay in `data`."""
        names = {one.name for one in fields(cls)} - {"data"}
        return cls(data=data, **{name: data[name] for name in names if name in data})


class JobFailed(EngineError):
    """The job ended without a result."""

    def __init__(self, job: "Job") -> None:
        error = job.error or {}
        self.job = job
        self.code = str(error.get("code") or job.status_reason or job.status)
        words = [f"The job is {job.status}.", error.get("message"), error.get("remedy")]
        super().__init__(" ".join(str(word) for word in words if word))


@dataclass(frozen=True)
class Question(Model):
    """What a job asks a person. The prompt was written by an agent: show it as untrusted text."""

    id: str
    job_id: str
    kind: str
    prompt: str
    status: str = "open"
    choices: Any = None
    schema: Any = None
    details: Any = None
    default: Any = None
    has_default: bool = False
    expires_at: str | None = None
    answer: Any = None
    answered_by: str = ""


@dataclass(frozen=True)
class Artifact(Model):
    """A file that a job hands back."""

    id: str
    name: str
    media_type: str
    size: int
    sha256: str
    url: str


@dataclass(frozen=True)
class Job(Model):
    """A job as it stood when it was asked for."""

    id: str
    status: str
    task: str = ""
    status_reason: str = ""
    agent: Mapping[str, Any] | None = None
    progress: Any = None
    result: Any = None
    error: Mapping[str, Any] | None = None
    created_at: str = ""
    finished_at: str | None = None

    @property
    def is_final(self) -> bool:
        """Whether it has ended."""
        return self.status in FINAL

    @property
    def succeeded(self) -> bool:
        """Whether it ended with a result."""
        return self.status == "completed"

    @property
    def asks(self) -> bool:
        """Whether it waits for a person."""
        return self.status == "waiting_for_input" and self.status_reason == "question"

    @property
    def open_questions(self) -> list[Question]:
        """What it asks now."""
        return [Question.of(one) for one in self.data.get("questions", []) if one["status"] == "open"]

    @property
    def artifacts(self) -> list[Artifact]:
        """The first 200 of its files."""
        return [Artifact.of(one) for one in self.data.get("artifacts", [])]

    def checked(self) -> "Job":
        """Itself, or JobFailed if it ended without a result."""
        if self.is_final and not self.succeeded:
            raise JobFailed(self)
        return self


@dataclass(frozen=True)
class Event(Model):
    """A state change or a log line, numbered by `seq` without gaps within its job."""

    seq: int
    type: str
    at: str = ""
    source: str = "system"
    level: str = "info"
    message: str = ""
    attempt: int = 0

    @property
    def details(self) -> Mapping[str, Any]:
        """What else the event says, by its type."""
        return self.data.get("data") or {}


@dataclass(frozen=True)
class Agent(Model):
    """An agent that can work."""

    slug: str
    name: str = ""
    description: str = ""
    kind: str = ""
    version: int = 0


@dataclass(frozen=True)
class Discovery(Model):
    """Who can do a task; `decision` is `none` where nobody fits."""

    decision: str = ""

    @property
    def agents(self) -> list[Mapping[str, Any]]:
        """Best first, each with its score and what matched."""
        found: list[Mapping[str, Any]] = list(self.data.get("results", []))
        return found


@dataclass(frozen=True)
class Key(Model):
    """An API key. `secret` is there once, in the answer that made it."""

    id: str
    name: str = ""
    scopes: Any = ()
    secret: str = field(default="", repr=False)
