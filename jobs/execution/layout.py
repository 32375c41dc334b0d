"""What the sandbox of a python agent holds before its program starts."""

import hashlib
import json
import py_compile
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from engine import tracing
from jobs import storage
from jobs.execution.outcomes import StoredFile
from jobs.execution.ports import ClaimedJob, Journal, JournalStep
from jobs.sandboxes.base import Limits, SandboxFile, SandboxSpec

SDK = Path(__file__).parent.parent / "sdk" / "engine_agent.py"
# Not `-m`: that would import the SDK a second time when the agent does.
COMMAND = (
    "python",
    "-c",
    "import os, sys; sys.path[0] = os.path.abspath('../sdk');"
    " import engine_agent; sys.exit(engine_agent._main(['_run']))",
)
# Sets and dicts of texts in the same order in each attempt; figures without a display.
ENVIRONMENT = {"PYTHONHASHSEED": "0", "MPLBACKEND": "Agg"}


def environment() -> dict[str, str]:
    """Of the program inside; TRACEPARENT lets an agent's own code go on with the trace of its attempt."""
    return ENVIRONMENT | tracing.environment()


def limits_of(job: ClaimedJob) -> Limits:
    """The agent's own limits over the defaults; the job may shorten or lengthen the wall time."""
    known = {field.name for field in fields(Limits)}
    given: dict[str, Any] = {name: value for name, value in job.agent.limits.items() if name in known}
    if job.timeout_seconds is not None:
        given["wall_seconds"] = job.timeout_seconds
    if "allow_hosts" in given:
        given["allow_hosts"] = tuple(given["allow_hosts"])
    # Several threads may use more of the processor than time passes; this cap is for programs left behind.
    given.setdefault("cpu_seconds", int(4 * given.get("wall_seconds", Limits.wall_seconds)))
    return Limits(**given)


def spec_of(job: ClaimedJob, stack: ExitStack, provider: str = "") -> SandboxSpec:
    """The sandbox that this attempt needs. Paths in it are good until `stack` is closed. Raises StorageFailed."""
    limits = limits_of(job)
    parked_at, _, parked = job.parked.partition(":")
    return SandboxSpec(
        job_id=job.id,
        attempt=job.attempt,
        limits=limits,
        files=[*_sdk(), *_agent(job), *_inputs(job, stack), *_past(job.journal, limits, stack)],
        requirements=job.agent.requirements,
        env=environment(),
        parked=parked if parked_at == provider else "",
    )


def _agent(job: ClaimedJob) -> Iterator[SandboxFile]:
    description = {"task": job.task, "inputs": job.input, "seed": _seed(job)}
    yield SandboxFile("sdk/job.json", json.dumps(description).encode())
    for name, text in job.agent.source.items():
        yield SandboxFile(f"agent/{name}", text.encode())


def _seed(job: ClaimedJob) -> str:
    """From the id of the first job of a chain; no id itself goes inside."""
    return hashlib.sha256(f"seed of {job.seed or job.id}".encode()).hexdigest()


def _inputs(job: ClaimedJob, stack: ExitStack) -> Iterator[SandboxFile]:
    for file in job.files:
        yield SandboxFile(f"inputs/{file.name}", stack.enter_context(storage.local_file(file.storage_key)))


@cache
def _sdk() -> tuple[SandboxFile, ...]:
    """The SDK, and its bytecode for a sandbox with the worker's own Python: compiling takes 15 ms of each start."""
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / "engine_agent.pyc"
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH  # the sandbox gives files other times
        py_compile.compile(str(SDK), cfile=str(compiled), doraise=True, invalidation_mode=mode)
        name = f"engine_agent.{sys.implementation.cache_tag}.pyc"
        return (
            SandboxFile("sdk/engine_agent.py", SDK.read_bytes()),
            SandboxFile(f"sdk/__pycache__/{name}", compiled.read_bytes()),
        )


# --- what earlier attempts left ---


def _past(journal: Journal, limits: Limits, stack: ExitStack) -> Iterator[SandboxFile]:
    lines = [_line(step) for step in journal.steps]
    lines += [{"key": key, "answer": answer} for key, answer in journal.answers.items()]
    yield SandboxFile("sdk/journal.ndjson", "".join(json.dumps(line) + "\n" for line in lines).encode())
    for file in _needed(journal, limits.disk_mb << 20):
        yield SandboxFile(
            f"sdk/blobs/{file.sha256}", stack.enter_context(storage.local_file(file.storage_key))
        )


def _line(step: JournalStep) -> dict[str, Any]:
    line: dict[str, Any] = {
        "key": step.key,
        "signature": step.signature,
        "once": step.once,
        "ended": step.ended,
    }
    if step.ended:
        result = step.result or {}
        line["result"], line["error"] = result.get("value"), result.get("error")
        line["result_file"] = result.get("file")
        line["files"] = [{"path": file.path, "sha256": file.sha256} for file in step.files]
        line["deleted"] = list(step.deleted)
    return line


def _needed(journal: Journal, most_bytes: int) -> list[StoredFile]:
    """The files that replay puts back: the last state of each, and earlier states, newest first, as far as they fit.

    Code between two steps may read what the first of them wrote, before the second wrote it anew.
    """
    newest_first = [file for step in reversed(journal.steps) for file in step.files]
    last = {file.path: file for file in reversed(newest_first)}
    chosen = {file.sha256: file for file in last.values()}
    room = most_bytes - sum(file.size for file in chosen.values())
    for file in newest_first:
        if file.sha256 not in chosen and file.size <= room:
            chosen[file.sha256] = file
            room -= file.size
    return list(chosen.values())
