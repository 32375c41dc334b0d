"""Hosts of our own: each with its network, processes and name, at a switch, on cables that can fail.

All stands in namespaces of the calling program's own (`enter_alone`), so nothing of it shows on the machine and all of
it goes with the program, however that ends.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.processes import Program

INSIDE = "ENGINE_DRILL_INSIDE"
SUBNET = "10.213.0"
DRILL = f"{SUBNET}.1"  # the drill's own address, at the switch
BOTH = ("out", "in")
# PID 1 of a host: waits for whatever is orphaned, and ends with all else of the host when it is killed.
INIT = 'hostname "$0"; ip link set lo up; while :; do sleep 600 & wait $!; done'


def missing() -> str:
    """Why there can be no hosts here; empty if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if absent := [name for name in ("ip", "unshare", "nsenter", "setpriv") if shutil.which(name) is None]:
        return f"not installed: {', '.join(absent)} (apt-get install iproute2 util-linux)"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "/dev/net/tun is not there (modprobe tun)"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--uts", "true"], capture_output=True, text=True, check=False
    )
    return tried.stderr.strip()


def enter_alone(module: str) -> None:
    """Go on as `python -m module` in a network, a mount and a process namespace; returns if we are there already.

    Exits with 0 and the reason where that is impossible.
    """
    if os.environ.get(INSIDE):
        return
    if reason := missing():
        print(f"SKIPPED: {reason}.")
        sys.exit(0)
    apart = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    os.execvpe(apart[0], [*apart, sys.executable, "-m", module, *sys.argv[1:]], {**os.environ, INSIDE: "1"})


def ip(*arguments: str) -> None:
    """One command of iproute2."""
    subprocess.run(["ip", *arguments], check=True)


class Network:
    """A switch, and a host at it for each name, with the last number of its address."""

    def __init__(self, hosts: Mapping[str, int]) -> None:
        ip("link", "set", "lo", "up")
        ip("link", "add", "switch", "type", "bridge")
        ip("address", "add", f"{DRILL}/24", "dev", "switch")
        ip("link", "set", "switch", "up")
        self._wires = subprocess.Popen(
            [sys.executable, "-m", "drills.wire", *hosts],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._wires.stdin
        assert self._wires.stdout
        self._orders = self._wires.stdin
        if self._wires.stdout.readline() != "ready\n":
            raise RuntimeError("the wires could not be laid")
        for name in hosts:
            ip("link", "set", f"{name}-port", "master", "switch", "up")
        self.hosts = {name: Host(self, name, f"{SUBNET}.{number}") for name, number in hosts.items()}

    def order(self, cable: str, *, ways: tuple[str, ...] = BOTH, **how: float) -> None:
        """Change what a cable does: see drills/wire.py."""
        for way in ways:
            self._orders.write(json.dumps({"cable": cable, "way": way, **how}) + "\n")
        self._orders.flush()

    def close(self) -> None:
        """End all hosts."""
        for host in self.hosts.values():
            host.kill()
        self._orders.close()
        self._wires.wait(10)


class Host:
    """One machine. Its programs see its processes, its name and its address alone."""

    def __init__(self, network: Network, name: str, address: str) -> None:
        self._network, self.name, self.address = network, name, address
        self.programs: list[Program] = []
        # The device is moved once: a host that is switched on again finds the same namespace.
        self._keeper = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        _wait_for_namespace(self._keeper.pid, "net")
        ip("link", "set", f"{name}-host", "netns", str(self._keeper.pid))
        for command in (
            ["link", "set", f"{name}-host", "name", "eth0"],
            ["address", "add", f"{address}/24", "dev", "eth0"],
            ["link", "set", "eth0", "up"],
        ):
            subprocess.run(["nsenter", "-t", str(self._keeper.pid), "--net", "ip", *command], check=True)
        self._init: subprocess.Popen[bytes] | None = None
        self.switch_on()

    def switch_on(self) -> None:
        """Start it, with nothing on it yet."""
        enter = ["nsenter", "-t", str(self._keeper.pid), "--net"]
        apart = ["unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._init = subprocess.Popen(
            [*enter, *apart, "sh", "-c", INIT, self.name], start_new_session=True, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 10
        while not (children := _children(self._init.pid)) or not _is_shell(children[0]):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} does not come up")
            time.sleep(0.01)
        self.pid = children[0]
        self._network.order(self.name, cut=False)

    def start(self, name: str, command: list[str], env: Mapping[str, str], log: Path) -> Program:
        """Start a program on it. Signals reach the program's keeper only: a host ends by `kill`."""
        enter = ["nsenter", "-t", str(self.pid), "--net", "--uts", "--mount", "--pid", f"--wdns={Path.cwd()}"]
        program = Program(name, [*enter, *command], env, log)
        self.programs.append(program)
        return program

    def kill(self, *, silently: bool = True) -> None:
        """Everything on it is gone at once; as by a power cut no peer hears a word, unless it may speak."""
        if self._init is None:
            return
        if silently:
            self._network.order(self.name, cut=True)
        time.sleep(0.05)  # the order has to arrive before the kernel says goodbye for the dead
        os.kill(self.pid, signal.SIGKILL)
        self._init.wait(30)
        for program in self.programs:
            program.wait()
        self.programs.clear()
        self._init = None

    def cut(self, *ways: str) -> None:
        """Pull the cable, or one of its two ways: `out` is what it sends."""
        self._network.order(self.name, ways=ways or BOTH, cut=True)

    def heal(self) -> None:
        """A cable like new."""
        self._network.order(self.name, cut=False, delay=0.0, jitter=0.0, loss=0.0)

    def worsen(self, *, delay: float, jitter: float, loss: float) -> None:
        """Delay in seconds and loss as a share, each way."""
        self._network.order(self.name, delay=delay, jitter=jitter, loss=loss)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _is_shell(pid: int) -> bool:
    """The child was forked and has become the host's init: its namespaces are complete."""
    try:
        return INIT in Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def _wait_for_namespace(pid: int, kind: str) -> None:
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}/ns/{kind}").readlink() == Path(f"/proc/self/ns/{kind}").readlink():
        if time.monotonic() > deadline:
            raise RuntimeError("unshare does not come to it")
        time.sleep(0.005)
