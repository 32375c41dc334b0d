"""`manage.py vector_index`: an approximate index for large registries, and none for others."""

from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandParser

from agents import vector_index


class Command(BaseCommand):
    help = (
        "Builds the vector index where some project sees more than 20,000 agents, drops it otherwise, and says why. "
        "Discovery answers meanwhile, and is calibrated anew after a change."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
        parser.add_argument(
            "--drop", action="store_true", help="drop the index, whatever the registry's size"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        planned = vector_index.active_plan()
        if planned is None:
            self.stdout.write("No agent has a vector yet: there is nothing to index")
            return
        if options["drop"]:
            planned = vector_index.unwanted(planned)
        if options["dry_run"]:
            should = "should have an index" if planned.wanted else "should have no index"
            self.stdout.write(f"{planned.space} {should}: {planned.why}")
            return
        changed = vector_index.apply(planned, self.stdout.write)
        vector_index.drop_idle(self.stdout.write)
        if changed:
            call_command("calibrate_agents", stdout=self.stdout)  # a large registry is surveyed with it
