"""Runs agents of the catalog as a laptop does: SDK and sandbox packages, no worker; each answer is a fresh start."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from django.conf import settings
from jsonschema import validate

from agents import shipped
from jobs.sandboxes import runtime

DATA = Path(__file__).parent / "data"
SHARED = shipped.CATALOG / shipped.SHARED_FOLDER
CARDS = {card["slug"]: card for card in shipped.catalog()}
SUSPENDED = 75


@dataclass(frozen=True)
class Run:
    """How a run ended. `error` is what the user reads, empty after success; `log` is all that was printed."""

    result: dict[str, Any]
    error: str
    log: str
    outputs: Path

    def text(self, name: str) -> str:
        """A file that was handed back."""
        return (self.outputs / name).read_text(encoding="utf-8")

    def is_png(self, name: str) -> bool:
        """Whether a picture was handed back under this name."""
        data = (self.outputs / name).read_bytes()
        return data.startswith(b"\x89PNG\r\n") and len(data) > 5000


@cache
def environment() -> dict[str, str]:
    """The packages that sandboxes have; they are built once, under a lock, if no other test has."""
    built = runtime.build(
        settings.ENGINE_RUNTIME_DIR, settings.BASE_DIR / "requirements" / "sandbox.lock"
    ).folder
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(built / "packages"),
        "MPLCONFIGDIR": str(built / "etc" / "matplotlib"),
        "OPENBLAS_NUM_THREADS": "1",
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def run_agent(
    home: Path,
    slug: str,
    task: str,
    *,
    files: Mapping[str, Any] | None = None,
    inputs: Mapping[str, Any] | None = None,
    answers: Sequence[Any] = (),
    resume: bool = False,
) -> Run:
    """Run an agent to its end. Every answer is given to a new process, which replays the journal.

    `files` are contents (bytes, text) or paths, by the name that the agent sees. `resume` starts the last run
    in this home again, as after a crash.
    """
    folder, source = home / "run", home / "agent"
    source.mkdir(parents=True, exist_ok=True)
    for name, text in CARDS[slug]["source"].items():
        (source / name).write_text(text, encoding="utf-8")
    arguments = ["--task", task, "--input", json.dumps(inputs or {}), "--folder", str(folder)]
    for name, content in (files or {}).items():
        path = home / "sent" / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, Path):
            shutil.copy(content, path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        arguments += ["--file", str(path)]
    done = start(source, ["--folder", str(folder), "--resume"] if resume else arguments)
    log = done.stdout
    for answer in answers:
        assert done.returncode == SUSPENDED, f"no question was asked:\n{done.stdout}{done.stderr}"
        record_answer(folder / "journal.ndjson", answer)
        done = start(source, ["--folder", str(folder), "--resume"])
        log += done.stdout
    assert done.returncode in (0, 1), f"{done.stdout}{done.stderr}"
    result: dict[str, Any] = {}
    if done.returncode == 0:
        assert not done.stderr, done.stderr  # it would stand in the job's log
        shown = done.stdout.rpartition("\nResult: ")[2]
        result = json.JSONDecoder().raw_decode(shown)[0]
        validate(result, CARDS[slug]["output_schema"])
    return Run(result, done.stderr.strip(), log, folder / "outputs")


def start(source: Path, arguments: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """One start of the agent. Nobody sits at the terminal, so a question ends it."""
    sdk = settings.BASE_DIR / "jobs" / "sdk" / "engine_agent.py"
    command = [sys.executable, str(sdk), "run", str(source / "agent.py"), *arguments]
    return subprocess.run(
        command, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )


def in_sandbox_python(program: str, home: Path) -> Any:
    """What a program prints as JSON, run with the sandbox's packages, the SDK and the catalog's shared modules."""
    home.mkdir(exist_ok=True)
    paths = (environment()["PYTHONPATH"], settings.BASE_DIR / "jobs" / "sdk", SHARED)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment() | {"PYTHONPATH": os.pathsep.join(map(str, paths))},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def record_answer(journal: Path, answer: Any) -> None:
    """Answer the open question as the terminal would have."""
    rows = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    answered = {row["key"] for row in rows if "answer" in row}
    key = next(row["key"] for row in rows if set(row) == {"key", "signature"} and row["key"] not in answered)
    with journal.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"key": key, "answer": answer}) + "\n")
