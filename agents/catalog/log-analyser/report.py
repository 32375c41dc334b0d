"""What the analysis says to people: result, Markdown, table and chart."""

import csv
import math
from collections import Counter
from datetime import UTC, datetime

from engine_agent import outputs_dir

WIDTHS = (1, 5, 15, 60, 180, 360, 1440, 7 * 1440, 30 * 1440)  # minutes of a bar
MOST_BARS = 60
ORDER = ("debug", "info", "warning", "error", "critical")


def bar_width(found):
    """Minutes (or hundreds of lines) in one bar, so that at most MOST_BARS are drawn."""
    moments = [moment for moment, _, _ in found["at"] if moment is not None]
    span = max(moments) - min(moments) + 1 if moments else 1
    if not found["timed"]:
        return math.ceil(span / MOST_BARS)
    return next((width for width in WIDTHS if span / width <= MOST_BARS), math.ceil(span / MOST_BARS))


def clock(minute):
    """A minute since 1970 as text."""
    return datetime.fromtimestamp(minute * 60, UTC).strftime("%Y-%m-%d %H:%M")


def result_of(found, files, most):
    """The job's result: everything but the points of the chart."""
    bad = sum(found["levels"].get(level, 0) for level in ("error", "critical"))
    moments = [moment for moment, _, _ in found["at"] if moment is not None] if found["timed"] else []
    return {
        "files": [path.name for path in files],
        "format": found["format"],
        "records": found["records"],
        "errors": bad,
        "levels": {level: found["levels"][level] for level in ORDER if level in found["levels"]},
        "from": clock(min(moments)) if moments else None,
        "to": clock(max(moments)) if moments else None,
        "clusters": [cluster_of(one, found["timed"]) for one in found["clusters"][:most]],
        "peaks": peaks(found) if found["timed"] else [],
    }


def cluster_of(one, timed):
    """A cluster without its points."""
    moments = [moment for moment, _ in one["at"] if moment is not None] if timed else []
    return {
        **{key: one[key] for key in ("template", "level", "count")},
        "first": clock(min(moments)) if moments else one["place"],
        "last": clock(max(moments)) if moments else None,
        "place": one["place"],
        "example": one["example"],
    }


def peaks(found):
    """Times with far more errors than usual: three times the mean, and beyond chance (three Poisson deviations)."""
    width = bar_width(found)
    bars = Counter()
    for moment, level, count in found["at"]:
        if moment is not None:
            bars[moment // width] += count if level in {"error", "critical"} else 0
    usual = bars.total() / len(range(min(bars), max(bars) + 1)) if bars else 0
    high = [
        (count, bar) for bar, count in bars.items() if count > max(3 * usual, usual + 3 * math.sqrt(usual), 5)
    ]
    return [
        {
            "from": clock(bar * width),
            "to": clock((bar + 1) * width),
            "errors": count,
            "usual": round(usual, 1),
        }
        for count, bar in sorted(high, reverse=True)[:3]
    ]


def markdown(result):
    """The report."""
    span = f" from {result['from']} to {result['to']}" if result["from"] else ""
    lines = [
        f"# Log analysis: {', '.join(result['files'])}",
        "",
        f"{result['records']:,} entries{span} ({result['format']}): "
        + ", ".join(f"{count:,} {level}" for level, count in result["levels"].items())
        + ".",
    ]
    if result["peaks"]:
        lines += ["", "## When it was worst", ""]
        lines += [
            "- {from} to {to}: **{errors:,} errors** (usual: {usual:,})".format(**peak)
            for peak in result["peaks"]
        ]
    lines += ["", "## What went wrong, by pattern", ""]
    if not result["clusters"]:
        lines.append("No warnings and no errors were found.")
    for number, one in enumerate(result["clusters"][:20], start=1):
        when = f"{one['first']} to {one['last']}" if one["last"] else f"first at {one['first']}"
        lines += [
            f"### {number}. {one['count']:,} times, {one['level']}: `{one['template'].replace('`', ' ')[:160]}`",
            "",
            f"{when}; first at {one['place']}:" if one["last"] else f"{when}:",
            "",
            *(f"    {line}" for line in one["example"].splitlines()),
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


def write_table(result):
    """error_clusters.csv: one pattern a row."""
    with (outputs_dir / "error_clusters.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, ["count", "level", "template", "first", "last", "place", "example"])
        table.writeheader()
        table.writerows(result["clusters"])


def draw(found):
    """All entries by level above, the most frequent errors below, over time or along the file."""
    from charts import BLUE, COLORS, GREY, ORANGE, RED, VIOLET, plt, shorten
    from matplotlib.dates import ConciseDateFormatter

    width = bar_width(found)
    levels = Counter()
    for moment, level, count in found["at"]:
        if moment is not None:
            levels[moment // width, level] += count
    bars = range(min(bar for bar, _ in levels), max(bar for bar, _ in levels) + 1)
    worst = [one for one in found["clusters"] if one["level"] != "warning"] or found["clusters"]
    figure, axes = plt.subplots(
        2 if worst else 1, 1, figsize=(11, 7.5 if worst else 3.6), sharex=True, squeeze=False
    )
    colors = {"debug": "#c9d0d6", "info": BLUE, "warning": ORANGE, "error": RED, "critical": VIOLET}
    stack(
        axes[0][0],
        found,
        bars,
        width,
        [(level, colors[level], [levels[bar, level] for bar in bars]) for level in ORDER],
    )
    axes[0][0].set_title("Log entries by level")
    if worst:
        axes[1][0].set_title(
            "The most frequent " + ("warnings" if worst[0]["level"] == "warning" else "errors")
        )
        layers = [
            (shorten(one["template"], 95), color, heights([one], bars, width))
            for one, color in zip(worst[:5], COLORS[3:] + COLORS[:3], strict=False)
        ]
        if len(worst) > 5:
            layers.append((f"{len(worst) - 5:,} other patterns", GREY, heights(worst[5:], bars, width)))
        stack(axes[1][0], found, bars, width, layers)
    last = axes[-1][0]
    if found["timed"]:
        last.xaxis.set_major_formatter(ConciseDateFormatter(last.xaxis.get_major_locator()))
    else:
        last.set_xlabel("entry number")
    return figure


def heights(clusters, bars, width):
    """How many messages of these clusters fall into each bar."""
    total = Counter()
    for one in clusters:
        for moment, count in one["at"]:
            if moment is not None:
                total[moment // width] += count
    return [total[bar] for bar in bars]


def stack(ax, found, bars, width, layers):
    """Stacked bars; the legend of the levels fits beside the title, that of the patterns below."""
    from matplotlib.ticker import MaxNLocator

    if found["timed"]:
        starts = [datetime.fromtimestamp(bar * width * 60, UTC) for bar in bars]
        size = width / 1440  # matplotlib counts days
    else:
        starts, size = [bar * width * 100 for bar in bars], width * 100
    floor = [0] * len(bars)
    for name, color, values in layers:
        if any(values):
            ax.bar(starts, values, width=size * 0.92, bottom=floor, align="edge", color=color, label=name)
            floor = [low + value for low, value in zip(floor, values, strict=True)]
    ax.grid(axis="y")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    if layers[0][0] == ORDER[0]:
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=5, fontsize=9)
    else:
        ax.legend(loc="upper left", bbox_to_anchor=(0, -0.12), fontsize=9)
