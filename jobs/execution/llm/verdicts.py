"""What a reply without a call is: a result, or why it is none, and what the model hears then."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.execution.llm import prompts
from jobs.execution.llm.transcript import Turn
from jobs.schemas import faults

_FENCED = re.compile(r"```[A-Za-z]*[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL)


def result_in(text: str, schema: Mapping[str, Any]) -> tuple[Any, str]:
    """The JSON value in a reply, and what is wrong with it; a schema for text takes the text itself."""
    fenced = _FENCED.search(text)
    said = ""
    for candidate in filter(None, (text, fenced and fenced[1])):
        try:
            value = json.loads(candidate)
        except (ValueError, RecursionError):
            said = said or "it is no JSON value"
            continue
        wrong = faults(value, dict(schema))
        if not wrong:
            return value, ""
        said = f"{wrong[0]['pointer'] or 'the value as a whole'}: {wrong[0]['detail']}"
    if not faults(text.strip(), dict(schema)):
        return text.strip(), ""
    return None, said


def is_cut(turn: Turn) -> bool:
    """Whether the server ended this reply at a limit of its own: what is there must not pass for the whole."""
    return not turn.reply.calls and turn.reply.finish_reason == "length"


def is_repair(turn: Turn) -> bool:
    """Whether this reply, which others followed, was a result that did not fit."""
    return not turn.reply.calls and bool(turn.reply.text.strip()) and not is_cut(turn)


def feedback(turns: Sequence[Turn], schema: Mapping[str, Any] | None) -> dict[int, str]:
    """The user messages after replies without a call, by the reply's number."""
    return {turn.number: _told(turn, schema or {}) for turn in turns if not turn.reply.calls}


def _told(turn: Turn, schema: Mapping[str, Any]) -> str:
    if is_cut(turn):
        return prompts.CUT
    if is_repair(turn):
        return prompts.repair(result_in(turn.reply.text, schema)[1])
    return prompts.EMPTY
