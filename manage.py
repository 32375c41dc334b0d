#!/usr/bin/env python
"""Django's command line for Engine."""

import os
import sys


def main() -> None:
    """Run one management command with Engine's settings."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "engine.settings")
    try:
        from django.core.management import execute_from_command_line

        execute_from_command_line(sys.argv)
    except KeyboardInterrupt:
        sys.exit(130)  # as shells count Ctrl+C; a traceback would explain nothing


if __name__ == "__main__":
    main()
