"""The agent that reads logs: formats, patterns of errors, and when they came."""

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.catalog import CARDS, DATA, in_sandbox_python, run_agent

SLUG = "log-analyser"
APP_LOG = textwrap.dedent("""\
    2026-03-01 10:00:00,100 INFO shop.web: started on port 8000
    2026-03-01 10:00:05,200 ERROR shop.pay: Timeout after 3021 ms for order 1001
    Traceback (most recent call last):
      File "pay.py", line 8, in charge
    TimeoutError: no reply from 10.0.0.7:8443
    2026-03-01 10:01:05,200 ERROR shop.pay: Timeout after 4100 ms for order 1002
    Traceback (most recent call last):
      File "pay.py", line 8, in charge
    TimeoutError: no reply from 10.0.0.8:8443
    2026-03-01 10:02:00,000 WARNING shop.db: slow query 812 ms
    2026-03-01 10:03:00,000 CRITICAL shop.db: disk full
""")

LINES: dict[str, Any] = {
    '10.0.0.1 - - [05/Jan/2026:03:04:05 +0100] "GET /api/orders/7?x=1 HTTP/1.1" 502 10 "-" "curl"': (
        ["web server access log", "2026-01-05T02:04:05", "error", "GET /api/orders/… → Bad Gateway"]
    ),
    "E0102 03:04:05.678901 12345 server.go:42] cannot bind": [
        "Google log (glog, klog)", "01-02T03:04:05", "error", "cannot bind",
    ],
    "[Sat Jan 03 03:04:05.123456 2026] [core:error] [pid 1] File does not exist": [
        "Apache error log", "2026-01-03T03:04:05", "error", "[pid 1] File does not exist",
    ],
    "Jan  3 06:26:19 host sshd[123]: Failed password for root": [
        "syslog", "01-03T06:26:19", "error", "sshd[123]: Failed password for root",
    ],
    "<34>1 2026-01-03T03:04:05.003Z host app 77 - - started": [
        "syslog (RFC 5424)", "2026-01-03T03:04:05", "info", "app 77 - - started",
    ],
    "2026/01/03 03:04:05 [error] 9#0: connect() failed": [
        "application log", "2026-01-03T03:04:05", "error", "9#0: connect() failed",
    ],
    "2026-01-03T03:04:05+02:00 WARN Foo - retrying": [
        "application log", "2026-01-03T01:04:05", "warning", "Foo - retrying",
    ],
    '{"time": 1767225600123, "level": 50, "msg": "db down"}': [
        "JSON lines", "2026-01-01T00:00:00", "error", "db down",
    ],
    '{"@timestamp": "2026-01-03T03:04:05Z", "severity": "WARNING", "message": "low"}': [
        "JSON lines", "2026-01-03T03:04:05", "warning", "low",
    ],
    "ERROR: disk full": ["levels without times", None, "error", "disk full"],
    "  at com.example.Main.run(Main.java:7)": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What the agent reads in each of LINES."""
    home = tmp_path_factory.mktemp("formats")
    (home / "formats.py").write_text(CARDS[SLUG]["source"]["formats.py"], encoding="utf-8")
    program = f"""
import json, sys; sys.path.insert(0, ".")
from formats import parse
print(json.dumps([parse(line) for line in {list(LINES)!r}], default=lambda time: time.isoformat()))
"""
    found: list[Any] = in_sandbox_python(program, home)
    return found


@pytest.mark.parametrize("line", LINES)
def test_common_formats_are_recognised(parsed: list[Any], line: str) -> None:
    found, expected = parsed[list(LINES).index(line)], LINES[line]

    if found and expected and expected[1]:  # a year that is not written depends on the day of the test
        assert found[1].endswith(expected[1])
        found[1] = expected[1]
    assert found == expected


def test_messages_that_differ_in_numbers_and_addresses_are_one_pattern(tmp_path: Path) -> None:
    run = run_agent(tmp_path, SLUG, "What went wrong?", files={"app.log": APP_LOG})

    assert (run.result["records"], run.result["errors"]) == (5, 3)
    assert run.result["levels"] == {"info": 1, "warning": 1, "error": 2, "critical": 1}
    worst = run.result["clusters"][0]
    assert worst["count"] == 2
    assert "Timeout after <NUM> ms for order <NUM> | TimeoutError: no reply from <IP>" in worst["template"]
    assert (worst["first"], worst["last"]) == ("2026-03-01 10:00", "2026-03-01 10:01")
    assert 'File "pay.py", line 8' in worst["example"]
    assert "2 times, error" in run.text("report.md")
    assert run.text("error_clusters.csv").startswith("count,level,template")
    assert run.is_png("timeline.png")


def test_the_time_of_an_outage_stands_out(tmp_path: Path) -> None:
    run = run_agent(tmp_path, SLUG, "When did it fail?", answers=["Yes, proceed with the analysis"])

    assert run.result["peaks"][0]["from"] == "2026-03-14 13:30"
    assert run.result["peaks"][0]["errors"] > 10 * run.result["peaks"][0]["usual"]


def test_several_files_are_read_as_one_log(tmp_path: Path) -> None:
    later = APP_LOG.replace("2026-03-01", "2026-03-02").encode("utf-16")

    run = run_agent(tmp_path, SLUG, "Errors", files={"a.log": APP_LOG, "b.log": later})

    assert run.result["files"] == ["a.log", "b.log"]
    assert run.result["clusters"][0]["count"] == 4
    assert (run.result["from"], run.result["to"]) == ("2026-03-01 10:00", "2026-03-02 10:03")


def test_a_log_without_times_is_counted_along_its_lines(tmp_path: Path) -> None:
    run = run_agent(
        tmp_path, SLUG, "Errors", files={"n.log": "ERROR: disk full\nINFO: fine\nERROR: disk full\n"}
    )

    assert run.result["from"] is None
    assert run.result["clusters"][0]["count"] == 2
    assert run.is_png("timeline.png")


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("empty.log", b"", "empty.log is empty. Send a log with lines in it."),
        ("app.log.gz", b"\x1f\x8b\x08\x00" + bytes(50), "is a gzip archive, not a text log. Unpack it"),
        ("core.log", bytes(range(256)) * 20, "is not text: it holds binary data"),
        ("report.log", DATA / "report.pdf", "is a PDF document, not a text log"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path: Path, name: str, content: bytes | Path, error: str) -> None:
    run = run_agent(tmp_path, SLUG, "Errors", files={name: content})

    assert error in run.error


def test_a_text_that_is_no_log_is_doubted_in_the_job_log(tmp_path: Path) -> None:
    run = run_agent(tmp_path, SLUG, "Errors", files={"poem.txt": "The kettle sings\nand so do we\n"})

    assert json.dumps(run.result["clusters"]) == "[]"
    assert "is this a log?" in run.log
