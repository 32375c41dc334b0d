"""What the description of the API (OpenAPI 3.1) says about all operations alike."""

from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension, OpenApiSerializerExtension
from drf_spectacular.utils import OpenApiParameter, inline_serializer
from rest_framework import serializers

from engine.pages import DEFAULT_LIMIT, MAX_LIMIT
from engine.problems import CONTENT_TYPE


def whole(name: str, least: int, most: int, description: str = "", **more: Any) -> OpenApiParameter:
    """A query parameter that is a whole number within bounds."""
    schema = {"type": "integer", "minimum": least, "maximum": most, **more}
    return OpenApiParameter(name, schema, description=description)


def several(name: str, item: dict[str, Any], description: str = "") -> OpenApiParameter:
    """A query parameter that lists values with commas between."""
    schema = {"type": "array", "items": item, "minItems": 1}
    return OpenApiParameter(name, schema, description=description, style="form", explode=False)


PAGE_QUERY = [
    whole("limit", 1, MAX_LIMIT, "Items a page.", default=DEFAULT_LIMIT),
    OpenApiParameter(
        "cursor", {"type": "string", "maxLength": 200}, description="`next_cursor` of the page before."
    ),
]

PROBLEM: dict[str, Any] = {
    "type": "object",
    "description": "RFC 9457. Some codes add members of their own.",
    "required": ["type", "title", "status", "detail", "code", "request_id"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string", "description": "A promise: it does not change."},
        "request_id": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["pointer", "detail"],
                "properties": {
                    "pointer": {
                        "type": "string",
                        "description": "A JSON pointer (RFC 6901) into the body, or `?name` of a query parameter.",
                    },
                    "detail": {"type": "string"},
                },
            },
        },
    },
}


def page_of(item: type[serializers.Serializer[Any]]) -> serializers.Serializer[Any]:
    """The shape of a list's answer."""
    name = item.__name__.removesuffix("Serializer") + "Page"
    fields = {"items": item(many=True), "next_cursor": serializers.CharField(allow_null=True)}
    return inline_serializer(name, fields)


def add_problems(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    """Postprocessing hook: whatever an operation does not list is answered by a problem document."""
    result.setdefault("components", {}).setdefault("schemas", {})["Problem"] = PROBLEM
    problem = {
        "description": "Refused: see the table of codes.",
        "content": {CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for operations in result.get("paths", {}).values():
        for operation in operations.values():
            if isinstance(operation, dict) and "responses" in operation:
                operation["responses"].setdefault("default", problem)
    return result


class StrictBody(OpenApiSerializerExtension):  # type: ignore[no-untyped-call]  # registers itself
    """Bodies that refuse members they do not know say so."""

    target_class = "engine.serializers.StrictSerializer"
    match_subclasses = True

    def map_serializer(self, auto_schema: Any, direction: Any) -> Any:
        """The schema as it would be, closed, and with no empty text where none is taken."""
        schema = auto_schema._map_serializer(self.target, direction, bypass_extensions=True)
        for name, field in self.target.fields.items():
            if isinstance(field, serializers.CharField) and not field.allow_blank:
                schema["properties"].get(name, {}).setdefault("minLength", 1)
        return {**schema, "additionalProperties": False}


class KeyScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]  # registers itself
    """How the description names a key in the Authorization header."""

    target_class = "apikeys.auth.KeyAuthentication"
    name = "key"

    def get_security_definition(self, auto_schema: Any) -> dict[str, Any]:
        """A bearer token."""
        return {"type": "http", "scheme": "bearer", "description": "`engine_live_…` or `engine_test_…`"}
