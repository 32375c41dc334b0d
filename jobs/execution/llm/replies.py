"""A model's reply, put together from what a server sends: whole or in pieces, by the book or nearly so."""

import json
import re
from dataclasses import dataclass, field
from typing import Any

MOST_CALLS = 32  # of one reply; more are a model that has lost its way
MOST_BYTES = 1024 * 1024  # of text and arguments together
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


class ReplyTooLarge(Exception):
    """The model does not stop."""


@dataclass(frozen=True)
class ToolCall:
    """What the model wants called. `arguments` are as it wrote them: JSON, or meant to be."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Reply:
    """One whole reply of the model."""

    text: str
    calls: tuple[ToolCall, ...] = ()
    finish_reason: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    is_estimated: bool = False  # the server did not say how many tokens these were
    cost_usd: float | None = None  # None: the model's price is not known

    def as_json(self) -> dict[str, Any]:
        """As the journal keeps it."""
        return {
            "text": self.text,
            "calls": [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in self.calls],
            "finish_reason": self.finish_reason,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "is_estimated": self.is_estimated,
            "cost_usd": self.cost_usd,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Reply":
        """As it was kept."""
        return cls(**{**value, "calls": tuple(ToolCall(**call) for call in value["calls"])})


@dataclass
class _Slot:
    """A tool call of which more pieces may come."""

    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass
class Assembly:
    """Takes chunks of a stream, or one whole answer. Servers differ in all that is not `choices[0]`."""

    text: str = ""
    finish_reason: str = ""
    usage: tuple[int, int] | None = None  # input, output
    error: Any = None
    _slots: list[_Slot] = field(default_factory=list)
    _by_index: dict[int, _Slot] = field(default_factory=dict)
    _bytes: int = 0

    def take(self, data: Any) -> str:
        """Take one object that the server sent; gives the text that is new. Raises ReplyTooLarge."""
        if not isinstance(data, dict):
            return ""
        self.error = data.get("error") or self.error
        self._take_usage(data.get("usage"))
        choices = data.get("choices")
        choice = next(iter(choices), None) if isinstance(choices, list) else None
        if not isinstance(choice, dict) or choice.get("index") not in (None, 0):
            return ""
        if isinstance(choice.get("finish_reason"), str):
            self.finish_reason = choice["finish_reason"]
        part = choice.get("delta") or choice.get("message") or {}
        if not isinstance(part, dict):
            return ""
        calls = part.get("tool_calls")
        for call in calls if isinstance(calls, list) else []:
            self._take_call(call)
        if isinstance(part.get("function_call"), dict):  # before tools there were functions
            self._take_call({"index": 0, "function": part["function_call"]})
        new = _text(part.get("content")) or _text(part.get("refusal"))
        self.text += new
        self._weigh(len(new))
        return new

    def _weigh(self, size: int) -> None:
        self._bytes += size
        if self._bytes > MOST_BYTES or len(self._slots) > MOST_CALLS:
            raise ReplyTooLarge

    def _take_usage(self, usage: Any) -> None:
        """The last one counts: some servers send the sum so far with each chunk."""
        if isinstance(usage, dict):
            found = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
            if all(type(count) is int and 0 <= count < 10**9 for count in found):
                self.usage = (int(found[0] or 0), int(found[1] or 0))

    def _take_call(self, call: Any) -> None:
        if not isinstance(call, dict):
            return
        function = call.get("function") if isinstance(call.get("function"), dict) else call
        assert isinstance(function, dict)  # noqa: S101 (one of two dicts)
        given_id = call["id"] if isinstance(call.get("id"), str) else ""
        name = function["name"] if isinstance(function.get("name"), str) else ""
        slot = self._slot(call.get("index"), given_id, name)
        slot.id = slot.id or given_id
        if name and name != slot.name and not slot.arguments:
            slot.name += name
        arguments = function.get("arguments")
        if isinstance(arguments, dict | list):
            arguments = json.dumps(arguments)
        if isinstance(arguments, str):
            slot.arguments += arguments
            self._weigh(len(arguments))

    def _slot(self, index: Any, given_id: str, name: str) -> _Slot:
        """The call that a piece belongs to. Some servers number none, some number all of them 0."""
        known = self._by_index.get(index) if type(index) is int else None
        is_another = bool(known and given_id and known.id and given_id != known.id)
        if known is not None and not is_another:
            return known
        if type(index) is not int and not name and self._slots:
            return self._slots[-1]
        slot = _Slot()
        self._slots.append(slot)
        if type(index) is int:
            self._by_index[index] = slot
        return slot

    def calls(self, number: int) -> tuple[ToolCall, ...]:
        """The calls, each with an id that no other has. `number` is the reply's, for those without one."""
        taken: set[str] = set()
        calls = []
        for index, slot in enumerate(self._slots, start=1):
            is_usable = _ID.fullmatch(slot.id) and slot.id not in taken
            call_id = slot.id if is_usable else f"call_{number}_{index}"
            taken.add(call_id)
            calls.append(ToolCall(call_id, slot.name, slot.arguments))
        return tuple(calls)


def _text(content: Any) -> str:
    """Text as a string, or as a list of parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(
        part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)
    )
