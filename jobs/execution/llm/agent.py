"""One attempt of a conversation: ask the model, carry out what it calls, until it has an answer.

Everything that counts is in the journal before the next thing begins, so an attempt is nothing but "go on from there":
the first one from an empty journal, another after a crash, an answer, a child's end.
"""

import asyncio
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

from django.conf import settings

from agents.health import NO_MODEL, unavailable_kinds
from jobs.execution import layout
from jobs.execution.llm import budget, prompts, transcript, verdicts
from jobs.execution.llm.calls import Calls
from jobs.execution.llm.client import Client, Listener, ModelRefused, ModelUnavailable, Request
from jobs.execution.llm.replies import Reply
from jobs.execution.llm.speech import Speech
from jobs.execution.llm.tools import tools_of
from jobs.execution.llm.workbench import Workbench, figures_in
from jobs.execution.logs import LogLines
from jobs.execution.outcomes import (
    Cancelled,
    Completed,
    Failed,
    HandedBack,
    LeaseLost,
    Outcome,
    StepBegin,
    StepEnd,
    Suspended,
    Used,
)
from jobs.execution.ports import AttemptControl, ClaimedJob, LeaseLostError, Platform, Recorder
from jobs.execution.waiting import first, stop
from jobs.sandboxes.base import Provider

DEFAULT_MOST_STEPS = 50
# In a row: a model that does not find back by itself does not find back.
MOST_MALFORMED = 3
MOST_EMPTY = 3
MOST_CUT = 2
MOST_REPAIRS = 1


async def run(
    job: ClaimedJob, recorder: Recorder, provider: Provider, control: AttemptControl, platform: Platform
) -> Outcome:
    """Run the conversation to its next stop. Raises LeaseLostError, SandboxError, StorageFailed."""
    conversation = Conversation(job, recorder, provider, control, platform)
    running = asyncio.create_task(conversation.run())
    try:
        await first(running, control.cancel, control.lease_lost)
        if control.lease_lost.is_set():
            return LeaseLost()
        if not running.done():
            return Cancelled()
        return running.result()
    finally:
        await stop(running)
        await conversation.close()


class Conversation:
    """A conversation between a model and its tools."""

    def __init__(
        self,
        job: ClaimedJob,
        recorder: Recorder,
        provider: Provider,
        control: AttemptControl,
        platform: Platform,
    ) -> None:
        self._job = job
        self._recorder = recorder
        self._control = control
        self._platform = platform
        self._limits = layout.limits_of(job)
        self._log = LogLines(recorder, lines=job.logged_lines, bytes=job.logged_bytes)
        self._ended = transcript.values_of(job.journal)
        self._turns = transcript.turns_of(self._ended)
        self._known = len(self._turns)  # replies of earlier attempts
        self._opening = [
            {"role": "system", "content": prompts.system(job.agent)},
            {"role": "user", "content": prompts.task(job.task, job.input, job.files)},
        ]
        self._model = job.agent.model or settings.ENGINE_MODEL
        self._tools = tools_of(job.agent)
        self._client = Client()
        figures = figures_in(result for turn in self._turns for result in turn.results.values())
        self._workbench = Workbench(job, recorder, provider, control, self._limits, figures)
        extensions = [
            value for key, value in self._ended.items() if key.startswith("budget.") and value is not None
        ]
        self._budget = budget.Budget(job, self._model, job.used, extensions)
        self._calls = Calls(
            job,
            recorder,
            control,
            self._workbench,
            platform,
            self._ended,
            say=lambda line: self._log.say("info", line, {"tool": True}),
            left=lambda: self._budget.left,
        )

    async def run(self) -> Outcome:
        """Within the attempt's wall time."""
        if (
            unavailable_kinds()
        ):  # named by its caller, or a worker that is set up otherwise than the web process
            return Failed("no_model", f"{NO_MODEL}.", "Set it for each worker, then retry.", retryable=False)
        try:
            async with asyncio.timeout(self._limits.wall_seconds):
                return await self._run()
        except TimeoutError:
            return Failed(
                "timeout",
                f"The agent was stopped: an attempt may take {self._limits.wall_seconds:,.0f} seconds.",
                "Submit the job with a larger timeout_s, or raise the agent's limit wall_seconds.",
                retryable=len(self._turns) > self._known,
            )
        except ModelRefused as refused:
            return Failed(refused.code, str(refused), refused.remedy, retryable=False)
        except ModelUnavailable as away:
            after = None if away.retry_after is None else timedelta(seconds=away.retry_after)
            remedy = "See that the model server works (OPENAI_BASE_URL); a retry goes on from here."
            return Failed("model_unavailable", str(away), remedy, retry_after=after)
        except ImportError:
            message = "The package openai is not installed with this worker."
            return Failed(
                "model_client_missing", message, "Install engine[llm] on each worker.", retryable=False
            )

    async def close(self) -> None:
        """Give everything back, and note how long a sandbox was held."""
        await self._workbench.close()
        await self._client.close()
        if self._workbench.seconds and not self._control.lease_lost.is_set():
            used = Used(sandbox_seconds=round(self._workbench.seconds, 3))
            step = StepBegin(f"sandbox#{self._job.attempt}", "value", "")
            with suppress(LeaseLostError):
                await self._recorder.record(
                    StepEnd(step, value={"seconds": used.sandbox_seconds}), used=used, model=""
                )

    async def _run(self) -> Outcome:
        while True:
            outcome = await self._take_stock()
            if outcome is not None:
                return outcome
            if self._control.hand_back.is_set():
                return HandedBack("the worker is stopping; the conversation goes on from its last entry")
            outcome = self._over_limits() or await self._over_budget()
            if outcome is not None:
                return outcome
            await self._ask_model()

    # --- what the last reply means ---

    async def _take_stock(self) -> Outcome | None:
        """The answer, if the last reply is one; else its calls are carried out."""
        if not self._turns:
            return None
        if self._turns[-1].reply.calls:
            outcome = await self._calls.carry_out(self._turns)
            return outcome or self._lost_its_way()
        judged = self._judged()
        return judged if isinstance(judged, Completed | Failed) else None

    def _lost_its_way(self) -> Failed | None:
        last = self._turns[-MOST_MALFORMED:]
        if len(last) < MOST_MALFORMED or not all(turn.is_malformed for turn in last):
            return None
        error = last[-1].results[1]["content"]
        return Failed(
            "malformed_tool_calls",
            f"The model called tools wrongly {MOST_MALFORMED} times in a row. The last error: {error[:500]}",
            "Use a model that is good at calling tools, or make the instructions clearer.",
            retryable=False,
        )

    def _judged(self) -> Completed | Failed | str:
        """The result in the last reply, why the job fails, or what the model is told."""
        reply = self._turns[-1].reply
        if reply.finish_reason == "content_filter":
            message = "The model server withheld the reply (content_filter)."
            remedy = "Change the task or the agent's instructions, or use another model."
            return Failed("reply_withheld", message, remedy, retryable=False)
        if verdicts.is_cut(self._turns[-1]):
            return self._cut_again() or prompts.CUT
        if not reply.text.strip():
            tail = self._turns[-MOST_EMPTY:]
            if len(tail) == MOST_EMPTY and not any(
                turn.reply.text.strip() or turn.reply.calls for turn in tail
            ):
                message = f"The model replied with nothing {MOST_EMPTY} times in a row."
                return Failed("empty_replies", message, "Use another model.", retryable=False)
            return prompts.EMPTY
        schema = self._job.agent.output_schema
        if not schema:
            return Completed(reply.text.strip())
        value, wrong = verdicts.result_in(reply.text, schema)
        if not wrong:
            return Completed(value)
        if sum(verdicts.is_repair(turn) for turn in self._turns[:-1]) < MOST_REPAIRS:
            return prompts.repair(wrong)
        return Failed(
            "invalid_result",
            f"The agent's result does not meet its output schema: {wrong}",
            "Correct the agent's instructions or its output_schema.",
            retryable=False,
            data={"reply": reply.text[:2000]},
        )

    def _cut_again(self) -> Failed | None:
        tail = self._turns[-MOST_CUT:]
        if len(tail) < MOST_CUT or not all(verdicts.is_cut(turn) for turn in tail):
            return None
        return Failed(
            "reply_too_large",
            f"The model server cut off the reply at its limit {MOST_CUT} times in a row.",
            "Ask for less at once in the instructions, or raise the server's limit on output tokens.",
            retryable=False,
        )

    # --- limits ---

    def _over_limits(self) -> Failed | None:
        most = int(self._job.agent.settings.get("max_steps", DEFAULT_MOST_STEPS))
        if len(self._turns) >= most:
            return Failed(
                "step_limit",
                f"The agent has no answer after {most} replies of the model.",
                "Raise max_steps in the settings of the agent's card, or ask for less at once.",
                retryable=False,
            )
        return self._budget.unpriced()

    async def _over_budget(self) -> Outcome | None:
        """Failed or Suspended if the next call would exceed a budget for which nobody has given more."""
        self._budget.key = await self._platform.key_spending()
        while (limit := self._exceeded()) is not None:
            if not budget.may_ask(limit, self._job):
                return budget.stopped(limit)
            prefix = f"budget.{limit.scope}.{limit.unit}#"
            key = f"{prefix}{1 + sum(known.startswith(prefix) for known in self._ended)}"
            step, spec = budget.request_for_more(key, limit)
            if key not in self._job.journal.answers:
                self._recorder.event(
                    "budget.exceeded", message=limit.told(), level="warning", data=limit.as_json()
                )
                await self._recorder.begin_step(step)
                return Suspended((spec,))
            extension = budget.extension_of(self._job.journal.answers[key] or {}, limit)
            if extension is None:
                return budget.stopped(limit)
            await self._recorder.end_step(StepEnd(step, value=extension))
            self._ended[key] = extension
            self._budget.extensions.append(extension)
        return None

    def _exceeded(self) -> budget.Limit | None:
        last = self._turns[-1].reply if self._turns else None
        return self._budget.exceeded(last, self._opening)

    # --- the model ---

    async def _ask_model(self) -> None:
        """One more reply, durable on return."""
        number = len(self._turns) + 1
        speech = Speech(self._log, number)
        request = Request(
            number=number,
            model=self._model,
            messages=transcript.messages(
                self._opening, self._turns, verdicts.feedback(self._turns, self._job.agent.output_schema)
            ),
            tools=[tool.as_json() for tool in self._tools.values()],
            temperature=self._job.agent.settings.get("temperature"),
        )
        listener = Listener(text=speech.feed, restart=speech.restart, trouble=self._trouble)
        reply = await self._client.reply(request, listener)
        speech.close()
        reply = replace(reply, cost_usd=budget.cost_of(self._model, reply.input_tokens, reply.output_tokens))
        await self._keep(number, reply)

    def _trouble(self, message: str) -> None:
        self._recorder.event("log", message=message, level="warning")

    async def _keep(self, number: int, reply: Reply) -> None:
        key = transcript.reply_key(number)
        warnings = self._budget.charge(reply)
        total = self._budget.used
        self._recorder.event(
            "usage.updated",
            message=f"{total.tokens:,} tokens used so far",
            level="debug",
            data={
                "key": key,
                "model": self._model,
                "input_tokens": reply.input_tokens,
                "output_tokens": reply.output_tokens,
                "cost_usd": reply.cost_usd,
                "total_tokens": total.tokens,
                "total_cost_usd": round(total.cost_usd, 6),
            },
        )
        for limit in warnings:
            message = f"{limit.told()}: {limit.used / limit.most if limit.most else 1:.0%}."
            self._recorder.event("budget.warning", message=message, level="warning", data=limit.as_json())
        used = Used(
            reply.input_tokens,
            reply.output_tokens,
            reply.cost_usd or 0.0,
            unpriced_tokens=reply.input_tokens + reply.output_tokens if reply.cost_usd is None else 0,
        )
        step = StepBegin(key, "value", "")
        await self._recorder.record(StepEnd(step, value=reply.as_json()), used=used, model=self._model)
        self._ended[key] = reply.as_json()
        self._turns.append(transcript.Turn(number, reply))
