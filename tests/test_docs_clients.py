"""Every block of docs/clients.md runs as it stands there, against a real server with a worker."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from playwright._impl._driver import compute_driver_executable

from tests.clients import Office
from tests.processes import ROOT

SECTIONS = {"curl": "sh", "Python": "python", "Command line": "sh", "JavaScript": "js", "Claude Code": "sh"}


def blocks(section: str, language: str) -> list[str]:
    text = (ROOT / "docs" / "clients.md").read_text()
    (body,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    found = re.findall(r"^```(\w+)\n(.*?)^```", body, re.DOTALL | re.MULTILINE)
    assert {name for name, _ in found} == {language}
    return [block for _, block in found]


def interpreter(language: str) -> list[str]:
    node, _ = compute_driver_executable()  # a Node.js that the tests' own dependencies bring
    return {
        "sh": ["bash", "-euo", "pipefail"],
        "python": [sys.executable],
        "js": [str(node)],
    }[language]


@pytest.mark.parametrize("section", SECTIONS)
def test_the_blocks_of(section: str, office: Office, tmp_path: Path) -> None:
    shutil.copy(ROOT / "samples" / "reviews.csv", tmp_path)
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "engine").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m engine_client "$@"\n')
    (commands / "engine").chmod(0o755)
    # Claude Code is not there: what it would be told is what the block has to say.
    (commands / "claude").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (commands / "claude").chmod(0o755)
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("ENGINE_")},
        "ENGINE_URL": office.url,
        "ENGINE_API_KEY": office.key,
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "PYTHONPATH": str(ROOT),
        "PATH": f"{commands}:{os.environ['PATH']}",
    }
    language = SECTIONS[section]

    said = ""
    for number, block in enumerate(blocks(section, language)):
        script = tmp_path / f"block-{number}.{'mjs' if language == 'js' else language}"
        script.write_text(block)
        done = subprocess.run(
            [*interpreter(language), script.name], cwd=tmp_path, env=env, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=180, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        said += done.stdout

    assert any(word in said for word in ("completed", "positive", "review-sentiment"))
    if section == "Claude Code":
        assert said.startswith(
            f"mcp\nadd\n--transport\nhttp\nengine\n{office.url}/mcp\n--header\nAuthorization: Bearer {office.key}\n"
        )
