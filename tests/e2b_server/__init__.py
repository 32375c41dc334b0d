"""A server that speaks E2B's wire and runs what it is told in folders of this machine. See `server.py`."""

from tests.e2b_server.server import E2BServer

__all__ = ["E2BServer"]
