"""Reads log files: which formats and levels, which errors belong together, when they came, what to look at first."""

import json
from pathlib import Path

from engine_agent import UserError, log, outputs_dir, progress, step
from files import input_files, kind_of, paste_or_sample, size_of

MOST_CLUSTERS = 50  # in the result
SAMPLE = Path(__file__).with_name("sample_log.txt")


def main(task, inputs):
    """Read all files in one step, then write the report, the table of patterns and the chart."""
    log("Looking for log files")
    files = input_files() or [paste_or_sample("log lines", SAMPLE)[0]]
    for path in files:
        check(path)
        log(f"Reading {path.name} ({size_of(path)})")
    found = json.loads(Path(step("read the log", read, files)).read_text(encoding="utf-8"))

    from charts import save
    from report import draw, markdown, result_of, write_table

    progress(0.85, "Writing the report")
    result = result_of(found, files, MOST_CLUSTERS)
    log(f"{result['records']:,} entries, {result['errors']:,} errors in {len(found['clusters']):,} patterns")
    if result["format"] == "plain lines" and not result["clusters"]:
        log("No line has a time or a level, and none sounds like an error: is this a log?", level="warning")
    for cluster in result["clusters"][:5]:
        log("{count:,} times: {template}".format(**cluster)[:300], level="warning")
    for peak in result["peaks"]:
        log("Peak from {from} to {to}: {errors:,} errors (usual: {usual:,})".format(**peak), level="warning")
    (outputs_dir / "report.md").write_text(markdown(result), encoding="utf-8")
    write_table(result)
    log("Drawing the chart")
    save(draw(found), "timeline.png")
    return result


def check(path):
    """Raise UserError for a file that is no text log."""
    kind = kind_of(path)
    if kind == "empty":
        raise UserError(f"{path.name} is empty.", remedy="Send a log with lines in it.")
    if kind not in {"text", "a web page"}:
        raise UserError(
            f"{path.name} is {kind}, not a text log.", remedy="Unpack it, or export the log as plain text."
        )


def read(files):
    """Keep what the analysis finds in a file: it may be larger than a step's result."""
    from clusters import analyse

    Path("found.json").write_text(json.dumps(analyse(files)), encoding="utf-8")
    return "found.json"
