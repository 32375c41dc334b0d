"""The web process."""

from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError


class Command(BaseCommand):
    """`manage.py serve`: HTTP and WebSocket until SIGTERM has drained it."""

    help = "Serve the API and the dashboard. SIGTERM finishes the requests in progress and ends with exit code 0."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--host", default=settings.ENGINE_HOST, help="address to listen on (%(default)s)")
        parser.add_argument("--port", type=int, default=settings.PORT, help="port to listen on (%(default)s)")
        parser.add_argument("--processes", type=int, default=1, help="processes that share the port (1)")
        parser.add_argument("--fd", type=int, help="a socket that already listens, instead of host and port")

    def handle(self, *args: Any, **options: Any) -> None:
        from engine import serving

        try:
            listener = (
                serving.inherited(options["fd"])
                if options["fd"] is not None
                else serving.listen(options["host"], options["port"])
            )
        except serving.PortTaken as error:
            raise CommandError(f"{error} Choose another, as in PORT={options['port'] + 1}.") from error
        if options["processes"] > 1:
            serving.serve_in_processes(listener, options["processes"])
        else:
            serving.serve(listener)
