"""What works here, and how to fix what does not."""

import sys
from typing import Any

from django.core.management.base import BaseCommand

from engine.diagnosis import findings


class Command(BaseCommand):
    """`manage.py doctor`."""

    help = "Look at every part that Engine needs; print one line each, and the remedy where one fails."
    requires_system_checks = []  # it explains better

    def handle(self, *args: Any, **options: Any) -> None:
        well = True
        for finding in findings():
            self.stdout.write(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.part:<14} {finding.detail}")
            if not finding.ok:
                well = False
                self.stdout.write(f"      {'':<14} To fix it: {finding.remedy}")
        if not well:
            sys.exit(1)
