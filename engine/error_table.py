"""The error classes as a table for people: docs/errors.md is made of it."""

import inspect
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec

from django.apps import apps

from engine.errors import EngineError

HEAD = """# Errors

Every refusal below `/api/` is a problem document (RFC 9457, `application/problem+json`):

```json
{"type": "urn:engine:problem:job_not_found", "title": "There is no such job", "status": 404,
 "detail": "There is no such job", "code": "job_not_found", "request_id": "0197…"}
```

`code` is a promise and does not change; `title` and `detail` are for people and may. `request_id` is also in the
`X-Request-Id` header and in the server's log. Where single fields are at fault, `errors` lists them as
`{"pointer", "detail"}`: a JSON pointer (RFC 6901) into the body, or `?name` for a query parameter.

This page is made by `manage.py error_table`.

| status | code | title | when |
| --- | --- | --- | --- |
"""

ELSEWHERE = ("engine.problems", "engine.gate", "engine.query", "engine.pages")


def render() -> str:
    """The whole page."""
    rows = sorted(error_classes(), key=lambda kind: (kind.status, kind.code))
    return HEAD + "".join(
        f"| {int(kind.status)} | `{kind.code}` | {kind.title} | {_meaning(kind)} |\n" for kind in rows
    )


def error_classes() -> set[type[EngineError]]:
    """Every error that a caller can meet: those in the `errors.py` of an app, and the engine's own."""
    for module in _modules():
        import_module(module)
    homes = set(_modules())
    return {kind for kind in _below(EngineError) if kind.__module__ in homes}


def _modules() -> Iterator[str]:
    yield from ELSEWHERE
    for app in apps.get_app_configs():
        module = f"{app.name}.errors"
        if find_spec(module) is not None:
            yield module


def _below(kind: type[EngineError]) -> Iterator[type[EngineError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _below(child)


def _meaning(kind: type[EngineError]) -> str:
    return " ".join(inspect.cleandoc(kind.__doc__ or "").split()).replace("|", "\\|")
