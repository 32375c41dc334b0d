"""Queues and workers in the dashboard: what waits, who runs it, and holding either back."""

from uuid import uuid4

import pytest
from django.test import Client

from jobs import backlog, claiming, queries
from jobs.models import Job, Queue, Worker
from tests.agents import staff
from tests.dashboard import make_person, signed_in
from tests.jobs import claim_one, end_lease, make_job, make_project, make_worker

pytestmark = pytest.mark.django_db

PAGE = "/admin/jobs/worker/"


@pytest.fixture
def browser() -> Client:
    return signed_in(make_person())


def test_depth_is_told_by_queue_priority_and_project() -> None:
    shop = make_project("shop")
    for priority in ("urgent", "low", "low"):
        make_job(shop, priority=priority)
    make_job(queue="slow")
    came_back = make_job()
    Job.objects.filter(id=came_back.id).update(attempt=1)

    depths = {depth.state.name: depth for depth in backlog.queues(staff())}

    assert {name: depth.state.queued for name, depth in depths.items()} == {"default": 4, "slow": 1}
    assert depths["default"].by_priority == {"urgent": 1, "high": 0, "normal": 0, "low": 2, "returning": 1}
    found = [(project.slug, project.queued, project.running) for project in backlog.projects(list(depths))]
    assert found == [("shop", 3, 0), ("acme", 2, 0)]


def test_the_page_shows_queues_workers_and_sandboxes(browser: Client) -> None:
    make_job()
    worker = make_worker()
    claimed = claim_one(worker)

    page = browser.get(PAGE)

    assert [row.worker.id for row in page.context["here"]] == [worker]
    assert [row.job.id for row in page.context["sandboxes"]] == [claimed.id]
    assert "default" in page.text


def test_a_paused_queue_gives_no_work_until_it_is_resumed(browser: Client) -> None:
    make_job()
    worker = make_worker()

    browser.post(f"{PAGE}queues/default/pause/")

    assert Queue.objects.get(name="default").paused_by == "user:ada"
    assert "Resume" in browser.get(PAGE).content.decode()
    assert claiming.claim(worker, queue="default", limit=1) == []
    browser.post(f"{PAGE}queues/default/resume/")
    claim_one(worker)


def test_a_worker_hears_with_its_next_beat_that_it_is_to_drain(browser: Client) -> None:
    worker = make_worker()

    browser.post(f"{PAGE}{worker}/drain/")

    assert queries.heartbeat(worker, running=0, can_run=True, health={}).drain is True
    assert "draining" in browser.get(PAGE).content.decode()


def test_what_is_not_there_is_not_found(browser: Client) -> None:
    stopped = make_worker()
    Worker.objects.filter(id=stopped).update(stopped_at="2026-01-01T00:00:00Z")

    for path in (f"{uuid4()}/drain/", f"{stopped}/drain/", "queues/default/burn/", "queues/No queue/pause/"):
        assert browser.post(f"{PAGE}{path}").status_code == 404, path
    assert browser.get(f"{PAGE}queues/default/pause/").status_code == 405


def test_without_a_worker_the_page_says_how_to_start_one(browser: Client) -> None:
    end_lease(make_worker())

    page = browser.get(PAGE).content.decode()

    assert "No worker is alive" in page
    assert "runworker" in page


def test_the_page_refreshes_to_the_same_html_while_nothing_changes(browser: Client) -> None:
    make_worker()

    answers = [browser.get(PAGE, headers={"Accept": "application/json"}).json()["parts"] for _ in range(2)]

    assert answers[0] == answers[1]
