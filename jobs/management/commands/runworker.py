"""`manage.py runworker`: claim jobs and run them."""

import asyncio
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from engine import collector, tracing
from engine.database import refuse_risky_durability, refuse_wrong_pooling
from jobs import s3
from jobs.execution.llm.client import warm_up
from jobs.sandboxes.registry import provider_from_settings
from jobs.worker import ALL_QUEUES, Options, Worker

FILE_THREADS = 16


class Command(BaseCommand):
    help = "Run a worker: it claims jobs, runs their agents in sandboxes, and stops cleanly on SIGTERM or Ctrl+C."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--concurrency", type=int, default=Options.concurrency, help="Jobs at once (default 8)."
        )
        parser.add_argument(
            "--queues", default=ALL_QUEUES, help="Queues to serve, comma-separated (default: all, written *)."
        )
        parser.add_argument(
            "--grace",
            type=float,
            default=Options.grace_seconds,
            help="Seconds from SIGTERM until jobs still running are handed back (default 8).",
        )
        parser.add_argument(
            "--no-listen", action="store_true", help="Poll only; for poolers that break LISTEN."
        )

    def handle(self, **options: Any) -> None:
        chosen = Options(
            concurrency=max(1, options["concurrency"]),
            queues=tuple(name.strip() for name in options["queues"].split(",") if name.strip()),
            grace_seconds=options["grace"],
            listen=not options["no_listen"],
        )
        refuse_wrong_pooling()
        refuse_risky_durability()
        s3.patient = True
        warm_up()
        tracing.start()
        collector.calm()
        try:
            asyncio.run(_work(chosen))
        finally:
            tracing.stop()


async def _work(options: Options) -> None:
    worker = Worker(provider_from_settings(), options)
    loop = asyncio.get_running_loop()
    # Python's own few threads could all wait for a bucket that is silent, and jobs without files for them.
    loop.set_default_executor(
        ThreadPoolExecutor(FILE_THREADS + 4 * options.concurrency, thread_name_prefix="files")
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.stop)
    await worker.run()
