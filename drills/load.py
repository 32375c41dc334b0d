"""What a client sends while the drill runs: a mix of jobs at a steady rate, answers, and a few cancels."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from drills.client import NotHeard, PatientClient

SENDERS = 3  # one that waits for an answer must not hold up the rate
BULK = 10
ANSWER_SECONDS = 0.5

# kind -> how often of 100 requests
Mix = dict[str, int]
MIX: Mix = {
    "noop": 25,
    "noop in bulk": 3,
    "slow noop": 17,
    "steps": 25,
    "long steps": 15,
    "asks": 12,
    "cancelled": 3,
}
# For deploys: among the short ones jobs that outlive any grace, and so are handed back.
DEPLOY_MIX: Mix = {"noop": 40, "slow noop": 20, "steps": 20, "asks": 8, "very long steps": 12}


@dataclass
class Load:
    """Sends `jobs` jobs, spread over `seconds`."""

    client: PatientClient
    jobs: int
    seconds: float
    seed: int
    mix: Mix = field(default_factory=lambda: MIX)
    sent: Counter[str] = field(default_factory=Counter)
    answers: int = 0
    cancelled: set[str] = field(default_factory=set)  # jobs of which the end was asked for
    failures: list[str] = field(default_factory=list)  # what the client could not get through

    def __post_init__(self) -> None:
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._began = time.monotonic()
        work: list[Callable[[int], None]] = [self._answer, *([self._send] * SENDERS)]
        self._threads = [threading.Thread(target=one, args=(number,)) for number, one in enumerate(work)]
        self._senders = self._threads[1:]

    def start(self) -> None:
        """Begin to send."""
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()

    @property
    def is_sent(self) -> bool:
        """Whether everything was sent."""
        return not any(thread.is_alive() for thread in self._senders)

    def stop(self) -> None:
        """Send and answer no more."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _next(self) -> float | None:
        """When the next request is due, in seconds from the start; None when enough were sent."""
        with self._lock:
            count = sum(self.sent.values())
            return None if count >= self.jobs else count * self.seconds / self.jobs

    def _send(self, number: int) -> None:
        chance = random.Random(self.seed + number)
        kinds, weights = list(self.mix), list(self.mix.values())
        while (due := self._next()) is not None:
            if self._over.wait(max(0.0, self._began + due - time.monotonic())):
                return
            (kind,) = chance.choices(kinds, weights)
            with self._lock:
                self.sent[kind] += BULK if kind == "noop in bulk" else 1
            try:
                self._send_one(kind, chance)
            except NotHeard as error:
                self.failures.append(f"{kind}: {error}")

    def _send_one(self, kind: str, chance: random.Random) -> None:
        client = self.client
        match kind:
            case "noop":
                client.submit("nothing")
            case "noop in bulk":
                client.submit_many("nothing", BULK)
            case "slow noop":
                client.submit("nothing", input={"seconds": chance.uniform(0.05, 0.5)})
            case "steps":
                self._effects(steps=chance.randint(1, 4), seconds=chance.uniform(0, 0.2))
            case "long steps":
                self._effects(steps=chance.randint(10, 25), seconds=chance.uniform(0.05, 0.25))
            case "very long steps":
                self._effects(steps=chance.randint(50, 70), seconds=0.3)
            case "asks":
                self._effects(steps=2, seconds=0.05, ask=True)
            case _:
                job_id = self._effects(steps=20, seconds=0.2)
                self._over.wait(chance.uniform(0, 4))
                self.cancelled.add(job_id)
                client.call("DELETE", f"/api/v1/jobs/{job_id}")

    def _effects(self, **inputs: Any) -> str:
        return self.client.submit("effects", input={"drill": str(uuid4()), **inputs})

    def _answer(self, number: int) -> None:
        while not self._over.wait(ANSWER_SECONDS):
            try:
                self.answers += self.client.answer_all("a word")
            except NotHeard as error:
                self.failures.append(f"answers: {error}")
