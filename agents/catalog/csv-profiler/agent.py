"""Looks at a table before anybody works with it: types, gaps, distributions, outliers, and what seems wrong."""

from engine_agent import log, outputs_dir, progress, step
from files import choose_file

BATCH_BYTES = 200_000_000  # text of the columns that are in memory together
MOST_IN_RESULT = 100  # columns; columns.csv has all


def main(task, inputs):
    """Profile the columns in batches that fit the memory, then write the report and the charts."""
    log("Looking for the table")
    path, origin = choose_file(task, what="table", sample="sample_sales.csv")
    from tables import open_table

    table = open_table(path)
    profiles = []
    for number, names in enumerate(batches(table), start=1):
        profiles += step(f"profile columns, part {number}", profile_columns, table, names)
        progress(
            0.05 + 0.65 * len(profiles) / len(table.columns),
            f"{len(profiles)} of {len(table.columns)} columns",
        )
    duplicates = step("find duplicate rows", count_duplicates, table)
    numeric = [one["name"] for one in profiles if one["kind"] == "number"][:20]
    correlations = step("correlate numbers", correlate, table, numeric)
    progress(0.85, "Writing the report")

    from report import findings, markdown

    result = {
        "file": path.name,
        "sample": origin == "sample",
        "rows": table.rows,
        "columns": len(table.columns),
        "missing_cells": sum(one["missing"] for one in profiles),
        "duplicate_rows": duplicates,
        "findings": findings(profiles, correlations, duplicates, table.rows),
    }
    for finding in result["findings"][:10]:
        log(finding, level="warning")
    write(result, profiles, correlations, markdown)
    shown = [{key: value for key, value in one.items() if key != "bars"} for one in profiles[:MOST_IN_RESULT]]
    return {**result, "profile": shown}


def batches(table):
    """The columns in groups whose text fits the memory together."""
    sample = table.sample()
    group, used = [], 0
    for name in table.columns:
        size = sample[name].memory_usage(deep=True, index=False) / len(sample) * table.rows
        if group and (used + size > BATCH_BYTES or len(group) == 20):
            yield group
            group, used = [], 0
        group.append(name)
        used += size
    yield group


def profile_columns(table, names):
    """The facts about some columns."""
    from columns import profile

    frame = table.read(names)
    return [profile(frame.pop(name)) for name in names]


def count_duplicates(table):
    """How many rows repeat an earlier one in every cell."""
    import numpy as np
    import pandas as pd

    hashes = [pd.util.hash_pandas_object(chunk, index=False).to_numpy() for chunk in table.chunks(50_000)]
    return table.rows - len(np.unique(np.concatenate(hashes)))


def correlate(table, names):
    """Pearson's r between each two columns of numbers, as rows of a matrix; empty for fewer than two."""
    import pandas as pd
    from tables import numbers

    if len(names) < 2:
        return {"names": [], "r": []}
    frame = pd.concat(chunk.apply(numbers).astype("float32") for chunk in table.chunks(100_000, names))
    matrix = frame.corr(min_periods=10).round(3)
    return {
        "names": names,
        "r": [[None if value != value else value for value in row] for row in matrix.to_numpy().tolist()],
    }


def write(result, profiles, correlations, markdown):
    """Hand back the report, the table of columns and the charts."""
    import pandas as pd
    from charts import save
    from report import draw_correlations, draw_distributions, draw_missing

    (outputs_dir / "profile.md").write_text(markdown(result, profiles), encoding="utf-8")
    pd.DataFrame(profiles).drop(columns=["bars"]).to_csv(outputs_dir / "columns.csv", index=False)
    log("Drawing the charts")
    save(draw_distributions(result["file"], profiles), "distributions.png")
    if result["missing_cells"]:
        save(draw_missing(profiles), "missing.png")
    if len(correlations["names"]) > 2:
        save(draw_correlations(correlations), "correlations.png")
