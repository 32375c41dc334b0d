"""What people and scripts see: lines, tables, JSON, one line of progress. Text from outside is made harmless."""

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click

from engine_client import Event, Job

F = TypeVar("F", bound=Callable[..., Any])
JSON = "engine.json"  # in click's meta: whether --json was given, also for errors
BAR_WIDTH = 24


def json_option(command: F) -> F:
    """`--json` for a command."""

    def remember(context: click.Context, _: click.Parameter, value: bool) -> bool:
        context.meta[JSON] = value
        return value

    text = "Print JSON for programs; words for people go to stderr."
    return click.option("--json", "as_json", is_flag=True, is_eager=True, callback=remember, help=text)(
        command
    )


def printable(text: object) -> str:
    """One line with nothing in it that a terminal would act on: that is shown as an escape."""
    line = str(text)
    return line if line.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def print_json(value: Any) -> None:
    """One JSON value on stdout."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))


def note(text: str) -> None:
    """A word to people, which is no result."""
    click.echo(text, err=True)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns as wide as their content; the last one is cut where a terminal ends."""
    lines = [list(head), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(head))]
    most = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    for line in lines:
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        click.echo(text if len(text) <= most else text[: most - 1] + "…")


def summary(job: Job) -> str:
    """How a job stands, in a line."""
    agent = f" by {job.agent['slug']}@{job.agent['version']}" if job.agent else ""
    words = [f"Job {job.id} is {job.status}{agent}."]
    if job.error:
        words += [str(job.error.get(name)) for name in ("message", "remedy") if job.error.get(name)]
    elif job.status_reason:
        words.append(f"({job.status_reason})")
    return printable(" ".join(words))


class Log:
    """A job's events as lines, and below them a bar that says how far it is, where stderr is a terminal."""

    def __init__(self, *, to_stderr: bool = False) -> None:
        self._to_stderr = to_stderr
        self._has_bar = sys.stderr.isatty()
        self._bar = ""

    def show(self, event: Event) -> None:
        """One event."""
        if event.type == "job.progress":
            self._progress(event.details.get("fraction"), event.message)
            return
        text = line_of(event)
        if text is not None:
            self.pause()
            click.echo(text, err=self._to_stderr)
            self._draw()

    def pause(self) -> None:
        """Take the bar away: somebody else writes."""
        if self._bar and self._has_bar:
            click.echo("\r\x1b[K", nl=False, err=True)

    def close(self) -> None:
        """Take it away for good."""
        self.pause()
        self._bar = ""

    def _progress(self, fraction: float | None, message: str) -> None:
        share = "" if fraction is None else f"{fraction:4.0%} "
        if not self._has_bar:
            click.echo(f"{share.strip()} {printable(message)}".strip(), err=self._to_stderr)
            return
        filled = round(BAR_WIDTH * (fraction or 0))
        bar = f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {share}{printable(message)}"
        self.pause()
        self._bar = bar[: shutil.get_terminal_size().columns - 1]
        self._draw()

    def _draw(self) -> None:
        if self._bar and self._has_bar:
            click.echo(self._bar, nl=False, err=True)


def line_of(event: Event) -> str | None:
    """An event as a line, or None for one that a person following does not want."""
    message = "\n    ".join(printable(line) for line in event.message.splitlines())
    if event.type == "log":
        return message if event.level in ("info", "debug") else f"{event.level}: {message}"
    if event.type.startswith(("step.", "question.")):
        return None
    if event.type == "artifact.created":
        return f"* file {message}"
    return f"* {event.type.removeprefix('job.')} {message}".rstrip()
