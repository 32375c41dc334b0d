"""The conversation of an llm agent's job, for people to read: what the model was told, said and called."""

from typing import Any

from jobs.execution.llm import prompts, verdicts
from jobs.execution.llm.transcript import Turn, reply_key, turns_of
from jobs.execution.ports import AgentSpec, InputFile
from jobs.models import Job, Step

KIND = "llm"


def transcript(job: Job, *, after: int = 0, limit: int = 100) -> tuple[list[dict[str, Any]], int | None]:
    """The messages of up to `limit` replies beyond reply `after`, and the last reply's number if more follow.

    Empty for a job whose agent is of another kind.
    """
    version = job.agent_version
    if version is None or version.kind != KIND:
        return [], None
    steps = {step.key: step for step in Step.objects.filter(job_id=job.id)}
    ended = {key: (step.result or {}).get("value") for key, step in steps.items() if step.ended_at}
    turns = turns_of(ended)
    told = verdicts.feedback(turns[:-1], version.output_schema or None)
    messages = [] if after else _opening(job)
    shown = turns[after : after + limit]
    for turn in shown:
        messages += _messages(turn, steps)
        if turn.number in told:
            messages.append({"role": "user", "content": told[turn.number]})
    is_end = not shown or shown[-1] is turns[-1]
    return messages, None if is_end else shown[-1].number


def _opening(job: Job) -> list[dict[str, Any]]:
    version = job.agent_version
    assert version is not None  # noqa: S101 (asked before)
    agent = AgentSpec(
        agent_id=version.agent_id,
        slug=version.agent.slug,
        number=version.number,
        kind=version.kind,
        source={},
        output_schema=version.output_schema or None,
        instructions=version.instructions,
    )
    files = [
        InputFile(file.name, file.storage_key, file.size, file.sha256, file.media_type)
        for file in job.input_files.order_by("name")
    ]
    return [
        {"role": "system", "content": prompts.system(agent)},
        {"role": "user", "content": prompts.task(job.task, job.input, files)},
    ]


def _messages(turn: Turn, steps: dict[str, Step]) -> list[dict[str, Any]]:
    reply, step = turn.reply, steps[reply_key(turn.number)]
    said: dict[str, Any] = {
        "role": "assistant",
        "key": step.key,
        "at": step.ended_at,
        "attempt": step.attempt,
        "content": reply.text,
        "tool_calls": [
            {"id": call.id, "name": call.name, "arguments": call.arguments} for call in reply.calls
        ],
        "usage": {
            "input_tokens": reply.input_tokens,
            "output_tokens": reply.output_tokens,
            "cost_usd": reply.cost_usd,
            "is_estimated": reply.is_estimated,
        },
    }
    return [said, *(_result(turn, index, steps) for index in range(1, len(reply.calls) + 1))]


def _result(turn: Turn, index: int, steps: dict[str, Step]) -> dict[str, Any]:
    """What came of one call; `state` tells one that has no result yet."""
    call, key = turn.reply.calls[index - 1], turn.key(index)
    step, result = steps.get(key), turn.results.get(index)
    message: dict[str, Any] = {
        "role": "tool",
        "key": key,
        "tool_call_id": call.id,
        "name": call.name,
        "state": "ended" if result is not None else "begun" if step else "waiting",
        "content": None,
    }
    if result is None or step is None:
        return message
    extra = {name: result[name] for name in ("figures", "job_id") if result.get(name)}
    return {**message, "content": result["content"], "at": step.ended_at, "attempt": step.attempt, **extra}
