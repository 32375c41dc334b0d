"""A job as the command that would submit it again over the API."""

import json
import shlex
from typing import Any

from jobs.models import InputFile, Job

KEY = '"Authorization: Bearer $ENGINE_API_KEY"'


def as_curl(job: Job, files: list[InputFile], *, url: str) -> str:
    """The curl line; input files are named as they were, to be found in the folder where it is run."""
    body = _body(job)
    address = shlex.quote(f"{url}/api/v1/jobs")
    if not files:
        # ASCII: what a terminal would act on or hide stays an escape.
        return (
            f"curl {address} -H {KEY} -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"
        )
    fields = [f"--form-string {shlex.quote(f'{name}={_plain(value)}')}" for name, value in body.items()]
    named = ["-F " + shlex.quote(f'files=@"{_quoted(file.name)}"') for file in files]
    return " ".join([f"curl {address} -H {KEY}", *fields, *named])


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _body(job: Job) -> dict[str, Any]:
    body: dict[str, Any] = {"task": job.task}
    if job.agent_version:
        body["agent"] = job.agent_version.ref
    optional = {
        "input": job.input,
        "tags": job.tags,
        "metadata": job.metadata,
        "budget": job.budget,
        "timeout_s": job.timeout_seconds,
    }
    body |= {name: value for name, value in optional.items() if value}
    if job.priority != Job.Priority.NORMAL:
        body["priority"] = job.priority
    if job.queue != "default":
        body["queue"] = job.queue
    return body


def _quoted(name: str) -> str:
    return name.replace("\\", "\\\\").replace('"', '\\"')
