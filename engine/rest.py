"""How Django REST framework is set up: closed unless a view says otherwise, JSON only, one error format."""

from typing import Any

REST_FRAMEWORK: dict[str, Any] = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["apikeys.auth.KeyAuthentication"],
    # Denies a view that does not name its `required_scope`.
    "DEFAULT_PERMISSION_CLASSES": ["apikeys.permissions.HasScope"],
    "DEFAULT_THROTTLE_CLASSES": ["apikeys.throttling.KeyRateThrottle"],
    "DEFAULT_PARSER_CLASSES": ["engine.gate.StrictJSONParser"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    # OPTIONS would list every field with its limits, to anybody: it is answered with 405.
    "DEFAULT_METADATA_CLASS": None,
    "EXCEPTION_HANDLER": "engine.problems.exception_handler",
    "UNAUTHENTICATED_USER": None,
    "UNAUTHENTICATED_TOKEN": None,
    # The answer's format follows the Accept header alone, not `?format=`.
    "URL_FORMAT_OVERRIDE": None,
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}
