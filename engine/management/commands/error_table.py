"""Write docs/errors.md, the table of everything the API can refuse with."""

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from engine.error_table import render


class Command(BaseCommand):
    help = "Write docs/errors.md from the error classes. Run it whenever one is added or changed."

    def handle(self, *args: Any, **options: Any) -> None:
        path = settings.BASE_DIR / "docs" / "errors.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(render(), encoding="utf-8")
        self.stdout.write(f"Wrote {path}")
