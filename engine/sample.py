"""The README's first job, submitted over the REST API like anybody's, with its log shown live."""

import json
import time
from pathlib import Path
from typing import Any

import httpx

from engine.logs import printable
from engine.steps import say

TASK = "Analyze the sentiment of customer reviews"
FINAL = ("completed", "failed", "cancelled", "rejected")
PATIENCE_SECONDS = 180.0
PAUSE_SECONDS = 0.2
# Events that are the agent's own words; the others say where the job stands.
SHOWN_EVENTS = ("log", "job.progress", "artifact.created", "question.opened")
MOST_VALUE_CHARACTERS = 90


def run_sample_job(url: str, key: str, file: Path) -> str:
    """Submit the job with `file`, print what it logs, its result and its artifacts; returns its final status.

    Raises httpx.HTTPError if the API does not answer as it should, TimeoutError if the job does not end.
    """
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
        with file.open("rb") as content:
            answer = client.post("/api/v1/jobs", data={"task": TASK}, files={"files": (file.name, content)})
        job = checked(answer)
        say(f"  Job {job['id']}: {TASK}, with {file.name}")
        job = follow(client, job["id"])
        say(f"  {job['status'].capitalize()}. The {'result' if job['status'] == 'completed' else 'error'}:")
        for name, value in (job.get("result") or job.get("error") or {}).items():
            say(f"    {printable(name)}: {short(value)}")
        artifacts = checked(client.get(f"/api/v1/jobs/{job['id']}/artifacts"))["items"]
        say("  Artifacts:" if artifacts else "  No artifacts.")
        for artifact in artifacts:
            say(
                f"    {printable(artifact['name'])}  {url}/api/v1/jobs/{job['id']}/artifacts/{artifact['id']}"
            )
        return str(job["status"])


def follow(client: httpx.Client, job_id: str) -> dict[str, Any]:
    """Print the job's log as it comes; returns the job once it has ended."""
    deadline, after = time.monotonic() + PATIENCE_SECONDS, 0
    while time.monotonic() < deadline:
        job = checked(client.get(f"/api/v1/jobs/{job_id}"))  # before its log: at the end, no line is missed
        page = checked(client.get(f"/api/v1/jobs/{job_id}/logs", params={"after": after}))
        for event in page["items"]:
            after = event["seq"]
            if event["type"] in SHOWN_EVENTS and event["message"]:
                about = "Artifact: " if event["type"] == "artifact.created" else ""
                say(f"    {about}{printable(event['message'])}")
        if job["status"] in FINAL and not page["items"]:
            return job
        time.sleep(PAUSE_SECONDS)
    raise TimeoutError(f"The job did not end within {PATIENCE_SECONDS:.0f} s")


def checked(answer: httpx.Response) -> dict[str, Any]:
    """The answer's document. Raises httpx.HTTPStatusError for a refusal."""
    answer.raise_for_status()
    document: dict[str, Any] = answer.json()
    return document


def short(value: Any) -> str:
    """One line of JSON, cut where it gets long."""
    line = printable(json.dumps(value, ensure_ascii=False))
    return line if len(line) <= MOST_VALUE_CHARACTERS else f"{line[:MOST_VALUE_CHARACTERS]} …"
