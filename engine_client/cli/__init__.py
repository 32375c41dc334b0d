"""The command line `engine`, built on the client beside it."""

from engine_client.cli.main import engine

__all__ = ["engine"]
