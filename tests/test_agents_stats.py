"""How runs end and how long they take: what health and the success rate are told from."""

import pytest
from pytest_django import Settings

from agents import queries, services
from agents.health import health, success_rate, typical_duration
from agents.models import AgentStats
from agents.queries import Run
from tests.agents import make_card, member, words

__all__ = ["words"]
pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("words")]


def stats_after(*runs: tuple[bool, float], times: int = 1) -> AgentStats:
    agent = services.register(member(), make_card()).agent_id
    for _ in range(times):
        queries.record_runs(Run(agent, ok, seconds) for ok, seconds in runs)
    return AgentStats.objects.get(agent=agent)


def test_runs_are_counted_by_how_they_ended() -> None:
    stats = stats_after((True, 1), (True, 1), (False, 1), times=2)

    assert (stats.ok, stats.failed) == (4, 2)
    assert success_rate(stats) == pytest.approx(0.667)


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(0.0, 0), (-1.0, 0), (1.0, 0), (1.1, 1), (2.0, 1), (60.0, 6), (64.0, 6), (65.0, 7), (10.0**9, 15)],
)
def test_a_duration_falls_into_the_first_power_of_two_that_holds_it(seconds: float, bucket: int) -> None:
    durations = stats_after((True, seconds)).durations

    assert durations == [1 if number == bucket else 0 for number in range(queries.DURATION_BUCKETS)]


def test_the_typical_duration_is_the_median() -> None:
    stats = stats_after((True, 0.5), (True, 50), (True, 60), (True, 55), (True, 4000))

    assert typical_duration(stats) == 48.0  # the middle of 32 to 64


def test_old_runs_weigh_less() -> None:
    stats = stats_after(*[(False, 1.0)] * queries.RUNS_REMEMBERED)
    queries.record_runs([Run(stats.agent_id, True, 100.0)] * 10)

    stats.refresh_from_db()

    assert (stats.ok, stats.failed) == (10, queries.RUNS_REMEMBERED // 2)
    assert sum(stats.durations) == 10 + queries.RUNS_REMEMBERED // 2


def test_an_agent_without_runs_has_no_rate_and_is_well() -> None:
    version = services.register(member(), make_card())

    assert success_rate(None) is None
    assert typical_duration(None) is None
    assert health(version, None).status == "ok"


def test_an_agent_whose_runs_mostly_fail_is_failing_but_not_after_one() -> None:
    version = services.register(member(), make_card())

    assert health(version, stats_after((False, 1.0))).status == "ok"
    assert health(version, stats_after(*[(False, 1.0)] * 4, (True, 1.0))).status == "failing"
    assert health(version, stats_after(*[(True, 1.0)] * 4, (False, 1.0))).status == "ok"


def test_an_llm_agent_is_unavailable_without_key_and_address(settings: Settings) -> None:
    card = {"name": "a", "description": "b", "instructions": "c"}
    version = services.register(member(), card)

    settings.OPENAI_API_KEY, settings.OPENAI_BASE_URL = "", ""
    assert health(version, None).status == "unavailable"
    settings.OPENAI_API_KEY = "sk-x"
    assert health(version, None).status == "ok"
