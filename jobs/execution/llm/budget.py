"""What a conversation may use, and what happens when it has: a warning at 80 %, a stop before it would exceed 100 %.

Three hold at once: the job's budget, the monthly budget of the key that submitted it, and the limits on the agent's
card. The first two ask a person for more, unless the job says that it shall fail; the card's are final.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings

from jobs.execution.fields import Fields
from jobs.execution.llm.replies import Reply
from jobs.execution.outcomes import Failed, QuestionSpec, StepBegin, Used
from jobs.execution.ports import ClaimedJob, KeySpending
from jobs.execution.questions import question

WARNING_SHARE = 0.8
UNITS = ("tokens", "cost_usd")
# Who may let a job go on beyond the budget of its key: whoever may change that budget.
KEY_SCOPE = "admin:keys"


def price_of(model: str) -> Mapping[str, float] | None:
    """US dollars per million `input` and `output` tokens. A dated name has the price of the undated one."""
    prices: Mapping[str, Mapping[str, float]] = settings.ENGINE_MODEL_PRICES
    names = [name for name in prices if model == name or model.startswith(f"{name}-20")]
    return prices[max(names, key=len)] if names else prices.get("*")


def cost_of(model: str, input_tokens: int, output_tokens: int) -> float | None:
    """US dollars, or None where the model's price is not known."""
    price = price_of(model)
    return None if price is None else (input_tokens * price["input"] + output_tokens * price["output"]) / 1e6


@dataclass(frozen=True)
class Limit:
    """The most that may be used of one unit."""

    scope: str  # job, key or agent
    unit: str  # tokens or cost_usd
    most: float
    used: float

    def as_json(self) -> dict[str, Any]:
        """For events."""
        return {"scope": self.scope, "unit": self.unit, "used": round(self.used, 6), "limit": self.most}

    def told(self) -> str:
        """For people."""
        whose = {"job": "The job", "key": "The key's jobs this month", "agent": "The agent"}[self.scope]
        return f"{whose} used {_amount(self.unit, self.used)} of {_amount(self.unit, self.most)}"


def _amount(unit: str, value: float) -> str:
    return f"{value:,.0f} tokens" if unit == "tokens" else f"{value:,.4f} US dollars"


@dataclass
class Budget:
    """The limits of one job and how near they are."""

    job: ClaimedJob
    model: str
    used: Used
    # Decisions of people so far, in their order: {"scope", "unit", "limit"}.
    extensions: list[dict[str, Any]] = field(default_factory=list)
    key: KeySpending | None = None

    def charge(self, reply: Reply) -> list[Limit]:
        """Count a reply; gives the limits of which 80 % are used from now on."""
        before = {(limit.scope, limit.unit): limit.used for limit in self.limits()}
        used = Used(reply.input_tokens, reply.output_tokens, reply.cost_usd or 0.0)
        self.used += used
        if self.key is not None:
            self.key = KeySpending(self.key.budget, self.key.used + used)
        return [
            limit
            for limit in self.limits()
            if before[limit.scope, limit.unit] < WARNING_SHARE * limit.most <= limit.used
        ]

    def limits(self) -> list[Limit]:
        """All that hold, with what is used of each."""
        return [*self._own("job", self.job.budget or {}, self.used), *self._agents(), *self._keys()]

    def _agents(self) -> Iterator[Limit]:
        card = self.job.agent.settings
        given = {"tokens": card.get("max_tokens"), "cost_usd": card.get("max_cost_usd")}
        return self._own("agent", given, self.used)

    def _keys(self) -> Iterator[Limit]:
        return iter(()) if self.key is None else self._own("key", self.key.budget, self.key.used)

    def _own(self, scope: str, given: Mapping[str, Any], used: Used) -> Iterator[Limit]:
        for unit in UNITS:
            most = given.get(unit)
            for extension in self.extensions:
                if (extension["scope"], extension["unit"]) == (scope, unit):
                    most = extension["limit"]
            if most is not None:
                yield Limit(scope, unit, float(most), float(getattr(used, unit)))

    def unpriced(self) -> Failed | None:
        """A limit in dollars cannot be held where the model's price is not known."""
        if price_of(self.model) is not None or not any(limit.unit == "cost_usd" for limit in self.limits()):
            return None
        return Failed(
            "price_unknown",
            f"The cost is limited, but the price of the model {self.model!r} is not known.",
            "Add the model to ENGINE_MODEL_PRICES, or limit tokens instead.",
            retryable=False,
        )

    def exceeded(self, last: Reply | None, opening: Sequence[Mapping[str, Any]]) -> Limit | None:
        """The first limit that the next call would exceed. What that call takes at least is what the last one did,
        with its reply; for the first call it is guessed from the text."""
        tokens = last.input_tokens + last.output_tokens if last else _guess(self.job, opening)
        price = price_of(self.model)
        least = {"tokens": float(tokens), "cost_usd": tokens * price["input"] / 1e6 if price else 0.0}
        for limit in self.limits():
            if limit.used >= limit.most or limit.used + least[limit.unit] > limit.most:
                return limit
        return None

    @property
    def left(self) -> dict[str, Any] | None:
        """What a job that this one starts may use: what is left, or None where nothing is limited."""
        left: dict[str, Any] = {}
        for limit in self.limits():
            if limit.scope != "key":
                rest = max(0.0, limit.most - limit.used)
                rest = max(1, int(rest)) if limit.unit == "tokens" else rest
                left[limit.unit] = min(rest, left.get(limit.unit, rest))
        return left or None


def _guess(job: ClaimedJob, opening: Sequence[Mapping[str, Any]]) -> int:
    own = len(job.agent.instructions) + sum(len(str(message["content"])) for message in opening[1:])
    return own // 4


def stopped(limit: Limit) -> Failed:
    """The end of a job whose budget is used up."""
    remedy = {
        "job": "Submit it with a larger budget; a retry goes on from where it stopped.",
        "key": "Raise the key's budget, or wait for the next month; a retry goes on from where it stopped.",
        "agent": "Raise max_tokens or max_cost_usd in the settings of the agent's card.",
    }[limit.scope]
    message = f"{limit.told()}, and the next call would exceed that."
    return Failed("budget_exceeded", message, remedy, retryable=False, data=limit.as_json())


def may_ask(limit: Limit, job: ClaimedJob) -> bool:
    """Whether a person may be asked for more."""
    return limit.scope != "agent" and (job.budget or {}).get("on_exceeded", "ask") == "ask"


def proposal(limit: Limit) -> float:
    """How much in all a person is asked for."""
    more = limit.most * 2 or 1.0
    while more <= limit.used * 1.1:
        more *= 2
    return int(more) if limit.unit == "tokens" else round(more, 6)


def request_for_more(key: str, limit: Limit) -> tuple[StepBegin, QuestionSpec]:
    """The question whether the job may go on."""
    more = proposal(limit)
    details = {
        "action": "extend the budget",
        "arguments": {limit.unit: more},
        "allowed": ["approve", "edit", "reject"],
        "risk": "high",
        "reason": "budget_exceeded",
        **limit.as_json(),
    }
    if limit.scope == "key":
        details["needs_scope"] = KEY_SCOPE
    step, spec = question(
        Fields(
            {
                "key": key,
                "kind": "approval",
                "prompt": f"{limit.told()}. May it use {_amount(limit.unit, more)} altogether?",
                "details": details,
                "signature": "",
                "on_timeout": "wait",
            },
            None,
        )
    )
    amount = {"type": "number", "exclusiveMinimum": limit.used, "maximum": 1e12}
    spec.schema["properties"]["arguments"] = {
        "type": "object",
        "properties": {limit.unit: amount},
        "required": [limit.unit],
        "additionalProperties": False,
    }
    return step, spec


def extension_of(answer: Mapping[str, Any], limit: Limit) -> dict[str, Any] | None:
    """What a person decided, as it is kept; None: refused."""
    decision = answer.get("decision")
    if decision not in ("approve", "edit"):
        return None
    most = answer["arguments"][limit.unit] if decision == "edit" else proposal(limit)
    return {"scope": limit.scope, "unit": limit.unit, "limit": most}
