"""Rate windows in Redis: as exact as in PostgreSQL, and none the worse for a Redis that goes away."""

import shutil
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from apikeys import redis_counters
from apikeys.models import RateCounter
from apikeys.redis_counters import RedisCounters
from tests.factories import make_key
from tests.processes import eventually

REDIS_SERVER = shutil.which("redis-server")
pytestmark = pytest.mark.skipif(REDIS_SERVER is None, reason="redis-server is not installed")
JOBS = "/api/v1/jobs"


@pytest.fixture
def redis(
    tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator["subprocess.Popen[bytes]"]:
    """A Redis on a socket of its own, which the settings name."""
    path = tmp_path / "redis.sock"
    command = [
        str(REDIS_SERVER),
        "--port",
        "0",
        "--unixsocket",
        str(path),
        "--save",
        "",
        "--dir",
        str(tmp_path),
    ]
    program = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    eventually(path.exists)
    settings.REDIS_URL = f"unix://{path}"
    monkeypatch.setattr(redis_counters, "TIMEOUT_SECONDS", 20.0)  # a busy machine is not a Redis that is away
    yield program
    program.send_signal(signal.SIGCONT)
    program.kill()
    program.wait()


@pytest.mark.django_db
def test_windows_are_counted_there_and_told_in_the_same_headers(redis: Any) -> None:
    key = make_key(windows=[{"limit": 2, "seconds": 86_400}])

    answers = [key.client.get(JOBS) for _ in range(4)]

    assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
    assert [answer["X-RateLimit-Remaining"] for answer in answers] == ["1", "0", "0", "0"]
    assert 86_000 < int(answers[2]["Retry-After"]) <= 86_400
    assert not RateCounter.objects.exists()


def test_a_burst_never_passes_one_more_than_the_limit(redis: Any, settings: Any) -> None:
    processes = [RedisCounters(settings.REDIS_URL) for _ in range(4)]

    def passed(counters: RedisCounters) -> int:
        counted = [counters.count("burst", limit=100, seconds=3600) for _ in range(100)]
        return sum(count is not None and not count.is_over for count in counted)

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(passed, processes)) == 100


def test_a_window_starts_again_when_its_time_is_over(redis: Any, settings: Any) -> None:
    counters = RedisCounters(settings.REDIS_URL)

    def count() -> Any:
        return counters.count("x", limit=1, seconds=1)

    first, second = count(), count()

    assert (first.is_over, first.resets_in <= 1) == (False, True)
    assert second.is_over or second.used == 1  # on a very slow machine the second is over already
    eventually(lambda: not count().is_over)


@pytest.mark.django_db
def test_while_redis_is_away_postgresql_counts_and_nobody_waits(
    redis: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(redis_counters, "TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr(redis_counters, "PAUSE_SECONDS", 600.0)
    key = make_key(windows=[{"limit": 3, "seconds": 86_400}])
    redis.send_signal(signal.SIGSTOP)  # accepts, and never answers

    codes = [key.client.get(JOBS).status_code for _ in range(4)]
    schema = key.client.get("/api/schema", headers={"Accept": "application/json"})

    assert codes == [200, 200, 200, 429]
    assert schema.status_code == 200
    assert RateCounter.objects.get(subject=f"key:{key.key.id}").used == 4
    asked = [record for record in caplog.records if record.name == "apikeys.redis_counters"]
    assert len(asked) == 1  # and not once a request
