"""What `make run` runs."""

import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from engine.installation import prepare_sandbox
from engine.launch import launch
from engine.steps import StepFailed


class Command(BaseCommand):
    help = "Prepare what is missing, start the web process and a worker, and keep them up until Ctrl+C."
    requires_system_checks = []  # each child checks; twice would only take longer

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--no-sample", action="store_true", help="do not run the sample job on the first start"
        )
        parser.add_argument("--prepare", action="store_true", help="only get the sandbox ready, then end")
        parser.add_argument(
            "--end-with-parent", action="store_true", help="stop when whoever started it is killed"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            if options["prepare"]:
                prepare_sandbox()
            else:
                launch(sample=not options["no_sample"], end_with_parent=options["end_with_parent"])
        except StepFailed:
            sys.exit(1)  # told already, with the remedy
