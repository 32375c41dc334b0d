"""Engine's refusals as classes: one for each `code` of docs/errors.md, below one for its HTTP status.

`except TooManyRequests` takes every 429, `except QueueFull` one kind of it. A code that this release does not
know comes as the class of its status.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import httpx


class EngineError(Exception):
    """Whatever this package raises."""


class ConnectionFailed(EngineError):
    """Engine could not be reached, or went away before it answered."""


class JobUnfinished(EngineError):
    """The job has not ended within the time that the caller gave; it goes on."""


class Problem(EngineError):
    """Engine refused. The code is a promise; the detail is a sentence for people."""

    code: ClassVar[str] = ""

    def __init__(self, status: int, document: Mapping[str, Any], retry_after: float | None = None) -> None:
        self.status = status
        self.problem = dict(document)
        self.title = str(document.get("title", ""))
        self.detail = str(document.get("detail", ""))
        self.errors: list[dict[str, str]] = list(document.get("errors") or [])
        self.request_id = str(document.get("request_id", ""))
        # Seconds after which the same request may be taken.
        self.retry_after = retry_after
        # Of a code that is newer than this release, its own name.
        self.given_code = str(document.get("code", self.code))
        super().__init__(self.detail or self.title or f"HTTP {status}")


class BadRequest(Problem):
    """The request is not proper HTTP for this address; the detail says what is wrong with it."""

    code = "bad_request"


class InvalidCursor(BadRequest):
    """The cursor is not one that a list has given out. Start without one."""

    code = "invalid_cursor"


class InvalidIdempotencyKey(BadRequest):
    """`Idempotency-Key` must be 1 to 255 printable ASCII characters."""

    code = "invalid_idempotency_key"


class InvalidQuery(BadRequest):
    """A parameter in the address is unknown or not valid; each pointer is `?` and the parameter's name."""

    code = "invalid_query"


class MalformedJson(BadRequest):
    """The body is not JSON in UTF-8 (RFC 8259)."""

    code = "malformed_json"


class UnacceptableJson(BadRequest):
    """The body is JSON but holds what is not taken: `errors` points at each."""

    code = "unacceptable_json"


class UnacceptableValue(BadRequest):
    """The database refused a value that no check had caught before; nothing was changed."""

    code = "unacceptable_value"


class NotAuthenticated(Problem):
    """No API key came with the request. Send `Authorization: Bearer engine_live_…`."""

    code = "not_authenticated"


class InvalidKey(NotAuthenticated):
    """The `Authorization` header holds no key that Engine has given out."""

    code = "invalid_key"


class KeyDisabled(NotAuthenticated):
    """The key is disabled until somebody enables it again."""

    code = "key_disabled"


class KeyExpired(NotAuthenticated):
    """The key's time is over, or the overlap after its rotation."""

    code = "key_expired"


class KeyRevoked(NotAuthenticated):
    """The key was revoked, for good."""

    code = "key_revoked"


class ProjectArchived(NotAuthenticated):
    """The key's project is archived; none of its keys is accepted."""

    code = "project_archived"


class Forbidden(Problem):
    """The caller is known and may not do this."""

    code = "forbidden"


class AddressNotAllowed(Forbidden):
    """The key may not be used from this network address."""

    code = "address_not_allowed"


class AgentIsShared(Forbidden):
    """A project's key may not change an agent that all projects share."""

    code = "agent_is_shared"


class BeyondOwnRights(Forbidden):
    """A key may neither give what it does not hold itself, nor change a key that holds more than it does."""

    code = "beyond_own_rights"


class ScopeMissing(Forbidden):
    """The key lacks the right that this request needs; `missing_scope` names it."""

    code = "scope_missing"


class NotFound(Problem):
    """No such object, or none that this caller may see: the two answers are the same on purpose."""

    code = "not_found"


class AgentNotFound(NotFound):
    """No agent, or no version of it, of that name that this caller may see."""

    code = "agent_not_found"


class ArtifactNotFound(NotFound):
    """No such artifact on this job, or none that this caller may see."""

    code = "artifact_not_found"


class CheckpointNotFound(NotFound):
    """The job's journal has no such entry with a durable end."""

    code = "checkpoint_not_found"


class DeliveryNotFound(NotFound):
    """No such delivery, or none that this caller may see."""

    code = "delivery_not_found"


class JobNotFound(NotFound):
    """No such job, or none that this caller may see."""

    code = "job_not_found"


class KeyNotFound(NotFound):
    """No such key, or none that this caller may see."""

    code = "key_not_found"


class LinkNotFound(NotFound):
    """The link was not made here, or the question it was for is gone."""

    code = "link_not_found"


class ProjectNotFound(NotFound):
    """No such project, or none that this caller may see."""

    code = "project_not_found"


class QuestionNotFound(NotFound):
    """No such question on this job, or none that this caller may see."""

    code = "question_not_found"


class WebhookNotFound(NotFound):
    """No such endpoint, or none that this caller may see."""

    code = "webhook_not_found"


class WorkerNotFound(NotFound):
    """No such worker, or one that has ended."""

    code = "worker_not_found"


class MethodNotAllowed(Problem):
    """The address exists but does not take this method; `Allow` lists those it takes."""

    code = "method_not_allowed"


class NotAcceptable(Problem):
    """Nothing that the `Accept` header asks for can be sent."""

    code = "not_acceptable"


class Conflict(Problem):
    """The object is not in a state that allows this."""

    code = "conflict"


class AgentArchived(Conflict):
    """The agent is archived: it takes neither work nor new versions until it is restored."""

    code = "agent_archived"


class DeliveryPending(Conflict):
    """The delivery waits for its next try already; `next_try_at` says when that is."""

    code = "delivery_pending"


class IdempotencyInProgress(Conflict):
    """A request with this `Idempotency-Key` is still being carried out; ask again after `Retry-After`."""

    code = "idempotency_in_progress"


class JobAlreadyEnded(Conflict):
    """The job ended some other way before it could be cancelled."""

    code = "job_already_ended"


class JobNotRetryable(Conflict):
    """Only a job that failed or was cancelled can be continued; `job_status` says what this one is."""

    code = "job_not_retryable"


class JobNotWaiting(Conflict):
    """An answer came for a job that has no open question."""

    code = "job_not_waiting"


class KeyNotActive(Conflict):
    """A revoked, expired or already rotated key cannot be changed or rotated."""

    code = "key_not_active"


class ProjectExists(Conflict):
    """The slug is taken."""

    code = "project_exists"


class QuestionAlreadyAnswered(Conflict):
    """Somebody was first; `answered_by`, `answered_via` and `answered_at` say who and when."""

    code = "question_already_answered"


class QuestionClosed(Conflict):
    """The question expired, or its job ended, before this answer came."""

    code = "question_closed"


class SeveralQuestionsOpen(Conflict):
    """The answer does not say which of several open questions it is for; `questions` lists them."""

    code = "several_questions_open"


class SpaceIncomplete(Conflict):
    """An embedding space cannot be activated while vectors are missing in it."""

    code = "space_incomplete"


class TooManyWebhooks(Conflict):
    """The project has as many endpoints as it may; delete one first."""

    code = "too_many_webhooks"


class LinkExpired(Problem):
    """The link's time is over, or whoever made it may not answer any more. Ask for a new one."""

    code = "link_expired"


class PreconditionFailed(Problem):
    """`If-Match` or `If-Unmodified-Since` asks for another state than the object has; nothing was done."""

    code = "precondition_failed"


class HeadTooLarge(Problem):
    """The address and the headers together are too large, or there are too many headers."""

    code = "head_too_large"


class BodyTooLarge(Problem):
    """The body, or one part of it, is over the installation's limit."""

    code = "body_too_large"


class FilesTooLarge(BodyTooLarge):
    """A file, or all files of the job together, are over the cap."""

    code = "files_too_large"


class StorageFull(BodyTooLarge):
    """With this job's files the project would store more bytes than it may; delete jobs, or ask for more."""

    code = "storage_full"


class UnsupportedMediaType(Problem):
    """The body's content type is not taken here; most addresses take `application/json` alone."""

    code = "unsupported_media_type"


class RangeNotSatisfiable(Problem):
    """The range that was asked for lies outside of the file; `Content-Range` says how long it is."""

    code = "range_not_satisfiable"


class ValidationFailed(Problem):
    """The body is well-formed but one or more of its members are not acceptable; `errors` points at each."""

    code = "validation_failed"


class IdempotencyKeyReused(ValidationFailed):
    """The same `Idempotency-Key` came before with another method, address or body."""

    code = "idempotency_key_reused"


class InvalidAnswer(ValidationFailed):
    """The answer does not fit the question's schema; `errors` points at what is wrong."""

    code = "invalid_answer"


class InvalidCard(ValidationFailed):
    """The agent card cannot be registered; `errors` points at each fault."""

    code = "invalid_card"


class InvalidInput(ValidationFailed):
    """The job's input does not fit the agent's input schema."""

    code = "invalid_input"


class TooManyRequests(Problem):
    """Requests come too fast; `Retry-After` says when to go on."""

    code = "too_many_requests"


class MonthUsedUp(TooManyRequests):
    """The project has submitted as many jobs this month (UTC) as it may; `Retry-After` leads into the next."""

    code = "month_used_up"


class QueueFull(TooManyRequests):
    """The project has as many unfinished jobs as it may; try again when some are done."""

    code = "queue_full"


class RateLimited(TooManyRequests):
    """The key has used up one of its rate windows; `Retry-After` says when the window starts again."""

    code = "rate_limited"


class TooManyJobs(TooManyRequests):
    """The key has as many jobs that have not ended as it may; try again when one has."""

    code = "too_many_jobs"


class TooManyStreams(TooManyRequests):
    """This key, or this server, has as many streams open as it may; close some, or try again later."""

    code = "too_many_streams"


class InternalError(Problem):
    """A fault of Engine itself; it is in the server's log under the `request_id`."""

    code = "internal_error"


class Unavailable(Problem):
    """The database is away or too busy for the moment. Nothing was changed; try again after `Retry-After`."""

    code = "unavailable"


class StorageUnavailable(Unavailable):
    """Files cannot be stored or read for the moment. Nothing was changed; try again after `Retry-After`."""

    code = "storage_unavailable"


_STATUSES: dict[int, type[Problem]] = {
    400: BadRequest,
    401: NotAuthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: BodyTooLarge,
    422: ValidationFailed,
    429: TooManyRequests,
    500: InternalError,
    503: Unavailable,
}


def _all(kind: type[Problem]) -> dict[str, type[Problem]]:
    found = {kind.code: kind} if kind.code else {}
    for inner in kind.__subclasses__():
        found |= _all(inner)
    return found


BY_CODE: dict[str, type[Problem]] = _all(Problem)


def problem_of(response: httpx.Response) -> Problem:
    """The refusal that a response holds; its body must have been read."""
    try:
        document = response.json()
    except ValueError:
        document = {}
    if not isinstance(document, dict):
        document = {}
    document.setdefault("detail", f"{response.status_code} {response.reason_phrase}")
    kind = BY_CODE.get(str(document.get("code"))) or _STATUSES.get(response.status_code, Problem)
    return kind(response.status_code, document, seconds(response.headers.get("retry-after")))


def seconds(text: str | None) -> float | None:
    """`Retry-After` in seconds. Engine sends no dates; one of a proxy is left out."""
    return float(text) if text and text.isascii() and text.isdigit() else None
