"""A client that asks again until it is heard, as one should over a network, and remembers what it was promised."""

import json
import threading
import time
from collections import Counter
from collections.abc import Container
from typing import Any, Self
from uuid import uuid4

import httpx

RETRY_SECONDS = 0.2


class NotHeard(Exception):
    """The API gave no answer that counts within the client's patience."""


class PatientClient:
    """Repeats what was cut off or answered with 5xx, under the same idempotency key. Safe to use from many threads."""

    def __init__(self, url: str, secret: str, *, patience_seconds: float = 60.0) -> None:
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {secret}"}, timeout=httpx.Timeout(15, connect=3)
        )
        self._lock = threading.Lock()
        self.secret = secret
        self.url = url  # may change while it is used
        self.patience_seconds = patience_seconds
        self.statuses: Counter[str] = Counter()  # each answer that came, and "no answer"
        self.slowest_answer = 0.0  # seconds
        self.wordless_refusals = 0  # 503 without Retry-After
        self.acknowledged: set[str] = set()  # ids of jobs that it was promised

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def next_url(self) -> str:
        """Where to ask now."""
        return self.url

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def call(self, method: str, path: str, **content: Any) -> httpx.Response:
        """The first answer below 500. Raises NotHeard."""
        headers = {"Idempotency-Key": str(uuid4())} if method == "POST" else {}
        deadline = time.monotonic() + self.patience_seconds
        while time.monotonic() < deadline:
            began = time.monotonic()
            try:
                reply = self._http.request(method, self.next_url() + path, headers=headers, **content)
            except httpx.TransportError:
                self._count("no answer")
            else:
                self._count(str(reply.status_code))
                self.slowest_answer = max(self.slowest_answer, time.monotonic() - began)
                if reply.status_code < 500:
                    return reply
                if reply.status_code == 503 and "Retry-After" not in reply.headers:
                    self.wordless_refusals += 1
            time.sleep(RETRY_SECONDS)
        raise NotHeard(f"{method} {path}")

    def _count(self, status: str) -> None:
        with self._lock:
            self.statuses[status] += 1

    def submit(self, agent: str, *, file: str = "", **fields: Any) -> str:
        """Submit a job and return its id, which is a promise. Its `metadata.drill` is given to no other job."""
        body = {"task": "drill", "agent": agent, "metadata": {"drill": str(uuid4())}, **fields}
        if file:
            body = {
                name: value if isinstance(value, str) else json.dumps(value) for name, value in body.items()
            }
            reply = self.call("POST", "/api/v1/jobs", data=body, files={"files": ("in.txt", file)})
        else:
            reply = self.call("POST", "/api/v1/jobs", json=body)
        if reply.status_code != 201:
            raise NotHeard(reply.text)
        return self._promised(reply.json()["id"])

    def submit_many(self, agent: str, count: int, **fields: Any) -> list[str]:
        """Submit jobs that are all alike in one request."""
        jobs = [{"task": "drill", "agent": agent, **fields}] * count
        items = self.call("POST", "/api/v1/jobs/bulk", json={"jobs": jobs}).json()["items"]
        return [self._promised(item["id"]) for item in items]

    def _promised(self, job_id: str) -> str:
        with self._lock:
            self.acknowledged.add(job_id)
        return job_id

    def answer_all(self, answer: str, *, but: Container[str] = ()) -> int:
        """Answer every open question, but for those of some jobs; how many answers were taken."""
        taken = 0
        questions = self.call("GET", "/api/v1/questions?status=open&limit=200").json()["items"]
        for question in (item for item in questions if item["job"]["id"] not in but):
            reply = self.call("POST", f"/api/v1/questions/{question['id']}/answer", json={"answer": answer})
            taken += reply.status_code == 200
        return taken
