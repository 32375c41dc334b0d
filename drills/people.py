"""A drill: a job with steps, `once` steps and a question, its worker killed at one moment after the other.

`make drill-people` goes through every 25 ms of the job's life; the test suite through a few of them
(test_end_to_end_people.py). Whatever the moment: the job ends, no step with a durable end runs again, no event is
doubled, and a `once` step in doubt becomes a question.
"""

import argparse
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.processes import Instance, Program, eventually

WALKER = """
import time
from engine_agent import ask, log, step

def do(name):
    print("did", name, flush=True)
    time.sleep(0.03)
    return name

def main(task, inputs):
    done = [step("one", do, "one"), step("two", do, "two"), step("pay", do, "pay", once=True)]
    done.append(ask("Go on?", choices=["yes", "no"]))
    done += [step("three", do, "three"), step("mail", do, "mail", once=True)]
    return done
"""
STEPS = ("one", "two", "pay", "three", "mail")
ONCE = ("pay", "mail")
LEASE = {"ENGINE_LEASE_SECONDS": "2", "ENGINE_HEARTBEAT_SECONDS": "0.5"}
SLUG = "drill-walker"


@dataclass
class Seen:
    """What the drill has met so far."""

    attempts: Counter[str] = field(default_factory=Counter)  # outcome -> how many
    in_doubt: int = 0  # `once` steps that became a question
    killed_while: Counter[str] = field(default_factory=Counter)  # the job's status -> kills


class Drill:
    """A pair of workers of a running instance: one may die, the other takes over."""

    def __init__(self, instance: Instance, key: str) -> None:
        self.instance = instance
        self.http = httpx.Client(
            base_url=instance.url, headers={"Authorization": f"Bearer {key}"}, timeout=30
        )
        self.workers: dict[str, Program] = {}
        self.seen = Seen()

    def prepare(self) -> None:
        """Register the agent and start the workers."""
        card = {
            "slug": SLUG,
            "name": SLUG,
            "description": "Walks through steps and a question.",
            "kind": "python",
            "source": {"agent.py": WALKER},
        }
        assert self.http.post("/api/v1/agents", json=card).is_success
        self.start_worker()
        self.start_worker()

    def close(self) -> None:
        """Stop the workers that are left."""
        self.http.close()
        for program in self.workers.values():
            program.stop()

    def start_worker(self) -> None:
        """One more worker, once it has its lease."""
        program = self.instance.worker("--concurrency", "2")
        found = program.printed(r"Worker (\S+) serves queues")
        self.workers[found[1]] = program

    def walk(self, kill_after: float | None) -> float:
        """One job, its worker killed so many seconds after it was submitted; how long it took. Checks everything."""
        job_id = self.http.post("/api/v1/jobs", json={"task": "walk", "agent": SLUG}).json()["id"]
        started = time.monotonic()
        is_killed = kill_after is None

        def is_over() -> dict[str, Any]:
            nonlocal is_killed
            if not is_killed and time.monotonic() - started >= (kill_after or 0):
                is_killed = True
                self.kill_holder(job_id)
            job: dict[str, Any] = self.http.get(f"/api/v1/jobs/{job_id}").json()
            for question in job["questions"]:
                self.answer(question)
            assert job["status"] not in ("failed", "cancelled", "rejected"), job
            return job if job["status"] == "completed" and is_killed else {}

        job = eventually(is_over, seconds=90, what=f"the job killed after {kill_after} s")
        took = time.monotonic() - started
        while len(self.workers) < 2:
            self.start_worker()
        self.check(job)
        return took

    def kill_holder(self, job_id: str) -> None:
        """Kill the worker that runs the job, or if none does, the one that ran it last."""
        job = self.http.get(f"/api/v1/jobs/{job_id}").json()
        self.seen.killed_while[job["status"]] += 1
        holder = job["attempts"][-1]["worker"] if job["attempts"] else next(iter(self.workers))
        program = self.workers.pop(holder, None)
        if program is not None:
            program.kill()
            program.wait()

    def answer(self, question: dict[str, Any]) -> None:
        """Answer an open question; a `once` step in doubt is said to have happened."""
        if question["status"] == "open":
            is_doubt = "must not happen twice" in question["prompt"]
            self.seen.in_doubt += is_doubt
            answer = "It happened: go on" if is_doubt else "yes"
            reply = self.http.post(f"/api/v1/questions/{question['id']}/answer", json={"answer": answer})
            assert reply.status_code == 200, reply.text

    def check(self, job: dict[str, Any]) -> None:
        """What must hold whenever the worker died."""
        events = self.http.get(f"/api/v1/jobs/{job['id']}/logs", params={"limit": 1000}).json()["items"]
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1)), events
        ended: dict[str, int] = {}
        for event in events:
            if event["type"] == "step.completed":
                key = event["data"]["key"]
                assert key not in ended, f"{key} ended twice"
                ended[key] = event["seq"]
        ran = Counter[str]()
        for event in events:
            found = re.fullmatch(r"did (\w+)\n?", event["message"]) if event["source"] == "stdout" else None
            if found:
                ran[found[1]] += 1
                assert event["seq"] < ended.get(f"{found[1]}#1", sys.maxsize), f"{found[1]} ran after its end"
        for name in ONCE:
            assert ran[name] <= 1, f"{name} ran {ran[name]} times"
        for kind in ("question.opened", "question.answered"):
            keys = [event["data"]["key"] for event in events if event["type"] == kind]
            assert len(keys) == len(set(keys)), f"{kind} is doubled: {keys}"
        doubted = {event["data"]["key"] for event in events if event["type"] == "step.uncertain"}
        wanted = [name if f"{name}#1" not in doubted else None for name in STEPS]
        assert job["result"] == [*wanted[:3], "yes", *wanted[3:]], (job["result"], doubted)
        self.seen.attempts.update(attempt["outcome"] for attempt in job["attempts"])


def main() -> None:
    """Go through the whole life of the job, and print what was met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=float, default=0.025, help="seconds between two moments")
    parser.add_argument("--most", type=int, default=400, help="moments at most")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing it started stays behind
    with tempfile.TemporaryDirectory() as folder:
        instance = Instance(Path(folder) / "home", LEASE)
        try:
            instance.manage("migrate", "--verbosity", "0")
            instance.serve()
            drill = Drill(instance, instance.key())
            drill.prepare()
            drill.walk(None)
            length = drill.walk(None)
            moments = min(options.most, int((length + 0.1) / options.every))
            print(
                f"An undisturbed job takes {length:.2f} s: {moments} moments, {options.every * 1000:g} ms apart."
            )
            for number in range(moments):
                took = drill.walk(number * options.every)
                print(
                    f"killed after {number * options.every * 1000:5.0f} ms: ended in {took:.1f} s", flush=True
                )
            print(f"{moments} kills, all clean. Attempts: {dict(drill.seen.attempts)}; killed while:"
                  f" {dict(drill.seen.killed_while)}; steps in doubt: {drill.seen.in_doubt}.")  # fmt: skip
            drill.close()
        finally:
            instance.stop()


if __name__ == "__main__":
    import os

    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "engine.settings")
    django.setup()
    main()
