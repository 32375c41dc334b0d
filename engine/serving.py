"""What `manage.py serve` does: listen, warm up, serve; alone or in several processes."""

import errno
import logging
import socket
import sys

from django.conf import settings
from django.urls import get_resolver

from engine import collector, tracing
from engine.database import limit_statements, refuse_risky_durability, refuse_wrong_pooling
from engine.logs import tell
from engine.supervisor import Child, Supervisor

logger = logging.getLogger("engine.server")

BACKLOG = 1024  # connections that the kernel keeps while all are busy
# No request of a person or program waits for one statement longer than this.
STATEMENT_SECONDS = 5.0


class PortTaken(Exception):
    """The address cannot be listened on; the message says why."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises PortTaken."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno not in (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL):
            raise
        reason = {
            errno.EADDRINUSE: "is taken by another program",
            errno.EACCES: "needs root's rights",
            errno.EADDRNOTAVAIL: "is not an address of this machine",
        }[error.errno]
        raise PortTaken(f"{host}:{port} {reason}.") from error
    return listener


def inherited(descriptor: int) -> socket.socket:
    """The listening socket that the parent process handed down."""
    return socket.socket(fileno=descriptor)


def serve(listener: socket.socket) -> None:
    """Serve in this process until a signal has drained it."""
    limit_statements(STATEMENT_SECONDS)
    refuse_wrong_pooling()
    refuse_risky_durability()
    from engine import readiness
    from engine.asgi import application
    from engine.server import WebServer
    from jobs.metering.totals import Reporter

    tracing.start()
    warm_up()
    readiness.begin()
    host, port = listener.getsockname()[:2]

    def say_ready() -> None:
        tell(f"Engine serves http://{bracketed(host)}:{port}")

    reporter = Reporter()
    reporter.start()
    try:
        WebServer(application, listener, say_ready).run()
    finally:
        reporter.stop()
        tracing.stop()


def serve_in_processes(listener: socket.socket, processes: int) -> None:
    """Serve in several processes that accept from one socket; restart any that dies, until a signal ends all."""
    listener.set_inheritable(True)
    descriptor = listener.fileno()
    command = [sys.executable, sys.argv[0], "serve", "--fd", str(descriptor)]
    children = [
        Child(f"serve-{number}", command, pass_fds=(descriptor,)) for number in range(1, processes + 1)
    ]
    Supervisor(children, grace_seconds=settings.ENGINE_DRAIN_SECONDS + 5).run()


def warm_up() -> None:
    """Pay now what the first requests would. Then calm the collector."""
    for prepare in WARM_UP:
        try:
            prepare()
        except Exception:  # a server that answers slowly at first is better than none
            logger.exception("Warming up by %s failed", prepare.__name__)
    collector.calm()


def load_views() -> None:
    """Import every view."""
    _ = get_resolver().url_patterns


def load_embedder() -> None:
    """Load the model that discovery reads tasks with, if it runs in this process."""
    from agents import embeddings

    if settings.ENGINE_EMBEDDER != "openai":
        embeddings.configured().embed_query("warm up")


WARM_UP = (load_views, load_embedder)


def bracketed(host: str) -> str:
    """An IPv6 address as URLs write it."""
    return f"[{host}]" if ":" in host else host
