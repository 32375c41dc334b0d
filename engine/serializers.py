"""What every serializer of a request body inherits."""

import re
from collections.abc import Mapping
from typing import Any

from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail, ValidationError

_NOT_ON_A_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")

# The fields whose values have one type in JSON, and what to say of any other.
_TYPES: tuple[tuple[type[Any], tuple[type, ...], str], ...] = (
    (serializers.CharField, (str,), "Not a valid string."),
    (serializers.BooleanField, (bool,), "Must be a valid boolean."),
    (serializers.IntegerField, (int, float), "A valid integer is required."),
    (serializers.FloatField, (int, float), "A valid number is required."),
)


class LineField(serializers.CharField):
    """Text that is shown on one line: nothing in it breaks the line or steers a terminal."""

    def to_internal_value(self, data: Any) -> str:
        """The text without spaces around it. Raises ValidationError."""
        if not isinstance(data, str):
            raise ValidationError("Not a valid string.")
        text: str = super().to_internal_value(data)
        if _NOT_ON_A_LINE.search(text):
            raise ValidationError("Line breaks and control characters are not accepted here.")
        return text


class StrictSerializer(serializers.Serializer[Any]):
    """Refuses members it does not know: a misspelled option must not be silently without effect."""

    def to_internal_value(self, data: Any) -> Any:
        """As REST framework does it, with unknown members reported beside the other errors."""
        unknown: dict[str, list[ErrorDetail]] = {}
        if isinstance(data, Mapping):
            unknown |= self._of_another_type(data)
            known = {name for name, field in self.fields.items() if not field.read_only}
            unknown |= {
                name: [ErrorDetail("There is no such field", code="unknown_field")]
                for name in map(str, data)
                if name not in known
            }
        try:
            value = super().to_internal_value(data)
        except ValidationError as exc:
            if isinstance(exc.detail, dict):
                raise ValidationError({**exc.detail, **unknown}) from exc
            raise
        if unknown:
            raise ValidationError(unknown)
        return value

    def _of_another_type(self, data: Mapping[str, Any]) -> dict[str, list[ErrorDetail]]:
        """REST framework takes 7 for a text, "7" for a number and "yes" for true; JSON has types of its own."""
        wrong: dict[str, list[ErrorDetail]] = {}
        for name, field in self.fields.items():
            value = data.get(name)
            if value is None or field.read_only:
                continue
            for kind, types, sentence in _TYPES:
                if isinstance(field, kind) and type(value) not in types:
                    wrong[name] = [ErrorDetail(sentence, code="invalid")]
        return wrong
