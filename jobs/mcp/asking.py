"""Questions put to the person behind a client, as forms in an answer of ours (`input_required`), and what comes back.

Clients decline by themselves where nobody sits before them, so only what was accepted and filled in is an answer.
"""

from collections.abc import Iterable
from typing import Any

from apikeys.callers import Caller
from apikeys.scopes import Scope
from jobs import services
from jobs.mcp.frames import INVALID_PARAMS, Frame, Refusal
from jobs.mcp.outcomes import cut
from jobs.models import Job, Question

MOST_PROMPT_CHARS = 4_000
# A form has the one field where the question is not itself a form.
FIELD = "answer"
_PLAIN_TYPES = ("string", "number", "integer", "boolean")


def may_ask(frame: Frame, by: Caller) -> bool:
    """Whether a question may go to the person behind this client, whose answer the key must be allowed to give."""
    return frame.can_be_asked and by.may(Scope.JOBS_RESPOND)


def open_questions(job: Job) -> list[Question]:
    """What the job asks now."""
    return list(job.questions.filter(status=Question.Status.OPEN).order_by("id"))


def requests(job: Job) -> dict[str, Any]:
    """The job's open questions as MCP's inputRequests, by id. Those that fit no flat form are left out."""
    asked = {}
    for question in open_questions(job):
        schema = form(question)
        if schema is not None:
            params = {
                "mode": "form",
                "message": cut(question.prompt, MOST_PROMPT_CHARS),
                "requestedSchema": schema,
            }
            asked[str(question.id)] = {"method": "elicitation/create", "params": params}
    return asked


def form(question: Question) -> dict[str, Any] | None:
    """The flat form that MCP knows, or None where the question is more than that."""
    choices = question.choices or []
    match question.kind:
        case Question.Kind.TEXT:
            return _one({"type": "string"})
        case Question.Kind.CONFIRM:
            return _one({"type": "boolean"})
        case Question.Kind.CHOICE if _are_texts(choices):
            return _one({"type": "string", "enum": choices})
        case Question.Kind.MULTI_CHOICE if _are_texts(choices):
            return _one({"type": "array", "items": {"type": "string", "enum": choices}})
        case Question.Kind.APPROVAL:
            # The others need arguments or words besides.
            decisions = [one for one in question.details.get("allowed", []) if one in ("approve", "reject")]
            return _one({"type": "string", "enum": decisions}) if decisions else None
        case Question.Kind.FORM:
            return _flat(question.schema)
        case _:
            return None


def _one(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {FIELD: schema}, "required": [FIELD]}


def _are_texts(choices: Iterable[Any]) -> bool:
    return all(isinstance(choice, str) for choice in choices)


def _flat(schema: dict[str, Any]) -> dict[str, Any] | None:
    properties = schema.get("properties", {})
    if not properties or not all(one.get("type") in _PLAIN_TYPES for one in properties.values()):
        return None
    return {"type": "object", "properties": properties, "required": schema.get("required", [])}


def take(frame: Frame, job: Job, by: Caller) -> bool:
    """Store the answers in a request's inputResponses; whether something was asked and not answered.

    What is for no open question is passed over. Raises Refusal, and what `services.respond` raises.
    """
    given = frame.params.get("inputResponses", {})
    if not isinstance(given, dict):
        raise Refusal(INVALID_PARAMS, "`inputResponses` must be an object")
    was_declined = False
    for question in open_questions(job):
        response = given.get(str(question.id))
        if response is None:
            continue
        content = response.get("content") if isinstance(response, dict) else None
        if not (isinstance(content, dict) and response.get("action") == "accept" and content):
            was_declined = True
        elif question.kind == Question.Kind.FORM:
            services.respond(job.id, by=by, answer=content, question_id=question.id)
        elif FIELD in content:
            value = content[FIELD]
            answer = {"decision": value} if question.kind == Question.Kind.APPROVAL else value
            services.respond(job.id, by=by, answer=answer, question_id=question.id)
        else:
            was_declined = True
    return was_declined
