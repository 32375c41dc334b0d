"""The bucket down, slow, full, broken and locked while jobs store what they made: each goes on when it is back.

    python -m drills.bucket --seconds 20

A server of S3's protocol (moto's), a web process and a worker. Prints a table, and ends with 1 if a goal was missed.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "engine.settings")
django.setup()

import httpx  # noqa: E402 (after setup)

from tests.buckets import BUCKET, BucketServer, bucket_server  # noqa: E402
from tests.processes import Instance, eventually  # noqa: E402

FAULTS = ("down", "slow", "full", "broken", "locked")
JOBS = 4
CONTENT = "a,b\n" + "1,2\n" * 1000
# Reads its input, waits until the drill has damaged the bucket, and hands two files back.
AGENT = """
import time
from engine_agent import artifact, inputs_dir, outputs_dir, step

def wait(seconds):
    time.sleep(seconds)

def main(task, inputs):
    text = (inputs_dir / "in.csv").read_text()
    step("wait", wait, inputs["seconds"])
    artifact((task + text).encode(), "now.csv")
    (outputs_dir / "end.csv").write_text(text + task)
    return {"bytes": len(text)}
"""
RUNS_SECONDS = 3.0


@dataclass
class Phase:
    """One fault, and what jobs and requests felt of it."""

    fault: str
    answers: dict[str, str] = field(default_factory=dict)  # of requests that met it
    slowest: float = 0.0  # seconds
    attempts: list[int] = field(default_factory=list)
    back_to_end: float = 0.0  # seconds from the bucket's return until the last job had ended
    wrong: list[str] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the drill that the command line asks for."""
    parser = argparse.ArgumentParser(prog="drills.bucket", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=20, help="each fault lasts")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="bucket-") as folder, bucket_server() as server:
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=server.url, **keys).create_bucket(Bucket=BUCKET)
        (home := Path(folder, "home")).mkdir()
        instance = Instance(
            home,
            {
                "ENGINE_S3_BUCKET": BUCKET,
                "ENGINE_S3_ENDPOINT": server.url,
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
            },
        )
        try:
            instance.manage("migrate", "--verbosity", "0")
            secret = instance.key()
            instance.worker("--concurrency", str(JOBS))
            instance.serve()
            instance.ready()
            with instance.client(secret) as client:
                phases = [Drill(client, server, fault, chosen.seconds).run() for fault in FAULTS]
        finally:
            instance.stop()
    print(table(phases))
    missed = [f"{phase.fault}: {what}" for phase in phases for what in phase.wrong]
    for line in missed:
        print(f"MISSED: {line}")
    return 1 if missed else 0


class Drill:
    """One fault."""

    def __init__(self, client: httpx.Client, server: BucketServer, fault: str, seconds: float) -> None:
        self._client, self._server, self._seconds = client, server, seconds
        self.phase = Phase(fault)

    def run(self) -> Phase:
        """Jobs that run into it, requests that meet it, and the end of it."""
        card = {"slug": "copier", "name": "Copier", "description": "Copies", "kind": "python"}
        self._client.post(
            "/api/v1/agents", json=card | {"source": {"agent.py": AGENT}}
        )  # 409 from the second on
        jobs = [self._submit().json()["id"] for _ in range(JOBS)]
        eventually(
            lambda: all(self._job(job)["status"] == "running" for job in jobs), seconds=60, what="jobs run"
        )
        self._damage()
        ends = time.monotonic() + self._seconds
        self._meets("upload", self._submit)
        if done := self._client.get("/api/v1/jobs?status=completed&limit=1").json()["items"]:
            self._meets("download", lambda: self._download(done[0]["id"], "now.csv"))
        time.sleep(max(0.0, ends - time.monotonic()))
        for job in jobs:
            if (status := self._job(job)["status"]) not in ("running", "queued"):
                self.phase.wrong.append(f"a job was {status} while the bucket was {self.phase.fault}")
        self._mend()
        self._follow(jobs)
        return self.phase

    def _submit(self) -> httpx.Response:
        data = {"task": "Copy", "agent": "copier", "input": f'{{"seconds": {RUNS_SECONDS}}}'}
        return self._client.post("/api/v1/jobs", data=data, files={"files": ("in.csv", CONTENT)})

    def _job(self, job: str) -> dict[str, Any]:
        found: dict[str, Any] = self._client.get(f"/api/v1/jobs/{job}").json()
        return found

    def _download(self, job: str, name: str) -> httpx.Response:
        items = self._client.get(f"/api/v1/jobs/{job}/artifacts").json()["items"]
        (address,) = [item["url"] for item in items if item["name"].endswith(name)]
        return self._client.get(address, headers={"Range": "bytes=4-"})

    def _damage(self) -> None:
        if self.phase.fault == "down":
            self._server.go_down()
        else:
            self._server.release.clear()
            self._server.fault = self.phase.fault

    def _mend(self) -> None:
        if self.phase.fault == "down":
            self._server.listen(int(self._server.url.rpartition(":")[2]))
        self._server.fault = ""
        self._server.release.set()

    def _meets(self, what: str, ask: Any) -> None:
        began = time.monotonic()
        reply: httpx.Response = ask()
        self.phase.slowest = max(self.phase.slowest, time.monotonic() - began)
        self.phase.answers[what] = f"{reply.status_code}"
        if reply.status_code == 503:
            self.phase.answers[what] += f" `{reply.json()['code']}`"
            if "Retry-After" not in reply.headers:
                self.phase.wrong.append(f"{what}: 503 without Retry-After")
        elif not reply.is_success:
            self.phase.wrong.append(f"{what}: {reply.status_code} {reply.text[:200]}")

    def _follow(self, jobs: list[str]) -> None:
        began = time.monotonic()
        ended = ("completed", "failed", "cancelled", "rejected")
        for job in jobs:
            eventually(lambda job=job: self._job(job)["status"] in ended, seconds=120, what="the job's end")  # type: ignore[misc]
        self.phase.back_to_end = time.monotonic() - began
        for job in jobs:
            found = self._job(job)
            self.phase.attempts.append(len(found["attempts"]))
            others = {attempt["outcome"] for attempt in found["attempts"][:-1]}
            if others - {"handed_back"}:
                self.phase.wrong.append(f"{job}: attempts ended as {others}")
            if found["status"] != "completed":
                self.phase.wrong.append(f"{job} {found['status']}: {found.get('error')}")
                continue
            for name, content in (("now.csv", "Copy" + CONTENT), ("end.csv", CONTENT + "Copy")):
                part = self._download(job, name)
                if part.status_code != 206 or part.text != content[4:]:
                    self.phase.wrong.append(f"{job} {name}: {part.status_code}, {len(part.text)} characters")


def table(phases: list[Phase]) -> str:
    """Markdown."""
    head = [
        f"| the bucket | {JOBS} jobs that ran into it | requests meanwhile | slowest |",
        "| --- | --- | --- | --- |",
    ]
    return "\n".join(
        head
        + [
            f"| {phase.fault} | {'all completed' if not phase.wrong else phase.wrong[0]}"
            f" {phase.back_to_end:.1f} s after its return, in {min(phase.attempts, default=0)} to"
            f" {max(phase.attempts, default=0)} attempts | "
            + ", ".join(f"{what} {answer}" for what, answer in phase.answers.items())
            + f" | {phase.slowest:.1f} s |"
            for phase in phases
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
