"""A conversation as the journal keeps it, and as the model is given it.

Each reply is an entry `model#3`, each of its calls an entry `model#3/run_python#1`; what a call waits for, an approval
say, is an entry below its key. So a conversation continues wherever its last durable entry is, on any worker.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.execution.llm.replies import Reply, ToolCall
from jobs.execution.llm.tools import TOOLS
from jobs.execution.ports import Journal

REPLY = "model"


def reply_key(number: int) -> str:
    """The journal key of a reply, counted from 1."""
    return f"{REPLY}#{number}"


def call_key(number: int, index: int, call: ToolCall) -> str:
    """The journal key of a call; `index` counts the calls of one reply from 1."""
    return f"{reply_key(number)}/{call.name if call.name in TOOLS else 'unknown'}#{index}"


@dataclass
class Turn:
    """One reply, and what came of its calls so far: call index → {"content", …}."""

    number: int
    reply: Reply
    results: dict[int, dict[str, Any]] = field(default_factory=dict)

    def key(self, index: int) -> str:
        """The journal key of one of its calls."""
        return call_key(self.number, index, self.reply.calls[index - 1])

    @property
    def open_calls(self) -> list[tuple[int, ToolCall]]:
        """The calls without a result, by index."""
        return [(i, call) for i, call in enumerate(self.reply.calls, start=1) if i not in self.results]

    @property
    def is_malformed(self) -> bool:
        """Whether it calls tools, and none in a way that could be run."""
        return bool(self.reply.calls) and all(result.get("is_malformed") for result in self.results.values())


def turns_of(ended: Mapping[str, Any]) -> list[Turn]:
    """The turns in a journal; `ended` maps keys to values of entries that have ended."""
    turns: list[Turn] = []
    while (value := ended.get(reply_key(len(turns) + 1))) is not None:
        turn = Turn(len(turns) + 1, Reply.from_json(value))
        for index in range(1, len(turn.reply.calls) + 1):
            if (result := ended.get(turn.key(index))) is not None:
                turn.results[index] = result
        turns.append(turn)
    return turns


def values_of(journal: Journal) -> dict[str, Any]:
    """The values of all entries that have ended, by key."""
    return {step.key: (step.result or {}).get("value") for step in journal.steps if step.ended}


def messages(
    opening: Sequence[dict[str, Any]], turns: Sequence[Turn], feedback: Mapping[int, str]
) -> list[Any]:
    """All that is sent. `feedback` are the user messages that follow replies without a call."""
    sent: list[dict[str, Any]] = list(opening)
    for turn in turns:
        sent.append(_assistant(turn.reply))
        sent += [
            {"role": "tool", "tool_call_id": call.id, "content": turn.results[index]["content"]}
            for index, call in enumerate(turn.reply.calls, start=1)
        ]
        if turn.number in feedback:
            sent.append({"role": "user", "content": feedback[turn.number]})
    return sent


def _assistant(reply: Reply) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant"}
    if reply.text or not reply.calls:
        message["content"] = reply.text
    if reply.calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": _name(call), "arguments": _sound(call)}}
            for call in reply.calls
        ]
    return message


def _name(call: ToolCall) -> str:
    return call.name if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", call.name) else "unknown"


def _sound(call: ToolCall) -> str:
    """The arguments, or `{}` where they are no object: servers parse what they are sent back."""
    try:
        return call.arguments if isinstance(json.loads(call.arguments), dict) else "{}"
    except (ValueError, RecursionError):
        return "{}"
