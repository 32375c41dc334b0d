"""What works here, and how to fix what does not."""

import sys
from typing import Any

from django.core.management.base import BaseCommand

from engine.diagnosis import State, findings, title

# A risk is a failure to whoever asks whether all is well.
WORDS = {
    State.OK: "ok",
    State.OFF: "off",
    State.UNKNOWN: "?",
    State.DEGRADED: "FAIL",
    State.FAILED: "FAIL",
}


class Command(BaseCommand):
    """`manage.py doctor`."""

    help = "Look at every part that Engine needs; print one line each, and the remedy where one fails."
    requires_system_checks = []  # it explains better

    def handle(self, *args: Any, **options: Any) -> None:
        well = True
        for finding in findings():
            self.stdout.write(f"{WORDS[finding.state]:<4}  {title(finding.part):<14} {finding.detail}")
            well = well and finding.ok
            if finding.remedy:
                self.stdout.write(f"      {'':<14} To fix it: {finding.remedy}")
        if not well:
            sys.exit(1)
