"""Build the Python runtime that local sandboxes run on, once per interpreter and per requirements/sandbox.lock."""

import time
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from jobs.sandboxes import runtime
from jobs.sandboxes.base import SandboxError


class Command(BaseCommand):
    help = "Build the read-only Python runtime for local sandboxes. Does nothing when it is there."
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        start = time.monotonic()
        lock = settings.BASE_DIR / "requirements" / "sandbox.lock"
        if runtime.find(settings.ENGINE_RUNTIME_DIR, lock) is not None:
            self.stdout.write("The sandbox runtime is ready.")
            return
        try:
            built = runtime.build(settings.ENGINE_RUNTIME_DIR, lock, self.say)
        except (SandboxError, OSError) as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"Built the sandbox runtime in {time.monotonic() - start:.1f} s: {built.folder}")

    def say(self, what: str, seconds: float) -> None:
        self.stdout.write(f"  {what} ({seconds:.1f} s)")
        self.stdout.flush()
