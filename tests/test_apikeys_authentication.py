"""Who is let in with which key, and what the others are told."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction
from django.db.models.functions import Now
from django.forms.models import model_to_dict
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient

from apikeys import queries
from apikeys.auth import authenticate_bearer
from apikeys.errors import AddressNotAllowed, KeyRevoked
from apikeys.models import ApiKey, AuditRow, Project
from apikeys.secret import new_secret
from engine.problems import NotAuthenticated
from tests.factories import KeyInHand, make_key

pytestmark = [pytest.mark.urls("tests.probe"), pytest.mark.django_db]


def get(authorization: str | None, **extra: Any) -> Any:
    headers = {} if authorization is None else {"HTTP_AUTHORIZATION": authorization}
    client: Any = APIClient(raise_request_exception=False)
    return client.get("/api/guarded", **headers, **extra)


def test_a_key_lets_its_holder_in() -> None:
    held = make_key("jobs:read", name="ci")

    assert get(f"Bearer {held.secret}").json() == {"caller": "key:ci"}


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER ", "Bearer   "])
def test_the_scheme_is_read_in_any_case(scheme: str) -> None:
    assert get(scheme + make_key().secret).status_code == 200


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (None, "not_authenticated"),
        ("", "not_authenticated"),
        ("Basic dXNlcjpwYXNz", "not_authenticated"),
        ("Token KEY", "not_authenticated"),
        ("KEY", "not_authenticated"),
        ("Bearer", "invalid_key"),
        ("Bearer ", "invalid_key"),
        ("Bearer KEY KEY", "invalid_key"),
        ("Bearer KEY,Bearer KEY", "invalid_key"),
        ("Bearer KEYx", "invalid_key"),
        ("Bearer xKEY", "invalid_key"),
        ('Bearer "KEY"', "invalid_key"),
        ("Bearer KEY\x00", "invalid_key"),
        ("Bearer \x00", "invalid_key"),
        ("Bearer é", "invalid_key"),
        ("Bearer engine_live_", "invalid_key"),
        ("Bearer ' OR 1=1 --", "invalid_key"),
        ("Bearer " + "x" * 100_000, "invalid_key"),
    ],
)
def test_anything_but_a_key_is_a_401(header: str | None, code: str) -> None:
    secret = make_key().secret

    answer = get(header and header.replace("KEY", secret))

    assert (answer.status_code, answer.json()["code"]) == (401, code)
    assert answer["WWW-Authenticate"] == "Bearer"


def test_a_well_formed_key_that_was_never_given_out_is_a_401() -> None:
    assert get(f"Bearer {new_secret()}").json()["code"] == "invalid_key"


def test_a_key_in_the_address_or_a_cookie_is_not_looked_at() -> None:
    client = APIClient()
    secret = make_key().secret
    client.cookies["Authorization"] = f"Bearer {secret}"

    assert client.get(f"/api/guarded?api_key={secret}&access_token={secret}").status_code == 401


def set_columns(**columns: Any) -> Callable[[KeyInHand], None]:
    def happens(held: KeyInHand) -> None:
        ApiKey.objects.filter(id=held.key.id).update(**columns)

    return happens


def archive_project(held: KeyInHand) -> None:
    Project.objects.filter(id=held.project.id).update(archived_at=Now())


@pytest.mark.parametrize(
    ("happens", "code"),
    [
        (set_columns(revoked_at=Now()), "key_revoked"),
        (set_columns(disabled_at=Now()), "key_disabled"),
        (set_columns(expires_at=Now()), "key_expired"),
        (archive_project, "project_archived"),
    ],
    ids=["revoked", "disabled", "expired", "archived"],
)
def test_a_key_that_ended_is_refused_from_the_next_request_on(
    happens: Callable[[KeyInHand], None], code: str
) -> None:
    held = make_key()
    assert held.client.get("/api/guarded").status_code == 200

    happens(held)

    answer = held.client.get("/api/guarded")
    assert (answer.status_code, answer.json()["code"]) == (401, code)
    assert answer["WWW-Authenticate"] == "Bearer"


def test_a_key_that_expires_later_is_accepted() -> None:
    held = make_key(expires_at=Now() + timedelta(minutes=1))

    assert held.client.get("/api/guarded").status_code == 200


@pytest.mark.parametrize(
    ("cidrs", "ip", "is_allowed"),
    [
        (["10.0.0.0/8"], "10.1.2.3", True),
        (["10.0.0.0/8"], "11.1.2.3", False),
        (["192.0.2.1/32", "10.0.0.0/8"], "10.1.2.3", True),
        (["10.0.0.0/8"], "::ffff:10.1.2.3", True),
        (["2001:db8::/32"], "2001:db8::1", True),
        (["2001:db8::/32"], "2001:db9::1", False),
        (["2001:db8::/32"], "10.1.2.3", False),
        (["0.0.0.0/0"], "", False),
        (["0.0.0.0/0"], "unix:", False),
        ([], "", True),
    ],
)
def test_a_key_is_accepted_only_from_its_networks(cidrs: list[str], ip: str, is_allowed: bool) -> None:
    header = f"Bearer {make_key(allowed_cidrs=cidrs).secret}"

    if is_allowed:
        assert authenticate_bearer(header, ip).ip == (ip or None)
    else:
        with pytest.raises(AddressNotAllowed):
            authenticate_bearer(header, ip)


def test_a_refused_address_is_a_403_and_no_header_of_the_client_helps() -> None:
    held = make_key(allowed_cidrs=["10.0.0.0/8"])

    answer = get(f"Bearer {held.secret}", REMOTE_ADDR="192.0.2.7", HTTP_X_FORWARDED_FOR="10.0.0.1")

    assert (answer.status_code, answer.json()["code"]) == (403, "address_not_allowed")


def test_the_caller_carries_the_whole_key_and_its_project() -> None:
    held = make_key("jobs:read", windows=[{"limit": 1, "seconds": 2}], allowed_cidrs=["10.0.0.0/8"])

    by = authenticate_bearer(f"Bearer {held.secret}", "10.0.0.1")

    assert by.key is not None
    assert by.project is not None
    found, stored = model_to_dict(by.key), model_to_dict(ApiKey.objects.get(id=held.key.id))
    assert (found, by.key.created_at) == (stored, ApiKey.objects.get(id=held.key.id).created_at)
    assert model_to_dict(by.project) == model_to_dict(Project.objects.get(id=held.project.id))


def test_a_request_costs_one_select_and_one_upsert_for_each_window() -> None:
    held = make_key(
        "jobs:read", windows=[{"limit": 9, "seconds": 1}, {"limit": 9, "seconds": 60}], last_used_at=Now()
    )

    with CaptureQueriesContext(
        connection,
    ) as captured:
        assert held.client.get("/api/guarded").status_code == 200

    verbs = [query["sql"].split()[0] for query in captured]
    assert verbs == ["SELECT", "INSERT", "INSERT"]


def test_noise_costs_no_query() -> None:
    with CaptureQueriesContext(connection) as captured:
        get("Bearer engine_live_" + "x" * 49)

    assert not list(captured)


def test_the_use_is_noted_at_most_once_a_minute() -> None:
    held = make_key("jobs:read")

    held.client.get("/api/guarded")
    first = ApiKey.objects.get(id=held.key.id).last_used_at
    held.client.get("/api/guarded")
    assert first is not None
    assert ApiKey.objects.get(id=held.key.id).last_used_at == first

    ApiKey.objects.filter(id=held.key.id).update(last_used_at=Now() - timedelta(seconds=61))
    held.client.get("/api/guarded")
    assert ApiKey.objects.get(id=held.key.id).last_used_at != first


def test_requests_at_the_same_time_note_the_use_once() -> None:
    held = make_key("jobs:read")
    queries.touch_key(held.key.id)
    first = ApiKey.objects.get(id=held.key.id).last_used_at

    queries.touch_key(held.key.id)  # as one that had read the row before the first wrote it

    assert ApiKey.objects.get(id=held.key.id).last_used_at == first


def test_the_use_is_noted_even_if_the_request_fails() -> None:
    held = make_key("jobs:read")

    assert held.client.post("/api/guarded").status_code == 403

    assert ApiKey.objects.get(id=held.key.id).last_used_at is not None


@pytest.mark.django_db(transaction=True)
def test_a_read_only_session_can_authenticate() -> None:
    held = make_key("jobs:read")

    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION READ ONLY")
        by = authenticate_bearer(f"Bearer {held.secret}", "127.0.0.1")
        assert Project.objects.count() == 1  # the transaction is still good

    assert by.key == held.key


def test_tries_with_a_revoked_key_leave_one_audit_row_an_hour() -> None:
    held = make_key(revoked_at=Now())

    for _ in range(3):
        with pytest.raises(KeyRevoked):
            authenticate_bearer(f"Bearer {held.secret}", "192.0.2.7", request_id="r1")

    row = AuditRow.objects.get(action="key.refused")
    assert (row.object, row.ip, row.request_id, row.project) == (
        f"key:{held.key.id}",
        "192.0.2.7",
        "r1",
        held.project,
    )


@pytest.mark.django_db(transaction=True)
def test_while_the_database_is_away_the_answer_is_503_and_then_all_is_well_again() -> None:
    held = make_key("jobs:read")

    def refuse() -> None:
        raise OperationalError("connection refused")

    connection.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "connect", refuse)
        away = held.client.get("/api/guarded")

    assert (away.status_code, away.json()["code"], away["Retry-After"]) == (503, "unavailable", "2")
    assert held.client.get("/api/guarded").status_code == 200


def test_the_secret_is_stored_nowhere() -> None:
    held = make_key()
    held.client.get("/api/guarded")

    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM apikeys_apikey")
        row = str([bytes(cell) if isinstance(cell, memoryview) else cell for cell in cursor.fetchall()[0]])

    assert held.secret not in row
    assert held.secret[20:] not in row


def test_without_rest_framework_the_door_is_the_same() -> None:
    held = make_key("jobs:read", name="ws")

    assert authenticate_bearer(f"Bearer {held.secret}", "127.0.0.1", via="mcp").via == "mcp"
    with pytest.raises(NotAuthenticated):
        authenticate_bearer("", "127.0.0.1")
