"""What supervises a worker hears that it is ready, alive, and stopping."""

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.processes import Instance, eventually


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    """A socket as systemd gives it to its services."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(30)
        yield listener


def heard(listener: socket.socket, wanted: str) -> str:
    """Read until a message that begins so."""
    while not (words := listener.recv(4096).decode()).startswith(wanted):
        pass
    return words


def test_a_worker_tells_systemd_and_its_health_file_how_it_is(
    make_instance: Callable[..., Instance], systemd: socket.socket, tmp_path: Path
) -> None:
    file = tmp_path / "health.json"
    instance = make_instance(
        NOTIFY_SOCKET=systemd.getsockname(),
        ENGINE_WORKER_HEALTH_FILE=str(file),
        ENGINE_HEARTBEAT_SECONDS="0.2",
    )
    worker = instance.worker("--concurrency", "3")

    assert "STATUS=Serves queues *" in heard(systemd, "READY=1")
    heard(systemd, "WATCHDOG=1")
    eventually(lambda: file.exists() and json.loads(file.read_text())["can_run"], what="the health file")
    state = json.loads(file.read_text())
    assert (state["pid"], state["slots"], state["lease_held"]) == (worker.process.pid, 3, True)
    written = file.stat().st_mtime_ns
    eventually(lambda: file.stat().st_mtime_ns > written, what="the next heartbeat's file")

    assert worker.stop() == 0
    heard(systemd, "STOPPING=1")
    assert not file.exists()


def test_a_supervisor_that_cannot_be_told_stops_no_worker(
    make_instance: Callable[..., Instance], tmp_path: Path
) -> None:
    folder = tmp_path / "a folder in its place"
    folder.mkdir()
    instance = make_instance(NOTIFY_SOCKET="@nobody-listens", ENGINE_WORKER_HEALTH_FILE=str(folder))
    worker = instance.worker()

    worker.printed("systemd could not be told 'READY'")
    worker.printed("health file cannot be written")
    assert worker.stop() == 0
