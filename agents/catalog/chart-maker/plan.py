"""What to draw: read from the task and the input, with what is left open."""

import re
from dataclasses import asdict, dataclass, replace

from engine_agent import UserError

COUNT = "number of rows"
KINDS = {
    "scatter": r"scatter|correlat|relationship",
    "histogram": r"histogram|distribution|spread of",
    "pie": r"\bpie\b|\bdonut\b",
    "box": r"\bbox",
    "line": r"\blines?\b|trend|over time|time series|timeline|develop",
    "bar": r"\bbars?\b|column chart|ranking|compare|comparison",
}
AGGREGATES = {
    "count": r"\bcounts?\b|number of|how many|how often",
    "mean": r"\baverage|\bmean\b|\bavg\b",
    "median": r"\bmedian\b",
    "max": r"\bmax(imum)?\b|\bhighest\b|\bpeak\b",
    "min": r"\bmin(imum)?\b|\blowest\b",
    "sum": r"\btotal|\bsum\b",
}
PERIODS = {
    "D": r"\bdaily\b|per day|by day",
    "W": r"\bweek",
    "M": r"\bmonth",
    "Q": r"\bquarter",
    "Y": r"\byearly\b|per year|by year|\bannual",
}
PERIOD_NAMES = {"D": "day", "W": "week", "M": "month", "Q": "quarter", "Y": "year"}
# Names of what is averaged where the task does not say how: a total of prices or of ages means nothing.
NOT_ADDED = r"price|rat(e|ing|io)|stars|grade|score|age|percent|share|temperature|mean|index|level|height|weight|speed"
BEFORE_X = r"\b(?:by|per|over|across|against|versus|vs\.?|for each|in each|along)\b"


@dataclass(frozen=True)
class Plan:
    """One chart. `y` is a column of numbers or COUNT, `x` and `group` are columns; empty means open or not used."""

    kind: str = ""
    x: str = ""
    y: str = ""
    group: str = ""
    aggregate: str = ""
    period: str = ""

    @property
    def title(self):
        """What the chart shows in words: `Total revenue by region`."""
        if self.kind == "histogram":
            title = f"distribution of {self.x}"
        elif self.kind == "scatter":
            title = f"{self.y} against {self.x}" + (" by" if self.group else "")
        else:
            along = PERIOD_NAMES.get(self.period, self.x)
            title = f"{self.value_name} by {along}"
        joined = " " if self.kind == "scatter" else " and "
        title = spaced(f"{title}{joined}{self.group}" if self.group else title)
        return title[:1].upper() + title[1:]

    @property
    def value_name(self):
        """What the heights are: `total revenue`."""
        words = {
            "sum": "total ",
            "mean": "average ",
            "max": "highest ",
            "min": "lowest ",
            "median": "median ",
        }
        return words.get(self.aggregate, "") + self.y

    def having(self, part, column):
        """The plan with one more part known."""
        return replace(self, **{part: column})

    def completed(self, kinds):
        """The plan with the kind of chart and the way of adding up chosen, where the task says neither."""
        kind = self.kind or fitting_kind(self, kinds)
        aggregate = "count" if self.y == COUNT else self.aggregate
        if not aggregate and kind in {"bar", "line", "pie"}:
            aggregate = "mean" if re.search(NOT_ADDED, self.y.lower()) else "sum"
        return replace(
            self, kind=kind, aggregate="" if kind in {"scatter", "histogram", "box"} else aggregate
        )

    def as_json(self):
        """The plan for the job's result."""
        return {**asdict(self), "title": self.title}


def fitting_kind(plan, kinds):
    """The usual chart for these columns."""
    if kinds[plan.x] == "date":
        return "line"
    if kinds[plan.x] == "number" and plan.y not in {"", COUNT}:
        return "scatter"
    return "histogram" if kinds[plan.x] == "number" else "bar"


def read_task(task, inputs, kinds):
    """The plan as far as the input and the task tell it."""
    text = task.lower()
    for part in ("x", "y", "group"):
        known(inputs.get(part) or COUNT, kinds)
    plan = Plan(
        kind=first_match(KINDS, text),
        aggregate=first_match(AGGREGATES, text),
        period=first_match(PERIODS, text),
    )
    plan = roles(plan, text, mentioned(text, kinds), kinds)
    given = {name: inputs[name] for name in ("kind", "x", "y", "group", "aggregate") if inputs.get(name)}
    return replace(plan, **given)


def known(name, kinds):
    """The name, if it is a column. Raises UserError."""
    if name not in {*kinds, COUNT}:
        raise UserError(f"There is no column “{name}”.", remedy=f"Use one of: {', '.join(list(kinds)[:50])}.")
    return name


def first_match(patterns, text):
    """The first name whose pattern occurs in the text."""
    return next((name for name, pattern in patterns.items() if re.search(pattern, text)), "")


def mentioned(text, kinds):
    """The columns that the text names, as (position, name) in order: whole names first, then single words of them."""
    found = {}
    for name in sorted(kinds, key=len, reverse=True):
        words = [re.escape(word.removesuffix("s")) for word in re.findall(r"\w+", spaced(name).lower())]
        match = (
            re.search(r"\b" + r"[\W_]+".join(rf"{word}(?:e?s)?" for word in words) + r"\b", text)
            if words
            else None
        )
        if match:
            found[name] = match.start()
            text = text[: match.start()] + "#" * len(match[0]) + text[match.end() :]
    for word in re.finditer(r"[^\W_]{4,}", text):
        holders = [
            name for name in kinds if word[0].removesuffix("s") in re.findall(r"\w+", spaced(name).lower())
        ]
        if len(holders) == 1:
            found.setdefault(holders[0], word.start())
    return sorted((at, name) for name, at in found.items())


def spaced(name):
    """A column's name as words: `unitPrice` and `unit_price` are both `unit price`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).replace("_", " ")


def roles(plan, text, found, kinds):
    """Give the mentioned columns their places: numbers before a `by` are shown, what follows it lies along the axis."""
    by = re.search(BEFORE_X, text)
    split = by.start() if by else len(text)
    before = [name for at, name in found if at < split]
    after = [name for at, name in found if at > split]
    numbers = [name for name in before + after if kinds[name] == "number"]
    if plan.kind == "histogram":
        return replace(plan, x=numbers[0] if numbers else "")
    counted = (
        plan.aggregate == "count"
    )  # `number of orders`: then the column order_id is only what is counted
    y = COUNT if counted else numbers[0] if numbers else ""
    rest = [name for name in after + [name for name in before if kinds[name] != "id"] if name != y]
    x = rest[0] if rest else ""
    group = next((name for name in rest[1:] if kinds[name] in {"category", "boolean"}), "")
    in_time = (plan.period or plan.kind == "line") and "date" in kinds.values()
    if in_time and kinds.get(x) in {"category", "boolean"}:  # a line for each of its values
        x, group = next((name for name in rest if kinds[name] == "date"), ""), x
    return replace(plan, x=x, y=y, group=group)


def open_choices(plan, part, kinds):
    """The columns that could fill an open part of the plan; none where it is known or not needed."""
    numbers = [name for name, kind in kinds.items() if kind == "number" and name not in {plan.x, plan.group}]
    others = [
        name for name, kind in kinds.items() if kind in {"date", "category", "boolean"} and name != plan.y
    ]
    if part == "x" and not plan.x:
        dates = [name for name in others if kinds[name] == "date"]
        in_time = dates if plan.period or plan.kind == "line" else []
        choices = numbers if plan.kind in {"histogram", "scatter"} else in_time or others or numbers
        choices = [name for name in choices if name not in {plan.y, plan.group}]
    elif part == "y" and not plan.y and plan.kind != "histogram":
        choices = numbers + ([] if plan.kind in {"scatter", "box"} else [COUNT])
    else:
        return []
    if not choices:
        from tables import columns_in_words

        raise UserError(
            f"No column fits this chart. Columns: {columns_in_words(kinds)}.",
            remedy="Send a table with a column of numbers, or ask for another chart.",
        )
    return choices
