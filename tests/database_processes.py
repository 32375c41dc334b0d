"""Processes of our own that count in the test's database. Imports no model: a spawned child has to set up first."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.pool import Pool

import django
from django.db import connection, connections


@contextmanager
def pool_on_test_database(count: int) -> Iterator[Pool]:
    """`count` fresh processes; what they are given is imported only once Django is set up in them."""
    database = connection.settings_dict["NAME"]
    with get_context("spawn").Pool(count, initializer=_set_up, initargs=(database,)) as pool:
        yield pool


def _set_up(database: str) -> None:
    django.setup()
    connections.settings["default"]["NAME"] = database


def closing_connection(work: Callable[[], int]) -> int:
    """Do it, and leave no connection: the test database could not be dropped."""
    try:
        return work()
    finally:
        connection.close()
