"""Cables between hosts and their switch: pairs of TAP devices, with a program between that loses and delays frames.

    python -m drills.wire NAME…

makes `NAME-host` and `NAME-port` for each, and takes orders on its standard input, one JSON object a line:
`{"cable": NAME, "way": "out", "cut": true, "delay": 0.05, "jitter": 0.02, "loss": 0.01}`, where `out` is from the
host to the switch. The devices go with the program. The kernel's own netem is not built everywhere; /dev/net/tun is.
"""

import fcntl
import heapq
import itertools
import json
import os
import random
import selectors
import struct
import sys
import time
from dataclasses import dataclass
from typing import Any

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
LARGEST_FRAME = 65_536
FRAMES_A_TURN = 64


@dataclass
class Way:
    """One direction of a cable."""

    source: int
    target: int
    cut: bool = False
    delay: float = 0.0  # seconds, and up to `jitter` more
    jitter: float = 0.0
    loss: float = 0.0  # the share of frames
    last_due: float = 0.0


def device(name: str) -> int:
    """A new TAP device's file."""
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH14x", name.encode(), IFF_TAP | IFF_NO_PI))
    return file


class Wires:
    """All cables, and the frames that are under way."""

    def __init__(self, names: list[str]) -> None:
        self._ways: dict[tuple[str, str], Way] = {}
        self._late: list[tuple[float, int, int, bytes]] = []  # due, number, target, frame
        self._numbers = itertools.count()
        self._ready = selectors.DefaultSelector()
        for name in names:
            host, port = device(f"{name}-host"), device(f"{name}-port")
            self._ways[name, "out"] = Way(host, port)
            self._ways[name, "in"] = Way(port, host)
        for way in self._ways.values():
            self._ready.register(way.source, selectors.EVENT_READ, way)

    def serve(self) -> None:
        """Pass frames on until the orders end."""
        self._ready.register(sys.stdin.fileno(), selectors.EVENT_READ)
        os.set_blocking(sys.stdin.fileno(), False)
        rest = b""
        while True:
            wait = max(0.0, self._late[0][0] - time.monotonic()) if self._late else None
            for key, _ in self._ready.select(wait):
                if key.data is not None:
                    self._take(key.data)
                    continue
                given = os.read(sys.stdin.fileno(), 65_536)
                if not given:
                    return
                *lines, rest = (rest + given).split(b"\n")
                for line in lines:
                    self._obey(json.loads(line))
            self._deliver()

    def _obey(self, order: dict[str, Any]) -> None:
        way = self._ways[order.pop("cable"), order.pop("way")]
        for name, value in order.items():
            setattr(way, name, value)

    def _take(self, way: Way) -> None:
        for _ in range(FRAMES_A_TURN):
            try:
                frame = os.read(way.source, LARGEST_FRAME)
            except OSError:  # nothing more, or the device is down
                return
            if way.cut or (way.loss and random.random() < way.loss):
                continue
            if not way.delay:
                pass_on(way.target, frame)
                continue
            due = time.monotonic() + way.delay + random.uniform(0, way.jitter)
            way.last_due = due = max(due, way.last_due)  # a cable keeps the order
            heapq.heappush(self._late, (due, next(self._numbers), way.target, frame))

    def _deliver(self) -> None:
        while self._late and self._late[0][0] <= time.monotonic():
            _, _, target, frame = heapq.heappop(self._late)
            pass_on(target, frame)


def pass_on(target: int, frame: bytes) -> None:
    """Or lose it, as a cable into a host that is off does."""
    try:
        os.write(target, frame)
    except OSError:
        return


if __name__ == "__main__":
    wires = Wires(sys.argv[1:])
    print("ready", flush=True)
    wires.serve()
