"""What tests of clients share: a running installation with agents that ask, print, fail and sleep."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from django.conf import settings

from engine_client import Client
from tests.processes import Instance, copy_home

# Says a line before and after it asks, and hands back the files it was given with its answers.
CLERK = """
from engine_agent import artifact, ask, inputs_dir, outputs_dir, progress

def main(task, inputs):
    print("line one")
    tone = ask("Which tone?", choices=["formal", "warm"])
    names = ask("Who?", schema={"properties": {"name": {"type": "string"}}, "required": ["name"]})
    progress(0.5, "writing")
    report = outputs_dir / "out" / "report.txt"
    report.parent.mkdir()
    report.write_text("".join(path.read_text() for path in sorted(inputs_dir.iterdir())))
    artifact(report, "out/report.txt")
    print("line two")
    return {"tone": tone, "name": names["name"]}
"""
COUNTER = """
def main(task, inputs):
    for number in range(inputs.get("lines", 300)):
        print("line", number)
    return {"lines": number + 1}
"""
SLEEPER = """
import time

def main(task, inputs):
    print("awake", flush=True)
    time.sleep(600)
"""
FAILING = """
from engine_agent import UserError

def main(task, inputs):
    raise UserError("There is no text column.", remedy="Name it in the task.")
"""


@dataclass
class Office:
    """A running installation with a worker, and a key of it."""

    instance: Instance
    key: str

    @property
    def url(self) -> str:
        return self.instance.url


def open_office(furnished_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    """One with the catalog and the agents above."""
    home = tmp_path_factory.mktemp("office") / "home"
    copy_home(furnished_home, home)
    instance = Instance(home, {"ENGINE_RUNTIME_DIR": str(settings.ENGINE_RUNTIME_DIR)})
    try:
        instance.serve()
        instance.worker()
        made = Office(instance, instance.key())
        with Client(made.url, made.key) as engine:
            sources = {"clerk": CLERK, "counter": COUNTER, "sleeper": SLEEPER, "failing": FAILING}
            for slug, source in sources.items():
                description = f"The test agent {slug}, called by its name."
                card = {"slug": slug, "name": slug, "description": description}
                engine.register({**card, "source": {"agent.py": source}})
        instance.ready()
        yield made
    finally:
        instance.stop()
