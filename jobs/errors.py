"""What callers of jobs can get wrong."""

from http import HTTPStatus

from engine.errors import Conflict, EngineError, NotFound, ValidationFailed
from engine.problems import TooManyRequests, Unavailable


class JobNotFound(NotFound):
    """No such job, or none that this caller may see."""

    code, title = "job_not_found", "There is no such job"


class WorkerNotFound(NotFound):
    """No such worker, or one that has ended."""

    code, title = "worker_not_found", "There is no such worker"


class QuestionNotFound(NotFound):
    """No such question on this job, or none that this caller may see."""

    code, title = "question_not_found", "There is no such question"


class ArtifactNotFound(NotFound):
    """No such artifact on this job, or none that this caller may see."""

    code, title = "artifact_not_found", "There is no such artifact"


class JobAlreadyEnded(Conflict):
    """The job ended some other way before it could be cancelled."""

    code, title = "job_already_ended", "The job has already ended"


class JobNotWaiting(Conflict):
    """An answer came for a job that has no open question."""

    code, title = "job_not_waiting", "The job has no open question"


class SeveralQuestionsOpen(Conflict):
    """The answer does not say which of several open questions it is for; `questions` lists them."""

    code, title = "several_questions_open", "Several questions are open"


class QuestionAlreadyAnswered(Conflict):
    """Somebody was first; `answered_by`, `answered_via` and `answered_at` say who and when."""

    code, title = "question_already_answered", "The question has been answered already"


class QuestionClosed(Conflict):
    """The question expired, or its job ended, before this answer came."""

    code, title = "question_closed", "The question is closed"


class JobNotRetryable(Conflict):
    """Only a job that failed or was cancelled can be continued; `job_status` says what this one is."""

    code, title = "job_not_retryable", "The job cannot be continued"


class CheckpointNotFound(NotFound):
    """The job's journal has no such entry with a durable end."""

    code, title = "checkpoint_not_found", "There is no such checkpoint"


class InvalidAnswer(ValidationFailed):
    """The answer does not fit the question's schema; `errors` points at what is wrong."""

    code, title = "invalid_answer", "The answer does not fit the question"


class InvalidInput(ValidationFailed):
    """The job's input does not fit the agent's input schema."""

    code, title = "invalid_input", "The input does not fit the agent"


class FilesTooLarge(EngineError):
    """A file, or all files of the job together, are over the cap."""

    status, code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "files_too_large"
    title = "The files are too large"


class QueueFull(EngineError):
    """The project has as many unfinished jobs as it may; try again when some are done."""

    status, code, title = HTTPStatus.TOO_MANY_REQUESTS, "queue_full", "The project's queue is full"


class TooManyJobs(TooManyRequests):
    """The key has as many jobs that have not ended as it may; try again when one has."""

    code, title = "too_many_jobs", "The key has too many unfinished jobs"


class MonthUsedUp(TooManyRequests):
    """The project has submitted as many jobs this month (UTC) as it may; `Retry-After` leads into the next."""

    code, title = "month_used_up", "The project's jobs of this month are used up"


class StorageFull(EngineError):
    """With this job's files the project would store more bytes than it may; delete jobs, or ask for more."""

    status, code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "storage_full"
    title = "The project's storage is full"


class RangeNotSatisfiable(EngineError):
    """The range that was asked for lies outside of the file; `Content-Range` says how long it is."""

    status, code = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "range_not_satisfiable"
    title = "The file has no such range"


class TooManyStreams(TooManyRequests):
    """This key, or this server, has as many streams open as it may; close some, or try again later."""

    code, title = "too_many_streams", "Too many streams are open"


class WebhookNotFound(NotFound):
    """No such endpoint, or none that this caller may see."""

    code, title = "webhook_not_found", "There is no such webhook"


class DeliveryNotFound(NotFound):
    """No such delivery, or none that this caller may see."""

    code, title = "delivery_not_found", "There is no such delivery"


class TooManyWebhooks(Conflict):
    """The project has as many endpoints as it may; delete one first."""

    code, title = "too_many_webhooks", "The project has too many webhooks"


class DeliveryPending(Conflict):
    """The delivery waits for its next try already; `next_try_at` says when that is."""

    code, title = "delivery_pending", "The delivery is still being tried"


class StorageUnavailable(Unavailable):
    """Files cannot be stored or read for the moment. Nothing was changed; try again after `Retry-After`."""

    code, title = "storage_unavailable", "The file storage is not available right now"
    RETRY_AFTER_SECONDS = 5


class LinkNotFound(NotFound):
    """The link was not made here, or the question it was for is gone."""

    code, title = "link_not_found", "There is no such link"


class LinkExpired(EngineError):
    """The link's time is over, or whoever made it may not answer any more. Ask for a new one."""

    status, code, title = HTTPStatus.GONE, "link_expired", "The link has expired"
