"""What is counted: by all processes together, never falling, with few labels, for those who may see it."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from django.db import connection
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from engine import meters
from jobs import metrics
from jobs.metering import totals
from tests.factories import make_key
from tests.jobs import end_lease, make_job, make_project, make_worker
from tests.processes import ROOT, Instance, Program, copy_home, eventually

# As Prometheus 3 asks.
PROMETHEUS = {
    "Accept": "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
}
METRICS = "/api/v1/admin/metrics"
PARSERS: dict[str, Any] = {
    metrics.PROMETHEUS: text_string_to_metric_families,
    metrics.OPENMETRICS: openmetrics_families,
}
AGENT = {
    "slug": "echo",
    "name": "Echo",
    "description": "Repeats what it is told, word for word.",
    "kind": "python",
    "source": {"agent.py": "def main(task, inputs):\n    print(task)\n    return {'said': task}\n"},
}
Read = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read(client: httpx.Client) -> Read:
    """The whole text, as a scraper reads it."""
    reply = client.get(METRICS, headers=PROMETHEUS)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == metrics.OPENMETRICS
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in PARSERS[metrics.OPENMETRICS](reply.text)
        for sample in family.samples
    }


def total(samples: Read, name: str, **labels: str) -> float:
    wanted = set(labels.items())
    return sum(value for (found, has), value in samples.items() if found == name and wanted <= set(has))


@pytest.fixture(scope="module")
def site(migrated_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Instance, Program]]:
    """Two web processes on one port, and a worker."""
    home = tmp_path_factory.mktemp("meters") / "home"
    copy_home(migrated_home, home)
    instance = Instance(home, {"ENGINE_LEASE_SECONDS": "3", "ENGINE_HEARTBEAT_SECONDS": "1"})
    try:
        instance.serve("--processes", "2")
        worker = instance.worker()
        instance.ready()
        yield instance, worker
    finally:
        instance.stop()


def test_a_scrape_of_any_web_process_knows_all_processes_and_their_past(
    site: tuple[Instance, Program],
) -> None:
    instance, worker = site
    secret = instance.key()
    with instance.client(secret) as client:
        assert client.post("/api/v1/agents", json=AGENT).status_code == 201
        for number in range(3):
            body = {"agent": "echo", "task": f"say {number}"}
            reply = client.post("/api/v1/jobs", json=body, headers={"Prefer": "wait=30"})
            assert reply.json()["status"] == "completed", reply.text
        assert client.post("/api/v1/agents/discover", json={"task": "repeat my words"}).is_success

        eventually(lambda: total(read(client), "engine_jobs_ended_total", status="completed") == 3)
        first = read(client)
        worker.kill()
        worker.wait()
        second = read(client)
        instance.worker()
        body = {"agent": "echo", "task": "once more"}
        client.post("/api/v1/jobs", json=body, headers={"Prefer": "wait=60"})
        eventually(lambda: total(read(client), "engine_jobs_ended_total", status="completed") == 4)
        third = read(client)
        as_json = client.get(METRICS).json()

    assert total(first, "engine_attempts_total", outcome="completed") == 3
    assert total(first, "engine_job_wait_seconds_count") == total(first, "engine_job_run_seconds_count") == 3
    assert total(first, "engine_claimed_jobs_total") == 3
    assert total(first, "engine_sandbox_start_seconds_count", provider="local") == 3
    assert total(first, "engine_discovery_seconds_count") >= 1
    assert total(first, "engine_events_total") >= 9  # started, a line, completed
    assert total(first, "engine_sweeps_total") > 0
    assert total(first, "engine_late_writes_refused_total") == 0
    assert total(first, "engine_database_connections", state="active") >= 1
    assert total(first, "engine_dead_tuples", table="jobs_job") >= 0
    assert total(first, "engine_oldest_xmin_age") >= 0
    assert total(first, "engine_http_requests_total", route="POST /api/v1/jobs", status="2xx") == 3
    assert total(first, "engine_http_request_seconds_count", route="POST /api/v1/agents/discover") == 1

    counters = [key for key in first if re.search(r"_(total|count|bucket|sum)$", key[0])]
    assert len(counters) > 50
    assert all(first[key] <= second[key] <= third[key] for key in counters)
    assert as_json["totals"]["engine_jobs_ended_total"] == {"status=completed": 4}

    buckets = [
        (float(dict(labels)["le"]), value)
        for (name, labels), value in third.items()
        if name == "engine_job_run_seconds_bucket"
    ]
    assert sorted(buckets)[-1] == (float("inf"), 4)
    assert [value for _, value in sorted(buckets)] == sorted(value for _, value in buckets)

    for (_, labels), _ in third.items():
        for name, value in labels:
            assert not re.search(r"[0-9a-f]{8}-|engine_(live|test)_|say ", value), (name, value)
    assert len(third) < 1500


def test_only_a_key_with_the_scope_may_scrape(site: tuple[Instance, Program]) -> None:
    instance, _ = site
    with instance.client(instance.key("jobs:read")) as client:
        assert client.get(METRICS, headers=PROMETHEUS).status_code == 403
    with instance.client() as client:
        assert client.get(METRICS, headers=PROMETHEUS).status_code == 401


# --- the forms of the answer ---


@pytest.fixture
def own_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process tells what it has counted as one that has told nothing yet: the tables are new, it is not."""
    monkeypatch.setattr(totals, "report", totals.Report())


@pytest.mark.django_db
@pytest.mark.usefixtures("own_counts")
@pytest.mark.parametrize(
    ("accept", "query", "content_type"),
    [
        ("*/*", "", "application/json"),
        ("application/json", "", "application/json"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "", "application/json"),
        ("text/plain", "", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", "", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text", "", metrics.OPENMETRICS),
        (PROMETHEUS["Accept"], "", metrics.OPENMETRICS),
        ("application/json", "?format=prometheus", metrics.PROMETHEUS),
        ("*/*", "?format=openmetrics", metrics.OPENMETRICS),
        ("text/plain", "?format=json", "application/json"),
    ],
)
def test_the_form_is_what_was_asked_for(accept: str, query: str, content_type: str) -> None:
    reply = make_key("admin:metrics").client.get(METRICS + query, headers={"Accept": accept})

    assert (reply.status_code, reply["Content-Type"]) == (200, content_type)
    parse = PARSERS.get(content_type)
    found = list(parse(reply.content.decode())) if parse else reply.json()["totals"]
    assert found


@pytest.mark.django_db
def test_a_form_that_there_is_not_is_refused() -> None:
    client = make_key("admin:metrics").client

    assert client.get(f"{METRICS}?format=xml").json()["errors"][0]["pointer"] == "?format"
    assert client.get(METRICS, headers={"Accept": "image/png"}).status_code == 406


@pytest.mark.django_db
@pytest.mark.usefixtures("own_counts")
def test_all_forms_say_the_same_and_name_it_as_prometheus_does() -> None:
    project = make_project()
    for _ in range(3):
        make_job(project)
    make_worker()
    refused = make_key("jobs:read", windows=[{"limit": 1, "seconds": 60}]).client
    assert [refused.get("/api/v1/jobs").status_code for _ in range(2)] == [200, 429]
    client = make_key("admin:metrics").client

    body = client.get(METRICS).json()
    families = {
        form: {
            family.name: family for family in parse(client.get(f"{METRICS}?format={form}").content.decode())
        }
        for form, parse in (
            ("prometheus", text_string_to_metric_families),
            ("openmetrics", openmetrics_families),
        )
    }

    counted: list[set[Any]] = []
    for found in families.values():
        samples = {
            (sample.name, *sample.labels.values()): sample.value
            for family in found.values()
            for sample in family.samples
        }
        assert samples["engine_jobs", "queued"] == body["jobs"]["queued"] == 3
        assert samples["engine_slots", "slots"] == body["workers"]["slots"] > 0
        assert (
            samples["engine_rate_limit_refusals_total",]
            == body["totals"]["engine_rate_limit_refusals_total"]
            >= 1
        )
        assert samples["engine_database_connections_limit",] == body["database"]["connections_limit"] > 0
        assert samples["engine_oldest_xmin_age",] >= 0
        assert ("engine_dead_tuples", "jobs_job") in samples
        counted.append(set(samples))
        for name, family in found.items():
            assert family.documentation.endswith("."), name
            assert family.type in ("counter", "gauge", "histogram"), name
            assert re.fullmatch(r"engine_[a-z_]+", name)
            assert not re.search(r"_(ms|milliseconds|minutes|mb|kb|percent)$", name), name
    assert counted[0] == counted[1]


@pytest.mark.django_db
@pytest.mark.usefixtures("own_counts")
def test_what_a_dead_worker_had_is_shown_no_more() -> None:
    worker = make_worker()
    client = make_key("admin:metrics").client
    before = client.get(METRICS).json()["workers"]
    end_lease(worker)

    after = client.get(METRICS).json()["workers"]

    assert (before["alive"], before["slots"] > 0) == (1, True)
    assert (after["alive"], after["slots"], after["warm_sandboxes"]) == (0, 0, 0)


# --- how counts of processes are added up ---


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set what this process has counted."""

    def count(value: float) -> None:
        monkeypatch.setattr(meters, "samples", lambda: [meters.Sample("engine_events_total", (), value)])

    return count


def events() -> float:
    return totals.read()[0].get(("engine_events_total", ()), 0.0)


def make_old() -> None:
    with connection.cursor() as cursor:
        cursor.execute("UPDATE jobs_processmeter SET at = at - interval '1 day'")


@pytest.mark.django_db
def test_counts_of_several_processes_are_added_and_told_twice_change_nothing(counting: Any) -> None:
    one, other = totals.Report(), totals.Report()

    counting(5)
    one.write("web")
    one.write("web")
    counting(7)
    other.write("worker")

    assert events() == 12


@pytest.mark.django_db
def test_the_past_keeps_what_dead_processes_had_counted(counting: Any) -> None:
    dead = totals.Report()
    counting(5)
    dead.write("worker")
    make_old()

    totals.fold()
    totals.fold()

    assert events() == 5


@pytest.mark.django_db
def test_a_process_that_only_seemed_dead_is_not_counted_twice(counting: Any) -> None:
    paused = totals.Report()
    counting(5)
    paused.write("worker")
    make_old()
    totals.fold()

    counting(8)
    paused.write("worker")
    assert events() == 8

    make_old()
    totals.fold()
    counting(9)
    paused.write("worker")
    assert events() == 9


# --- the dashboard and the alerts in deploy/ ---


def series_asked_for() -> set[str]:
    """Each name that a query of ours mentions."""
    board = json.loads((ROOT / "deploy/grafana/engine.json").read_text())
    rules = yaml.safe_load((ROOT / "deploy/alerts.yaml").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    return {name for query in queries for name in re.findall(r"\bengine_\w+", query)}


@pytest.mark.django_db
def test_dashboard_and_alerts_ask_only_for_series_that_exist() -> None:
    known = {sample.name for sample in meters.samples()}
    for family in meters.REGISTRY.collect():  # those with labels have no sample before they count
        suffixes = ("_bucket", "_count", "_sum") if family.type == "histogram" else ("_total",)
        known |= {family.name + suffix for suffix in suffixes}
    known |= {name for name, *_ in metrics.gauges()}

    asked = series_asked_for()

    assert len(asked) > 25
    assert asked - known == set()
