"""Looks whether a sandbox really holds, by letting a program in one try to leave."""

import asyncio
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from .base import Ended, Limits, Record, SandboxFile, SandboxSpec, SandboxUnavailable

if TYPE_CHECKING:
    from .local import LocalProvider

PROBE_SECONDS = 30.0
HOST_FILE = Path(__file__).resolve()  # there on the host, and nothing that a sandbox should see

# Prints what it could do and should not. Each check stands for one wall of the sandbox.
CANARY = """
import ctypes, json, os, socket, sys

host_file, host_kernel = sys.argv[1:]
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
libc = ctypes.CDLL(None, use_errno=True)

def connects(family, address):
    with socket.socket(family) as sock:
        sock.settimeout(1)
        return sock.connect_ex(address) == 0

def writes(path):
    try:
        open(path, "w").close()
        return True
    except OSError:
        return False

found = {
    "has root": os.getuid() == 0 or os.geteuid() == 0,
    "has capabilities": any(int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd"))
    or int(status.get("CapAmb", "0"), 16) != 0,
    "may gain privileges": libc.prctl(39, 0, 0, 0, 0) != 1,
    "has no system call filter": status["Seccomp"].strip() != "2",
    "makes namespaces": libc.unshare(0x10000000) == 0,
    "mounts": libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) == 0,
    "sees host processes": len([pid for pid in os.listdir("/proc") if pid.isdigit()]) > 2,  # init and itself
    "sees host files": os.path.exists(host_file),
    "writes to the root": writes("/probe") or writes("/usr/probe") or writes("/opt/probe") or writes("/etc/probe"),
    "has a network": len(open("/proc/net/dev").readlines()) > 3 or connects(socket.AF_INET, ("1.1.1.1", 53)),
    "reaches the host's loopback": connects(socket.AF_INET, ("127.0.0.1", 22)),
    "sees the host's environment": "ENGINE_CANARY" in os.environ,
    "runs on the host's kernel": " ".join(os.uname()[2:4]) == host_kernel,
    "reads shadow": os.access("/etc/shadow", os.R_OK),
}
records = int(os.environ["ENGINE_RECORDS"].removeprefix("fd:"))
os.write(records, json.dumps([name for name, bad in found.items() if bad]).encode() + b"\\n")
"""


async def try_to_leave(provider: "LocalProvider") -> None:
    """Raises SandboxUnavailable, naming the walls that do not stand, or SandboxError when nothing runs at all."""
    spec = SandboxSpec(
        job_id=UUID(int=0),
        attempt=0,
        limits=Limits(wall_seconds=PROBE_SECONDS),
        files=[SandboxFile("agent/canary.py", CANARY.encode())],
    )
    sandbox = await provider.open_unchecked(spec)
    try:
        await sandbox.start(["python", "../agent/canary.py", str(HOST_FILE), " ".join(os.uname()[2:4])])
        reports, said, ended = [], b"", None
        async with asyncio.timeout(PROBE_SECONDS + 5):
            async for output in sandbox.outputs():
                if isinstance(output, Record):
                    reports.append(output.line)
                elif isinstance(output, Ended):
                    ended = output
                else:
                    said += output.data
    finally:
        await sandbox.close()
    if ended is None or ended.exit_code != 0 or len(reports) != 1:
        raise SandboxUnavailable(
            f"a probe in a sandbox failed: {ended} {said[-1000:].decode(errors='replace')}"
        )
    broken = [wall for wall in json.loads(reports[0]) if wall not in provider.accepted]
    if broken:
        raise SandboxUnavailable(f"the sandbox does not hold: its program {', '.join(broken)}")
