"""The warm pool: sandboxes started ahead, used once, and in nothing else different."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.sandboxes import warm
from jobs.sandboxes.base import EndReason, Limits
from jobs.sandboxes.local import LocalProvider
from jobs.sandboxes.local_sandbox import LocalSandbox
from tests.sandboxes import Run, Sandboxes, local_provider, needs_bubblewrap, spec

pytestmark = needs_bubblewrap


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Sandboxes]]:
    started: list[Sandboxes] = []

    def start(warm: int = 1) -> Sandboxes:
        started.append(Sandboxes(local_provider(tmp_path / "scratch", warm=warm)))
        assert started[-1].health.ok
        return started[-1]

    yield start
    for sandboxes in started:
        sandboxes.close()


def pool_of(sandboxes: Sandboxes) -> LocalProvider:
    """The provider, once its pool is full."""
    provider = sandboxes.provider
    assert isinstance(provider, LocalProvider)

    async def full() -> None:
        async with asyncio.timeout(60):
            while len(provider.pool.ready) < provider.pool.wanted:
                await asyncio.sleep(0.01)

    sandboxes.run(full())
    return provider


LOADED = "import sys; print('pandas' in sys.modules, __name__)"


def test_a_warm_sandbox_has_its_imports_done_and_works_like_any_other(
    start: Callable[..., Sandboxes],
) -> None:
    sandboxes = start()
    pool_of(sandboxes)

    run = sandboxes.program(LOADED + "; print(open('../inputs/x').read())", files={"inputs/x": b"given"})

    assert run.stdout == b"True __main__\ngiven\n"


def test_a_sandbox_is_used_once_and_the_pool_is_filled_again(start: Callable[..., Sandboxes]) -> None:
    sandboxes = start()
    first = pool_of(sandboxes).pool.ready[0]

    assert sandboxes.program("open('left', 'w').close()").exit_code == 0

    second = pool_of(sandboxes).pool.ready[0]
    assert second is not first
    assert sandboxes.program("import os; print(os.listdir())").stdout == b"[]\n"


def test_a_warm_sandbox_takes_the_limits_of_its_job(start: Callable[..., Sandboxes]) -> None:
    sandboxes = start()
    pool_of(sandboxes)

    run = sandboxes.program(
        "import sys; assert 'pandas' in sys.modules; kept = bytearray(300_000_000); print(1)"
    )
    assert run.stdout == b"1\n"
    pool_of(sandboxes)
    run = sandboxes.program("kept = []\nwhile True: kept.append(bytearray(4_000_000))", memory_mb=150)
    assert run.reason == EndReason.MEMORY


def test_another_disk_or_own_requirements_need_a_cold_one(start: Callable[..., Sandboxes]) -> None:
    sandboxes = start()
    waiting = pool_of(sandboxes).pool.ready[0]

    assert sandboxes.program(LOADED, disk_mb=Limits().disk_mb + 1).stdout == b"False __main__\n"
    assert pool_of(sandboxes).pool.ready == [waiting]


def test_an_empty_pool_means_a_cold_start_not_a_wait(start: Callable[..., Sandboxes]) -> None:
    assert start(warm=0).program(LOADED).stdout == b"False __main__\n"


def test_an_old_warm_sandbox_is_thrown_away(
    start: Callable[..., Sandboxes], monkeypatch: pytest.MonkeyPatch
) -> None:
    sandboxes = start()
    pool_of(sandboxes)
    monkeypatch.setattr(warm, "MOST_SECONDS", -1.0)

    assert sandboxes.program(LOADED).stdout == b"False __main__\n"


def test_an_idle_pool_is_renewed_before_anybody_needs_it(
    start: Callable[..., Sandboxes], monkeypatch: pytest.MonkeyPatch
) -> None:
    sandboxes = start()
    provider = pool_of(sandboxes)
    old = provider.pool.ready[0]

    old.born_at -= warm.MOST_SECONDS
    provider.pool.look.set()
    sandboxes.run(_dead(old))

    assert pool_of(sandboxes).pool.ready[0] is not old


def test_a_warm_sandbox_that_died_is_not_handed_out(start: Callable[..., Sandboxes]) -> None:
    sandboxes = start()
    provider = pool_of(sandboxes)
    waiting = provider.pool.ready[0]

    async def kill() -> None:
        waiting.supervisor.kill(waiting.name)
        await waiting.dead

    sandboxes.run(kill())

    assert sandboxes.program("print('fine')").stdout == b"fine\n"


def test_a_pool_killed_by_the_lease_fills_again(
    start: Callable[..., Sandboxes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm, "RETRY_SECONDS", 0.05)
    sandboxes = start()
    provider = pool_of(sandboxes)
    waiting = provider.pool.ready[0]
    provider.tick(0.0)
    sandboxes.run(_dead(waiting))

    provider.tick(3600.0)

    assert sandboxes.program("print('fine')").stdout == b"fine\n"
    assert waiting not in pool_of(sandboxes).pool.ready


async def _dead(sandbox: LocalSandbox) -> None:
    await sandbox.dead


def test_a_warm_sandbox_also_carries_an_interpreter(start: Callable[..., Sandboxes]) -> None:
    sandboxes = start()
    pool_of(sandboxes)

    async def work() -> str:
        sandbox = await sandboxes.provider.open(spec())
        try:
            result = await sandbox.run_code("import sys; 'pandas' in sys.modules", timeout_seconds=30)
            return result.outputs[0].data["text/plain"]
        finally:
            await sandbox.close()

    assert sandboxes.run(work()) == "True"


def test_nothing_of_one_job_is_seen_by_the_next(start: Callable[..., Sandboxes]) -> None:
    sandboxes = start(warm=2)
    runs: list[Run] = []
    for n in range(4):
        code = f"import os; print(os.path.exists('../inputs/of-{n - 1}')); open('/dev/shm/s', 'x'); open('/tmp/t', 'x')"
        runs.append(sandboxes.program(code, files={f"inputs/of-{n}": b""}))

    assert [run.stdout for run in runs] == [b"False\n"] * 4
