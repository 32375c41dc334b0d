"""Copying an installation to a folder."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from engine import backup


class Command(BaseCommand):
    """`manage.py backup FOLDER`."""

    help = (
        "Copy the database (pg_dump) and the files of jobs to a folder, while Engine runs. Into the same folder again: "
        "only files that are new are copied. SECRET_KEY is not in it: keep it where you keep passwords."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("folder", type=Path, help="where to; it is made, for its owner alone")
        parser.add_argument(
            "--without-files", action="store_true", help="the database alone: the bucket has its own copy"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            made = backup.backup(options["folder"].absolute(), with_files=not options["without_files"])
        except (backup.BackupFailed, OSError) as error:
            raise CommandError(str(error)) from error
        self.stdout.write(
            f"Backed up to {options['folder']}: the database, {made.files} files, {made.file_bytes} bytes."
        )
