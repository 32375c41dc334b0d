"""What Engine raises when a caller can do something about it. `engine/problems.py` renders these as HTTP."""

from http import HTTPStatus
from typing import Any, ClassVar, TypedDict


class FieldError(TypedDict):
    """One fault in a request body: where (RFC 6901 JSON pointer) and what."""

    pointer: str
    detail: str


class EngineError(Exception):
    """A refusal with a stable `code`. `detail` says in one sentence what happened and what to do.

    `fields` are public: they become members of the problem document (RFC 9457) beside the standard ones.
    """

    status: ClassVar[HTTPStatus] = HTTPStatus.BAD_REQUEST
    code: ClassVar[str] = "bad_request"
    title: ClassVar[str] = "The request cannot be carried out"

    def __init__(
        self,
        detail: str = "",
        *,
        errors: list[FieldError] | None = None,
        headers: dict[str, str] | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.errors = errors or []
        self.headers = headers or {}
        self.fields = fields


class ValidationFailed(EngineError):
    """The body is well-formed but one or more of its members are not acceptable; `errors` points at each."""

    status, code, title = HTTPStatus.UNPROCESSABLE_ENTITY, "validation_failed", "Some fields are not valid"


class NotFound(EngineError):
    """No such object, or none that this caller may see: the two answers are the same on purpose."""

    status, code, title = HTTPStatus.NOT_FOUND, "not_found", "There is no such object"


class Conflict(EngineError):
    """The object is not in a state that allows this."""

    status, code, title = HTTPStatus.CONFLICT, "conflict", "The object's state does not allow this"
