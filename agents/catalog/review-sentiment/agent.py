"""How customers feel: scores every review with VADER and shows counts, extremes, topics and a chart."""

import csv
import math
import re
from collections import Counter
from functools import cache
from pathlib import Path

from engine_agent import UserError, ask, log, outputs_dir, progress, step
from files import choose_file, input_files, text_in_task

LABELS = ("positive", "neutral", "negative")
REVIEW_NAMES = {
    "review", "reviews", "reviewtext", "text", "comment", "comments", "feedback", "body", "content", "message",
    "opinion", "verbatim", "response",
}  # fmt: skip
LONGEST = 5000  # characters of one review that are scored: VADER's time grows with the square of the length


def main(task, inputs):
    """Find the reviews, score them in parts, write the per-row table, the summary and the chart."""
    log("Looking for the reviews")
    table, origin = open_reviews(task, inputs)
    column = choose_column(table, task, inputs)
    warn_if_not_english(table, column)
    log(f"Scoring the column “{column}” with VADER, a lexicon of English sentiment")
    scores = score(table, column)
    labels = labels_of(scores)
    progress(0.8, "Writing the results")
    result = {"file": table.name, "column": column, "sample": origin == "sample"}
    result |= describe(table, column, scores, labels)
    result["agreement"] = agreement(table, scores)
    counts = ", ".join(f"{count:,} {name}" for name, count in result["counts"].items())
    log(f"{result['reviews']:,} reviews: {counts}")
    write_rows(table, scores, labels)
    (outputs_dir / "summary.md").write_text(summary(result), encoding="utf-8")
    draw(result, scores)
    return result


def open_reviews(task, inputs):
    """The table of reviews: from the input, the task's own text, a file, a pasted text or the sample."""
    reviews = inputs.get("reviews") or ([] if input_files() else text_in_task(task).splitlines())
    path, origin = (
        (None, "given") if reviews else choose_file(task, what="reviews", sample="sample_reviews.csv")
    )
    if origin == "pasted":
        lines = path.read_text(encoding="utf-8").splitlines()
        if REVIEW_NAMES.isdisjoint(
            re.split(r"[,;\t|]", lines[0].lower())
        ):  # else it is a table with a header
            reviews = lines
    if reviews:
        path = Path("reviews.csv")
        with path.open("w", encoding="utf-8", newline="") as file:
            rows = [[line] for line in reviews if line.strip()]
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["text"], *rows])
    from tables import open_table

    return open_table(path), origin


def choose_column(table, task, inputs):
    """The column with the reviews. Asks a person when several could be it."""
    from tables import column_kind, columns_in_words

    wanted = inputs.get("text_column")
    if wanted:
        if wanted not in table.columns:
            raise UserError(
                f"There is no column “{wanted}”.", remedy=f"Use one of: {', '.join(table.columns)}."
            )
        return wanted
    sample = table.sample()
    kinds = {name: column_kind(sample[name]) for name in table.columns}
    named = [
        name for name in table.columns if is_review_name(name) and kinds[name] in {"text", "category", "id"}
    ]
    texts = [
        name for name in table.columns if kinds[name] == "text" or name in named or is_wordy(sample[name])
    ]
    if not texts:
        raise UserError(
            f"No column of {table.name} holds written reviews. Columns: {columns_in_words(kinds)}.",
            remedy='Send a table with one review per row, or name the column in the input: {"text_column": "…"}.',
        )
    in_task = [name for name in texts if re.search(rf"\b{re.escape(name.lower())}\b", task.lower())]
    for found in (texts, in_task, named):
        if len(found) == 1:
            return found[0]
    examples = "\n".join(f"- **{name}**: {sample[name].dropna().iloc[0][:120]}" for name in texts)
    return ask(
        f"Several columns could hold the reviews. Which one should be scored?\n\n{examples}", choices=texts
    )


def is_wordy(column):
    """Whether cells hold sentences, even the same ones again and again."""
    return column.str.count(r"[^\W\d_]{2,}").mean() >= 4


def is_review_name(name):
    """Whether a column's name says that it holds the reviews: `Review Text`, `customer_comment`."""
    words = re.findall(r"[a-z]+", name.lower())
    return bool(words) and words[-1] in REVIEW_NAMES


def warn_if_not_english(table, column):
    """VADER knows English words only: in other languages nearly everything looks neutral."""
    from words import language_of

    language = language_of(" ".join(table.sample()[column].dropna()))
    if language != "en":
        log(
            f"The reviews seem to be written in “{language}”; the scores are only good for English",
            level="warning",
        )


def score(table, column):
    """VADER's compound score of each row, -1 to 1; not a number where there is no text."""
    import numpy as np

    size = min(max(table.rows // 10, 500), 25_000)
    parts, done = [], 0
    for number, chunk in enumerate(table.chunks(size, [column]), start=1):
        parts.append(step(f"score part {number}", score_part, chunk[column], f"scores-{number}.npy"))
        done += len(chunk)
        progress(0.1 + 0.7 * done / table.rows, f"{done:,} of {table.rows:,} reviews scored")
    return np.concatenate([np.load(part) for part in parts])


def score_part(texts, name):
    """Score some rows into a file of the workspace, which is kept when a crash interrupts the job."""
    import numpy as np

    np.save(name, np.array([compound(text) for text in texts.fillna("")], dtype="float32"))
    return name


def compound(text):
    """One review's score; not a number for an empty one."""
    return analyzer().polarity_scores(text[:LONGEST])["compound"] if text.strip() else math.nan


@cache
def analyzer():
    """VADER, loaded once."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def labels_of(scores):
    """The class of each score, by the thresholds that VADER's authors publish; empty where there was no text."""
    import numpy as np

    return np.select(
        [scores >= 0.05, scores <= -0.05, ~np.isnan(scores)], ["positive", "negative", "neutral"], ""
    )


def write_rows(table, scores, labels):
    """Write sentiment.csv: the table as it came, with score and label for each row."""
    with (outputs_dir / "sentiment.csv").open("w", encoding="utf-8", newline="") as file:
        for chunk in table.chunks(25_000):
            rows = slice(chunk.index[0], chunk.index[0] + len(chunk))
            chunk["compound"] = scores[rows].astype(float).round(4)
            chunk["sentiment"] = labels[rows]
            chunk.to_csv(file, index=False, header=rows.start == 0)


def describe(table, column, scores, labels):
    """Counts, shares, the most extreme reviews and what people praise and criticise."""
    import numpy as np

    counts = {name: int((labels == name).sum()) for name in LABELS}
    scored = sum(counts.values())
    if not scored:
        raise UserError(
            f"The column “{column}” is empty in every row.", remedy="Send a table with written reviews."
        )
    order = np.argsort(np.nan_to_num(scores), kind="stable")
    positive = [int(at) for at in order[::-1][:5] if scores[at] > 0]
    negative = [int(at) for at in order[:5] if scores[at] < 0]
    texts, words = {}, {name: Counter() for name in LABELS}
    for chunk in table.chunks(25_000, [column]):
        for at, text in chunk[column].dropna().items():
            if at in positive or at in negative:
                texts[at] = text
            if labels[at]:
                words[labels[at]].update(set(re.findall(r"[a-z]{3,}(?:'[a-z]+)?", text.lower())))
    return {
        "reviews": scored,
        "empty_rows": len(scores) - scored,
        "counts": counts,
        "shares": {name: round(count / scored, 4) for name, count in counts.items()},
        "mean_compound": round(float(np.nanmean(scores)), 4),
        "praised_for": typical_words(
            words["positive"], words["negative"], counts["positive"], counts["negative"]
        ),
        "criticised_for": typical_words(
            words["negative"], words["positive"], counts["negative"], counts["positive"]
        ),
        "most_positive": [review(at, scores, texts) for at in positive],
        "most_negative": [review(at, scores, texts) for at in negative],
    }


def review(at, scores, texts):
    """One review for the result; rows are counted from 1."""
    return {"row": at + 1, "compound": round(float(scores[at]), 4), "text": texts[at][:500]}


def typical_words(here, there, reviews_here, reviews_there):
    """The words that set one class apart: log odds over their standard error. Words of feeling say nothing new."""
    from words import stopwords

    ranked = []
    for word, count in here.items():
        if count < 2 or word in analyzer().lexicon or word in stopwords("en"):
            continue
        other = there[word]
        odds = (count + 0.5) / (reviews_here - count + 0.5)
        odds_there = (other + 0.5) / (reviews_there - other + 0.5)
        ranked.append((math.log(odds / odds_there) / math.sqrt(1 / (count + 0.5) + 1 / (other + 0.5)), word))
    return [word for strength, word in sorted(ranked, reverse=True)[:8] if strength > 1.96]


def agreement(table, scores):
    """How well the scores follow a rating that came with the reviews, as a Pearson correlation."""
    import pandas as pd
    from tables import numbers

    name = next((name for name in table.columns if re.search(r"rating|stars|score", name.lower())), None)
    if name is None:
        return None
    ratings = pd.concat([numbers(chunk[name]) for chunk in table.chunks(200_000, [name])])
    r = ratings.corr(pd.Series(scores))
    return None if math.isnan(r) else {"column": name, "r": round(float(r), 4)}


def summary(result):
    """The findings as Markdown."""
    lines = [
        f"# Sentiment of {result['reviews']:,} reviews",
        "",
        f"Source: {result['file']}, column “{result['column']}”"
        + (" (the shipped sample)" if result["sample"] else ""),
        "",
        "| sentiment | reviews | share |",
        "| --- | ---: | ---: |",
        *(f"| {name} | {result['counts'][name]:,} | {result['shares'][name]:.1%} |" for name in LABELS),
        "",
        f"Mean score: **{result['mean_compound']:+.3f}** on a scale from -1 (most negative) to +1 (most positive).",
    ]
    if result["agreement"]:
        follows = "The score follows the column “{column}” with a correlation of r = {r:.2f}."
        lines += ["", follows.format(**result["agreement"])]
    for title, key in (("Praised for", "praised_for"), ("Criticised for", "criticised_for")):
        if result[key]:
            lines += ["", f"**{title}**: {', '.join(result[key])}"]
    for title, key in (("Most positive", "most_positive"), ("Most negative", "most_negative")):
        if result[key]:
            lines += ["", f"## {title}", ""]
            for one in result[key]:
                lines.append(
                    f"- {one['compound']:+.2f} (row {one['row']:,}): {' '.join(one['text'].split())}"
                )
    lines += ["", "Every row with its score is in sentiment.csv. VADER reads English; irony escapes it."]
    return "\n".join(lines) + "\n"


def draw(result, scores):
    """The chart: how many reviews of each class, and how the scores are spread."""
    log("Drawing the chart")
    import numpy as np
    from charts import GREEN, GREY, RED, plt, save

    colors = {"positive": GREEN, "neutral": GREY, "negative": RED}
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=[1, 1.5])
    figure.suptitle(f"Sentiment of {result['reviews']:,} reviews", x=0.01, ha="left", weight="bold", size=15)

    bars = left.barh(
        LABELS, [result["counts"][name] for name in LABELS], color=[colors[name] for name in LABELS]
    )
    left.bar_label(bars, [f" {result['counts'][name]:,}  ({result['shares'][name]:.0%})" for name in LABELS])
    left.set(title="Reviews by sentiment", xlim=(0, max(result["counts"].values()) * 1.45), xticks=[])
    left.spines[["bottom", "left"]].set_visible(False)
    left.tick_params(length=0)
    left.invert_yaxis()

    edges = np.linspace(-1, 1, 41)
    for name, low, high in (("negative", -1, -0.05), ("neutral", -0.05, 0.05), ("positive", 0.05, 1)):
        part = scores[(scores >= low) & (scores <= high)]
        right.hist(part, bins=edges, color=colors[name], edgecolor="white", linewidth=0.5)
    mean = result["mean_compound"]
    right.axvline(mean, color="#333333", linestyle="--", linewidth=1)
    place = {"xycoords": ("data", "axes fraction"), "xytext": (6, 0), "textcoords": "offset points"}
    right.annotate(f"mean {mean:+.2f}", (mean, 0.97), va="top", **place)
    right.set(
        title="Spread of the scores", xlabel="score, from -1 (negative) to +1 (positive)", ylabel="reviews"
    )
    right.grid(axis="y")
    save(figure, "sentiment.png")
