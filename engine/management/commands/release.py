"""What a deployment runs once, before its processes start."""

import time
from typing import Any

import psycopg
from django.core.management import call_command
from django.core.management.base import BaseCommand

from engine.database import direct_dsn

LOCK = 0x456E67696E65  # "Engine": of all deployments that share a database, one at a time
LOOK_SECONDS = 0.5


class Command(BaseCommand):
    """`manage.py release`: tables and shipped agents of this release."""

    help = (
        "Bring the database up to this release: migrations, then the agents that ship with Engine. Started twice "
        "at once, the second waits and finds nothing to do. The processes of the release before go on meanwhile."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        # A lock of the session, past any pooler: it is gone with this process, however that ends.
        with psycopg.connect(direct_dsn(), autocommit=True) as holder:
            # Asked for again and again: an index that is built concurrently waits for whoever waits in a statement.
            while not _taken(holder):
                time.sleep(LOOK_SECONDS)
            call_command("migrate", interactive=False, stdout=self.stdout)
            call_command("register_catalog", stdout=self.stdout, stderr=self.stderr)


def _taken(holder: "psycopg.Connection[Any]") -> bool:
    row = holder.execute("SELECT pg_try_advisory_lock(%s)", [LOCK]).fetchone()
    return row is not None and bool(row[0])
