"""What a program prints, as the lines of its job's log."""

import re
from collections import deque

from jobs.execution.ports import Recorder

LINE_CHARACTERS = 16 * 1024
# Of one job, over all its attempts.
MOST_LINES = 100_000
MOST_BYTES = 32 * 1024 * 1024
KEPT_LINES = 20  # of standard error, for the error of a program that crashed

# Escape sequences and control characters: a log may be shown in a terminal. A tab is harmless.
_CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b.|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


class LogLines:
    """Cuts output into lines, cleans and counts them, and stops with one visible mark at the job's caps."""

    def __init__(self, recorder: Recorder, *, lines: int = 0, bytes: int = 0) -> None:
        self._recorder = recorder
        self._lines = lines
        self._bytes = bytes
        self._rest = {"stdout": b"", "stderr": b""}
        self._skipping = {"stdout": False, "stderr": False}  # the rest of a line that was cut
        self._full = False
        self.last_errors: deque[str] = deque(maxlen=KEPT_LINES)

    def feed(self, source: str, data: bytes) -> None:
        """Take a piece of output, cut anywhere."""
        whole, newline, rest = data.rpartition(b"\n")
        if newline:
            lines = (self._rest[source] + whole).decode("utf-8", "backslashreplace").split("\n")
            self._rest[source] = rest
            if self._skipping[source]:
                self._skipping[source] = False
                del lines[0]
            for line in lines:
                self._line(source, line)
        else:
            self._rest[source] += data
        self._bound(source)

    def close(self) -> None:
        """The output has ended: what has no newline is a line too."""
        for source, rest in self._rest.items():
            if rest and not self._skipping[source]:
                self._line(source, rest.decode("utf-8", "backslashreplace"))
            self._rest[source] = b""

    def _bound(self, source: str) -> None:
        """Hold no more than a line's worth, however long the line becomes."""
        rest = self._rest[source]
        if self._skipping[source]:
            self._rest[source] = b""
        elif len(rest) > LINE_CHARACTERS:
            rest = rest[rest.rfind(b"\r") + 1 :]  # a progress bar draws over itself
            if len(rest) > LINE_CHARACTERS:
                self._line(source, rest.decode("utf-8", "backslashreplace") + " …")
                self._skipping[source], rest = True, b""
            self._rest[source] = rest

    def _line(self, source: str, line: str) -> None:
        line = line.rstrip("\r")
        if "\r" in line:
            line = line.rsplit("\r", 1)[1]
        line = self._clean(line)
        if source == "stderr":
            self.last_errors.append(line)
        if self._counts(line):
            self._recorder.event("log", message=line, source=source)

    def say(self, level: str, message: str, data: dict[str, object] | None = None) -> None:
        """A line that the agent logged by name."""
        message = self._clean(message)
        if self._counts(message):
            self._recorder.event("log", message=message, level=level, source="agent", data=data)

    @staticmethod
    def _clean(line: str) -> str:
        if not line.isprintable():
            line = _CONTROL.sub("", line)
        if len(line) > LINE_CHARACTERS:
            line = f"{line[:LINE_CHARACTERS]} … [cut: a line holds {LINE_CHARACTERS:,} characters at most]"
        return line

    def _counts(self, line: str) -> bool:
        """Whether this line still fits into the job's log."""
        if self._full:
            return False
        self._lines += 1
        self._bytes += len(line) if line.isascii() else len(line.encode("utf-8", "replace"))
        if self._lines <= MOST_LINES and self._bytes <= MOST_BYTES:
            return True
        self._full = True
        self._recorder.event(
            "log.truncated",
            level="warning",
            message=f"The log ends here: a job's log holds {MOST_LINES:,} lines and {MOST_BYTES >> 20} MB at most.",
            data={"lines": self._lines, "bytes": self._bytes},
        )
        return False
