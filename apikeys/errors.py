"""What a caller's key, project or idempotency key can be refused for."""

from http import HTTPStatus

from engine.errors import Conflict, EngineError, NotFound
from engine.problems import Forbidden, NotAuthenticated, TooManyRequests


class InvalidKey(NotAuthenticated):
    """The `Authorization` header holds no key that Engine has given out."""

    code, title = "invalid_key", "The API key is not valid"


class KeyRevoked(NotAuthenticated):
    """The key was revoked, for good."""

    code, title = "key_revoked", "The API key was revoked"


class KeyDisabled(NotAuthenticated):
    """The key is disabled until somebody enables it again."""

    code, title = "key_disabled", "The API key is disabled"


class KeyExpired(NotAuthenticated):
    """The key's time is over, or the overlap after its rotation."""

    code, title = "key_expired", "The API key has expired"


class ProjectArchived(NotAuthenticated):
    """The key's project is archived; none of its keys is accepted."""

    code, title = "project_archived", "The project is archived"


class AddressNotAllowed(Forbidden):
    """The key may not be used from this network address."""

    code, title = "address_not_allowed", "The key may not be used from here"


class ScopeMissing(Forbidden):
    """The key lacks the right that this request needs; `missing_scope` names it."""

    code, title = "scope_missing", "The key lacks a scope"


class BeyondOwnRights(Forbidden):
    """A key may neither give what it does not hold itself, nor change a key that holds more than it does."""

    code, title = "beyond_own_rights", "The key does not hold what it would give"


class RateLimited(TooManyRequests):
    """The key has used up one of its rate windows; `Retry-After` says when the window starts again."""

    code, title = "rate_limited", "The key's rate limit is reached"


class KeyNotFound(NotFound):
    """No such key, or none that this caller may see."""

    code, title = "key_not_found", "There is no such key"


class ProjectNotFound(NotFound):
    """No such project, or none that this caller may see."""

    code, title = "project_not_found", "There is no such project"


class ProjectExists(Conflict):
    """The slug is taken."""

    code, title = "project_exists", "There is a project of this name"


class KeyNotActive(Conflict):
    """A revoked, expired or already rotated key cannot be changed or rotated."""

    code, title = "key_not_active", "The key is not active"


class InvalidIdempotencyKey(EngineError):
    """`Idempotency-Key` must be 1 to 255 printable ASCII characters."""

    status, code = HTTPStatus.BAD_REQUEST, "invalid_idempotency_key"
    title = "The idempotency key is not valid"


class IdempotencyKeyReused(EngineError):
    """The same `Idempotency-Key` came before with another method, address or body."""

    status, code = HTTPStatus.UNPROCESSABLE_ENTITY, "idempotency_key_reused"
    title = "The idempotency key belongs to another request"


class IdempotencyInProgress(Conflict):
    """A request with this `Idempotency-Key` is still being carried out; ask again after `Retry-After`."""

    code, title = "idempotency_in_progress", "The first request is still in progress"
