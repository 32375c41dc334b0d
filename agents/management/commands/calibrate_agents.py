"""`manage.py calibrate_agents`: measure anew what a match is, in each project's registry."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from agents import discovery
from agents.management.progress import operator
from apikeys.models import Project


class Command(BaseCommand):
    help = (
        "Takes the yardstick of discovery anew. Up to 20,000 agents a request does so itself when the registry has "
        "changed; above, run this after large changes, after `vector_index`, or each night."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--project", help="only this project's; by default every project's and staff's")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["project"]:
            callers = [operator(options["project"])]
        else:
            slugs = Project.objects.order_by("slug").values_list("slug", flat=True)
            callers = [operator(None), *map(operator, slugs)]
        for number, by in enumerate(callers, start=1):
            whose = by.project.slug if by.project else "staff"
            agents, degraded = discovery.calibrate(by)
            if degraded and agents:
                raise CommandError("The embedding model is not there: see manage.py doctor")
            self.stdout.write(f"{number}/{len(callers)} {whose}: measured over {agents} agents")
            self.stdout.flush()
