"""`make bench`: every benchmark of the queue, one after the other, each in a process of its own; one table.

python -m benchmarks [--quick] [--peers PYTHON]
"""

import argparse
import contextlib
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator

QUICK = {
    "drain": ["--rounds", "1"],
    "claims": ["--depths", "1000", "20000", "--held", "5000"],
    "fairness": ["--backlog", "5000", "--seconds", "5"],
}


@contextlib.contextmanager
def redis() -> Iterator[str]:
    """A Redis that fsyncs nothing, as Celery is mostly run; '' where there is no redis-server."""
    program = shutil.which("redis-server")
    if program is None:
        yield ""
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [program, "--port", str(port), "--save", "", "--dir", folder]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
            yield f"redis://127.0.0.1:{port}/0"
            server.terminate()


def main() -> None:
    """Run them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer rounds and shorter queues")
    parser.add_argument("--peers", default="", help="a Python that has the peers installed")
    options = parser.parse_args()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {load}, Python {platform.python_version()}",
        flush=True,
    )
    with redis() as address:
        for name in ("drain", "latency", "submit", "claims", "fairness", "logs", "waiting"):
            arguments = QUICK.get(name, []) if options.quick else []
            if name == "drain":
                arguments = [*arguments, "--peers", options.peers, "--redis", address]
            print(f"\n--- {name}", flush=True)
            subprocess.run(
                [sys.executable, "-m", f"benchmarks.{name}", *arguments],
                check=True,
                env={**os.environ, "LOG_LEVEL": "ERROR"},
            )


if __name__ == "__main__":
    main()
