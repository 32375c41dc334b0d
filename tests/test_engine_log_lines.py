"""Logs for machines: each line of a long-running program is one JSON object of ours and names what it belongs to."""

import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from engine import output, steps
from engine.logs import AddFields, JsonLine, OneLine, log_fields, message_of, tell
from engine.redaction import of_installation
from tests.processes import Instance, Program, eventually

FORGED = '{"level": "info", "logger": "engine.access", "message": "forged"}'
HOSTILE = f"""
import sys
from engine_agent import artifact, log

FORGED = {FORGED!r}

def main(task, inputs):
    print("one\\n" + FORGED + "\\x1b[2J\\x85" + FORGED)
    log("two\\u2028" + FORGED)
    print(FORGED, file=sys.stderr, flush=True)
    raise ValueError("three\\n" + FORGED + "\\n2026-01-01 00:00:00,000 INFO engine.access forged")
"""


def said(program: Program) -> list[dict[str, Any]]:
    """Its lines, as a reader takes them who ends lines wherever Unicode does; fails if one is no object."""
    lines = [json.loads(line) for line in program.output().splitlines()]
    assert all({"at", "level", "logger", "message"} <= line.keys() for line in lines)
    assert not any(line["message"] == "forged" for line in lines)
    return lines


def of_logger(lines: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["logger"] == name]


def test_every_line_of_a_run_is_an_object_that_names_its_request_job_attempt_and_worker(
    make_instance: Callable[..., Instance],
) -> None:
    instance = make_instance(LOG_FORMAT="json")
    web, worker = instance.serve(), instance.worker()
    instance.ready()
    secret = instance.key()
    card = {
        "slug": "hostile",
        "name": "Hostile",
        "description": "Prints lines that look like ours.",
        "kind": "python",
    }
    with instance.client(secret) as client:
        client.post("/api/v1/agents", json=card | {"source": {"agent.py": HOSTILE}}).raise_for_status()
        body = {"task": f"x\n{FORGED}", "agent": "hostile", "max_attempts": 1}
        posted = client.post("/api/v1/jobs", json=body, headers={"X-Request-Id": "request-of-mine"})
        job = posted.raise_for_status().json()["id"]
        eventually(lambda: client.get(f"/api/v1/jobs/{job}").json()["status"] == "failed")
        assert client.get(f"/nothing%0a{FORGED}").status_code == 404
        assert client.get(f"/answer/{'a1b2c3d4' * 4}").status_code in (404, 410)
    taken = instance.start("serve", "--port", instance.url.rpartition(":")[2])
    wrong = instance.start("runworker", "--concurrency", "many")
    unset = instance.start("serve", PORT="none")
    assert [program.wait() for program in (taken, wrong, unset)] == [1, 2, 1]
    assert [web.stop(), worker.stop()] == [0, 0]

    lines = said(web)
    assert lines[0]["message"] == f"Engine serves {instance.url}"
    requests = of_logger(lines, "engine.access")
    assert all(line["request"] for line in requests)
    assert [line["message"].split()[:3] for line in requests if line["request"] == "request-of-mine"] == [
        ["POST", "/api/v1/jobs", "201"]
    ]
    submitted = of_logger(lines, "engine.jobs")
    assert [(line["job"], line["request"]) for line in submitted] == [(job, "request-of-mine")]
    assert any("/answer/[redacted]" in line["message"] for line in requests)
    lines = said(worker)
    assert all(line["worker"] for line in lines)
    attempt = [line for line in lines if "job" in line]
    assert {(line["job"], line["attempt"]) for line in attempt} == {(job, "1")}
    assert attempt[-1]["message"] == "The attempt has ended (Failed): the job is failed."
    assert any("is taken by another program" in line["message"] for line in said(taken))
    assert any("invalid int value: 'many'" in line["message"] for line in said(wrong))
    assert [line["message"] for line in said(unset)] == [
        "PORT='none' cannot be used: write a whole number from 1 to 65535."
    ]
    everything = "".join(program.output() for program in instance.programs)
    assert secret not in everything
    assert "a1b2c3d4" not in everything


# --- what is no log line by itself ---


@pytest.fixture
def as_json(settings: Any) -> Iterator[io.StringIO]:
    """Lines as JSON, in the returned stream."""
    settings.LOG_FORMAT = "json"
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLine())
    handler.addFilter(AddFields())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


def lines_in(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.fixture
def captured(as_json: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """For a test that makes this process a long-running command: all is put back afterwards."""
    for owner, name in (
        (sys, "stdout"), (sys, "stderr"), (sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, getattr(owner, name))
    yield as_json
    logging.captureWarnings(capture=False)


def test_prints_warnings_and_uncaught_exceptions_become_lines(captured):
    output.begin(["manage.py", "serve"])
    print("half a ", end="")
    print("line\nand another")
    sys.stderr.write("told\n\n")
    warnings.showwarning("old\nthing", DeprecationWarning, "old.py", 1)
    try:
        raise ValueError(f"met\n{FORGED}")
    except ValueError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    thread = threading.Thread(target=lambda: 1 / 0, name="counting")
    thread.start()
    thread.join()

    lines = lines_in(captured)
    assert [line["message"] for line in lines[:3]] == ["half a line", "and another", "told"]
    assert [line["logger"] for line in lines[:4]] == [
        "engine.stdout", "engine.stdout", "engine.stderr", "py.warnings"
    ]  # fmt: skip
    assert "DeprecationWarning: old\nthing" in lines[3]["message"]
    assert "ValueError: met" in lines[4]["traceback"]
    assert lines[5]["message"] == "Thread counting ends: ZeroDivisionError: division by zero"
    assert len(lines) == 6


def test_a_log_that_cannot_write_does_not_speak_to_itself_for_ever(captured):
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            print("no room", file=sys.stderr)

    broken = Broken()
    logging.getLogger().addHandler(broken)
    output.begin(["manage.py", "serve"])
    try:
        print("a line")
    finally:
        logging.getLogger().removeHandler(broken)

    assert [line["message"] for line in lines_in(captured)] == ["a line"]


def test_commands_that_print_a_result_are_left_alone(as_json):
    before = sys.stdout

    output.begin(["manage.py", "createkey"])

    assert sys.stdout is before


def test_steps_and_announcements_are_lines_too(as_json, capsys):
    tell("\nStopping …")
    tell("")
    with steps.step("Tables") as note:
        note("3 migrations")
    with pytest.raises(steps.StepFailed), steps.step("Port"):
        raise steps.StepFailed("It is taken.", remedy="PORT=8001 make run")

    messages = [line["message"] for line in lines_in(as_json)]
    assert messages == [
        "Stopping …",
        "Tables: 0.0 s 3 migrations",
        "Port failed: It is taken. To fix it: PORT=8001 make run",
    ]
    assert capsys.readouterr().out == ""


def test_wrong_settings_are_one_line_in_either_form(monkeypatch):
    for form, shown in (("json", lambda text: json.loads(text)["message"]), ("console", str.strip)):
        stream = io.StringIO()
        monkeypatch.setattr(sys, "__stderr__", stream)

        output.refuse("PORT='x' cannot be used: write a whole number.", as_json=form == "json")

        assert shown(stream.getvalue()) == "PORT='x' cannot be used: write a whole number."
        assert stream.getvalue().count("\n") == 1


# --- hostile text ---


def record(message: str, error: BaseException | None = None) -> logging.LogRecord:
    trace = (type(error), error, error.__traceback__) if error is not None else None
    made = logging.LogRecord("engine", logging.INFO, "", 0, "%s", (message,), trace)
    AddFields().filter(made)
    return made


@pytest.mark.parametrize("end", ["\n", "\r", "\x85", "\u2028", "\x1b[1A", "\x9b2J"])
def test_no_text_ends_a_line_or_moves_a_cursor(end: str) -> None:
    line = JsonLine().format(record(f"a{end}{FORGED}", ValueError(f"b{end}{FORGED}")))

    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["message"] == f"a{end}{FORGED}"
    shown = OneLine("%(levelname)s %(message)s").format(record(f"a{end}FAKE", ValueError(f"b{end}FAKE")))
    first, *traceback = shown.splitlines()
    assert first.startswith("INFO a")
    assert first.endswith("FAKE")
    assert traceback
    assert all(line.startswith("    ") and line.isprintable() for line in traceback)


def test_a_secret_with_quotation_marks_is_taken_out_of_json(settings, request):
    settings.OPENAI_API_KEY = 'own"model\\key'
    of_installation.cache_clear()
    request.addfinalizer(of_installation.cache_clear)

    with log_fields(job='j own"model\\key'):
        line = JsonLine().format(record('sent own"model\\key', ValueError('own"model\\key')))

    assert "model" not in line
    assert json.loads(line)["message"] == "sent [redacted]"


def test_what_a_line_says_is_read_from_either_form():
    assert message_of('{"message": "No room", "level": "error"}') == "No room"
    assert message_of("Killed") == "Killed"
    assert message_of("[1]") == "[1]"
