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
MOST_RESULT_CHARACTERS = 1500


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
        say(f"  {job['status']}")
        shown = job.get("result") if job["status"] == "completed" else job.get("error")
        if shown is not None:
            say(indented(json.dumps(shown, indent=2, ensure_ascii=False)[:MOST_RESULT_CHARACTERS]))
        for artifact in checked(client.get(f"/api/v1/jobs/{job['id']}/artifacts"))["items"]:
            say(f"  {artifact['name']}: {url}/api/v1/jobs/{job['id']}/artifacts/{artifact['id']}")
        return str(job["status"])


def follow(client: httpx.Client, job_id: str) -> dict[str, Any]:
    """Print the job's log as it comes; returns the job once it has ended."""
    deadline, after = time.monotonic() + PATIENCE_SECONDS, 0
    while time.monotonic() < deadline:
        job = checked(client.get(f"/api/v1/jobs/{job_id}"))  # before its log: at the end, no line is missed
        page = checked(client.get(f"/api/v1/jobs/{job_id}/logs", params={"after": after}))
        for event in page["items"]:
            after = event["seq"]
            if event["message"]:
                say(f"    {printable(event['message'])}")
        if job["status"] in FINAL and not page["items"]:
            return job
        time.sleep(PAUSE_SECONDS)
    raise TimeoutError(f"The job did not end within {PATIENCE_SECONDS:.0f} s")


def checked(answer: httpx.Response) -> dict[str, Any]:
    """The answer's document. Raises httpx.HTTPStatusError for a refusal."""
    answer.raise_for_status()
    document: dict[str, Any] = answer.json()
    return document


def indented(text: str) -> str:
    """A few lines under a heading."""
    return "\n".join(f"    {line}" for line in text.splitlines())
