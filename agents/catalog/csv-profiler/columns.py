"""The facts about one column, as JSON."""

import numpy as np
import pandas as pd
from tables import bin_edges, column_kind, dates, numbers


def profile(column):
    """What a column of text cells holds. `bars` are the labels and heights of its distribution chart."""
    filled = column.dropna()
    kind = column_kind(column)
    facts = {
        "name": column.name,
        "kind": kind,
        "missing": len(column) - len(filled),
        "distinct": int(filled.nunique()),
    }
    facts["missing_share"] = round(facts["missing"] / max(len(column), 1), 4)
    if kind == "number":
        return facts | about_numbers(filled)
    if kind == "date":
        return facts | about_dates(filled)
    if kind == "empty":
        return facts | {"bars": None}
    return facts | about_words(filled, kind)


def about_numbers(filled):
    """Spread, outliers by Tukey's fences (1.5 interquartile ranges), and cells that are no numbers."""
    values = numbers(filled)
    good = values.dropna()
    low, median, high = good.quantile([0.25, 0.5, 0.75])
    fences = low - 1.5 * (high - low), high + 1.5 * (high - low)
    outliers = good[(good < fences[0]) | (good > fences[1])]
    return {
        "min": tidy(good.min()),
        "q25": tidy(low),
        "median": tidy(median),
        "mean": tidy(good.mean(), 6),
        "q75": tidy(high),
        "max": tidy(good.max()),
        "std": tidy(good.std(ddof=0), 6),
        "zeros": int((good == 0).sum()),
        "outliers": len(outliers) if high > low else 0,
        "outlier_examples": [tidy(value) for value in [outliers.min(), outliers.max()]]
        if len(outliers) and high > low
        else [],
        "unreadable": int(values.isna().sum()),
        "unreadable_examples": examples(filled[values.isna()]),
        "bars": bars(good),
    }


def bars(values):
    """The chart of some numbers: each value where they are few, else a histogram of the middle 99 %."""
    if values.nunique() <= 12:
        counts = values.value_counts().sort_index()
        return {"labels": [f"{tidy(value):,}" for value in counts.index], "heights": counts.tolist()}
    edges = bin_edges(values)
    heights, _ = np.histogram(values.clip(edges[0], edges[-1]), bins=edges)
    return {"labels": [tidy(edge) for edge in edges], "heights": heights.tolist()}


def about_dates(filled):
    """First and last day, and cells that are no dates."""
    values = dates(filled)
    good = values.dropna()
    heights, edges = np.histogram(good.astype("datetime64[s]").astype("int64"), bins=30)
    return {
        "min": str(good.min()).removesuffix(" 00:00:00"),
        "max": str(good.max()).removesuffix(" 00:00:00"),
        "unreadable": int(values.isna().sum()),
        "unreadable_examples": examples(filled[values.isna()]),
        "bars": {"labels": [int(edge) for edge in edges], "heights": heights.tolist()},
    }


def about_words(filled, kind):
    """The most frequent values, the lengths, and values that differ only by case or by spaces."""
    counts = filled.value_counts()
    lengths = filled.str.len()
    facts = {
        "top": {str(value)[:80]: int(count) for value, count in counts.head(8).items()},
        "mean_length": round(float(lengths.mean()), 1),
        "max_length": int(lengths.max()),
    }
    if kind in {"text", "id"}:
        return facts | {"bars": bars(lengths) if kind == "text" else None}
    values = pd.Series(counts.index[:5000])
    plain = values.str.casefold().str.replace(r"\s+", " ", regex=True).str.strip()
    variants = [list(group) for _, group in values.groupby(plain) if len(group) > 1]
    return facts | {
        "variants": variants[:5],
        "bars": {"labels": list(facts["top"]), "heights": list(facts["top"].values())},
    }


def examples(cells):
    """A few different cells."""
    return [str(cell)[:40] for cell in cells.unique()[:3]]


def tidy(value, digits=12):
    """A number of so many digits, whole where it is whole."""
    value = float(f"{float(value):.{digits}g}")
    return int(value) if value.is_integer() else value
