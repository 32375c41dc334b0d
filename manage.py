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
    """The command's exit code. Settings and a database that cannot be used are explained in one line."""
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line
    from django.db import DatabaseError

    from engine import output, remedies
    from engine.embedded import EmbeddedServerFailed

    try:
        output.begin(arguments)
        execute_from_command_line(arguments)
    except (ImproperlyConfigured, EmbeddedServerFailed) as error:
        said = str(error)
    except DatabaseError as error:
        if not remedies.is_for_operators(error):
            raise
        said = f"{remedies.first_line(error)}. To fix it: {remedies.database_remedy(error)}"
    else:
        return 0
    # By now the settings have read .env into the environment, whatever failed after that.
    output.refuse(said, as_json=os.environ.get("LOG_FORMAT", "").strip() == "json")
    return 1


if __name__ == "__main__":
    main()
