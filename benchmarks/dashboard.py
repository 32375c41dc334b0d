"""How long the dashboard's pages take on the server beside a long history, each asked for by a signed-in superuser.

python -m benchmarks.dashboard [--jobs 1000000] [--events 50] [--rounds 30] [--keep]

Makes the history by INSERT … SELECT (a million jobs with fifty events each take some three minutes and 11 GB), then
prints how long each page took (request, queries and HTML, without the network) and what of it was this process.
`--keep` measures the history that is there already.
"""

import argparse
import os
import time
from uuid import UUID

from benchmarks.history import count_minutes, make_history
from benchmarks.support import fresh_tables, noop_agent, percentile, show  # sets Django up

# isort: split
from django.conf import settings
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client

from agents.models import Agent, AgentVersion
from apikeys.models import Project
from jobs.models import Job

PIECE = 50_000
JOBS = "/admin/jobs/job/"
PAGES = {
    "overview": "/admin/",
    "overview, its parts": f"{JOBS}overview/",
    "overview, last week": "/admin/?window=7d",
    "jobs": JOBS,
    "jobs, page 100": f"{JOBS}?p=100",
    "jobs, failed": f"{JOBS}?status=failed",
    "jobs, waiting (none)": f"{JOBS}?status=waiting_for_input",
    "jobs, of a project": f"{JOBS}?project=bench-1",
    "jobs, of an agent": f"{JOBS}?agent=bench-2",
    "jobs, of an agent without any": f"{JOBS}?agent=bench-idle",
    "jobs, failed, of agent and project": f"{JOBS}?agent=bench-2&status=failed&project=bench-1",
    "jobs, by error": f"{JOBS}?error=agent_failed",
    "jobs, ended in the last hour": f"{JOBS}?ended=1h",
    "jobs, failed in the last week": f"{JOBS}?status=failed&ended=7d",
    "jobs, cancelled in the last week (none)": f"{JOBS}?status=cancelled&ended=7d",
    "jobs, that used a model today (none)": f"{JOBS}?used=today",
    "jobs, by words": f"{JOBS}?q=report",
    "jobs, by words that are nowhere": f"{JOBS}?q=nowhere",
    "inbox": "/admin/jobs/question/",
    "inbox, history": "/admin/jobs/question/?answered",
    "agents": "/admin/agents/agent/",
    "workers": "/admin/jobs/worker/",
    "keys": "/admin/apikeys/apikey/",
    "projects": "/admin/apikeys/project/",
    "audit": "/admin/apikeys/auditrow/",
    "webhooks": "/admin/jobs/webhookendpoint/",
}


def main() -> None:
    """Make the history, ask for each page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--events", type=int, default=50, help="log lines of each job")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--keep", action="store_true", help="the history is there already")
    options = parser.parse_args()
    if not options.keep:
        began = time.perf_counter()
        prepare(options.jobs, options.events)
        show("history made in", f"{time.perf_counter() - began:.0f} s")
    browser = signed_in()
    pages = PAGES | {"a job": f"{JOBS}{Job.objects.order_by('id')[1000].id}/"}
    print(f"load {', '.join(f'{value:.1f}' for value in os.getloadavg())}")
    show("page", "p50 ms", "p95 ms", "CPU without database")
    for name, address in pages.items():
        used = time.process_time()
        times = [asked(browser, address) for _ in range(options.rounds)]
        used = (time.process_time() - used) / options.rounds * 1000
        show(name, *(f"{value:.1f}" for value in (percentile(times, 0.5), percentile(times, 0.95), used)))


def prepare(jobs: int, events: int) -> None:
    """Two projects, three agents and one that never ran, and all their jobs."""
    fresh_tables()
    noop_agent()
    projects = [
        Project.objects.get_or_create(slug=f"bench-{n}", defaults={"name": f"Bench {n}"})[0].id
        for n in (1, 2)
    ]
    versions = [version(slug) for slug in ("bench-1", "bench-2", "bench-3")]
    version("bench-idle")
    for first in range(1, jobs + 1, PIECE):
        make_history(
            min(PIECE, jobs + 1 - first), projects=projects, versions=versions, events=events, first=first
        )
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE jobs_job")
    count_minutes()


def version(slug: str) -> UUID:
    """The only version of a shared agent that does nothing; its id."""
    agent, _ = Agent.objects.get_or_create(slug=slug, project=None)
    found, _ = AgentVersion.objects.get_or_create(
        agent=agent,
        number=1,
        defaults={"name": slug, "description": slug, "kind": "noop", "content_hash": slug},
    )
    Agent.objects.filter(id=agent.id).update(current_version=found)
    found_id: UUID = found.id
    return found_id


def signed_in() -> Client:
    """A superuser's browser, in this process."""
    settings.ALLOWED_HOSTS = ["*"]
    person, _ = User.objects.get_or_create(username="bench", is_staff=True, is_superuser=True)
    client = Client()
    client.force_login(person)
    for address in PAGES.values():
        client.get(address)  # templates are compiled, content types read
    return client


def asked(browser: Client, address: str) -> float:
    """Milliseconds until the page is there."""
    began = time.perf_counter()
    answer = browser.get(address)
    assert answer.status_code == 200, (address, answer.status_code)
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    main()
