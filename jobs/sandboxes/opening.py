"""Sandboxes opened, counted and timed: the one way in which attempts get theirs."""

import time

from engine import tracing
from engine.meters import SANDBOX_FAILURES, SANDBOX_SECONDS
from jobs.sandboxes.base import Provider, Sandbox, SandboxError, SandboxSpec


async def open_sandbox(provider: Provider, spec: SandboxSpec) -> Sandbox:
    """`provider.open`, with what it raises."""
    started = time.monotonic()
    try:
        with tracing.span("sandbox", {"engine.sandbox.provider": provider.name}):
            sandbox = await provider.open(spec)
    except SandboxError:
        SANDBOX_FAILURES.labels(provider.name).inc()
        raise
    SANDBOX_SECONDS.labels(provider.name).observe(time.monotonic() - started)
    return sandbox
