"""What a tool hands back, and how a job is told to a model: short, and always with what to call next."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from rest_framework.renderers import JSONRenderer

from engine.errors import EngineError
from engine.problems import problem
from jobs.models import Artifact, Job, Question
from jobs.serializers import ArtifactSerializer, QuestionSerializer, job_summary

# Clients cut what is longer; the structured part has it all.
MOST_TEXT_CHARS = 1_900
MOST_RESULT_CHARS = 20_000
MOST_LISTED = 50

JOB_MEMBERS = (
    "id",
    "status",
    "status_reason",
    "agent",
    "priority",
    "progress",
    "error",
    "created_at",
    "finished_at",
    "cancel_requested_at",
)
QUESTION_MEMBERS = (
    "id",
    "job_id",
    "status",
    "kind",
    "prompt",
    "choices",
    "schema",
    "details",
    "has_default",
    "default",
    "expires_at",
    "on_timeout",
    "answer",
    "answered_by",
    "answered_via",
)
ARTIFACT_MEMBERS = ("id", "name", "media_type", "size", "sha256")


@dataclass(frozen=True)
class Outcome:
    """A tool's result. `text` is for clients that show a model nothing but text."""

    structured: dict[str, Any]
    text: str
    more_content: Sequence[dict[str, Any]] = field(default_factory=list)
    is_error: bool = False
    whole_text: bool = False  # a log or a file, which was asked for at this length

    def as_result(self) -> dict[str, Any]:
        """As MCP's CallToolResult."""
        text = self.text if self.whole_text else shortened(self.text, self.structured.get("next", ""))
        content = [{"type": "text", "text": text}, *self.more_content]
        return {"content": content, "structuredContent": self.structured, "isError": self.is_error}


def shortened(text: str, next_line: str) -> str:
    """At most so much text, of which the line that says what to call next is never cut off."""
    room = MOST_TEXT_CHARS - len(next_line)
    text = text if len(text) <= room else f"{text[: room - 2]} …"
    return f"{text}\nNext: {next_line}" if next_line else text


def cut(text: str, most: int) -> str:
    """The text, or its beginning with a mark."""
    return text if len(text) <= most else f"{text[:most]} …"


def plain(value: Any) -> Any:
    """What a serializer gives, as JSON without types of its own."""
    return json.loads(JSONRenderer().render(value))


def failed(error: EngineError) -> Outcome:
    """A refusal as a tool's result: the problem document that REST would answer with, without the request's id."""
    document: dict[str, Any] = json.loads(problem(error, None).content)
    document.pop("request_id", None)
    return Outcome(document, json.dumps(document), is_error=True)


# --- jobs ---


def job_outcome(job: Job, *, lead: str = "", is_answer: bool = False) -> Outcome:
    """A job as it is. `is_answer`: its failure is the failure of the call that waited for it."""
    document = job_document(job)
    has_failed = job.status in (Job.Status.FAILED, Job.Status.REJECTED)
    return Outcome(document, job_text(document, lead), is_error=is_answer and has_failed)


def job_document(job: Job) -> dict[str, Any]:
    """A job with what a model needs of it: open questions, files, result, and what to call next."""
    summary = job_summary(job)
    questions = job.questions.filter(status=Question.Status.OPEN).order_by("id")[:MOST_LISTED]
    artifacts = job.artifacts.order_by("id")[:MOST_LISTED] if job.attempt else []
    document = {
        **{name: summary[name] for name in JOB_MEMBERS},
        "task": cut(job.task, 500),
        "questions": [question_document(question) for question in questions],
        "artifacts": [artifact_document(artifact) for artifact in artifacts],
        **_result(job),
    }
    return {**document, "next": next_for_job(job, document)}


def _result(job: Job) -> dict[str, Any]:
    length = len(json.dumps(job.result))
    if length <= MOST_RESULT_CHARS:
        return {"result": job.result}
    return {"result": None, "result_omitted": f"It has {length:,} characters: read engine://jobs/{job.id}"}


def question_document(question: Question) -> dict[str, Any]:
    """A question as REST shows it, without what only a dashboard needs."""
    shown = plain(QuestionSerializer(question).data)
    return {name: shown[name] for name in QUESTION_MEMBERS}


def artifact_document(artifact: Artifact) -> dict[str, Any]:
    """An artifact, and where a program fetches it."""
    shown = plain(ArtifactSerializer(artifact).data)
    url = f"{settings.ENGINE_PUBLIC_URL}{shown['url']}"
    return {**{name: shown[name] for name in ARTIFACT_MEMBERS}, "url": url}


def next_for_job(job: Job, document: dict[str, Any]) -> str:
    """What to call next, in words that a model can follow."""
    if document["questions"]:
        return next_for_questions(document["questions"])
    match job.status:
        case Job.Status.COMPLETED if document["artifacts"]:
            name = document["artifacts"][0]["name"]
            return f'call get_artifact with job_id="{job.id}" and artifact={json.dumps(name)} to read a file.'
        case Job.Status.COMPLETED:
            return "nothing to call: the job is done."
        case Job.Status.FAILED:
            return f'call get_logs with job_id="{job.id}" to see why it failed.'
        case Job.Status.REJECTED:
            return "call discover_agents to see which agents come near, then create_job with `agent`."
        case Job.Status.CANCELLED:
            return "nothing to call: the job was cancelled."
        case _:
            return f'call wait_for_job with job_id="{job.id}".'


def next_for_questions(questions: Sequence[dict[str, Any]]) -> str:
    """How the first of these questions is answered."""
    first = questions[0]
    return (
        f'ask the user, then call answer_question with question_id="{first["id"]}" and their `answer`; '
        "do not make an answer up."
    )


def job_text(document: dict[str, Any], lead: str) -> str:
    """A job in a few lines."""
    agent = document["agent"]
    head = f"Job {document['id']} is {document['status']}"
    lines = [lead, f"{head}, done by {agent['slug']}@{agent['version']}." if agent else f"{head}."]
    progress = document["progress"]
    if document["status"] == "running" and progress["fraction"] is not None:
        lines.append(f"Progress: {progress['fraction']:.0%} {cut(progress['message'], 200)}".rstrip())
    lines += [question_text(question) for question in document["questions"][:5]]
    if document["error"]:
        lines.append(f"Error: {cut(json.dumps(document['error'], ensure_ascii=False), 600)}")
    if document["artifacts"]:
        names = ", ".join(f"{item['name']} ({item['size']} bytes)" for item in document["artifacts"][:10])
        lines.append(f"Files: {cut(names, 500)}")
    if document.get("result") is not None:
        lines.append(f"Result: {cut(json.dumps(document['result'], ensure_ascii=False), 900)}")
    return "\n".join(line for line in lines if line)


def question_text(question: dict[str, Any]) -> str:
    """A question in one line; its words are the agent's."""
    choices = f" Choices: {', '.join(map(str, question['choices']))}." if question["choices"] else ""
    asked = f"{cut(question['prompt'], 400)}{cut(choices, 300)}"
    return f"It asks ({question['kind']}, question_id {question['id']}): {asked}"
