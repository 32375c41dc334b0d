"""Rate windows: exact whatever comes at once, said in headers, and cheap."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.db import connection
from django.db.models import F

from apikeys.models import RateCounter
from apikeys.queries import count_request
from apikeys.services import sweep
from tests.database_processes import closing_connection, pool_on_test_database
from tests.factories import make_key

pytestmark = [pytest.mark.urls("tests.probe"), pytest.mark.django_db]


def pass_time(seconds: int) -> None:
    RateCounter.objects.update(started_at=F("started_at") - timedelta(seconds=seconds))


def test_the_limit_passes_and_not_one_more() -> None:
    client = make_key("jobs:read", windows=[{"limit": 3, "seconds": 60}]).client

    answers = [client.get("/api/guarded") for _ in range(5)]

    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert answers[3].json()["code"] == "rate_limited"


def test_headers_say_where_the_key_stands() -> None:
    client = make_key(
        "jobs:read", windows=[{"limit": 2, "seconds": 60}, {"limit": 100, "seconds": 3600}]
    ).client

    first, _, third = (client.get("/api/guarded") for _ in range(3))

    assert first["RateLimit-Policy"] == '"60s";q=2;w=60, "3600s";q=100;w=3600'
    assert first["RateLimit"] == '"60s";r=1;t=60, "3600s";r=99;t=3600'
    assert (first["X-RateLimit-Limit"], first["X-RateLimit-Remaining"]) == ("2", "1")
    assert 58 <= int(first["X-RateLimit-Reset"]) - time.time() <= 62
    assert third.status_code == 429
    assert (third["X-RateLimit-Remaining"], third["RateLimit"]) == ("0", '"60s";r=0;t=60')
    assert 1 <= int(third["Retry-After"]) <= 60


def test_a_window_starts_again_when_its_time_is_over() -> None:
    client = make_key("jobs:read", windows=[{"limit": 1, "seconds": 60}]).client
    assert [client.get("/api/guarded").status_code for _ in range(2)] == [200, 429]

    pass_time(59)
    assert client.get("/api/guarded").status_code == 429
    pass_time(1)

    assert [client.get("/api/guarded").status_code for _ in range(2)] == [200, 429]


def test_what_a_short_window_refuses_takes_nothing_from_a_longer_one() -> None:
    client = make_key(
        "jobs:read", windows=[{"limit": 10, "seconds": 3600}, {"limit": 1, "seconds": 60}]
    ).client
    for _ in range(20):
        client.get("/api/guarded")

    pass_time(60)

    assert client.get("/api/guarded")["RateLimit"] == '"60s";r=0;t=60, "3600s";r=8;t=3540'


def test_a_request_that_lacks_the_scope_counts_too() -> None:
    client = make_key("jobs:write", windows=[{"limit": 2, "seconds": 60}]).client

    assert [client.get("/api/guarded").status_code for _ in range(3)] == [403, 403, 429]


def test_keys_do_not_share_windows() -> None:
    windows = [{"limit": 1, "seconds": 60}]
    one, other = make_key("jobs:read", windows=windows), make_key("jobs:read", windows=windows)

    assert one.client.get("/api/guarded").status_code == 200
    assert other.client.get("/api/guarded").status_code == 200


def test_a_key_without_windows_is_not_limited() -> None:
    answer = make_key("jobs:read", windows=[]).client.get("/api/guarded")

    assert answer.status_code == 200
    assert "RateLimit" not in answer


def test_a_siege_cannot_push_the_counter_past_the_limit() -> None:
    for _ in range(10):
        last = count_request("siege", limit=3, seconds=60)

    assert last.used == 4
    assert count_request("siege", limit=2, seconds=60).is_over
    assert not count_request("siege", limit=10, seconds=60).is_over  # a raised limit holds at once


def test_counters_write_no_log_and_are_swept_when_long_silent() -> None:
    count_request("old", limit=1, seconds=60)
    pass_time(2 * 86_400)
    count_request("young", limit=1, seconds=60)

    with connection.cursor() as cursor:
        cursor.execute("SELECT relpersistence FROM pg_class WHERE relname = 'apikeys_ratecounter'")
        assert cursor.fetchone() == ("u",)
    assert sweep() == 1
    assert RateCounter.objects.get().subject == "young"


def passed_of(times: int) -> int:
    """How many of so many requests one process or thread gets through."""

    def count() -> int:
        return sum(not count_request("burst", limit=500, seconds=3600).is_over for _ in range(times))

    return closing_connection(count)


@pytest.mark.django_db(transaction=True)
def test_a_burst_over_threads_never_passes_one_more_than_the_limit() -> None:
    with ThreadPoolExecutor(10) as pool:
        assert sum(pool.map(passed_of, [100] * 10)) == 500


@pytest.mark.django_db(transaction=True)
def test_a_burst_over_processes_never_passes_one_more_than_the_limit() -> None:
    with pool_on_test_database(4) as pool:
        assert sum(pool.map(passed_of, [250] * 8)) == 500
