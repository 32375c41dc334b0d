"""`manage.py register_catalog`: the agents that ship with Engine."""

from typing import Any

from django.core.management.base import BaseCommand

from agents import discovery, indexing, services, shipped
from agents.errors import AgentArchived
from agents.management.progress import operator, show_progress


class Command(BaseCommand):
    help = "Registers the shipped agents for every project and embeds them. Repeating it changes nothing."

    def handle(self, *args: Any, **options: Any) -> None:
        by = operator(None)
        cards = shipped.catalog()
        for done, card in enumerate(cards, start=1):
            try:
                version, is_new = services.put(by, card)
                note = "registered" if is_new else "unchanged"
                self.stdout.write(f"{done}/{len(cards)} {version.ref} {note}")
            except AgentArchived:
                self.stdout.write(f"{done}/{len(cards)} {card['slug']} is archived and stays so")
        if not indexing.complete(show_progress(self, "embedded")):
            self.stderr.write("The embedding model is not available: agents are found by their words alone.")
        discovery.discover(by, "Calibrate before the first task comes")
