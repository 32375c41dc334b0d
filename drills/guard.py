"""What `drills.guards` takes away."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Guard:
    """What protects, the lines that do it, what stands there without it, and the test that must then fail."""

    name: str
    file: str
    lines: str
    without: str
    test: str
