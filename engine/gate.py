"""The one gate that every body goes through before a serializer sees it (addresses: `engine/query.py`).

Behind it, request data holds only what PostgreSQL and UTF-8 can carry, in sizes that the settings allow.
"""

import json
import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any, BinaryIO, NoReturn, TypeAlias

from django.conf import settings
from django.http import QueryDict
from django.utils.http import parse_header_parameters
from rest_framework.parsers import BaseParser, DataAndFiles, MultiPartParser

from engine.errors import EngineError, FieldError
from engine.problems import MAX_ERRORS, BodyTooLarge, UnsupportedMediaType, in_short, pointer_part

# Numbers are signed 64-bit, as in PostgreSQL's bigint; 19 digits and a sign hold them all.
MIN_INTEGER, MAX_INTEGER, INTEGER_CHARS = -(2**63), 2**63 - 1, 20
UTF8_BOM = b"\xef\xbb\xbf"

# A whole string, or one that never ends: possessive, so that no input makes it try a second way.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")
# What PostgreSQL's text cannot hold (NUL) and what UTF-8 cannot encode (half of a surrogate pair).
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class MalformedJson(EngineError):
    """The body is not JSON in UTF-8 (RFC 8259)."""

    status, code, title = HTTPStatus.BAD_REQUEST, "malformed_json", "The body is not valid JSON"


class UnacceptableJson(EngineError):
    """The body is JSON but holds what is not taken: `errors` points at each.

    NUL or lone surrogates, a key twice, NaN or infinity, an integer beyond 64 bits, or over the limits on
    depth, number of members and length of a string.
    """

    status, code, title = HTTPStatus.BAD_REQUEST, "unacceptable_json", "The body holds what is not accepted"


class StrictJSONParser(BaseParser):
    """`application/json`, read by `parse_json`."""

    media_type = "application/json"

    def parse(
        self,
        stream: Any,
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> Any:
        """The decoded body. Raises the errors of `parse_json`, and UnsupportedMediaType for another charset."""
        refuse_charset(media_type)
        return parse_json(read_capped(stream, settings.ENGINE_MAX_BODY_BYTES))


class StrictMultiPartParser(MultiPartParser):
    """`multipart/form-data`, for views that take files: its fields hold to the rules of JSON strings."""

    def parse(
        self,
        stream: Any,
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> "DataAndFiles[Any, Any]":
        """Fields and files. Raises UnacceptableJson where a field or a file's name cannot be stored."""
        refuse_charset(media_type)
        parsed: DataAndFiles[Any, Any] = super().parse(stream, media_type, parser_context)
        refuse_faults(_form_faults(parsed.data, parsed.files))
        return parsed


def parse_json(body: bytes) -> Any:
    """Decode one JSON text within the limits. Raises MalformedJson, UnacceptableJson or BodyTooLarge."""
    if len(body) > settings.ENGINE_MAX_BODY_BYTES:
        _too_large(settings.ENGINE_MAX_BODY_BYTES)
    body = body.removeprefix(UTF8_BOM)
    _refuse_depth(body)
    reader = _Reader()
    try:
        value = reader.decode(body.decode("utf-8"))
    except UnicodeDecodeError as exc:
        raise MalformedJson(f"Byte {exc.start} is not UTF-8") from exc
    except json.JSONDecodeError as exc:
        raise MalformedJson(f"{exc.msg} at line {exc.lineno}, column {exc.colno}") from exc
    refuse_faults(_faults(value))
    return value


def read_capped(stream: BinaryIO, limit: int) -> bytes:
    """All of the stream, or BodyTooLarge once it is longer than `limit` bytes."""
    body = stream.read(limit + 1)
    if len(body) > limit:
        _too_large(limit)
    return body


def refuse_charset(media_type: str | None) -> None:
    """Raise UnsupportedMediaType unless the content type leaves the charset open or names UTF-8."""
    charset = parse_header_parameters(media_type or "")[1].get("charset", "utf-8")
    if charset.lower() not in ("utf-8", "utf8"):
        raise UnsupportedMediaType("Send the body in UTF-8")


def refuse_faults(faults: Iterator[FieldError]) -> None:
    """Raise UnacceptableJson with the first faults, if there are any."""
    errors = [fault for fault, _ in zip(faults, range(MAX_ERRORS), strict=False)]
    if errors:
        raise UnacceptableJson(in_short(errors), errors=errors)


class _Fault(str):
    """Stands in the decoded value for what cannot be accepted, until the walk knows where that is."""

    __slots__ = ()


class _Reader(json.JSONDecoder):
    """Counts and checks while it reads; the place of a fault is found afterwards by walking the value."""

    def __init__(self) -> None:
        super().__init__(
            object_pairs_hook=self._object,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=lambda name: _Fault(f"{name} is not a JSON number"),
        )
        self.members = 0

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        self.members += len(pairs)
        if self.members > settings.ENGINE_JSON_MAX_KEYS:
            raise UnacceptableJson(
                f"More than {settings.ENGINE_JSON_MAX_KEYS} members in all objects together"
            )
        members = dict(pairs)
        if len(members) < len(pairs):
            seen: set[str] = set()
            for name, _ in pairs:
                if name in seen:
                    members[name] = _Fault("This name occurs twice in the object")
                seen.add(name)
        return members


def _integer(digits: str) -> int | _Fault:
    if len(digits) <= INTEGER_CHARS and MIN_INTEGER <= (number := int(digits)) <= MAX_INTEGER:
        return number
    return _Fault("Integers must fit in 64 bits")


def _float(digits: str) -> float | _Fault:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        return _Fault("The number is out of range")
    return number


def _refuse_depth(body: bytes) -> None:
    """Before decoding: the standard library's decoder recurses, and dies of 1,000 nested arrays."""
    limit = settings.ENGINE_JSON_MAX_DEPTH
    if body.count(b"[") + body.count(b"{") <= limit:
        return
    depth = 0
    for bracket in _BRACKET.finditer(_STRING.sub(b"", body)):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > limit:
            raise UnacceptableJson(f"Nested deeper than {limit} levels")


def _faults(value: Any) -> Iterator[FieldError]:
    """Walk the decoded value without recursion, in no particular order."""
    items = 0
    # Each with the way to it, (way to its parent, step): a pointer is spelled out only for a fault.
    stack: list[tuple[Any, _Way]] = [(value, None)]
    while stack:
        node, way = stack.pop()
        if isinstance(node, _Fault):
            yield {"pointer": _pointer(way), "detail": str(node)}
        elif isinstance(node, str):
            if fault := text_fault(node):
                yield {"pointer": _pointer(way), "detail": fault}
        elif isinstance(node, dict):
            for name, inner in node.items():
                if fault := text_fault(name):
                    yield {"pointer": _pointer((way, name)), "detail": f"In the name: {fault}"}
                stack.append((inner, (way, name)))
        elif isinstance(node, list):
            items += len(node)
            if items > settings.ENGINE_JSON_MAX_ITEMS:
                raise UnacceptableJson(
                    f"More than {settings.ENGINE_JSON_MAX_ITEMS} items in all arrays together"
                )
            stack.extend((inner, (way, index)) for index, inner in enumerate(node))


_Way: TypeAlias = "tuple[_Way, str | int] | None"


def _pointer(way: _Way) -> str:
    parts: list[str] = []
    while way is not None:
        way, step = way
        parts.append("/" + pointer_part(step))
    return "".join(reversed(parts))


def text_fault(text: str) -> str | None:
    """Why a text from outside cannot be taken, or None if it can."""
    if len(text) > settings.ENGINE_JSON_MAX_STRING:
        return f"Longer than {settings.ENGINE_JSON_MAX_STRING} characters"
    found = _UNSTORABLE.search(text)
    if found is None:
        return None
    return "NUL characters cannot be stored" if found[0] == "\x00" else "A surrogate stands without its pair"


def _form_faults(data: QueryDict, files: Mapping[str, Any]) -> Iterator[FieldError]:
    for name, values in data.lists():
        for text in (name, *values):
            if fault := text_fault(str(text)):
                yield {"pointer": f"/{pointer_part(name)}", "detail": fault}
    for name, file in files.items():
        for text in (name, file.name):
            if fault := text_fault(text or ""):
                yield {"pointer": f"/{pointer_part(name)}", "detail": fault}


def _too_large(limit: int) -> NoReturn:
    raise BodyTooLarge(f"The body may have {limit:,} bytes", limit=limit)
