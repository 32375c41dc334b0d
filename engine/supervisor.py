"""Keeps a few child processes running, and leaves none behind."""

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from engine.logs import message_of, printable, tell

FIRST_BACKOFF, LONGEST_BACKOFF = 0.5, 30.0  # seconds before a child that died is started again
STEADY_SECONDS = 60.0  # a child that lived so long starts over with the first backoff
PR_SET_PDEATHSIG = 1


@dataclass
class Child:
    """One program to keep running."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str] | None = None
    log: Path | None = None
    pass_fds: Sequence[int] = ()
    process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)
    backoff: float = field(default=FIRST_BACKOFF, init=False)
    failures: int = field(default=0, init=False)
    started: float = field(default=0.0, init=False)
    start_at: float = field(default=0.0, init=False)

    def start(self) -> None:
        """Start it. If we are killed, the kernel sends it SIGTERM."""
        with self.output() as output:
            self.process = subprocess.Popen(
                self.command,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                pass_fds=self.pass_fds,
                process_group=0,  # Ctrl+C is for the supervisor, which then drains its children in order
                preexec_fn=die_with_parent(os.getpid()),
            )
        self.started = time.monotonic()

    def last_words(self) -> str:
        """The last line of its log."""
        if self.log is None or not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
        return next((printable(message_of(line.strip())) for line in reversed(lines) if line.strip()), "")

    @contextlib.contextmanager
    def output(self) -> Iterator[IO[bytes] | None]:
        """Where its output goes: the end of its log, or where ours goes."""
        if self.log is None:
            yield None
        else:
            with self.log.open("ab") as file:
                yield file


def warn(text: str) -> None:
    """Tell of what should not have happened."""
    tell(text, level=logging.WARNING)


class Supervisor:
    """Starts children, restarts those that die, stops all of them on SIGTERM or SIGINT."""

    def __init__(
        self,
        children: Sequence[Child],
        *,
        grace_seconds: float,
        say: Callable[[str], None] = warn,
    ) -> None:
        self.children = list(children)
        self.grace_seconds = grace_seconds
        self.say = say
        self.signals = 0

    def run(self) -> None:
        """Run until told to stop; return when no child is left."""
        self.catch_signals()
        self.start()
        while not self.signals:
            self.watch()
            time.sleep(0.1)
        self.stop()

    def catch_signals(self) -> None:
        """From now on SIGTERM and SIGINT only count: whoever runs the loop looks at `signals`."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        self.signals += 1

    def start(self) -> None:
        """Start every child."""
        for child in self.children:
            child.start()

    def watch(self) -> None:
        """Notice who died, and start those whose time has come."""
        now = time.monotonic()
        for child in self.children:
            if child.process is None:
                if now >= child.start_at:
                    child.start()
            elif child.process.poll() is not None:
                if now - child.started > STEADY_SECONDS:
                    child.backoff = FIRST_BACKOFF
                child.failures += 1
                self.say(
                    f"{child.name} ended ({describe(child.process.returncode)}), and is started again in "
                    f"{child.backoff:g} s. {child.last_words()}".rstrip()
                )
                child.process, child.start_at = None, now + child.backoff
                child.backoff = min(child.backoff * 2, LONGEST_BACKOFF)

    def stop(self) -> None:
        """Drain all children and wait for them; a second signal, or the end of the grace, kills what is left."""
        running = [child.process for child in self.children if child.process is not None]
        for process in running:
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + self.grace_seconds
        asked = self.signals
        while any(process.poll() is None for process in running):
            if time.monotonic() > deadline or self.signals > asked + 1:
                for process in running:
                    process.kill()
            elif self.signals > asked:
                asked = self.signals
                for process in running:
                    process.terminate()  # hands back at once what it still has
            time.sleep(0.05)


def describe(code: int) -> str:
    """An exit code in words."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def die_with_parent(parent: int) -> Callable[[], None] | None:
    """What a child does, between fork and exec, so that the kernel sends it SIGTERM when `parent` dies (Linux)."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)  # it died before we asked

    return ask
