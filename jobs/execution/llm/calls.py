"""Carries out what a model calls: checks it, asks a person where it must, records it before and after."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from jobs import storage
from jobs.execution.fields import BadRecord, Fields
from jobs.execution.llm import prompts, tools
from jobs.execution.llm.replies import ToolCall
from jobs.execution.llm.tools import BadCall, Tool, arguments_of
from jobs.execution.llm.transcript import Turn
from jobs.execution.llm.workbench import Stopping, Workbench
from jobs.execution.outcomes import (
    ChildSpec,
    Failed,
    HandedBack,
    Outcome,
    QuestionSpec,
    StepBegin,
    StepEnd,
    StoredFile,
    Suspended,
)
from jobs.execution.outputs import ArtifactRefused
from jobs.execution.ports import (
    AttemptControl,
    ChildRefused,
    ChildRequest,
    ClaimedJob,
    JournalStep,
    Platform,
    Recorder,
)
from jobs.execution.questions import DECISIONS, question
from jobs.schemas import faults

# Beside the same call so often in one conversation a person decides.
SAME_CALLS = 3
RAN, AGAIN, FAIL = "It ran: go on", "Run it (again) now", "Fail the job"
MOST_READ_BYTES = 64 * 1024 * 1024
_RUN = re.compile(r"/run_python#\d+\Z")


class _Waits(Exception):
    """A call that cannot go on before a person has answered."""

    def __init__(self, step: StepBegin, spec: QuestionSpec) -> None:
        super().__init__(step.key)
        self.step = step
        self.spec = spec


class _Ends(Exception):
    """A call that ends the attempt."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__()
        self.outcome = outcome


class _Said(Exception):
    """A call that is not made: this is its result."""

    def __init__(self, content: str) -> None:
        super().__init__(content)
        self.content = content


@dataclass
class Done:
    """The result of one call."""

    content: str
    more: dict[str, Any] = field(default_factory=dict)  # kept with it: figures, job_id, …
    files: tuple[StoredFile, ...] = ()
    deleted: tuple[str, ...] = ()


@dataclass
class Calls:
    """The calls of one attempt. `ended` maps journal keys to values and grows as entries end."""

    job: ClaimedJob
    recorder: Recorder
    control: AttemptControl
    workbench: Workbench
    platform: Platform
    ended: dict[str, Any]
    say: Callable[[str], None]  # a line of the log
    left: Callable[[], dict[str, Any] | None]  # of the budget, for child jobs

    def __post_init__(self) -> None:
        self._tools = tools.tools_of(self.job.agent)
        self._begun = {step.key: step for step in self.job.journal.steps if not step.ended}

    async def carry_out(self, turns: Sequence[Turn]) -> Outcome | None:
        """Bring every call of the last turn to a result. An outcome if the attempt cannot go on now.

        All that must wait waits together: questions are opened, and child jobs started, at once.
        """
        turn = turns[-1]
        waits: list[_Waits] = []
        children: list[tuple[int, StepBegin, dict[str, Any]]] = []
        for index, call in turn.open_calls:
            try:
                done = await self._carry_out(turns, index, call, children)
            except _Waits as waiting:
                waits.append(waiting)
                continue
            except _Ends as ending:
                return ending.outcome
            except Stopping:
                return HandedBack("the worker is stopping; the conversation goes on from its last entry")
            if done is not None:
                turn.results[index] = done
            if self.control.hand_back.is_set():
                return HandedBack("the worker is stopping; the conversation goes on from its last entry")
        specs = await self._children(turn, children)
        if not (waits or specs):
            return None
        for wait in waits:
            await self.recorder.begin_step(wait.step)
        return Suspended(tuple(wait.spec for wait in waits), specs)

    async def _carry_out(
        self,
        turns: Sequence[Turn],
        index: int,
        call: ToolCall,
        children: list[tuple[int, StepBegin, dict[str, Any]]],
    ) -> dict[str, Any] | None:
        turn = turns[-1]
        key = turn.key(index)
        try:
            arguments = arguments_of(call.name, call.arguments, self._tools)
        except BadCall as bad:
            self.say(f"The model's call of {call.name or 'a tool'} could not be understood: {bad}")
            return await self._record(key, Done(tools.clipped(str(bad)), {"is_malformed": True}))
        try:
            if call.name == "ask_human":
                return await self._ask_human(key, arguments)
            arguments = await self._agreed(turns, index, call, arguments)
            if call.name == "run_agent":
                return await self._run_agent(turn, index, arguments, children)
            return await self._run(key, self._tools[call.name], arguments)
        except _Said as said:
            return await self._record(key, Done(said.content))

    # --- people ---

    async def _ask_human(self, key: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        choices = arguments.get("choices")
        kind = arguments.get("kind") or ("choice" if choices else "text")
        if (kind in ("choice", "multi_choice")) != bool(choices):
            raise _Said(f"A {kind} question {'needs' if not choices else 'has no'} choices. Ask again.")
        step, spec = _question(key, kind, arguments["question"], choices=choices)
        if key not in self.job.journal.answers:
            raise _Waits(step, spec)
        answer = self.job.journal.answers[key]
        content = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
        return await self._record(key, Done(content or "(no answer)"), kind="ask")

    async def _agreed(
        self, turns: Sequence[Turn], index: int, call: ToolCall, arguments: dict[str, Any]
    ) -> dict[str, Any]:
        """The arguments that a person agreed to, where one must. Raises _Waits, _Said."""
        why = self._why_ask(turns, index, call, arguments)
        if why is None:
            return arguments
        key = f"{turns[-1].key(index)}/approval#1"
        answer = self.ended.get(key)
        if answer is None:
            step, spec = self._approval(key, call, arguments, why)
            if key not in self.job.journal.answers:
                raise _Waits(step, spec)
            answer = self.job.journal.answers[key] or {"decision": "reject"}
            await self.recorder.end_step(StepEnd(step, value=answer))
            self.ended[key] = answer
        message = answer.get("message", "")
        match answer.get("decision"):
            case "approve":
                return arguments
            case "edit":
                wrong = faults(answer["arguments"], self._tools[call.name].parameters)
                if wrong:
                    raise _Said("A person changed the arguments so that they do not fit. Nothing was run.")
                return dict(answer["arguments"])
            case "respond":
                raise _Said(message)
            case _:
                raise _Said(f"A person refused this call.{' ' if message else ''}{message}")

    def _why_ask(
        self, turns: Sequence[Turn], index: int, call: ToolCall, arguments: Mapping[str, Any]
    ) -> str | None:
        """Why a person must agree to this call, or None."""
        match tools.policy(call.name, self.job.agent):
            case "always":
                return "Each call of this tool must be approved."
            case "high_risk" if tools.risk(call.name, arguments, self.job.agent) == "high":
                return "The risk of this call is high."
        before = Counter(
            _sameness(other)
            for turn in turns
            for number, other in enumerate(turn.reply.calls, start=1)
            if turn is not turns[-1] or number < index
        )
        times = before[_sameness(call)] + 1
        return f"The model has made the same call {times} times." if times % SAME_CALLS == 0 else None

    def _approval(
        self, key: str, call: ToolCall, arguments: Mapping[str, Any], why: str
    ) -> tuple[StepBegin, QuestionSpec]:
        details = {
            "action": call.name,
            "arguments": dict(arguments),
            "allowed": list(DECISIONS),
            "risk": tools.risk(call.name, arguments, self.job.agent),
        }
        step, spec = _question(key, "approval", f"May the agent call **{call.name}**? {why}", details=details)
        spec.schema["properties"]["arguments"] = self._tools[call.name].parameters
        return step, spec

    # --- running ---

    async def _run(self, key: str, tool: Tool, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Record the call, run it, record its result. Raises what the sandbox and the storage raise."""
        step = StepBegin(key, "step", _signature(arguments), once=tool.has_side_effects)
        cut = self._begun.get(key)
        if cut is not None and cut.once and (settled := await self._in_doubt(step, arguments)) is not None:
            return settled
        if tool.name == "run_python":
            ran = any(_RUN.search(known) for known in (*self.ended, *self._begun))
            await self.workbench.open(is_first=not ran)
        self.say(_line(tool.name, arguments))
        await self.recorder.begin_step(step)
        try:
            done = await self._called(tool.name, arguments)
        except ArtifactRefused as refused:
            done = Done(str(refused))
        return await self._end(step, done)

    async def _in_doubt(self, step: StepBegin, arguments: Mapping[str, Any]) -> dict[str, Any] | None:
        """A call that was cut off by a crash: a person says what becomes of it; None: run it."""
        if self.job.agent.settings.get("in_doubt", "ask") == "run_again":
            return None
        number = 1 + sum(key.startswith(f"{step.key}/doubt#") for key in self.ended)
        key = f"{step.key}/doubt#{number}"
        prompt = (
            f"The agent's call **{step.key}** had begun when its worker was lost, and nobody knows whether it took"
            f" effect:\n\n```\n{tools.clipped(_line(step.key, arguments), 4000)}\n```"
        )
        asking, spec = _question(
            key, "choice", prompt, choices=[RAN, AGAIN, FAIL], details={"step": step.key}
        )
        if key not in self.job.journal.answers:
            self.recorder.event("step.uncertain", message=step.key, level="warning", data={"key": step.key})
            raise _Waits(asking, spec)
        answer = self.job.journal.answers[key]
        await self.recorder.end_step(StepEnd(asking, value=answer))
        self.ended[key] = answer
        if answer == FAIL:
            message = f"The call {step.key} was cut off by a crash, and a person chose to fail the job."
            raise _Ends(Failed("step_in_doubt", message, retryable=False))
        if answer == RAN:
            content = "This call was interrupted. A person says that it has taken effect; its output is lost."
            return await self._end(step, Done(content))
        return None

    async def _called(self, name: str, arguments: Mapping[str, Any]) -> Done:
        match name:
            case "run_python":
                seconds = float(arguments.get("timeout_seconds", tools.DEFAULT_CODE_SECONDS))
                ran = await self.workbench.run(arguments["code"], seconds)
                return Done(ran.content, {"figures": list(ran.figures)}, ran.files, ran.deleted)
            case "list_files":
                return Done(prompts.listing(self.job.files) or "There are no input files.")
            case "read_file":
                return Done(await self._read_file(arguments["name"], arguments.get("offset", 0)))
            case "save_artifact":
                return Done(await self._save_artifact(arguments))
            case _:  # find_agents
                found = await self.platform.find_agents(arguments["task"])
                return Done(json.dumps(found, ensure_ascii=False) if found else "No agent fits this task.")

    async def _read_file(self, name: str, offset: int) -> str:
        file = next((file for file in self.job.files if file.name == name.removeprefix("inputs/")), None)
        if file is None:
            names = ", ".join(file.name for file in self.job.files) or "none"
            return f"There is no input file {name[:200]!r}. The input files are: {names}."
        if file.size > MOST_READ_BYTES:
            return f"{file.name} is too large to be read as text. Use run_python: it lies in ../inputs."
        text = await storage.read_text(file.storage_key)
        if text is None:
            return f"{file.name} is no text ({file.media_type}). Use run_python: it lies in ../inputs."
        part = text[offset : offset + tools.READ_CHARACTERS]
        rest = len(text) - offset - len(part)
        more = f"\n[{rest:,} more characters: read on with offset {offset + len(part)}]" if rest > 0 else ""
        return f"{part}{more}" or "[The file ends before this offset.]"

    async def _save_artifact(self, arguments: Mapping[str, Any]) -> str:
        if ("content" in arguments) == ("path" in arguments):
            return "Give either `content` or `path`."
        if "content" in arguments:
            name = await self.workbench.hand_back(arguments["name"], arguments["content"].encode())
        else:
            await self.workbench.open(is_first=False)
            name = await self.workbench.hand_back_file(arguments["name"], arguments["path"])
        return f"{name} is handed back to the user."

    # --- other agents ---

    async def _run_agent(
        self,
        turn: Turn,
        index: int,
        arguments: dict[str, Any],
        children: list[tuple[int, StepBegin, dict[str, Any]]],
    ) -> dict[str, Any] | None:
        """The result of a child that has ended; another one is noted, to be started when the attempt suspends."""
        key = turn.key(index)
        cut = self._begun.get(key)
        step = StepBegin(key, "step", cut.signature if cut else str(uuid7()))
        if cut is not None:
            ending = await self.platform.child_ending(UUID(step.signature))
            if ending is not None:
                content = tools.clipped(json.dumps(ending, ensure_ascii=False))
                return await self._end(step, Done(content, {"job_id": step.signature}))
        children.append((index, step, arguments))
        return None

    async def _children(
        self, turn: Turn, children: Sequence[tuple[int, StepBegin, dict[str, Any]]]
    ) -> tuple[ChildSpec, ...]:
        """The jobs to start. One that may not be is answered at once."""
        specs: list[ChildSpec] = []
        for index, step, arguments in children:
            files = arguments.get("files")
            request = ChildRequest(
                id=UUID(step.signature),
                key=step.key,
                task=arguments["task"],
                agent=arguments.get("agent"),
                input=arguments.get("input", {}),
                files=tuple(file.name for file in self.job.files) if files is None else tuple(files),
                budget=_share(self.left(), len(children)),
                before=len(specs),
            )
            try:
                spec = await self.platform.prepare_child(request)
            except ChildRefused as refused:
                turn.results[index] = await self._record(step.key, Done(str(refused)))
                continue
            self.say(_line("run_agent", arguments))
            await self.recorder.begin_step(step)
            specs.append(spec)
        return tuple(specs)

    # --- recording ---

    async def _record(self, key: str, done: Done, *, kind: str = "step") -> dict[str, Any]:
        """A result that came without running anything."""
        known: JournalStep | None = self._begun.get(key)
        step = StepBegin(key, known.kind if known else kind, known.signature if known else "")
        return await self._end(step, done, is_new=known is None)

    async def _end(self, step: StepBegin, done: Done, *, is_new: bool = False) -> dict[str, Any]:
        value = {"content": done.content, **done.more}
        end = StepEnd(step, value=value, files=done.files, deleted=done.deleted)
        await (self.recorder.record(end) if is_new else self.recorder.end_step(end))
        self.ended[step.key] = value
        return value


def _question(
    key: str,
    kind: str,
    prompt: str,
    *,
    choices: list[str] | None = None,
    details: dict[str, Any] | None = None,
) -> tuple[StepBegin, QuestionSpec]:
    """A question that waits as long as it takes."""
    data = {"key": key, "kind": kind, "prompt": prompt, "signature": "", "on_timeout": "wait"}
    try:
        return question(Fields(data | {"choices": choices, "details": details}, None))
    except BadRecord as bad:
        raise _Said(f"The question cannot be asked: {bad}.") from None


def _sameness(call: ToolCall) -> tuple[str, str]:
    """Equal for calls that mean the same."""
    try:
        return call.name, json.dumps(json.loads(call.arguments or "{}"), sort_keys=True)
    except (ValueError, RecursionError):
        return call.name, call.arguments


def _signature(arguments: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest()[:32]


def _line(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as the log and questions show it."""
    if set(arguments) == {"code"}:
        return f"{name}:\n{arguments['code']}"
    return f"{name}({json.dumps(arguments, ensure_ascii=False)})"


def _share(left: dict[str, Any] | None, among: int) -> dict[str, Any] | None:
    """An equal part of what is left, for each of several jobs that run side by side. Who is out of it fails: a person
    decides once, for the job that they know."""
    if left is None:
        return None
    tokens = {"tokens": max(1, left["tokens"] // among)} if "tokens" in left else {}
    cost = {"cost_usd": left["cost_usd"] / among} if "cost_usd" in left else {}
    return {**tokens, **cost, "on_exceeded": "fail"}
