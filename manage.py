#!/usr/bin/env python
"""Django's command line for Engine."""

import os
import sys


def main() -> None:
    """Run one management command with Engine's settings."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "engine.settings")
    try:
        sys.exit(run(sys.argv))
    except KeyboardInterrupt:
        sys.exit(130)  # as shells count Ctrl+C; a traceback would explain nothing


def run(arguments: list[str]) -> int:
    """The command's exit code. Settings that cannot be used are explained in one line."""
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line

    from engine import output

    try:
        output.begin(arguments)
        execute_from_command_line(arguments)
    except ImproperlyConfigured as error:
        # By now the settings have read .env into the environment, whatever failed after that.
        output.refuse(error, as_json=os.environ.get("LOG_FORMAT", "").strip() == "json")
        return 1
    return 0


if __name__ == "__main__":
    main()
