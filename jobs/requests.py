"""From what a caller sent to a request for a job."""

import json
from dataclasses import replace
from datetime import timedelta
from functools import lru_cache
from typing import Any

from uuid_utils.compat import uuid7

from jobs import services
from jobs.serializers import MOST_TASK_CHARS, JobRequestSerializer
from jobs.services import JobRequest

# Members whose check depends on nothing but themselves: not on the clock, nor on the network.
TIMELESS = frozenset({"agent", "priority", "queue", "tags", "max_attempts", "timeout_s", "metadata"})

MOST_KEPT_CHARS = 1_000


def read_job(item: dict[str, Any]) -> JobRequest:
    """Check one job's members. Raises REST framework's ValidationError.

    The serializer takes some 400 us, and what a client sends mostly differs by `task` and `input` alone: the rest is
    checked once for all that are alike.
    """
    task, given = item.get("task"), item.get("input", {})
    rest = {name: value for name, value in item.items() if name not in ("task", "input")}
    if not (isinstance(task, str) and 0 < len(task.strip()) <= MOST_TASK_CHARS and isinstance(given, dict)):
        return _read(item)
    if rest.keys() <= TIMELESS and len(text := json.dumps(rest)) <= MOST_KEPT_CHARS:
        alike = _read_alike(text)
        if alike is not None:
            return replace(alike, task=task.strip(), input=given, id=uuid7())
    return _read(item)


@lru_cache(maxsize=1_000)
def _read_alike(rest: str) -> JobRequest | None:
    """A job of these members and any task. None if they are refused: whom, and why, is for each to be told."""
    body = JobRequestSerializer(data={"task": "any", **json.loads(rest)})
    return _request(body.validated_data) if body.is_valid() else None


def _read(item: dict[str, Any]) -> JobRequest:
    body = JobRequestSerializer(data=item)
    body.is_valid(raise_exception=True)
    return _request(body.validated_data)


def _request(values: dict[str, Any]) -> JobRequest:
    """The service's words for a checked body."""
    named = {"timeout_s": "timeout_seconds"}
    members = {named.get(name, name): value for name, value in values.items() if name != "deadline_s"}
    if "deadline_s" in values:
        members["deadline_at"] = services.database_time() + timedelta(seconds=values["deadline_s"])
    return JobRequest(**members)
