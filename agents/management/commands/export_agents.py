"""`manage.py export_agents`: the cards that import_agents takes."""

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from agents import services
from agents.management.progress import operator


class Command(BaseCommand):
    help = "Writes the cards of a project's own agents, or of the shared ones, as a JSON array on standard output."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--project", help="the project that owns them; without it the shared ones")

    def handle(self, *args: Any, **options: Any) -> None:
        cards = services.export(operator(options["project"]))
        self.stdout.write(json.dumps(cards, indent=2, ensure_ascii=False))
