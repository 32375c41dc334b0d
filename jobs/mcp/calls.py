"""What each tool does: read checked arguments, call the service that REST calls, say what came of it."""

import base64
import binascii
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any
from uuid import UUID

from django.core.files.uploadedfile import SimpleUploadedFile

from agents import discovery
from agents import services as agents
from agents.serializers import AgentSummarySerializer
from apikeys.callers import Caller
from apikeys.scopes import Scope
from engine.errors import ValidationFailed
from engine.problems import Forbidden
from jobs import downloads, services, uploads
from jobs.errors import ArtifactNotFound, QuestionNotFound
from jobs.mcp.outcomes import (
    MOST_LISTED,
    Outcome,
    artifact_document,
    cut,
    job_outcome,
    next_for_questions,
    plain,
    question_document,
    question_text,
)
from jobs.models import Artifact, Question
from jobs.requests import read_job
from jobs.serializers import event_line
from jobs.views import check_may_run, event_page

DEFAULT_WAIT_SECONDS, MOST_WAIT_SECONDS = 45, 110
DEFAULT_LINES, MOST_LINES = 100, 1_000
MOST_LINE_CHARS, MOST_LOG_CHARS = 2_000, 100_000
DEFAULT_BYTES, MOST_BYTES = 20_000, 100_000
# A model looks at images as a whole; other files that are no text are of little use to it.
MOST_IMAGE_BYTES, MOST_BINARY_BYTES = 1_000_000, 200_000


@dataclass(frozen=True)
class Call:
    """Who calls a tool, and with what. The arguments fit the tool's schema."""

    by: Caller
    arguments: dict[str, Any]

    def uuid(self, name: str) -> UUID:
        """An argument that is an id."""
        return UUID(self.arguments[name])


def discover_agents(call: Call) -> Outcome:
    """Rank agents for a task."""
    given = call.arguments
    filters = discovery.Filters(given.get("tags", []), given.get("kinds", []))
    found = discovery.discover(call.by, given["task"], limit=given.get("limit", 5), filters=filters)
    document = found.as_json()
    if found.results:
        first = found.results[0]
        slug = first.version.agent.slug
        after = f'call create_job with the task; leave `agent` out, or give agent="{slug}".'
        if first.health.status == "unavailable":
            after = (
                f"{slug} cannot run now ({first.health.reason}): create_job takes the next that fits and can."
            )
    else:
        after = "no agent fits: say so, or name one of `nearest` as `agent` in create_job."
    lines = [f"Decision: {found.decision}."]
    for result in document["results"] or document["nearest"]:
        because = result["matched"]["text"] or ", ".join(result["matched"]["terms"])
        score = f"score {result['score']}, {result['health']['status']}"
        lines.append(f"- {result['agent']}: {result['name']} ({score}; {cut(because, 120)})")
    return Outcome({**document, "next": after}, "\n".join(lines))


def create_job(call: Call) -> Outcome:
    """Submit a job, with files whose bytes came along."""
    by, members = call.by, dict(call.arguments)
    if by.project is None:
        raise Forbidden("Jobs belong to a project: submit them with a key")
    files = inline_files(members.pop("files", []))
    order = read_job(members)
    check_may_run(by, order.agent)
    with uploads.stored(files, project_id=by.project.id, job_id=order.id) as (stored, keep):
        job = services.submit(replace(order, files=stored), by=by, project=by.project)
        keep()
    return job_outcome(services.get(job.id, by=by))


def inline_files(given: Sequence[dict[str, str]]) -> list[SimpleUploadedFile]:
    """The files of a call. Raises ValidationFailed where one has no bytes, or two kinds of them."""
    files = []
    for place, item in enumerate(given):
        if ("text" in item) == ("base64" in item):
            raise ValidationFailed(
                "Give each file either `text` or `base64`.",
                errors=[{"pointer": f"/files/{place}", "detail": "Give either `text` or `base64`."}],
            )
        try:
            content = (
                item["text"].encode() if "text" in item else base64.b64decode(item["base64"], validate=True)
            )
        except (binascii.Error, ValueError):
            fault = "This is not base64."
            raise ValidationFailed(
                fault, errors=[{"pointer": f"/files/{place}/base64", "detail": fault}]
            ) from None
        files.append(SimpleUploadedFile(uploads.safe_name(item["name"]), content))
    return files


def get_job(call: Call) -> Outcome:
    """A job as it is now."""
    return job_outcome(services.get(call.uuid("job_id"), by=call.by))


def wait_for_job(call: Call) -> Outcome:
    """A job as it is now; whoever answers the call waits before it asks (jobs/mcp/waiting.py)."""
    return job_outcome(services.get(call.uuid("job_id"), by=call.by), is_answer=True)


def cancel_job(call: Call) -> Outcome:
    """Cancel a job."""
    services.cancel(call.uuid("job_id"), by=call.by)
    job = services.get(call.uuid("job_id"), by=call.by)
    return job_outcome(job, lead="" if job.is_final else "It has been told to stop, and ends within seconds.")


# --- questions ---


def list_questions(call: Call) -> Outcome:
    """Open questions, the oldest first."""
    questions = Question.objects.visible_to(call.by).filter(status=Question.Status.OPEN).order_by("id")
    if "job_id" in call.arguments:
        job = services.get(call.uuid("job_id"), by=call.by)
        questions = questions.filter(job_id=job.id)
    limit = call.arguments.get("limit", MOST_LISTED)
    found = [question_document(question) for question in questions[: limit + 1]]
    items, has_more = found[:limit], len(found) > limit
    after = next_for_questions(items) if items else "nothing to call: nobody has asked anything."
    lines = [f"{len(items)}{' and more' if has_more else ''} open."]
    lines += [f"Job {item['job_id']}: {question_text(item)}" for item in items]
    return Outcome({"items": items, "has_more": has_more, "next": after}, "\n".join(lines))


def answer_question(call: Call) -> Outcome:
    """Answer one question, named by itself or as the only open one of a job."""
    given = call.arguments
    question_id = call.uuid("question_id") if "question_id" in given else None
    if "job_id" in given:
        job_id = call.uuid("job_id")
    elif question_id is not None:
        question = Question.objects.visible_to(call.by).filter(id=question_id).first()
        if question is None:
            raise QuestionNotFound(question_id=str(question_id))
        job_id = question.job_id
    else:
        fault = "Give `question_id`, or the `job_id` of a job with one open question."
        raise ValidationFailed(fault, errors=[{"pointer": "", "detail": fault}])
    services.respond(job_id, by=call.by, answer=given["answer"], question_id=question_id)
    if not call.by.may(Scope.JOBS_READ):
        done = {"id": str(job_id), "status": "answered", "next": "nothing to call."}
        return Outcome(done, "The answer is stored.")
    return job_outcome(services.get(job_id, by=call.by), lead="The answer is stored.")


# --- logs and files ---


def get_logs(call: Call) -> Outcome:
    """A page of a job's log as lines."""
    given = call.arguments
    job = services.get(call.uuid("job_id"), by=call.by)
    after, limit = given.get("after", 0), given.get("limit", DEFAULT_LINES)
    filters = {name: [given[name]] for name in ("level", "source") if name in given}
    page = event_page(job, {**filters, "limit": limit}, after)
    lines: list[str] = []
    room = MOST_LOG_CHARS
    for event in page["items"]:
        line = cut(event_line(event), MOST_LINE_CHARS)
        room -= len(line)
        if room < 0:
            page["final"] = False
            break
        lines.append(line)
        page["next_after"] = event["seq"]
    if page["final"]:
        next_line = "nothing to call: this is the end of the log."
    elif len(lines) == limit or room < 0:
        next_line = f'call get_logs with job_id="{job.id}" and after={page["next_after"]} for more.'
    else:
        next_line = (
            f'call wait_for_job with job_id="{job.id}", then get_logs with after={page["next_after"]}.'
        )
    document = {
        "job_id": str(job.id),
        "status": job.status,
        "lines": lines,
        "next_after": page["next_after"],
        "final": page["final"],
        "next": next_line,
    }
    text = "\n".join([*lines, f"Next: {next_line}"])
    return Outcome(document, text, whole_text=True)


def get_artifact(call: Call) -> Outcome:
    """A file of a job, named by its id or name: text in pages, images and small files whole, others by address."""
    given = call.arguments
    job = services.get(call.uuid("job_id"), by=call.by)
    artifact = find_artifact(call.by, job.id, given["artifact"])
    document: dict[str, Any] = artifact_document(artifact)
    offset, most = given.get("offset", 0), given.get("max_bytes", DEFAULT_BYTES)
    head = read_part(artifact, 0, MOST_IMAGE_BYTES)
    if is_text(head):
        return text_outcome(artifact, document, read_part(artifact, offset, most), offset)
    is_image = artifact.media_type.startswith("image/")
    if artifact.size > (MOST_IMAGE_BYTES if is_image else MOST_BINARY_BYTES):
        document["next"] = f"too large to show: download {document['url']} with the same key."
        return Outcome(document, f"{artifact.name}: {artifact.media_type}, {artifact.size} bytes.")
    data = base64.b64encode(head).decode()
    document |= {"base64": data, "next": "nothing to call: this is the whole file."}
    if is_image:
        shown: dict[str, Any] = {"type": "image", "data": data, "mimeType": artifact.media_type}
    else:
        uri = f"engine://jobs/{artifact.job_id}/artifacts/{artifact.id}"
        shown = {
            "type": "resource",
            "resource": {"uri": uri, "mimeType": artifact.media_type, "blob": data},
        }
    return Outcome(document, f"{artifact.name}: {artifact.media_type}, {artifact.size} bytes.", [shown])


def find_artifact(by: Caller, job_id: UUID, named: str) -> Artifact:
    """One artifact of a job. Raises ArtifactNotFound."""
    artifacts = Artifact.objects.visible_to(by).filter(job_id=job_id)
    found = artifacts.filter(name=named).first()
    if found is None:
        with suppress(ValueError):  # no id either
            found = artifacts.filter(id=UUID(named)).first()
    if found is None:
        raise ArtifactNotFound(artifact_id=cut(named, 200))
    return found


def read_part(artifact: Artifact, start: int, most: int) -> bytes:
    """At most so many of its bytes. Raises ArtifactNotFound or Unavailable."""
    length = max(0, min(most, artifact.size - start))
    if not length:
        return b""
    with downloads.opened(artifact, downloads.Part(start, length, is_partial=True)) as file:
        return file.read(length)


def is_text(head: bytes) -> bool:
    """Whether these bytes read as text, the last character of which may be cut in two."""
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 3 and b"\0" not in head
    return b"\0" not in head


def text_outcome(artifact: Artifact, document: dict[str, Any], part: bytes, offset: int) -> Outcome:
    """A page of a file that is text. No character is cut in two: the next page begins with it."""
    end = offset + len(part)
    if end < artifact.size:
        whole = part.decode(errors="ignore").encode()
        end = offset + (len(whole) or len(part))
        part = whole or part
        next_line = (
            f'call get_artifact with job_id="{artifact.job_id}", artifact="{artifact.id}" and offset={end}.'
        )
    else:
        next_line = "nothing to call: this is the end of the file."
    text = part.decode(errors="replace")
    document |= {"text": text, "offset": offset, "next_offset": end, "next": next_line}
    return Outcome(document, f"{text}\nNext: {next_line}", whole_text=True)


# --- agents ---


def register_agent(call: Call) -> Outcome:
    """Register an agent, or a new version of one."""
    version, is_new = agents.put(call.by, call.arguments)
    document = plain(AgentSummarySerializer(version).data)
    document = {name: document[name] for name in ("slug", "version", "name", "kind", "status", "health")}
    document |= {
        "http_status": HTTPStatus.CREATED if is_new else HTTPStatus.OK,
        "next": f'call create_job with agent="{document["slug"]}" to try it.',
    }
    what = "is registered" if is_new else "was like this already"
    return Outcome(document, f"{document['slug']}@{document['version']} {what}.")
