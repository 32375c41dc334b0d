"""A backup while jobs run, the end of everything, and a fresh installation that goes on.

    python -m drills.backup

A job with two steps waits for an answer, one is in the middle of its second step, one has completed with an artifact.
`manage.py backup` while they are so. Then all processes are killed and the home is deleted. `manage.py restore` into a
new home, `manage.py release`, new processes: the same key works, the waiting job is answered and goes on behind its
steps, the running one is run again behind its first step, the artifact has the same bytes.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from tests.processes import Instance, eventually

AGENT = """
import time
from engine_agent import artifact, ask, outputs_dir, step

def do(name, seconds=0):
    print("did", name, flush=True)
    time.sleep(seconds)
    return name

def main(task, inputs):
    done = [step("one", do, "one"), step("two", do, "two", inputs.get("seconds", 0))]
    if inputs.get("ask"):
        done.append(ask("Go on?"))
    report = outputs_dir / "report.txt"
    report.write_text(" ".join(done))
    artifact(report)
    return done
"""
SHORT_LEASE = {"ENGINE_LEASE_SECONDS": "3", "ENGINE_HEARTBEAT_SECONDS": "1"}
LONG_STEP_SECONDS = 45  # longer than the backup takes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the drill."""
    argparse.ArgumentParser(prog="drills.backup", description=(__doc__ or "").partition("\n")[0]).parse_args(
        arguments
    )
    with tempfile.TemporaryDirectory(prefix="backup-") as folder:
        try:
            for what, seconds in rehearse(Path(folder)):
                print(f"{seconds:7.1f} s  {what}", flush=True)
        except (AssertionError, httpx.HTTPError) as error:
            print(f"FAILED: {error}")
            return 1
    print("Nothing was lost, and no finished step ran again.")
    return 0


def rehearse(folder: Path) -> list[tuple[str, float]]:
    """What was done, and the seconds it took. Raises AssertionError."""
    times: list[tuple[str, float]] = []
    first = Instance(folder / "first", SHORT_LEASE)
    try:
        first.manage("release")
        first.serve()
        first.worker()
        first.ready()
        key = first.key()
        jobs = submit(first, key)
        begun = time.monotonic()
        said = first.manage("backup", str(folder / "copy")).stdout
        times.append((said.strip().replace(str(folder), "…"), time.monotonic() - begun))
    finally:
        for program in first.programs:
            program.kill()
        first.stop()
    shutil.rmtree(folder / "first")
    second = Instance(folder / "second", SHORT_LEASE)
    try:
        begun = time.monotonic()
        second.manage("restore", str(folder / "copy"))
        second.manage("release")
        times.append(
            ("restored into an empty database and brought up to this release", time.monotonic() - begun)
        )
        begun = time.monotonic()
        second.serve()
        second.worker()
        second.ready()
        times.append(("web process and worker are ready", time.monotonic() - begun))
        begun = time.monotonic()
        go_on(second, key, jobs)
        times.append(("answered; the waiting and the running job completed", time.monotonic() - begun))
    finally:
        second.stop()
    return times


def submit(instance: Instance, key: str) -> dict[str, str]:
    """Three jobs, each where the drill wants it; their ids."""
    with instance.client(key) as http:
        card = {
            "slug": "backed-up",
            "name": "backed-up",
            "description": "Steps, and perhaps a question.",
            "kind": "python",
            "source": {"agent.py": AGENT},
        }
        assert http.post("/api/v1/agents", json=card).is_success
        wanted: dict[str, dict[str, Any]] = {
            "completed": {},
            "waiting_for_input": {"ask": True},
            "running": {"seconds": LONG_STEP_SECONDS},
        }
        jobs = {}
        for status, inputs in wanted.items():
            body = {"task": "drill", "agent": "backed-up", "input": inputs}
            jobs[status] = str(http.post("/api/v1/jobs", json=body).json()["id"])
        for status, job_id in jobs.items():
            reaches(http, job_id, status)
        eventually(
            lambda: "did two" in lines(http, jobs["running"]),
            seconds=30,
            what="the running job's second step",
        )
        return jobs


def go_on(instance: Instance, key: str, jobs: dict[str, str]) -> None:
    """Answer, wait for all to end, and look at what they did. Raises AssertionError."""
    with instance.client(key) as http:
        waiting = http.get(f"/api/v1/jobs/{jobs['waiting_for_input']}").json()
        assert waiting["status"] == "waiting_for_input", waiting
        answered = http.post(f"/api/v1/jobs/{jobs['waiting_for_input']}/respond", json={"answer": "yes"})
        assert answered.is_success, answered.text
        for job_id in jobs.values():
            path = f"/api/v1/jobs/{job_id}"
            reaches(http, job_id, "completed")
            found = http.get(f"{path}/artifacts").json()["items"]
            (report,) = [http.get(f"{path}/artifacts/{artifact['id']}").text for artifact in found]
            assert report.split() == http.get(path).json()["result"]
            seqs = [event["seq"] for event in events(http, job_id)]
            assert seqs == list(range(1, len(seqs) + 1)), f"{job_id}: gaps or repeats in {seqs}"
        attempts = http.get(f"/api/v1/jobs/{jobs['running']}").json()["attempts"]
        assert [attempt["outcome"] for attempt in attempts] == ["lost", "completed"], attempts
        assert lines(http, jobs["waiting_for_input"]).count("did one") == 1
        assert lines(http, jobs["waiting_for_input"]).count("did two") == 1
        assert lines(http, jobs["running"]).count("did one") == 1, "a step with a durable end ran again"


def reaches(http: httpx.Client, job_id: str, status: str) -> None:
    """Return once the job is in that state."""
    path = f"/api/v1/jobs/{job_id}"
    eventually(lambda: http.get(path).json()["status"] == status, seconds=90, what=f"{path} {status}")


def events(http: httpx.Client, job_id: str) -> list[dict[str, Any]]:
    """All events of a job that is quiet."""
    found: list[dict[str, Any]] = http.get(f"/api/v1/jobs/{job_id}/logs", params={"limit": 500}).json()[
        "items"
    ]
    return found


def lines(http: httpx.Client, job_id: str) -> list[str]:
    """What the agent printed."""
    return [event["message"] for event in events(http, job_id) if event["type"] == "log"]


if __name__ == "__main__":
    sys.exit(main())
