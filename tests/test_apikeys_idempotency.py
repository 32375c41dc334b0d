"""A POST that is sent again does its work once."""

import io
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import IntegrityError, OperationalError, connection
from django.db.models import F
from django.test.client import encode_multipart
from rest_framework import exceptions as drf_errors
from rest_framework.parsers import MultiPartParser
from rest_framework.request import Request

from apikeys import idempotency
from apikeys.errors import RateLimited, ScopeMissing
from apikeys.models import ApiKey, IdempotencyRecord, Project
from apikeys.services import sweep
from engine.errors import Conflict, NotFound
from tests.factories import KeyInHand, make_key
from tests.probe import Behaviour

pytestmark = [pytest.mark.urls("tests.probe"), pytest.mark.django_db]


@pytest.fixture(autouse=True)
def behaviour() -> Iterator[None]:
    Behaviour.reset()
    yield
    Behaviour.reset()


@pytest.fixture
def held() -> KeyInHand:
    return make_key("jobs:write")


def post(held: KeyInHand, key: str | None, body: Any = None, path: str = "/api/work", **extra: Any) -> Any:
    headers = {} if key is None else {"HTTP_IDEMPOTENCY_KEY": key}
    client: Any = held.client
    return client.post(path, {"a": 1} if body is None else body, **headers, **extra)


def test_the_first_answer_is_replayed_byte_for_byte(held: KeyInHand) -> None:
    first, second = post(held, "k"), post(held, "k")

    assert (first.status_code, first.json(), first["Location"]) == (201, {"run": 1}, "/made/1")
    assert (second.status_code, second.content, second["Location"]) == (201, first.content, "/made/1")
    assert second["Content-Type"] == first["Content-Type"] == "application/json"
    assert second["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in first
    assert Behaviour.runs == 1


def test_without_a_key_every_post_does_its_work(held: KeyInHand) -> None:
    assert [post(held, None).json()["run"] for _ in range(2)] == [1, 2]
    assert not IdempotencyRecord.objects.exists()


def test_the_order_of_members_does_not_make_another_body(held: KeyInHand) -> None:
    post(held, "k", {"a": 1, "b": {"c": 1, "d": 2}})

    assert post(held, "k", {"b": {"d": 2, "c": 1}, "a": 1})["Idempotency-Replayed"] == "true"


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"a": 2}, "/api/work"),
        ({"a": "1"}, "/api/work"),
        ({"a": True}, "/api/work"),
        ({"a": 1, "b": None}, "/api/work"),
        ({}, "/api/work"),
        ([], "/api/work"),
    ],
)
def test_another_request_with_the_same_key_is_a_422(held: KeyInHand, body: Any, path: str) -> None:
    post(held, "k")

    answer = post(held, "k", body, path)

    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")
    assert Behaviour.runs == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb", "é", "a\x7f", "a\x00", "\x1b[0m"])
def test_a_key_that_cannot_be_one_is_refused(held: KeyInHand, key: str) -> None:
    answer = post(held, key)

    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_idempotency_key")
    assert Behaviour.runs == 0


@pytest.mark.parametrize("key", ["x" * 255, "a b", "'; DROP TABLE x; --", "%s %(a)s", "~!"])
def test_any_printable_key_up_to_255_characters_will_do(held: KeyInHand, key: str) -> None:
    assert post(held, key).status_code == 201
    assert post(held, key)["Idempotency-Replayed"] == "true"


def test_projects_do_not_share_keys_but_the_keys_of_one_project_do(held: KeyInHand) -> None:
    colleague, stranger = make_key("jobs:write", project=held.project), make_key("jobs:write")
    post(held, "k")

    assert post(colleague, "k")["Idempotency-Replayed"] == "true"
    assert post(stranger, "k").json() == {"run": 2}


def form(name: str = "a.csv", content: bytes = b"1,2", **fields: str) -> dict[str, Any]:
    return {"file": SimpleUploadedFile(name, content, "text/csv"), "task": "x", **fields}


def test_a_form_with_files_is_recognised_whatever_its_boundary(held: KeyInHand) -> None:
    def send(boundary: str, body: dict[str, Any]) -> Any:
        client: Any = held.client
        content_type = f"multipart/form-data; boundary={boundary}"
        return client.generic(
            "POST", "/api/work", encode_multipart(boundary, body), content_type, HTTP_IDEMPOTENCY_KEY="k"
        )

    assert send("one", form()).status_code == 201
    assert send("two", form())["Idempotency-Replayed"] == "true"
    for other in (form("b.csv"), form(content=b"1,3"), form(task="y"), form(more="z")):
        assert send("one", other).json()["code"] == "idempotency_key_reused"


def test_the_border_between_name_and_value_counts(held: KeyInHand) -> None:
    post(held, "k", {"ab": "c"}, format="multipart")

    assert post(held, "k", {"a": "bc"}, format="multipart").json()["code"] == "idempotency_key_reused"


def test_a_hashed_file_can_still_be_read_from_its_beginning(rf: Any) -> None:
    big = io.BytesIO(b"x" * 3_000_000)
    big.name = "big.bin"
    request = Request(rf.post("/", {"file": big}), parsers=[MultiPartParser()])

    first = idempotency.request_hash(request)

    assert request.data["file"].read() == b"x" * 3_000_000
    assert idempotency.request_hash(request) == first
    request.data["file"].close()


def refused_by(kind: Callable[[], BaseException]) -> Callable[[KeyInHand], Any]:
    def act(held: KeyInHand) -> Any:
        Behaviour.raises = kind
        answer = post(held, "k")
        Behaviour.raises = None
        return answer

    return act


@pytest.mark.parametrize("kind", [Conflict, NotFound, ScopeMissing, drf_errors.PermissionDenied])
def test_a_refusal_is_an_answer_and_undoes_the_work(held: KeyInHand, kind: Any) -> None:
    first = refused_by(kind)(held)

    second = post(held, "k")

    assert (second.status_code, second.content) == (first.status_code, first.content)
    assert second["Content-Type"] == "application/problem+json"
    assert Behaviour.runs == 1
    assert not Project.objects.filter(slug="made-1").exists()


@pytest.mark.parametrize(
    "kind",
    [
        ZeroDivisionError,
        OperationalError,
        IntegrityError,
        RateLimited,
        drf_errors.Throttled,
        lambda: drf_errors.ValidationError({"a": ["wrong"]}),
    ],
)
def test_a_fault_or_a_request_that_can_be_mended_leaves_the_key_free(held: KeyInHand, kind: Any) -> None:
    assert refused_by(kind)(held).status_code >= 422

    second = post(held, "k", {"a": "mended"})

    assert (second.status_code, second.json()) == (201, {"run": 2})
    assert not Project.objects.filter(slug="made-1").exists()


def test_a_body_that_does_not_parse_takes_no_key(held: KeyInHand) -> None:
    answer = held.client.generic("POST", "/api/work", "{", "application/json", HTTP_IDEMPOTENCY_KEY="k")

    assert answer.status_code == 400
    assert post(held, "k").json() == {"run": 1}


def test_rights_are_asked_for_again(held: KeyInHand) -> None:
    post(held, "k")
    ApiKey.objects.filter(id=held.key.id).update(scopes=["jobs:read"])

    assert post(held, "k").json()["missing_scope"] == "jobs:write"


def test_a_right_that_the_first_answer_needed_is_asked_for_again(held: KeyInHand) -> None:
    one_agent = make_key("agents:a:run", "jobs:write", project=held.project)
    ApiKey.objects.filter(id=held.key.id).update(scopes=["jobs:write"])
    body = {"agent": "a"}
    assert post(one_agent, "k", body).status_code == 201
    record = IdempotencyRecord.objects.get()
    record.scopes = [["agents:write", None]]
    record.save()

    answer = post(held, "k", body)

    assert (answer.status_code, answer.json()["missing_scope"]) == (403, "agents:write")
    assert b"run" not in answer.content.replace(b"agents:write", b"")


def test_a_record_holds_for_24_hours(held: KeyInHand) -> None:
    post(held, "k")
    age = IdempotencyRecord.objects.update

    age(created_at=F("created_at") - timedelta(hours=23, minutes=59))
    assert post(held, "k")["Idempotency-Replayed"] == "true"
    assert sweep() == 0
    age(created_at=F("created_at") - timedelta(minutes=2))

    assert post(held, "k", {"a": "another"}).json() == {"run": 2}
    assert post(held, "k", {"a": "another"})["Idempotency-Replayed"] == "true"


def test_old_records_are_swept(held: KeyInHand) -> None:
    post(held, "k")
    IdempotencyRecord.objects.update(created_at=F("created_at") - timedelta(hours=25))

    assert sweep() == 1
    assert not IdempotencyRecord.objects.exists()


# --- twins ---


def in_thread(work: Callable[[], Any]) -> Any:
    try:
        return work()
    finally:
        connection.close()


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


def waiting_twins() -> int:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND wait_event_type = 'Lock' AND query LIKE '%apikeys_idempotencyrecord%'"
        )
        (waiting,) = cursor.fetchone()
    return int(waiting)


@pytest.mark.django_db(transaction=True)
def test_twenty_twins_at_once_run_the_handler_once() -> None:
    held = make_key("jobs:write")
    start = threading.Barrier(20)

    def twin(_: int) -> Any:
        start.wait()
        return in_thread(lambda: post(held, "k"))

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(twin, range(20)))

    assert Behaviour.runs == 1
    assert {(answer.status_code, answer.content) for answer in answers} == {(201, b'{"run":1}')}
    assert sum("Idempotency-Replayed" in answer for answer in answers) == 19
    assert Project.objects.filter(slug__startswith="made-").count() == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("ends", "second"),
    [(None, {"run": 1}), (ZeroDivisionError, {"run": 2})],
    ids=["the first is answered", "the first fails"],
)
def test_a_twin_waits_for_the_first(ends: Any, second: dict[str, int]) -> None:
    held = make_key("jobs:write")
    working, finish = threading.Event(), threading.Event()

    def hold() -> None:
        Behaviour.before_answer = None
        working.set()
        assert finish.wait(10)
        if ends:
            raise ends

    Behaviour.before_answer = hold
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(in_thread, lambda: post(held, "k"))
        assert working.wait(10)
        twin = pool.submit(in_thread, lambda: post(held, "k"))
        wait_until(lambda: waiting_twins() == 1)
        finish.set()

    assert first.result().status_code == (500 if ends else 201)
    assert twin.result().json() == second


@pytest.mark.django_db(transaction=True)
def test_a_twin_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "TWIN_WAITS_SECONDS", 0.05)
    held = make_key("jobs:write")
    answers: list[Any] = []

    with ThreadPoolExecutor(1) as pool:

        def meanwhile() -> None:
            answers.append(pool.submit(in_thread, lambda: post(held, "k")).result(timeout=10))

        Behaviour.before_answer = meanwhile
        assert post(held, "k").status_code == 201

    (twin,) = answers
    assert (twin.status_code, twin.json()["code"], twin["Retry-After"]) == (
        409,
        "idempotency_in_progress",
        "1",
    )
    assert Behaviour.runs == 1


@pytest.mark.django_db(transaction=True)
def test_different_keys_do_not_wait_for_each_other() -> None:
    held = make_key("jobs:write")
    answers: list[Any] = []

    def meanwhile() -> None:
        Behaviour.before_answer = None
        answers.append(pool.submit(in_thread, lambda: post(held, str(uuid4()))).result(timeout=10))

    Behaviour.before_answer = meanwhile
    with ThreadPoolExecutor(1) as pool:
        post(held, "k")

    assert answers[0].status_code == 201
