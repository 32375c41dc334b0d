"""`manage.py import_agents`: many cards from one file."""

import json
import sys
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from agents import discovery, services
from agents.errors import AgentArchived, InvalidCard
from agents.management.progress import operator, show_progress


class Command(BaseCommand):
    help = "Registers the agent cards in a file: a JSON array, or one card per line. Repeating it changes nothing."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", help="path of the file, or - for standard input")
        parser.add_argument(
            "--project", help="the project that shall own them; without it all projects share them"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        by = operator(options["project"])
        try:
            text = sys.stdin.read() if options["file"] == "-" else Path(options["file"]).read_text("utf-8")
            cards = self._cards(text)
        except (OSError, ValueError) as error:
            raise CommandError(f"{options['file']} cannot be read: {error}") from error
        try:
            versions = services.put_many(by, cards, show_progress(self, "registered"))
        except InvalidCard as error:
            faults = "\n".join(f"  {fault['pointer']}: {fault['detail']}" for fault in error.errors)
            raise CommandError(f"{error.detail}\n{faults}") from error
        except AgentArchived as error:
            raise CommandError(error.detail) from error
        discovery.prepare(by)
        self.stdout.write(f"{len(versions)} agents are registered")

    @staticmethod
    def _cards(text: str) -> list[Any]:
        if text.lstrip().startswith("["):
            return list(json.loads(text))
        return [json.loads(line) for line in text.splitlines() if line.strip()]
