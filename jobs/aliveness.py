"""Telling whoever supervises the worker that it is ready, alive, and stopping.

systemd hears it on its socket (sd_notify(3): Type=notify, WatchdogSec); a container looks at a file's age. Alive means
that the event loop turns: a worker whose database is away is not better for a restart.
"""

import json
import logging
import os
import socket
from pathlib import Path
from typing import Any

from django.conf import settings

log = logging.getLogger("engine.worker")


def ready(status: str) -> None:
    """The worker has a lease and takes jobs."""
    _notify(f"READY=1\nSTATUS={status}")


def alive(state: dict[str, Any]) -> None:
    """The worker lives, with its state for whoever looks. Called at each heartbeat, from its thread."""
    _notify("WATCHDOG=1")
    if settings.ENGINE_WORKER_HEALTH_FILE:
        _write(Path(settings.ENGINE_WORKER_HEALTH_FILE), json.dumps(state))


def stopping() -> None:
    """The worker drains: what it runs finishes or goes back."""
    _notify("STOPPING=1")


def stopped() -> None:
    """The worker is gone."""
    if settings.ENGINE_WORKER_HEALTH_FILE:
        _remove(Path(settings.ENGINE_WORKER_HEALTH_FILE))


def _notify(words: str) -> None:
    address = settings.NOTIFY_SOCKET
    if not address:
        return
    if address.startswith("@"):  # Linux's abstract namespace
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
            link.setblocking(False)
            link.sendto(words.encode(), address)
    except OSError as error:
        log.warning("systemd could not be told %r: %s", words.partition("=")[0], error)


def _write(file: Path, text: str) -> None:
    """Whole or not at all: a probe may read it at any moment."""
    try:
        part = file.with_name(f".{file.name}.{os.getpid()}")
        part.write_text(text)
        part.replace(file)
    except OSError as error:
        log.warning("The health file cannot be written: %s", error)


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        log.warning("The health file cannot be removed: %s", error)
