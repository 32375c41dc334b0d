"""The command `engine` as people and scripts use it, over a real server with a worker."""

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine_client import Client
from tests.clients import Office
from tests.processes import ROOT, eventually

Finished = subprocess.CompletedProcess[str]


@pytest.fixture
def api(office: Office) -> Iterator[Client]:
    with Client(office.url, office.key) as client:
        yield client


class Shell:
    """A folder, a home without a login, and the command."""

    def __init__(self, folder: Path, office: Office) -> None:
        self.folder = folder
        self.command = [sys.executable, "-m", "engine_client"]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ENGINE_")}
        self.bare = {**kept, "XDG_CONFIG_HOME": str(folder / "config"), "PYTHONPATH": str(ROOT)}
        self.env = {**self.bare, "ENGINE_URL": office.url, "ENGINE_API_KEY": office.key}

    def engine(self, *arguments: str, typed: str = "", bare: bool = False) -> Finished:
        """Run it to its end."""
        return subprocess.run(
            [*self.command, *arguments], cwd=self.folder, env=self.bare if bare else self.env, input=typed,
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def in_terminal(self, *arguments: str) -> "Terminal":
        """Start it as a person would."""
        return Terminal([*self.command, *arguments], self.folder, self.env)


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, command: list[str], folder: Path, env: dict[str, str]) -> None:
        self.said = ""
        self.pid, self.screen = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execve(command[0], command, env)

    def until(self, pattern: str, *, seconds: float = 60) -> re.Match[str]:
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.said)):
            assert time.monotonic() < deadline, f"{pattern!r} did not come:\n{self.said}"
            if select.select([self.screen], [], [], 0.2)[0]:
                try:
                    self.said += os.read(self.screen, 4096).decode(errors="replace")
                except OSError:  # Linux says so at the end
                    assert re.search(pattern, self.said), f"ended without {pattern!r}:\n{self.said}"
        return found

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())

    def exit_code(self) -> int:
        self.until(r"\Z")
        while select.select([self.screen], [], [], 60)[0]:
            try:
                self.said += os.read(self.screen, 4096).decode(errors="replace")
            except OSError:
                break
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        os.close(self.screen)


@pytest.fixture
def shell(tmp_path: Path, office: Office) -> Shell:
    return Shell(tmp_path, office)


def test_login_checks_the_key_and_keeps_it(shell: Shell, office: Office) -> None:
    missing = shell.engine("--url", office.url, "jobs", bare=True)
    assert missing.returncode == 1
    assert "engine login" in missing.stderr

    wrong = shell.engine("login", "--url", office.url, bare=True, typed="engine_live_wrong\n")
    assert wrong.returncode == 1
    kept = shell.engine("login", "--url", office.url, "--json", bare=True, typed=f"{office.key}\n")
    assert kept.returncode == 0, kept.stderr
    path = Path(json.loads(kept.stdout)["stored"])
    assert path.stat().st_mode & 0o777 == 0o600
    assert office.key not in kept.stdout + kept.stderr

    listed = shell.engine("agents", bare=True)
    assert listed.returncode == 0, listed.stderr
    assert "review-sentiment" in listed.stdout


def test_run_follows_asks_downloads_and_prints_the_result(shell: Shell) -> None:
    (shell.folder / "a.txt").write_text("one\n")

    done = shell.engine(
        "run", "write", "--agent", "clerk", "--file", "a.txt", "--follow", "--out", "out", "--json",
        typed="purple\n2\nAnn\n",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout)
    assert job["result"] == {"tone": "warm", "name": "Ann"}
    assert "? Which tone?\n  1. formal\n  2. warm" in done.stderr
    assert "one of the choices" in done.stderr
    for line in ("line one", "50% writing", "line two"):
        assert line in done.stderr
    assert (shell.folder / "out" / "out" / "report.txt").read_text() == "one\n"


def test_without_anybody_to_answer_it_says_how_to(shell: Shell) -> None:
    waiting = shell.engine("run", "write", "--agent", "clerk", "-f")
    assert waiting.returncode == 6
    command = re.search(r"engine answer (\S+)", waiting.stderr)
    assert command, waiting.stderr
    job_id = command[1]

    refused = shell.engine("answer", job_id, "shrill")
    assert refused.returncode == 1
    assert "does not fit" in refused.stderr
    assert shell.engine("answer", job_id, "formal", "--json").returncode == 0
    done = shell.engine("logs", "-f", job_id, "--out", "out", typed="Bea\n")

    assert done.returncode == 0, done.stderr
    assert '"name": "Bea"' in done.stdout
    late = shell.engine("answer", job_id, "formal")
    assert late.returncode == 1
    assert "no such open question" in late.stderr
    events = [json.loads(line) for line in shell.engine("logs", job_id, "--json").stdout.splitlines()]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))


def test_the_exit_code_tells_how_it_ended(shell: Shell, api: Client) -> None:
    failed = shell.engine("run", "try", "--agent", "failing", "--follow")
    assert failed.returncode == 3
    assert "There is no text column. Name it in the task." in failed.stderr

    rejected = shell.engine("run", "Book me a flight to Paris next Tuesday")
    assert rejected.returncode == 5
    assert "Nearest:" in rejected.stdout

    submitted = shell.engine("run", "sleep", "--agent", "sleeper", "--json")
    assert submitted.returncode == 0
    job_id = json.loads(submitted.stdout)["id"]
    assert shell.engine("cancel", job_id).returncode == 0
    eventually(lambda: api.job(job_id).is_final, seconds=60)
    assert shell.engine("logs", job_id, "-f").returncode == 4
    assert job_id in shell.engine("jobs", "--status", "cancelled").stdout


def test_ctrl_c_detaches_and_a_second_one_cancels(shell: Shell, api: Client) -> None:
    first = shell.in_terminal("run", "sleep", "--agent", "sleeper", "--follow")
    job_id = first.until(r"Job (\S+) is")[1]
    first.until("awake")
    first.type("\x03")
    assert first.exit_code() == 130
    first.close()
    assert api.job(job_id).status == "running"

    second = shell.in_terminal("logs", "-f", job_id)
    second.until("awake")
    second.type("\x03")
    second.until("Ctrl\\+C again cancels")
    second.type("\x03")
    assert second.exit_code() == 4, second.said
    second.close()
    assert api.job(job_id).status == "cancelled"


def test_a_person_answers_in_the_terminal_below_a_bar_of_progress(shell: Shell) -> None:
    terminal = shell.in_terminal("run", "write", "--agent", "clerk", "--follow")
    terminal.until("1. formal")
    terminal.type("1\n")
    terminal.until("name")
    terminal.type("Ann\n")

    assert terminal.exit_code() == 0
    terminal.close()
    assert re.search(r"\[#{12}\.{12}\]  50% writing", terminal.said)


AGENT = """
from engine_agent import inputs_dir, step
from words import count

def main(task, inputs):
    return {"words": step("count", count, task)}
"""


def test_an_agent_is_tested_here_then_registered_and_run(shell: Shell) -> None:
    folder = shell.folder / "counter-of-words"
    folder.mkdir()
    (folder / "agent.py").write_text(AGENT)
    (folder / "words.py").write_text("def count(text):\n    return len(text.split())\n")
    nothing = shell.engine("agents", "test", str(folder))
    assert nothing.returncode == 1
    assert "card.toml" in nothing.stderr
    (folder / "card.toml").write_text(
        'slug = "counter-of-words"\nname = "Counter of words"\ndescription = "Counts the words of a task."\n'
    )

    tried = shell.engine("agents", "test", str(folder), "--task", "one two three", "--json", bare=True)
    assert tried.returncode == 0, tried.stderr
    assert json.loads(tried.stdout) == {"result": {"words": 3}}

    registered = shell.engine("agents", "register", str(folder), "--json")
    assert json.loads(registered.stdout)["version"] == 1, registered.stderr
    done = shell.engine("run", "one two", "--agent", "counter-of-words", "--follow", "--json")
    assert json.loads(done.stdout)["result"] == {"words": 2}

    (folder / "agent.py").write_text("def main(:\n")
    broken = shell.engine("agents", "test", str(folder))
    assert broken.returncode == 1
    assert "not valid Python" in broken.stderr
    refused = shell.engine("agents", "register", str(folder), "--json")
    assert refused.returncode == 1
    assert json.loads(refused.stdout)["error"]["code"] == "invalid_card"
    assert "/source/agent.py" in refused.stderr


def test_keys_are_made_listed_and_revoked(shell: Shell) -> None:
    made = json.loads(shell.engine("keys", "create", "ci", "--scope", "jobs:read", "--json").stdout)
    shell.env["ENGINE_API_KEY"], mighty = made["secret"], shell.env["ENGINE_API_KEY"]
    lacks = shell.engine("keys")
    assert lacks.returncode == 1
    assert "admin:keys" in lacks.stderr

    shell.env["ENGINE_API_KEY"] = mighty
    assert shell.engine("keys", "revoke", made["id"]).returncode == 0
    assert re.search(rf"{made['id']}\s+ci\s+revoked", shell.engine("keys").stdout)


def test_discover_says_who_and_why(shell: Shell) -> None:
    found = json.loads(shell.engine("discover", "Analyze the sentiment of reviews", "--json").stdout)

    assert found["results"][0]["agent"] == "review-sentiment"
    assert "review-sentiment" in shell.engine("discover", "Analyze the sentiment of reviews").stdout


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_every_shell_gets_a_completion(shell: Shell, name: str) -> None:
    assert "_ENGINE_COMPLETE" in shell.engine("completion", name, bare=True).stdout


def test_what_an_agent_says_has_no_effect_on_the_terminal() -> None:
    from engine_client import Event
    from engine_client.cli.terminal import line_of

    event = Event({}, seq=1, type="log", message="red\x1b[31m\rover\u202e\nnext")

    assert line_of(event) == "red\\x1b[31m\n    over\\u202e\n    next"
