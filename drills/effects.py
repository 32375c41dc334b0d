"""What agents really did, seen from outside: each tells of its effects through a pipe that leads out of its sandbox.

The pipe stands in the sandboxes' own /etc, put there for the drill: a sandbox has no network and no folder in common
with the host. A write of a line is atomic and the kernel keeps the order, so lines of different programs can be
compared: what was written later happened later.
"""

import json
import os
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.sandboxes import runtime

DOOR = "effects"

# Inputs: the name of the job in the drill, steps, seconds of each, whether it asks. A program names itself at random.
AGENT = f"""
import json, os, time
from engine_agent import ask, idempotency_key, progress, step

PROGRAM = os.urandom(6).hex()
DOOR = os.open("/etc/{DOOR}", os.O_WRONLY)

def tell(job, what, **more):
    os.write(DOOR, (json.dumps({{"job": job, "program": PROGRAM, "what": what, **more}}) + "\\n").encode())

def work(job, number, seconds):
    value = os.urandom(6).hex()
    tell(job, "effect", step=number, value=value, key=idempotency_key())
    time.sleep(seconds)
    return value

def main(task, inputs):
    job = inputs["drill"]
    tell(job, "begin")
    values = []
    for number in range(inputs["steps"]):
        values.append(step("work", work, job, number, inputs["seconds"]))
        tell(job, "kept", step=number)
        print("step", number, flush=True)
        if inputs.get("ask") and number == 0:
            values.append(ask("Which word?"))
            tell(job, "answered")
    tell(job, "end")
    return {{"values": values}}
"""


def runtime_with_door(built: Path, lock: Path, home: Path) -> Path:
    """A runtime folder like `built`, but with the pipe in its /etc. Raises FileNotFoundError if there is none."""
    found = runtime.find(built, lock)
    if found is None:
        raise FileNotFoundError(
            f"{built} holds no sandbox runtime: run python manage.py build_runtime first."
        )
    folder = home / "runtime"
    copy = folder / found.folder.name
    shutil.copytree(found.folder, copy, symlinks=True, copy_function=_link)
    os.mkfifo(copy / "etc" / DOOR)
    (copy / "etc" / DOOR).chmod(0o666)
    return folder


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


@dataclass
class _Seen:
    """One job as its programs told of it."""

    programs: list[str] = field(default_factory=list)  # in the order of their first line
    bodies: dict[int, int] = field(default_factory=lambda: defaultdict(int))  # step -> times its body began
    kept: set[int] = field(default_factory=set)  # steps that returned: their end was durable
    last_value: dict[int, str] = field(default_factory=dict)
    keys: dict[int, str] = field(default_factory=dict)


class Effects:
    """Reads the pipe while the drill runs, and judges each line as it comes."""

    def __init__(self, door: Path) -> None:
        # For writing too: the pipe then never ends, whatever opens and closes it.
        self._pipe = os.open(door, os.O_RDWR | os.O_CLOEXEC)
        self._seen: dict[str, _Seen] = defaultdict(_Seen)
        self.last_words: dict[str, float] = {}  # program -> when it was last heard, in seconds since 1970
        self._thread = threading.Thread(target=self._read, name="effects", daemon=True)
        self._thread.start()
        self.total = 0
        self.doubled: list[str] = []  # a step's body began although its end was durable
        self.side_by_side: list[str] = []  # a program acted after its successor had begun
        self.other_keys: list[str] = []  # a body that ran again had another idempotency key

    def _read(self) -> None:
        rest = b""
        while True:
            *lines, rest = (rest + os.read(self._pipe, 65_536)).split(b"\n")
            for line in lines:
                if line == b"over":
                    return
                self._judge(json.loads(line))

    def _judge(self, line: dict[str, Any]) -> None:
        seen, where = self._seen[line["job"]], f"job {line['job']} step {line.get('step')}"
        self.last_words[line["program"]] = time.time()
        if line["program"] not in seen.programs:
            seen.programs.append(line["program"])
        elif line["program"] != seen.programs[-1]:
            self.side_by_side.append(f"{where}: {line}")
        if line["what"] == "kept":
            seen.kept.add(line["step"])
        if line["what"] == "effect":
            self.total += 1
            seen.bodies[line["step"]] += 1
            seen.last_value[line["step"]] = line["value"]
            if line["step"] in seen.kept:
                self.doubled.append(where)
            if seen.keys.setdefault(line["step"], line["key"]) != line["key"]:
                self.other_keys.append(where)

    def close(self) -> None:
        """Read what is left, then stop."""
        os.write(self._pipe, b"over\n")
        self._thread.join()
        os.close(self._pipe)

    def latest_program(self, drill: str) -> str:
        """The program that acts for that job now; empty while none has begun."""
        return next(reversed(self._seen[drill].programs), "") if drill in self._seen else ""

    @property
    def cut_bodies(self) -> int:
        """How often a step's body began again because its first run was cut off: at least once, by design."""
        return sum(times - 1 for seen in self._seen.values() for times in seen.bodies.values())

    def unexplained(self, results: Iterable[tuple[str, dict[str, Any]]]) -> list[str]:
        """Of (drill, result) those results that hold a step's value which is not that of its last run."""
        return [
            drill
            for drill, result in results
            if not set(self._seen[drill].last_value.values()) <= set(result["values"])
        ]
