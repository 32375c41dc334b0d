"""The E2B provider against a server of the tests' own, and a budget that needs no database."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from jobs.sandboxes.e2b.budget import Found
from jobs.sandboxes.e2b.provider import E2BProvider
from tests.e2b_server import E2BServer


class FreeBudget:
    """Everything is allowed; what is taken is remembered."""

    def __init__(self) -> None:
        self.slots: dict[UUID, tuple[UUID, int]] = {}
        self.refs: dict[UUID, str] = {}
        self.parked: set[UUID] = set()
        self.cooled = self.renewals = 0

    async def installation(self) -> str:
        return "test"

    async def take(self, job_id: UUID, attempt: int) -> UUID:
        slot = uuid4()
        self.slots[slot] = (job_id, attempt)
        return slot

    async def note(self, slot: UUID, ref: str) -> None:
        self.refs[slot] = ref

    async def renew(self, slots: Sequence[UUID]) -> None:
        self.renewals += 1

    async def park(self, slot: UUID) -> None:
        self.parked.add(slot)

    async def release(self, *, slot: UUID | None = None, ref: str = "") -> None:
        for gone in {slot, *(key for key, value in self.refs.items() if ref and value == ref)}:
            self.slots.pop(gone, None)  # type: ignore[arg-type]  # None is no slot
            self.refs.pop(gone, None)  # type: ignore[arg-type]

    async def cool_down(self) -> None:
        self.cooled += 1

    async def is_turn_to_sweep(self) -> bool:
        return False

    async def orphans(self, found: Sequence[Found]) -> set[str]:
        return {one.ref for one in found} - set(self.refs.values())

    async def close(self) -> None:
        return


@contextmanager
def e2b_server() -> Iterator[E2BServer]:
    """A server, and the environment that leads to it."""
    server = E2BServer().start()
    before = {name: os.environ.get(name) for name in server.environment}
    os.environ.update(server.environment)
    try:
        yield server
    finally:
        server.stop()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def e2b_provider(key: str, folder: Path, **options: Any) -> E2BProvider:
    """A provider for the server that the environment leads to."""
    return E2BProvider(**{"api_key": key, "budget": FreeBudget(), "layer_folder": folder, **options})
