"""What goes wrong in a drill: when, where, and how it is put right again."""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from drills.field import Field, Slot

BACKENDS = 3  # terminated at once
WAYS = (("to_server", "to_client"), ("to_server",), ("to_client",))


@dataclass(frozen=True)
class Fault:
    """One that was done."""

    kind: str
    at: float  # seconds since 1970; the database runs on the same machine
    pid: int | None = None  # of the worker that it hit, if it was one


@dataclass(order=True)
class _Due:
    at: float  # seconds from the start
    work: Callable[[], None] = field(compare=False)


class Faults:
    """Does each kind as often as told, at random moments spread evenly over `seconds`."""

    def __init__(self, field: Field, counts: dict[str, int], *, seconds: float, seed: int) -> None:
        self.done: list[Fault] = []
        self._field, self._chance = field, random.Random(seed)
        self._began = time.monotonic()
        kinds: dict[str, Callable[[], None]] = {
            "SIGKILL": self._kill,
            "SIGSTOP": self._stop,
            "SIGTERM": self._terminate,
            "PostgreSQL restart": self._restart_postgres,
            "terminated backends": self._terminate_backends,
            "half-open connections": self._half_open,
            "partition": self._partition,
            "web SIGKILL": self._kill_web,
            "web half-open": self._web_half_open,
        }
        self._due = [
            _Due(seconds * (number + self._chance.random()) / count, kinds[kind])
            for kind, count in counts.items()
            for number in range(count)
        ]

    @property
    def counts(self) -> Counter[str]:
        """How many of each kind were done."""
        return Counter(fault.kind for fault in self.done)

    def start(self) -> None:
        """The clock begins to run."""
        self._began = time.monotonic()

    @property
    def are_over(self) -> bool:
        """Whether every fault was done and put right."""
        return not self._due

    def go_on(self) -> None:
        """Do what is due, and start again what has ended."""
        now = time.monotonic() - self._began
        for due in sorted(due for due in self._due if due.at <= now):
            self._due.remove(due)
            due.work()
        self._field.supervise()

    def _later(self, seconds: float, work: Callable[[], None]) -> None:
        self._due.append(_Due(time.monotonic() - self._began + seconds, work))

    def _note(self, kind: str, slot: Slot | None = None) -> None:
        self.done.append(Fault(kind, time.time(), slot.program.pid if slot else None))

    def _some_worker(self) -> Slot | None:
        """One that runs undisturbed; None while there is none."""
        fit = [
            slot
            for slot in self._field.slots
            if slot.program.alive and not (slot.stopped or slot.cut or slot.told_to_end_at)
        ]
        return self._chance.choice(fit) if fit else None

    def _on_a_worker(self, work: Callable[[Slot], None]) -> None:
        """Now, or as soon as there is one."""
        slot = self._some_worker()
        if slot is None:
            self._later(0.5, lambda: self._on_a_worker(work))
        else:
            work(slot)

    def _kill(self) -> None:
        def kill(slot: Slot) -> None:
            self._note("SIGKILL", slot)
            slot.program.kill()
            slot.program.wait()

        self._on_a_worker(kill)

    def _stop(self) -> None:
        """From half a lease to two and a half."""

        def stop(slot: Slot) -> None:
            self._note("SIGSTOP", slot)
            slot.program.kill(signal.SIGSTOP)
            slot.stopped, program = True, slot.program

            def go_on() -> None:
                program.kill(signal.SIGCONT)
                slot.stopped = False

            self._later(self._chance.uniform(0.5, 2.5) * self._field.lease, go_on)

        self._on_a_worker(stop)

    def _terminate(self) -> None:
        def terminate(slot: Slot) -> None:
            self._note("SIGTERM", slot)
            slot.told_to_end_at = time.time()
            slot.program.kill(signal.SIGTERM)

        self._on_a_worker(terminate)

    def _restart_postgres(self) -> None:
        self._note("PostgreSQL restart")
        self._field.restart_postgres()

    def _terminate_backends(self) -> None:
        self._note("terminated backends")
        with self._field.link() as link:
            link.execute(
                """
                SELECT pg_terminate_backend(pid) FROM (
                    SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
                     ORDER BY random() LIMIT %s) AS chosen
                """,
                [BACKENDS],
            )

    def _half_open(self) -> None:
        """A third of a worker's connections, both ways or one way."""

        def fall_silent(slot: Slot) -> None:
            self._note("half-open connections", slot)
            slot.proxy.fall_silent(0.34, ways=self._chance.choice(WAYS), chance=self._chance)
            self._cut(slot, self._chance.uniform(0.7, 2.5))

        self._on_a_worker(fall_silent)

    def _partition(self) -> None:
        """All of a worker's connections, those that it opens meanwhile included."""

        def partition(slot: Slot) -> None:
            self._note("partition", slot)
            slot.proxy.cut()
            self._cut(slot, self._chance.uniform(0.7, 2.5))

        self._on_a_worker(partition)

    def _cut(self, slot: Slot, leases: float) -> None:
        slot.cut = True

        def heal() -> None:
            slot.proxy.heal()
            slot.cut = False

        self._later(leases * self._field.lease, heal)

    def _kill_web(self) -> None:
        self._note("web SIGKILL")
        self._field.kill_web()

    def _web_half_open(self) -> None:
        self._note("web half-open")
        self._field.web_falls_silent(0.34, self._chance)
        self._later(self._field.lease, self._field.heal_web)
