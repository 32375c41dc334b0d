"""The yardstick: kept while the registry stays, taken anew when enough of it has changed."""

import pytest

from agents import background, calibration, discovery, services
from agents.models import Calibration
from tests.agents import WordEmbedder, make_noop, member, register_all, staff, words
from tests.factories import make_project

__all__ = ["words"]
pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("words")]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each time that a yardstick is taken."""
    taken: list[str] = []
    measure = calibration.measure

    def counted(by, registry, space, known):
        taken.append(space)
        return measure(by, registry, space, known)

    monkeypatch.setattr(calibration, "measure", counted)
    return taken


def fill(count: int, by=None, prefix: str = "agent"):
    by = by or member()
    register_all(by, [make_noop(f"{prefix}-{n}", f"Does number {n} of {prefix}") for n in range(count)])
    return by


def test_there_are_about_two_hundred_tasks_each_once() -> None:
    tasks, yardstick_size = background.tasks()

    assert 200 <= yardstick_size <= 300
    assert len(set(tasks)) == len(tasks) > yardstick_size


def test_it_is_taken_once_while_the_registry_stays(measured: list[str]) -> None:
    by = fill(10)

    for task in ("one", "two", "three"):
        discovery.discover(by, task)

    assert measured == ["test:words"]


def test_in_a_small_registry_every_change_counts(measured: list[str]) -> None:
    by = fill(5)
    discovery.discover(by, "task")

    register_all(by, [make_noop("one-more", "Something else")])
    discovery.discover(by, "task")
    services.archive(by, "one-more")
    discovery.discover(by, "task")

    assert len(measured) == 3


def test_in_a_larger_one_it_takes_a_twentieth(measured: list[str]) -> None:
    by = fill(40)
    discovery.discover(by, "task")

    fill(2, by, "few")
    discovery.discover(by, "task")
    assert len(measured) == 1

    fill(1, by, "more")
    discovery.discover(by, "task")
    assert len(measured) == 2


def test_every_view_has_its_own_and_shared_agents_count_in_each(measured: list[str]) -> None:
    one, two = fill(3), fill(3)
    discovery.discover(one, "task")
    discovery.discover(two, "task")
    fill(1, staff(), "shared")

    discovery.discover(one, "task")
    discovery.discover(staff(), "task")

    assert len(measured) == 4
    assert Calibration.objects.count() == 3


def test_another_process_reads_what_one_has_measured(measured: list[str]) -> None:
    by = fill(5)
    discovery.discover(by, "task")

    calibration._kept.clear()
    discovery.discover(by, "task")

    assert len(measured) == 1


def test_a_process_that_kept_an_old_one_takes_the_new_one(measured: list[str]) -> None:
    by = fill(5)
    discovery.discover(by, "task")
    kept = dict(calibration._kept)
    fill(5, by, "more")
    discovery.discover(by, "task")
    newest = dict(calibration._kept)

    calibration._kept.update(kept)
    discovery.discover(by, "task")

    assert calibration._kept == newest
    assert len(measured) == 2


def test_words_alone_have_a_yardstick_of_their_own(words: WordEmbedder, measured: list[str]) -> None:
    by = fill(5)
    discovery.discover(by, "task one")
    words.is_down = True

    found = discovery.discover(by, "task two")

    assert found.degraded
    assert measured == ["test:words", ""]


def test_confidence_is_the_share_of_background_tasks_that_fit_less() -> None:
    evidence = [calibration.Evidence(n / 100, 0.0, 0.0) for n in range(100)]
    yardstick = calibration.Yardstick.over(evidence, 10.0)

    assert yardstick.confidence(calibration.Evidence(0.5, 0.0, 0.0)) == pytest.approx(0.5)
    assert yardstick.confidence(calibration.Evidence(2.0, 0.0, 0.0)) == 1.0
    assert yardstick.confidence(calibration.Evidence(-1.0, 0.0, 0.0)) == 0.0


def test_a_project_of_its_own_is_no_staff() -> None:
    project = make_project()
    by = fill(2, member(project))
    discovery.discover(by, "task")

    assert Calibration.objects.get().project == project
