"""The figure for a plan and its points."""

import pandas as pd
from charts import BLUE, COLORS, plt, shorten
from matplotlib.dates import ConciseDateFormatter
from matplotlib.ticker import FuncFormatter
from plan import spaced


def draw(plan, file):
    """A matplotlib figure."""
    points = pd.read_csv(file)
    figure, ax = plt.subplots(figsize=(9.5, 5.2))
    ax.set_title(shorten(plan.title, 80), size=14)
    {"histogram": histogram, "scatter": scatter, "box": boxes, "pie": pie, "line": lines, "bar": bars}[
        plan.kind
    ](ax, plan, points)
    return figure


def histogram(ax, plan, points):
    """How often each range of values occurs."""
    ax.stairs(
        points["rows"], [*points["from"], points["to"].iloc[-1]], fill=True, color=BLUE, edgecolor="white"
    )
    label(ax, plan.x, "rows")


def scatter(ax, plan, points):
    """A dot for each row."""
    size, alpha = (22, 0.7) if len(points) < 2000 else (7, 0.35)
    for name, part in points.groupby(plan.group) if plan.group else [(None, points)]:
        ax.scatter(part[plan.x], part[plan.y], s=size, alpha=alpha, linewidths=0, label=name)
    label(ax, plan.x, plan.y, legend=plan.group)


def boxes(ax, plan, points):
    """Median, quartiles, and whiskers at the 5th and 95th percentile."""
    names = ("whislo", "q1", "med", "q3", "whishi")
    stats = [
        dict(zip(names, row[1:], strict=True), label=shorten(row[0], 16), fliers=[])
        for row in points.itertuples(index=False)
    ]
    ax.bxp(
        stats,
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": BLUE, "alpha": 0.6},
        medianprops={"color": "#222222"},
    )
    ax.tick_params(axis="x", rotation=30 if len(points) > 6 else 0)
    label(ax, plan.x, plan.y)


def pie(ax, plan, points):
    """Shares of the whole."""
    points = points.sort_values(plan.y, ascending=False)
    names = [shorten(name) for name in points[plan.x]]
    ax.pie(
        points[plan.y].clip(lower=0),
        labels=names,
        autopct="%1.0f%%",
        startangle=90,
        counterclock=False,
        colors=COLORS,
        wedgeprops={"linewidth": 1, "edgecolor": "white"},
    )


def lines(ax, plan, points):
    """One line, or one for each group."""
    axis, dated = as_axis(points[plan.x])
    for name, part in (
        points.assign(axis=axis).groupby(plan.group) if plan.group else [(None, points.assign(axis=axis))]
    ):
        ax.plot(
            part["axis"],
            part[plan.y],
            marker="o" if len(part) <= 60 else None,
            markersize=4,
            linewidth=1.8,
            label=name,
        )
    if dated:
        ax.xaxis.set_major_formatter(ConciseDateFormatter(ax.xaxis.get_major_locator()))
    if points[plan.y].min() >= 0:
        ax.set_ylim(bottom=0)
    label(ax, "" if dated else plan.x, plan.value_name, legend=plan.group)


def bars(ax, plan, points):
    """Bars from the largest, or in the order of dates and numbers; lying where names are long or many."""
    table = (
        points.pivot_table(index=plan.x, columns=plan.group, values=plan.y, sort=False)
        if plan.group
        else points.set_index(plan.x)[[plan.y]]
    )
    ordered = pd.api.types.is_numeric_dtype(table.index) or as_axis(table.index.to_series())[1]
    table = table.sort_index() if ordered else table.loc[table.sum(axis=1).sort_values(ascending=False).index]
    table.index = [shorten(name, 24) for name in table.index]
    lying = not ordered and (len(table) > 8 or max(map(len, table.index)) > 14)
    table.plot(kind="barh" if lying else "bar", ax=ax, width=0.75, color=COLORS, legend=False)
    if lying:
        ax.invert_yaxis()
    if len(table) <= 12 and not plan.group:
        ax.bar_label(
            ax.containers[0],
            fmt=lambda value: f" {value:,.0f} " if abs(value) >= 1000 else f" {value:,.4g} ",
            size=9,
        )
    ax.tick_params(axis="x", rotation=0 if lying or len(table) <= 8 else 45)
    names = (plan.value_name, plan.x) if lying else (plan.x, plan.value_name)
    label(ax, *names, legend=plan.group, grid="x" if lying else "y")


def as_axis(column):
    """A column as dates where it holds them, and whether it does."""
    if pd.api.types.is_numeric_dtype(column):
        return column, False
    parsed = pd.to_datetime(column, format="%Y-%m-%d", errors="coerce")
    return (parsed, True) if parsed.notna().all() else (column, False)


def label(ax, x, y, *, legend="", grid="y"):
    """Axis names, thousands separators, grid and legend."""
    ax.set(xlabel=shorten(spaced(x), 60), ylabel=shorten(spaced(y), 60))
    ax.grid(axis=grid)
    for axis in (ax.xaxis, ax.yaxis):
        if type(axis.get_major_formatter()).__name__ == "ScalarFormatter":
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    if legend:
        ax.legend(title=shorten(spaced(legend)), loc="upper left", bbox_to_anchor=(1, 1))
