"""A real sandbox provider for tests, one per session, and short ways to run a program in a sandbox."""

import asyncio
import json
import shutil
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import pytest
from django.conf import settings

from jobs.sandboxes import runtime
from jobs.sandboxes.base import (
    Ended,
    Limits,
    Provider,
    Record,
    Sandbox,
    SandboxFile,
    SandboxSpec,
    Stderr,
    Stdout,
)
from jobs.sandboxes.gvisor import GvisorProvider, find_runsc
from jobs.sandboxes.local import LocalProvider
from tests.e2b import e2b_provider, e2b_server

LOCK = settings.BASE_DIR / "requirements" / "sandbox.lock"
PATIENCE = 60.0  # for one program on a busy machine
T = TypeVar("T")

needs_bubblewrap = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("bwrap") is None,
    reason="needs bubblewrap: apt-get install bubblewrap",
)


def built_runtime() -> Path:
    """The runtime folder of this installation, built if it was not."""
    runtime.build(settings.ENGINE_RUNTIME_DIR, LOCK)
    return Path(settings.ENGINE_RUNTIME_DIR)


def local_provider(scratch: Path, **options: Any) -> LocalProvider:
    """A provider on the installation's runtime, without warm sandboxes unless asked."""
    options.setdefault("warm", 0)
    return LocalProvider(runtime_folder=built_runtime(), lock=LOCK, scratch_folder=scratch, **options)


def gvisor_provider(scratch: Path, **options: Any) -> GvisorProvider:
    """The same on gVisor."""
    options.setdefault("warm", 0)
    return GvisorProvider(runtime_folder=built_runtime(), lock=LOCK, scratch_folder=scratch, **options)


EVERY_PROVIDER = [pytest.param("local", marks=needs_bubblewrap), "e2b"]
# runsc is an option that few machines have, CI's neither: left out rather than skipped, which would fail there.
if find_runsc() is not None:
    EVERY_PROVIDER.append(pytest.param("gvisor", marks=needs_bubblewrap))


@contextmanager
def started(name: str, folder: Path) -> "Iterator[Sandboxes]":
    """A provider by its name, ready for programs."""
    with ExitStack() as stack:
        if name == "local":
            running = Sandboxes(local_provider(folder))
        elif name == "gvisor":
            running = Sandboxes(gvisor_provider(folder))
        else:
            running = Sandboxes(e2b_provider(stack.enter_context(e2b_server()).key, folder))
        stack.callback(running.close)
        assert running.health.ok, running.health
        yield running


def spec(code: str = "", **options: Any) -> SandboxSpec:
    """A spec whose agent/agent.py is `code`. `files` maps paths to bytes; limits may be given by name."""
    files = [SandboxFile("agent/agent.py", code.encode())]
    files += [SandboxFile(path, content) for path, content in options.pop("files", {}).items()]
    known = {name: options.pop(name) for name in list(options) if name in Limits.__dataclass_fields__}
    limits = Limits(**{"wall_seconds": 30.0, **known})
    return SandboxSpec(job_id=uuid4(), attempt=1, limits=limits, files=files, **options)


@dataclass
class Run:
    """What a program brought forth."""

    stdout: bytes = b""
    stderr: bytes = b""
    records: list[Any] = field(default_factory=list)
    ended: Ended | None = None
    ends: int = 0

    @property
    def exit_code(self) -> int | None:
        assert self.ended is not None
        return self.ended.exit_code

    @property
    def reason(self) -> str:
        assert self.ended is not None
        return str(self.ended.reason)


async def collect(sandbox: Sandbox, on_output: Callable[[Any], None] = lambda output: None) -> Run:
    """Read a program to its end."""
    run = Run()
    async with asyncio.timeout(PATIENCE):
        async for output in sandbox.outputs():
            on_output(output)
            match output:
                case Stdout(data):
                    run.stdout += data
                case Stderr(data):
                    run.stderr += data
                case Record(line):
                    run.records.append(json.loads(line))
                case Ended():
                    run.ended, run.ends = output, run.ends + 1
    return run


async def read(sandbox: Sandbox, path: str, most_bytes: int = 1 << 20) -> bytes:
    """One file of the sandbox, whole."""
    return b"".join([piece async for piece in sandbox.read_file(path, most_bytes=most_bytes)])


class Sandboxes:
    """A started provider on an event loop of its own, so that plain tests can use it."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.runner = asyncio.Runner()
        self.health = self.run(provider.start())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run one coroutine to its end."""
        return self.runner.run(work)

    def program(
        self, code: str, argv: Sequence[str] = ("python", "../agent/agent.py"), **options: Any
    ) -> Run:
        """Run a program in a sandbox of its own."""

        async def work() -> Run:
            sandbox = await self.provider.open(spec(code, **options))
            try:
                await sandbox.start(argv)
                return await collect(sandbox)
            finally:
                await sandbox.close()

        return self.run(work())

    def with_sandbox(
        self, work: Callable[[Sandbox], Coroutine[Any, Any, T]], code: str = "", **options: Any
    ) -> T:
        """Hand a fresh sandbox to `work`, and close it."""

        async def scenario() -> T:
            sandbox = await self.provider.open(spec(code, **options))
            try:
                return await work(sandbox)
            finally:
                await sandbox.close()

        return self.run(scenario())

    def close(self) -> None:
        self.run(self.provider.close())
        self.runner.close()
