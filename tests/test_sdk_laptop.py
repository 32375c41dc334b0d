"""An author tries an agent without Engine: same file, questions on the terminal, a journal in a folder."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from jobs.sdk import engine_agent

AGENT = """
    from pathlib import Path
    from engine_agent import *

    def load(name):
        print("loading")
        rows = (inputs_dir / name).read_text().splitlines()
        Path("rows.txt").write_text(str(len(rows)))
        return rows

    def main(task, inputs):
        rows = step("load", load, "data.csv")
        assert Path("rows.txt").read_text() == str(len(rows))
        log("loaded", rows=len(rows))
        progress(0.5, "half way")
        tone = ask("Which tone?", choices=["formal", "warm"])
        parts = ask("Which parts?", choices=["a", "b", "c"], multi=True)
        sure = ask("Sure?", kind="confirm", default=True)
        form = ask("Who?", schema={"properties": {"name": {"type": "string"}}})
        paid = approve("pay", {"amount": 3})
        artifact(b"done", "report.txt")
        return {"task": task, "inputs": inputs, "rows": rows, "tone": tone, "parts": parts, "sure": sure,
                "form": form, "paid": [paid.decision, paid.arguments, paid.approved]}
"""
ANSWERS = 'purple\n2\na, 3\n\n{"name": "Ann"}\nedit {"amount": 2}\n'


class Laptop:
    """A folder with an agent in it, and the command that runs it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "agent.py").write_text(textwrap.dedent(AGENT))
        (folder / "data.csv").write_text("a\nb\n")

    def run(self, *arguments: str, typed: str = "") -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, engine_agent.__file__, "run", "agent.py", *arguments]
        return subprocess.run(
            command, cwd=self.folder, input=typed, capture_output=True, text=True, timeout=60
        )


@pytest.fixture
def laptop(tmp_path: Path) -> Laptop:
    return Laptop(tmp_path)


def test_an_agent_runs_with_its_questions_on_the_terminal(laptop: Laptop) -> None:
    done = laptop.run("--task", "Try it", "--file", "data.csv", "--input", '{"x": 1}', typed=ANSWERS)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.split("\nResult: ")[1].split("\nArtifacts:")[0]) == {
        "task": "Try it",
        "inputs": {"x": 1},
        "rows": ["a", "b"],
        "tone": "warm",
        "parts": ["a", "c"],
        "sure": True,
        "form": {"name": "Ann"},
        "paid": ["edit", {"amount": 2}, True],
    }
    assert "a number from 1 to 2" in done.stdout  # purple is none of the choices
    assert "[info] loaded {'rows': 2}" in done.stdout
    assert (laptop.folder / "engine-run" / "outputs" / "report.txt").read_text() == "done"


def test_a_form_takes_what_its_schema_allows_alone(laptop: Laptop) -> None:
    wrong = '3\n{"name": 4}\n{"nmae": "Ann"}\n'
    done = laptop.run(
        "--task", "T", "--file", "data.csv", typed=ANSWERS.replace('{"name"', wrong + '{"name"', 1)
    )

    assert done.returncode == 0, done.stderr
    assert '"name": "Ann"' in done.stdout
    for told in ("a JSON object, such as", "name must be of type string", "there is no field nmae"):
        assert told in done.stdout


def test_a_run_that_stopped_at_a_question_resumes_there(laptop: Laptop) -> None:
    first = laptop.run("--file", "data.csv", typed="warm\n")
    second = laptop.run("--resume", typed=ANSWERS.split("\n", 2)[2])

    assert first.returncode == 75
    assert "--resume" in first.stdout
    assert second.returncode == 0, second.stderr
    assert "loading" in first.stdout
    assert "loading" not in second.stdout  # the step is not run again, and what came before is not said again
    assert "Which tone?" not in second.stdout
    assert '"tone": "warm"' in second.stdout


def test_a_fresh_run_forgets_the_last_one(laptop: Laptop) -> None:
    laptop.run("--file", "data.csv", typed="warm\n")

    again = laptop.run("--file", "data.csv", typed="warm\n")

    assert "loading" in again.stdout


def test_a_folder_with_other_files_is_left_alone(laptop: Laptop) -> None:
    done = laptop.run("--folder", ".")

    assert done.returncode == 2
    assert "name another folder" in done.stderr
    assert (laptop.folder / "data.csv").exists()


def test_resume_without_a_run_says_so(laptop: Laptop) -> None:
    done = laptop.run("--resume")

    assert done.returncode == 2
    assert "no earlier run" in done.stderr


def test_an_error_for_the_user_is_shown_as_one(laptop: Laptop) -> None:
    (laptop.folder / "agent.py").write_text(
        "from engine_agent import UserError\ndef main(task, inputs): raise UserError('No column.', 'Name one.')\n"
    )

    done = laptop.run()

    assert done.returncode == 1
    assert done.stderr.strip() == "Failed (user_error): No column. Name one."


def test_a_broken_agent_shows_its_traceback(laptop: Laptop) -> None:
    (laptop.folder / "agent.py").write_text("def main(task, inputs):\n    return 1 / 0\n")

    done = laptop.run()

    assert done.returncode == 1
    assert "return 1 / 0" in done.stderr
    assert "Failed (agent_error): division by zero" in done.stderr
