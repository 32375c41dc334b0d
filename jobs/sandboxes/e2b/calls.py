"""Calls of the E2B SDK: with a deadline that holds, a cancel that gets through, and errors of ours."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import e2b
import httpx

from jobs.sandboxes.base import (
    SandboxBusy,
    SandboxError,
    SandboxLost,
    SandboxRefused,
    SandboxUnavailable,
)

REQUEST_SECONDS = 30.0
# One lost packet is not a lost sandbox: between these looks it may come back.
PATIENCE = (0.2, 1.0, 2.0, 4.0)

NO_KEY = (
    "set E2B_API_KEY to a key of your E2B team (and E2B_DOMAIN, E2B_API_URL, E2B_SANDBOX_URL if you host E2B)"
)
NO_TEMPLATE = "set ENGINE_E2B_TEMPLATE to a template of your E2B team that has the code interpreter"

# What a call may raise on the way, the sandbox alive or not: only the control plane knows (`Box.is_there`).
TRANSPORT = (httpx.HTTPError, OSError)


class Unclear(SandboxError):
    """The call may have reached E2B or not, and the sandbox may live or not: ask before believing anything."""


@asynccontextmanager
async def sdk_call(doing: str, *, seconds: float = REQUEST_SECONDS) -> AsyncIterator[None]:
    """Around every call of the SDK. Raises Unclear or one of `base`'s errors, and CancelledError when cancelled.

    The SDK's own timeouts run twice as long as they say, and its streams turn a cancel into an error of theirs.
    """
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  (async code runs in a task)
    cancels = task.cancelling()
    try:
        async with asyncio.timeout(seconds):
            yield
    except Exception as error:  # a bare Exception is among what the SDK raises
        if task.cancelling() > cancels:
            raise asyncio.CancelledError from error
        raise translated(error, doing) from error


def translated(error: Exception, doing: str) -> Exception:
    """What an error of the SDK means here. Two of its classes are no SandboxExceptions: authentication, and busy."""
    message = f"E2B, {doing}: {str(error) or type(error).__name__}"[:500]
    match error:
        case SandboxError():
            return error
        case e2b.AuthenticationException():
            return SandboxUnavailable(message, remedy=NO_KEY)
        case e2b.RateLimitException() | e2b.ServiceBusyException():
            return SandboxBusy(message)
        case e2b.SandboxNotFoundException():
            return SandboxLost(message)
        case e2b.NotEnoughSpaceException():
            return SandboxRefused(f"the sandbox's disk is full ({message})")
        case e2b.TimeoutException() | TimeoutError() | httpx.HTTPError() | OSError():
            # SandboxNotRunning and SandboxUnreachable are TimeoutExceptions; "killed" is also said of a pause.
            return Unclear(message)
        case json.JSONDecodeError() | UnicodeDecodeError():  # a proxy's page in place of E2B's answer
            return Unclear(f"E2B, {doing}: it answered with something that is not JSON")
        case e2b.SandboxException(status_code=int(status)) if status >= 500:
            return Unclear(message)
        case e2b.SandboxException():
            return SandboxError(message)
        case _ if (
            type(error).__module__.partition(".")[0] in ("e2b", "connectrpc", "pyqwest")
            or type(error) is Exception
        ):
            return Unclear(message)
        case _:
            return error  # a fault of ours
