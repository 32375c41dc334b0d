"""How a body becomes a request for a job: the short way for what is alike says the same as the long one."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from rest_framework.exceptions import ValidationError

from jobs.requests import _read, read_job
from jobs.serializers import JobSerializer
from jobs.services import JobRequest
from tests.jobs import make_job

ITEMS = [
    {"task": "  a  ", "agent": "echo"},
    {"task": "a", "input": {"rows": [1, {"x": None}]}, "tags": ["b", "a", "b"], "priority": "high"},
    {"task": "a", "input": None, "queue": None},
    {"task": "   "},
    {"task": 7, "agent": "echo"},
    {"task": "a", "input": [1]},
    {"task": "a", "budget": {"tokens": 0}},
    {"task": "a", "no-such": 1},
    {"task": "a" * 100_001},
    {"input": {}},
]


def read(how: Any, item: dict[str, Any]) -> JobRequest | Any:
    try:
        return how(item)
    except ValidationError as error:
        return error.detail


@pytest.mark.parametrize("item", ITEMS, ids=[json.dumps(item)[:40] for item in ITEMS])
def test_what_is_alike_is_read_as_if_it_were_the_first(item: dict[str, Any]) -> None:
    expected = read(_read, item)

    found = [read(read_job, item) for _ in range(2)]

    if isinstance(expected, JobRequest):
        assert len({one.id for one in (expected, *found)}) == 3
        assert [replace(one, id=expected.id) for one in found] == [expected, expected]
    else:
        assert found == [expected, expected]


@pytest.mark.django_db
def test_times_are_told_from_now_for_each_job() -> None:
    first = read_job({"task": "a", "deadline_s": 60})
    second = read_job({"task": "a", "deadline_s": 120})

    assert first.deadline_at is not None
    assert second.deadline_at is not None
    assert timedelta(seconds=60) <= second.deadline_at - first.deadline_at < timedelta(seconds=70)


@pytest.mark.django_db(transaction=True)
def test_a_job_is_written_with_every_member_that_the_description_names() -> None:
    document = JobSerializer(make_job()).data

    assert list(document) == list(JobSerializer().fields)
