"""What the profile says to people: findings, Markdown, charts."""

from datetime import UTC, datetime

from charts import BLUE, ORANGE, RED, plt, shorten
from matplotlib.dates import ConciseDateFormatter

KINDS = {
    "number": "numbers", "date": "dates", "boolean": "yes or no", "category": "categories", "text": "free text",
    "id": "identifiers", "empty": "nothing",
}  # fmt: skip


def findings(profiles, correlations, duplicates, rows):
    """What somebody should know before using the table, the worst first."""
    found = []
    if duplicates:
        found.append((duplicates / rows + 0.5, f"duplicate rows: {duplicates:,} ({duplicates / rows:.1%})"))
    for one in profiles:
        name = f"“{one['name']}”"
        if one["kind"] == "empty":
            found.append((1, f"{name} is empty in every row"))
        elif one["missing"]:
            found.append(
                (
                    one["missing_share"],
                    f"{name} is missing in {one['missing']:,} rows ({one['missing_share']:.1%})",
                )
            )
        if one["distinct"] == 1 and rows > 1:
            found.append((0.6, f"{name} holds the same value in every row"))
        if one.get("unreadable"):
            what = KINDS[one["kind"]]
            cells = ", ".join(f"“{cell}”" for cell in one["unreadable_examples"])
            found.append((0.7, f"{name} holds {what}, with {one['unreadable']:,} exceptions such as {cells}"))
        if one.get("variants"):
            spelled = "; ".join(" / ".join(variant[:4]) for variant in one["variants"])
            found.append((0.65, f"{name} spells the same value in several ways: {spelled}"))
        if one.get("outliers"):
            half = f"{one['q25']:,} to {one['q75']:,}"
            between = " to ".join(f"{value:,}" for value in one["outlier_examples"])
            found.append(
                (
                    0.1 + one["outliers"] / rows,
                    f"{name} has {one['outliers']:,} outliers ({between}; middle half: {half})",
                )
            )
    names, matrix = correlations["names"], correlations["r"]
    for at, row in enumerate(matrix):
        for other in range(at):
            if row[other] is not None and abs(row[other]) >= 0.9:
                found.append(
                    (0.2, f"“{names[other]}” and “{names[at]}” move together (r = {row[other]:+.2f})")
                )
    return [text for _, text in sorted(found, key=lambda pair: -pair[0])][:50]


def markdown(result, profiles):
    """The report."""
    lines = [
        f"# Profile of {result['file']}",
        "",
        f"{result['rows']:,} rows, {result['columns']:,} columns, {result['missing_cells']:,} missing cells, "
        f"{result['duplicate_rows']:,} duplicate rows.",
        "",
        "## Worth a look",
        "",
        *([f"- {finding}" for finding in result["findings"]] or ["Nothing stands out."]),
        "",
        "## Columns",
        "",
        "| column | holds | missing | distinct | values |",
        "| --- | --- | ---: | ---: | --- |",
    ]
    for one in profiles:
        name, values = escape(one["name"]), escape(describe(one))
        lines.append(
            f"| {name} | {KINDS[one['kind']]} | {one['missing_share']:.1%} | {one['distinct']:,} | {values} |"
        )
    return "\n".join(lines) + "\n"


def describe(one):
    """The values of a column in one line."""
    if one["kind"] == "number":
        return (
            f"{one['min']:,} … {one['median']:,} … {one['max']:,} (mean {one['mean']:,}, sd {one['std']:,})"
        )
    if one["kind"] == "date":
        return f"{one['min']} to {one['max']}"
    if one["kind"] in {"text", "id"}:
        return f"{one['mean_length']:g} characters on average, at most {one['max_length']:,}"
    return ", ".join(f"{value} ({count:,})" for value, count in list(one.get("top", {}).items())[:5])


def escape(text):
    """Text that cannot break a Markdown table."""
    return " ".join(str(text).replace("|", "\\|").split())


def draw_distributions(file, profiles):
    """Small charts of up to twelve columns."""
    shown = [one for one in profiles if one["bars"]][:12]
    rows = -(-len(shown) // 3)
    figure, axes = plt.subplots(rows, 3, figsize=(12, 2.9 * rows + 0.5), squeeze=False)
    figure.suptitle(
        f"What the columns of {shorten(file, 60)} hold", x=0.01, ha="left", weight="bold", size=15
    )
    for ax, one in zip(axes.flat, shown, strict=False):
        draw_column(ax, one)
    for ax in axes.flat[len(shown) :]:
        ax.set_visible(False)
    return figure


def draw_column(ax, one):
    """One column: a histogram, or its most frequent values."""
    labels, heights = one["bars"]["labels"], one["bars"]["heights"]
    ax.set_title(shorten(one["name"], 34), size=11)
    ax.tick_params(labelsize=8.5)
    if one["kind"] in {"category", "boolean"}:
        ax.barh([shorten(value, 20) for value in labels], heights, color=BLUE)
        ax.invert_yaxis()
        ax.grid(axis="x")
        return
    ax.grid(axis="y")
    color = ORANGE if one["kind"] == "text" else BLUE
    if len(labels) == len(heights):
        ax.bar(labels, heights, color=color)
    elif one["kind"] == "date":
        ax.stairs(heights, [datetime.fromtimestamp(at, UTC) for at in labels], fill=True, color=color)
        ax.xaxis.set_major_formatter(ConciseDateFormatter(ax.xaxis.get_major_locator()))
    else:
        ax.stairs(heights, labels, fill=True, color=color)
    if one["kind"] == "text":
        ax.set_xlabel("characters", size=9)


def draw_missing(profiles):
    """The columns with gaps, the largest first."""
    gaps = sorted((one for one in profiles if one["missing"]), key=lambda one: -one["missing"])[:25]
    figure, ax = plt.subplots(figsize=(9, 0.34 * len(gaps) + 1.3))
    bars = ax.barh(
        [shorten(one["name"]) for one in gaps], [100 * one["missing_share"] for one in gaps], color=RED
    )
    ax.bar_label(bars, [f" {one['missing_share']:.1%}" for one in gaps], size=9)
    ax.set(title="Missing cells by column", xlim=(0, 110), xlabel="% of rows")
    ax.invert_yaxis()
    return figure


def draw_correlations(correlations):
    """How the columns of numbers move together."""
    names = [shorten(name, 22) for name in correlations["names"]]
    matrix = [[0 if value is None else value for value in row] for row in correlations["r"]]
    side = 0.5 * len(names) + 2.5
    figure, ax = plt.subplots(figsize=(side + 1, side))
    image = ax.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
    ax.set_xticks(range(len(names)), names, rotation=45, ha="right")
    ax.set_yticks(range(len(names)), names)
    ax.set_title("Correlations (Pearson's r)")
    for row, values in enumerate(matrix):
        for column, value in enumerate(values):
            ax.text(
                column,
                row,
                f"{value:.2f}",
                ha="center",
                va="center",
                size=8,
                color="white" if abs(value) > 0.6 else "black",
            )
    figure.colorbar(image, shrink=0.8)
    return figure
