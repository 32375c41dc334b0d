"""From the rows of a table to the points of a chart."""

import numpy as np
import pandas as pd
from engine_agent import UserError, outputs_dir
from plan import COUNT
from tables import bin_edges, dates, numbers

MOST_DOTS = 20_000
MOST_BARS = {"bar": 20, "pie": 8, "box": 12}
MOST_GROUPS = 7


def compute(table, plan, kinds):
    """Write the points to chart_data.csv among the outputs: x, group if there is one, then the heights."""
    notes = []
    data = load(table, plan, kinds, notes)
    if data.empty:
        raise UserError("No row has a value in every column of this chart.", remedy="Choose other columns.")
    if kinds[plan.x] == "date" and plan.kind in {"line", "bar", "pie"}:
        plan = plan.having("period", plan.period or fitting_period(data["x"]))
        data["x"] = data["x"].dt.to_period(plan.period).dt.start_time
    if plan.group:
        data["group"] = merge_small(data["group"], MOST_GROUPS, notes)
    if plan.kind == "histogram":
        edges = bin_edges(data["x"], 30)
        heights, _ = np.histogram(data["x"].clip(edges[0], edges[-1]), bins=edges)
        points = pd.DataFrame({"from": edges[:-1], "to": edges[1:], "rows": heights})
    elif plan.kind == "scatter":
        points = dots(data, notes)
    elif plan.kind == "box":
        data["x"] = merge_small(data["x"].astype(str), MOST_BARS["box"], notes)
        points = data.groupby("x")["y"].quantile([0.05, 0.25, 0.5, 0.75, 0.95]).unstack().reset_index()
    else:
        points = add_up(data, plan, kinds, notes)
    name = "chart_data.csv"
    points.rename(columns={"x": plan.x, "y": plan.y, "group": plan.group}).to_csv(
        outputs_dir / name, index=False
    )
    return {"file": name, "count": len(points), "notes": notes, "period": plan.period}


def load(table, plan, kinds, notes):
    """The columns x, y and group as values; rows without a value are left out."""
    columns = list(dict.fromkeys(name for name in (plan.x, plan.y, plan.group) if name and name != COUNT))
    frame = table.read(columns)
    as_values = {"date": dates, "number": numbers}
    data = pd.DataFrame({"x": as_values.get(kinds[plan.x], one_spelling)(frame[plan.x])})
    if plan.y and plan.y != COUNT:
        data["y"] = numbers(frame[plan.y])
    if plan.group:
        data["group"] = one_spelling(frame[plan.group])
    complete = data.dropna()
    if len(complete) < len(data):
        notes.append(f"{len(data) - len(complete):,} rows lack a value and are left out")
    return complete


def one_spelling(column):
    """Names without stray spaces, `EAST` and `East` under the more frequent spelling."""
    names = column.str.strip()
    spellings = names.value_counts().index.to_series()  # the most frequent first
    common = spellings.groupby(spellings.str.casefold()).first()
    return names.map(dict(zip(spellings, spellings.str.casefold().map(common), strict=True)))


def merge_small(names, most, notes):
    """All but the most frequent names become `Other`."""
    frequent = names.value_counts().index
    if len(frequent) <= most:
        return names
    notes.append(
        f"Only the {most} most frequent of {len(frequent):,} “{names.name}” values are shown; the rest is “Other”"
    )
    return names.where(names.isin(frequent[:most]), "Other")


def dots(data, notes):
    """Each row as a dot; of very many rows a fixed random part."""
    if len(data) > MOST_DOTS:
        notes.append(f"{MOST_DOTS:,} of {len(data):,} rows are drawn, chosen at random")
        data = data.sample(MOST_DOTS, random_state=0)
    return data[[name for name in ("x", "group", "y") if name in data]]


def add_up(data, plan, kinds, notes):
    """One height for each x, and for each group where there is one."""
    keys = ["x", "group"] if plan.group else ["x"]
    points = (
        data.groupby(keys).size()
        if plan.aggregate == "count"
        else data.groupby(keys)["y"].agg(plan.aggregate)
    )
    points = points.rename("y").reset_index()
    most = MOST_BARS.get(plan.kind, len(points))
    if kinds[plan.x] != "date" and points["x"].nunique() > most:
        largest = points.groupby("x")["y"].max().nlargest(most).index
        notes.append(f"The {most} largest of {points['x'].nunique():,} “{plan.x}” values are shown")
        points = points[points["x"].isin(largest)]
    return points


def fitting_period(column):
    """The finest period that gives at most 60 points: days, weeks, months, quarters or years."""
    days = (column.max() - column.min()).days
    return next(
        (period for period, length in (("D", 1), ("W", 7), ("M", 30), ("Q", 91)) if days / length <= 60), "Y"
    )
