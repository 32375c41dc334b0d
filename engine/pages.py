"""Lists come in pages, newest first; a cursor says where the next one begins."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Generic, TypeVar

from django.core.exceptions import ValidationError
from django.db.models import Model, QuerySet
from django.utils.crypto import constant_time_compare, salted_hmac

from engine.errors import EngineError
from engine.query import Convert, text, whole_number

M = TypeVar("M", bound=Model)

DEFAULT_LIMIT, MAX_LIMIT = 50, 200
_MAC_BYTES = 8

# What every list takes: `query_params(request, {**PAGE_PARAMS, "status": …})`.
PAGE_PARAMS: dict[str, Convert] = {"limit": whole_number(1, MAX_LIMIT), "cursor": text(200)}


class InvalidCursor(EngineError):
    """The cursor is not one that a list has given out. Start without one."""

    status, code, title = HTTPStatus.BAD_REQUEST, "invalid_cursor", "The cursor is not valid"


@dataclass(frozen=True)
class Page(Generic[M]):
    """One page of a list."""

    items: list[M]
    # None on the last page.
    next_cursor: str | None

    def as_json(self, serialize: Callable[[list[M]], Any]) -> dict[str, Any]:
        """The body of the answer."""
        return {"items": serialize(self.items), "next_cursor": self.next_cursor}


def paginate(rows: QuerySet[M], params: Mapping[str, Any]) -> Page[M]:
    """One page of `rows` in the order of `-id`, by the `limit` and `cursor` in `params`. Raises InvalidCursor."""
    limit = params.get("limit", DEFAULT_LIMIT)
    if "cursor" in params:
        rows = rows.filter(id__lt=_opened(params["cursor"], rows.model))
    items = list(rows.order_by("-id")[: limit + 1])  # one more tells whether there is another page
    has_more = len(items) > limit
    items = items[:limit]
    return Page(items, _sealed(items[-1].pk) if has_more else None)


def _sealed(last_id: object) -> str:
    payload = str(last_id).encode()
    return urlsafe_b64encode(_mac(payload) + payload).decode().rstrip("=")


def _opened(cursor: str, model: type[Model]) -> Any:
    try:
        sealed = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        mac, payload = sealed[:_MAC_BYTES], sealed[_MAC_BYTES:]
        if constant_time_compare(mac, _mac(payload)):
            return model._meta.pk.to_python(payload.decode())
    except (ValueError, ValidationError):
        pass  # not base64, or made for a list of another kind
    raise InvalidCursor


def _mac(payload: bytes) -> bytes:
    """Cursors are signed so that nobody comes to rely on making them."""
    return salted_hmac("engine.pages", payload, algorithm="sha256").digest()[:_MAC_BYTES]
