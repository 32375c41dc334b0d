"""The commands. Each reads its arguments, asks the client, and prints."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import click
from click.shell_completion import get_completion_class

from engine_client import Client, Job, credentials
from engine_client.cli.asking import NobodyAnswers, ask, parse_answer
from engine_client.cli.cards import check_card, read_card
from engine_client.cli.terminal import (
    JSON,
    Log,
    json_option,
    line_of,
    note,
    print_json,
    printable,
    summary,
    table,
)
from engine_client.core import DEFAULT_URL
from engine_client.errors import (
    AgentNotFound,
    ConnectionFailed,
    EngineError,
    JobNotFound,
    NotAuthenticated,
    Problem,
    ScopeMissing,
)

# How `engine run --follow` and `engine logs -f` end, by the job's status; 2 is a wrong command line, as in click.
EXIT_CODES = {"completed": 0, "failed": 3, "cancelled": 4, "rejected": 5}
EXIT_REFUSED, EXIT_ASKS, EXIT_DETACHED = 1, 6, 130
# A second Ctrl+C within this time cancels the job.
SECOND_CTRL_C_SECONDS = 2.0
# A cancelled job ends within its agent's grace.
CANCEL_SECONDS = 30.0
RUNNER = Path(__file__).parents[2] / "jobs" / "sdk" / "engine_agent.py"


class Commands(click.Group):
    """A group whose errors say what to do."""

    def invoke(self, context: click.Context) -> Any:
        """Run a command; what the client raises becomes a sentence and exit code 1."""
        try:
            return super().invoke(context)
        except EngineError as error:
            if context.meta.get(JSON):
                print_json({"error": error.problem if isinstance(error, Problem) else {"detail": str(error)}})
            for line in explained(error):
                note(printable(line))
            context.exit(EXIT_REFUSED)
        except NobodyAnswers:
            context.exit(EXIT_ASKS)
        except BrokenPipeError:  # `engine logs … | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            context.exit(EXIT_REFUSED)


def explained(error: EngineError) -> Iterator[str]:
    """What happened, where, and what to do."""
    yield f"Error: {error}"
    if isinstance(error, Problem):
        yield from (f"  {fault['pointer'] or 'all'}: {fault['detail']}" for fault in error.errors)
    match error:
        case ConnectionFailed():
            yield "Is Engine up there? `make run` starts one; `engine login --url URL` chooses another."
        case NotAuthenticated():
            yield "`engine login` stores a key, ENGINE_API_KEY sets one. `manage.py createkey` makes the first."
        case ScopeMissing():
            yield f"A key with the scope {error.problem.get('missing_scope')} may: `engine keys create NAME --scope …`."
        case JobNotFound():
            yield "`engine jobs` lists the jobs that your key sees."
        case AgentNotFound():
            yield "`engine agents` lists the agents that your key sees."
        case Problem(retry_after=float() as seconds):
            yield f"Try again in {seconds:.0f} seconds."
        case Problem(status=500):
            yield f"The server's log says more: request {error.request_id}."


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--url", envvar="ENGINE_URL", help="Where Engine is; otherwise as `engine login` stored it.")
@click.version_option(package_name="engine", message="%(version)s")
@click.pass_context
def engine(context: click.Context, url: str | None) -> None:
    """Give Engine work, follow it, answer its questions.

    \b
    Exit codes of `run --follow` and `logs -f`: 0 completed, 3 failed, 4 cancelled, 5 rejected,
    6 it waits for an answer that nobody here gives, 130 detached. Others: 0, 1 refused, 2 wrong usage.
    """
    context.obj = url


@contextmanager
def client() -> Iterator[Client]:
    """The client that the options and the login lead to."""
    with Client(click.get_current_context().find_root().obj) as made:
        yield made


# --- login ---


@engine.command()
@click.option("--url", help="Such as http://127.0.0.1:8000.")
@click.option("--key", help="Better typed when asked for, or piped in: arguments are seen by other users.")
@json_option
@click.pass_context
def login(context: click.Context, url: str | None, key: str | None, as_json: bool) -> None:
    """Check an API key and keep it for later calls."""
    address = url or context.find_root().obj
    if not address:
        address = credentials.stored().get("url") or DEFAULT_URL
        if sys.stdin.isatty():
            address = click.prompt("Address", default=address, err=True)
    address = address.rstrip("/")
    if not address.startswith(("http://", "https://")):
        raise click.UsageError(f"{address} is no address: it begins with http:// or https://.")
    if key is None and sys.stdin.isatty():
        key = click.prompt("API key", hide_input=True, err=True)
    key = (key or sys.stdin.readline()).strip()
    if not key.isascii() or not key.isprintable() or not key:
        raise click.UsageError("That is no API key: it begins with engine_live_ or engine_test_.")
    with Client(address, key) as made:
        with suppress(ScopeMissing):  # a key that is accepted, and may do other things
            next(made.jobs(limit=1), None)
    path = credentials.store(address, key)
    if as_json:
        print_json({"url": address, "stored": str(path)})
    else:
        click.echo(f"The key is accepted by {address} and stored in {path}.")


# --- jobs ---


def json_object(_: click.Context, __: click.Parameter, text: str | None) -> dict[str, Any] | None:
    """An option that holds a JSON object."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"This is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise click.BadParameter('Write an object, such as {"rows": 3}')
    return value


FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
out_option = click.option(
    "--out", type=FOLDER, help="Where artifacts go; by default engine-artifacts/JOB, made if there are any."
)
no_input_option = click.option("--no-input", is_flag=True, help="Leave questions to others, and wait.")


@engine.command()
@click.argument("task")
@click.option("--file", "-F", "files", multiple=True, type=FILE, help="A file for the job; may be repeated.")
@click.option("--agent", "-a", help="slug or slug@version; otherwise the best one is found.")
@click.option("--input", "-i", "data", callback=json_object, help="The job's input as a JSON object.")
@click.option("--priority", type=click.Choice(["low", "normal", "high", "urgent"]))
@click.option("--tag", "-t", "tags", multiple=True)
@click.option("--timeout", "timeout_s", type=click.IntRange(1), help="Seconds of one attempt.")
@click.option("--follow", "-f", is_flag=True, help="Show its log, ask its questions, download its files.")
@out_option
@no_input_option
@json_option
def run(
    task: str,
    files: tuple[Path, ...],
    agent: str | None,
    data: dict[str, Any] | None,
    priority: str | None,
    tags: tuple[str, ...],
    timeout_s: int | None,
    follow: bool,
    out: Path | None,
    no_input: bool,
    as_json: bool,
) -> None:
    """Submit a job. With --follow, stay until it has ended; Ctrl+C detaches, pressed twice it cancels."""
    members = {"agent": agent, "input": data, "priority": priority, "tags": list(tags) or None}
    with client() as made:
        job = made.submit(task, files=files, **members, timeout_s=timeout_s)
        if follow and not job.is_final:
            note(summary(job))
            attend(made, job.id, out=out, no_input=no_input, as_json=as_json)
        if as_json:
            print_json(job.data)
        else:
            click.echo(summary(job))
            click.echo(nearest(job) if job.is_final else f"Follow it: engine logs -f {job.id}")
        sys.exit(EXIT_CODES.get(job.status, 0))


def nearest(job: Job) -> str:
    """Of a job that no agent fits, those that came nearest."""
    near = [one.get("agent", "") for one in (job.data.get("why") or {}).get("nearest") or []]
    return (
        f"Nearest: {printable(', '.join(near)) or 'none'}. Name one with --agent, or ask `engine discover`."
    )


def attend(
    made: Client, job_id: str, *, out: Path | None, no_input: bool, as_json: bool, after: int = 0
) -> NoReturn:
    """Follow a job to its end and leave with its exit code."""
    log = Log(to_stderr=as_json)
    try:
        job = followed(made, job_id, log, no_input=no_input, after=after)
    except KeyboardInterrupt:
        log.close()
        job = detach_or_cancel(made, job_id)
    except NobodyAnswers:
        log.close()
        note(f'It waits for an answer: engine answer {job_id} "…", then engine logs -f {job_id}')
        raise
    paths = made.download(job_id, out or Path("engine-artifacts") / job_id)
    if as_json:
        print_json({**job.data, "downloaded": [str(path) for path in paths]})
    else:
        if job.result is not None:
            click.echo(json.dumps(job.result, ensure_ascii=False, indent=2))
        for path in paths:
            click.echo(f"* saved {printable(path)}")
    note(summary(job))
    sys.exit(EXIT_CODES[job.status])


def followed(made: Client, job_id: str, log: Log, *, no_input: bool, after: int) -> Job:
    """The job once it has ended."""
    asked: set[str] = set()
    for event in made.events(job_id, after=after):
        log.show(event)
        if event.type == "job.waiting" and not no_input:
            log.pause()
            for question in made.job(job_id).open_questions:
                if question.id not in asked:
                    asked.add(question.id)
                    ask(made, question)
    log.close()
    return made.job(job_id)


def detach_or_cancel(made: Client, job_id: str) -> Job:
    """Leave the job alone, unless Ctrl+C comes again: then the job once it has ended."""
    try:  # from before the first word of it: who reads it may press at once
        note(f"\nDetaching, the job goes on: engine logs -f {job_id}. Ctrl+C again cancels it.")
        time.sleep(SECOND_CTRL_C_SECONDS)
    except KeyboardInterrupt:
        note("\nCancelling …")
        made.cancel(job_id)
        return made.wait(job_id, timeout=CANCEL_SECONDS, through_questions=True)
    sys.exit(EXIT_DETACHED)


@engine.command()
@click.argument("job_id", metavar="JOB")
@click.option("--follow", "-f", is_flag=True, help="Go on until the job has ended; asks its questions, too.")
@click.option("--after", type=click.IntRange(0), default=0, help="Only events beyond this number.")
@click.option("--level", multiple=True, type=click.Choice(["debug", "info", "warning", "error"]))
@out_option
@no_input_option
@json_option
def logs(
    job_id: str,
    follow: bool,
    after: int,
    level: tuple[str, ...],
    out: Path | None,
    no_input: bool,
    as_json: bool,
) -> None:
    """A job's log; with --json one event a line."""
    with client() as made:
        if follow and not as_json and not level:
            attend(made, job_id, out=out, no_input=no_input, as_json=False, after=after)
        read = made.events if follow else made.stored_events
        try:
            for event in read(job_id, after=after, level=list(level) or None):
                text = json.dumps(event.data, ensure_ascii=False) if as_json else line_of(event)
                if text is not None:
                    click.echo(text)
        except KeyboardInterrupt:
            sys.exit(EXIT_DETACHED)
        if follow:
            sys.exit(EXIT_CODES[made.job(job_id).status])


@engine.command()
@click.option("--status", multiple=True, help="Such as running; may be repeated.")
@click.option("--agent")
@click.option("--tag", multiple=True)
@click.option("--text", "q", help="Words in the task.")
@click.option("--number", "-n", type=click.IntRange(1), default=20, show_default=True)
@json_option
def jobs(
    status: tuple[str, ...],
    agent: str | None,
    tag: tuple[str, ...],
    q: str | None,
    number: int,
    as_json: bool,
) -> None:
    """List jobs, newest first."""
    filters = {"status": list(status) or None, "agent": agent, "tag": list(tag) or None, "q": q}
    with client() as made:
        found = made.jobs(**filters, limit=min(number, 200))
        items = [job for job, _ in zip(found, range(number), strict=False)]
    if as_json:
        print_json({"items": [job.data for job in items]})
        return
    rows = [
        (job.id, job.status, (job.agent or {}).get("slug", "-"), job.created_at[:19], job.task)
        for job in items
    ]
    table(("JOB", "STATUS", "AGENT", "CREATED (UTC)", "TASK"), rows)


@engine.command()
@click.argument("job_id", metavar="JOB")
@json_option
def show(job_id: str, as_json: bool) -> None:
    """A job with its questions, result and files."""
    with client() as made:
        job = made.job(job_id)
    if as_json:
        print_json(job.data)
        return
    click.echo(summary(job))
    for question in job.open_questions:
        click.echo(f"? {printable(question.prompt)}\n  engine answer {job.id} --question {question.id} …")
    if job.result is not None:
        click.echo(json.dumps(job.result, ensure_ascii=False, indent=2))
    for artifact in job.artifacts:
        click.echo(f"* file {printable(artifact.name)} ({artifact.size} bytes): engine download {job.id}")


@engine.command()
@click.argument("job_id", metavar="JOB")
@out_option
@json_option
def download(job_id: str, out: Path | None, as_json: bool) -> None:
    """Download a job's files."""
    with client() as made:
        paths = made.download(job_id, out or Path("engine-artifacts") / job_id)
    if as_json:
        print_json({"downloaded": [str(path) for path in paths]})
        return
    for path in paths:
        click.echo(printable(path))
    if not paths:
        note("The job has no files.")


@engine.command()
@click.argument("job_id", metavar="JOB")
@click.argument("answer", required=False)
@click.option("--question", "question_id", help="Its id, where several are open (`engine show JOB`).")
@json_option
def answer(job_id: str, answer: str | None, question_id: str | None, as_json: bool) -> None:
    """Answer what a job asks; without ANSWER, in the terminal.

    For a choice its text or number, for a form a JSON object, for an approval: approve, reject WHY, edit {…}.
    """
    with client() as made:
        found = [one for one in made.job(job_id).open_questions if question_id in (None, one.id)]
        if not found:
            raise click.ClickException(
                "The job has no such open question. `engine show JOB` lists what it asks."
            )
        if answer is None:
            for question in found:
                ask(made, question)
        elif len(found) > 1:
            ids = "".join(f"\n  --question {one.id}  {printable(one.prompt)}" for one in found)
            raise click.ClickException(f"Several questions are open: say which.{ids}")
        else:
            try:
                value = parse_answer(found[0], answer.strip())
            except ValueError as error:
                raise click.ClickException(f"The answer does not fit: {error}.") from error
            made.respond(job_id, value, question_id=found[0].id)
        job = made.job(job_id)
    print_job(job, as_json=as_json)


def print_job(job: Job, *, as_json: bool) -> None:
    """A job after something was done to it."""
    if as_json:
        print_json(job.data)
    else:
        click.echo(summary(job))


@engine.command()
@click.argument("job_id", metavar="JOB")
@json_option
def cancel(job_id: str, as_json: bool) -> None:
    """Cancel a job; one that has ended stays as it is."""
    with client() as made:
        print_job(made.cancel(job_id), as_json=as_json)


@engine.command()
@click.argument("task")
@click.option("--number", "-n", type=click.IntRange(1, 50), default=5, show_default=True)
@json_option
def discover(task: str, number: int, as_json: bool) -> None:
    """Who could do a task, best first, and why."""
    with client() as made:
        found = made.discover(task, limit=number)
    if as_json:
        print_json(found.data)
        return
    fits = found.decision != "none"
    if not fits:
        click.echo("No agent fits. Nearest:")
    rows = [
        (one["agent"], f"{one['confidence']:.0%}", (one.get("matched") or {}).get("text") or one["name"])
        for one in found.agents or found.data.get("nearest", [])
    ]
    table(("AGENT", "CONFIDENCE", "MATCHED"), rows)


# --- agents ---


@engine.group(invoke_without_command=True)
@json_option
@click.pass_context
def agents(context: click.Context, as_json: bool) -> None:
    """List agents; register and test your own."""
    if context.invoked_subcommand:
        return
    with client() as made:
        items = list(made.agents())
    if as_json:
        print_json({"items": [one.data for one in items]})
        return
    table(
        ("AGENT", "VERSION", "KIND", "NAME"), [(one.slug, one.version, one.kind, one.name) for one in items]
    )


AGENT_FOLDER = click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path))


@agents.command()
@AGENT_FOLDER
@json_option
def register(path: Path, as_json: bool) -> None:
    """Register the agent in a folder: card.toml or card.json, and its source beside it."""
    card = read_card(path)
    with client() as made:
        agent = made.register(card)
    if as_json:
        print_json(agent.data)
    else:
        click.echo(
            f"Registered {agent.slug}, version {agent.version}. Try it: engine run --agent {agent.slug} -f …"
        )


@agents.command()
@AGENT_FOLDER
@click.option("--task", default="Try it", show_default=True)
@click.option("--file", "-F", "files", multiple=True, type=FILE)
@click.option("--input", "-i", "data", callback=json_object, help="The job's input as a JSON object.")
@click.option(
    "--folder", type=FOLDER, default=Path("engine-run"), show_default=True, help="For all that it writes."
)
@click.option("--resume", is_flag=True, help="Go on with the last run there.")
@json_option
def test(
    path: Path,
    task: str,
    files: tuple[Path, ...],
    data: dict[str, Any] | None,
    folder: Path,
    resume: bool,
    as_json: bool,
) -> None:
    """Run the agent in a folder here, with your rights and without a server (docs/agents.md)."""
    card = read_card(path)
    check_card(card)
    with tempfile.TemporaryDirectory() as place:
        for name, text in card["source"].items():
            target = Path(place, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        command = [sys.executable, str(RUNNER), "run", str(Path(place, "agent.py")), "--folder", str(folder)]
        command += [part for file in files for part in ("--file", str(file))]
        command += ["--resume"] if resume else ["--task", task, "--input", json.dumps(data or {})]
        result = folder / "result.json"
        result.unlink(missing_ok=True)
        ended = subprocess.run(command, stdout=sys.stderr if as_json else None, check=False)
    if as_json:
        print_json(
            json.loads(result.read_text("utf-8")) if result.exists() else {"exit_code": ended.returncode}
        )
    sys.exit(ended.returncode)


# --- keys ---


@engine.group(invoke_without_command=True)
@json_option
@click.pass_context
def keys(context: click.Context, as_json: bool) -> None:
    """List keys; make and revoke them."""
    if context.invoked_subcommand:
        return
    with client() as made:
        items = list(made.keys())
    if as_json:
        print_json({"items": [one.data for one in items]})
        return
    rows = [(one.id, one.name, _state(one.data), " ".join(one.scopes)) for one in items]
    table(("KEY", "NAME", "STATE", "SCOPES"), rows)


def _state(key: Any) -> str:
    return next((name for name in ("revoked", "disabled") if key.get(f"{name}_at")), "active")


@keys.command()
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, required=True, help="Such as jobs:read; may be repeated.")
@json_option
def create(name: str, scopes: tuple[str, ...], as_json: bool) -> None:
    """Make a key. Its secret is shown this once."""
    with client() as made:
        key = made.create_key(name, scopes)
    if as_json:
        print_json(key.data)
        return
    note(f"Key {key.id}. Its secret is shown this once:")
    click.echo(key.secret)


@keys.command()
@click.argument("key_id", metavar="KEY")
@json_option
def revoke(key_id: str, as_json: bool) -> None:
    """Refuse a key from now on, for good."""
    with client() as made:
        key = made.revoke_key(key_id)
    if as_json:
        print_json(key.data)
    else:
        click.echo(f"The key {printable(key.name)} is revoked.")


@engine.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes commands: eval "$(engine completion bash)"."""
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 (click has all three)
    click.echo(kind(engine, {}, "engine", "_ENGINE_COMPLETE").source())
