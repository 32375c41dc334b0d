"""Filling an empty installation from a folder."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from engine import backup


class Command(BaseCommand):
    """`manage.py restore FOLDER`."""

    help = (
        "Fill an empty database, and the storage, from what manage.py backup made. No process of Engine may run on it "
        "meanwhile, nor go on on the database that it is a copy of."
    )
    requires_system_checks = []  # there are no tables yet

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("folder", type=Path, help="what manage.py backup made")
        parser.add_argument(
            "--without-files", action="store_true", help="the database alone: the bucket is there"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            found = backup.restore(options["folder"].absolute(), with_files=not options["without_files"])
        except (backup.BackupFailed, OSError) as error:
            raise CommandError(str(error)) from error
        self.stdout.write(
            f"Restored Engine {found.engine} as of {found.made_at}. Now: manage.py release, then start the processes. "
            "What ran then is found by the workers' sweep and goes on from its last step; what waits, waits."
        )
