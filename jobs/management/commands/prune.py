"""`manage.py prune`: forget finished jobs of a certain age now, instead of when a worker gets to it."""

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from jobs import retention


class Command(BaseCommand):
    help = "Delete jobs that ended more than --days days ago, with their files and events."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--days", type=int, default=settings.ENGINE_RETENTION_DAYS, help="default: ENGINE_RETENTION_DAYS"
        )

    def handle(self, **options: Any) -> None:
        if options["days"] < 1:
            raise CommandError(
                "Nothing is forgotten: give --days, or set ENGINE_RETENTION_DAYS to 1 or more."
            )
        pruned = retention.prune(options["days"], tell=lambda jobs: self.stdout.write(f"{jobs} jobs …"))
        self.stdout.write(
            f"Forgot {pruned.jobs} jobs and {pruned.files} files; "
            f"dropped {len(pruned.partitions)} weeks of events: {', '.join(pruned.partitions) or 'none'}."
        )
