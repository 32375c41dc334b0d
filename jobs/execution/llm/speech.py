"""What a model says, as lines of the job's log while it says them."""

import time

from jobs.execution.logs import LINE_CHARACTERS, LogLines

# Text without a line's end is shown after so long, up to its last whole word.
PATIENCE_SECONDS = 1.0


class Speech:
    """The text of one reply. A reply that is asked for again shows only what it says anew."""

    def __init__(self, log: LogLines, number: int) -> None:
        self._log = log
        self._number = number
        self._text = ""  # of this try
        self._shown = ""
        self._shown_at = time.monotonic()

    def restart(self) -> None:
        """The reply begins again."""
        self._text = ""

    def feed(self, text: str) -> None:
        """More of the reply has come."""
        if len(self._shown) >= len(self._text):
            self._shown_at = time.monotonic()  # nothing was waiting
        self._text += text
        if not self._goes_on():
            return
        rest = self._text[len(self._shown) :]
        end = rest.rfind("\n") + 1
        if not end and (
            time.monotonic() - self._shown_at > PATIENCE_SECONDS or len(rest) > LINE_CHARACTERS // 2
        ):
            end = rest.rfind(" ") + 1 or len(rest)
        self._show(rest[:end])

    def close(self) -> None:
        """The reply is whole."""
        if self._goes_on():
            self._show(self._text[len(self._shown) :])

    def _goes_on(self) -> bool:
        """Whether there is something beyond what was shown; a try that says something else is shown from its start."""
        if self._shown.startswith(self._text):
            return False
        if not self._text.startswith(self._shown):
            self._shown = ""
        return True

    def _show(self, text: str) -> None:
        if not text:
            return
        self._shown += text
        self._shown_at = time.monotonic()
        for line in text.rstrip("\n").split("\n"):
            if line.strip():
                self._log.say("info", line, {"reply": self._number})
