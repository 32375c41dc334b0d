"""gVisor sandboxes: what runsc is told, and what happens where it is not installed.

What programs see of them is in the contract tests, which include gVisor where runsc is installed.
"""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from jobs.sandboxes import bubblewrap, gvisor
from jobs.sandboxes.base import EndReason, SandboxUnavailable
from jobs.sandboxes.inside import HOME
from tests.processes import eventually
from tests.sandboxes import Sandboxes, gvisor_provider, spec

PLACES = bubblewrap.Places(Path("/runtime"), Path("/guest"), Path("/box"), Path("/layer"))


@pytest.fixture
def config() -> dict[str, Any]:
    return gvisor.config(memory_mb=64, disk_mb=8, warm=("json",))


def mounts(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {mount["destination"]: mount for mount in config["mounts"]}


def test_process_1_may_become_another_user_and_nothing_else(config: dict[str, Any]) -> None:
    process = config["process"]

    assert process["noNewPrivileges"] is True
    assert process["capabilities"]["effective"] == process["capabilities"]["permitted"] == ["CAP_SETUID"]
    for kind in ("bounding", "inheritable", "ambient"):
        assert process["capabilities"][kind] == [], "what it starts may never have more"


def test_the_root_is_read_only_and_only_sized_memory_can_be_written(config: dict[str, Any]) -> None:
    assert config["root"]["readonly"] is True

    for place, mount in mounts(config).items():
        if mount["type"] == "bind":
            assert "ro" in mount["options"], place
        elif mount["type"] == "tmpfs":
            assert any(option.startswith("size=") for option in mount["options"]), place
        else:
            assert mount["type"] in ("proc", "dev"), place
    assert f"size={8 * 1024 * 1024}" in mounts(config)[HOME]["options"]


def test_no_mount_lands_below_a_folder_that_programs_write(config: dict[str, Any]) -> None:
    for place in mounts(config):
        assert not any(place.startswith(f"{HOME}/{folder}") for folder in bubblewrap.WRITABLE_FOLDERS)


def test_what_belongs_to_gvisor_is_hidden_from_programs(config: dict[str, Any]) -> None:
    for place in (gvisor.STATE, gvisor.BUNDLE, gvisor.BOX):
        assert mounts(config)[place]["type"] == "tmpfs"
        assert "ro" in mounts(config)[place]["options"]


def test_namespaces_and_limits_of_its_processes(config: dict[str, Any]) -> None:
    kinds = {namespace["type"] for namespace in config["linux"]["namespaces"]}
    limits = {limit["type"]: (limit["soft"], limit["hard"]) for limit in config["process"]["rlimits"]}

    assert kinds == {"pid", "network", "ipc", "uts", "mount"}
    assert limits == {"RLIMIT_NOFILE": (256, 256), "RLIMIT_CORE": (0, 0)}


def test_runsc_has_no_network_and_stands_in_namespaces_of_its_own() -> None:
    line = gvisor.arguments(PLACES, Path("/usr/bin/runsc"), Path("/box/bundle"))
    around, inner = line[: line.index("/bin/sh")], line[line.index(gvisor.RUNSC, line.index("/bin/sh")) :]

    assert {"--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc"} <= set(around)
    assert {"--die-with-parent", "--clearenv", "--remount-ro"} <= set(around)
    assert not {"--bind", "--dev-bind", "--bind-try"} & set(around), "nothing of the host can be written"
    assert inner[1:] == [
        "--root=/run/runsc",
        "--rootless",
        "--network=none",
        "--ignore-cgroups",
        "run",
        "--bundle=/opt/bundle",
        "sandbox",
    ]


def test_without_runsc_the_worker_refuses_and_names_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gvisor, "find_runsc", lambda: None)
    sandboxes = Sandboxes(gvisor_provider(tmp_path / "scratch"))

    try:
        assert (sandboxes.health.ok, sandboxes.health.remedy) == (False, gvisor.INSTALL)
        with pytest.raises(SandboxUnavailable, match="runsc is not installed"):
            sandboxes.run(sandboxes.provider.open(spec()))
    finally:
        sandboxes.close()


def test_a_runsc_that_makes_no_sandbox_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gvisor, "find_runsc", lambda: Path("/bin/false").resolve())
    sandboxes = Sandboxes(gvisor_provider(tmp_path / "scratch"))

    try:
        assert not sandboxes.health.ok
        assert "gVisor: " in sandboxes.health.detail
        assert sandboxes.health.remedy
    finally:
        sandboxes.close()


def test_a_frame_that_init_would_not_send_ends_the_channels() -> None:
    async def read(data: bytes) -> list[tuple[str, bytes]]:
        reader, writer = os.pipe()
        os.write(writer, data)
        os.close(writer)
        frames = gvisor.Frames(reader)
        return [piece async for piece in frames.read()]

    good = b"o\0\0\0\x02ab" + b"r\0\0\0\x01x" + b"e\0\0\0\0"
    assert asyncio.run(read(good)) == [("stdout", b"ab"), ("records", b"x")]
    assert asyncio.run(read(b"o\0\0\0\x01a" + b"z\0\0\0\x01b")) == [("stdout", b"a")]
    assert asyncio.run(read(b"o\xff\xff\xff\xff")) == []


if gvisor.find_runsc() is not None:  # left out rather than skipped: see tests/sandboxes.py

    def processes_of_runsc() -> list[str]:
        found = []
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = process.read_bytes().split(b"\0")
            except OSError:
                continue
            if any(word in (b"/opt/runsc", b"runsc-sandbox", b"runsc-gofer") for word in words[:12]):
                found.append(str(process))
        return found

    def test_a_memory_hog_ends_with_the_reason_and_leaves_no_process(tmp_path: Path) -> None:
        sandboxes = Sandboxes(gvisor_provider(tmp_path / "scratch"))
        try:
            run = sandboxes.program(
                "kept = []\nwhile True: kept.append(b'x' * (16 << 20))", memory_mb=128, disk_mb=16
            )
            assert run.reason == EndReason.MEMORY
            eventually(lambda: processes_of_runsc() == [])
        finally:
            sandboxes.close()

    def test_a_program_cannot_reach_process_1_and_keeps_no_right(tmp_path: Path) -> None:
        code = (
            "import os\nfor act in (lambda: os.kill(1, 9), lambda: os.setuid(0), lambda: os.seteuid(0)):\n"
            "    try: act(); print('done')\n    except PermissionError: print('refused')"
        )
        sandboxes = Sandboxes(gvisor_provider(tmp_path / "scratch"))
        try:
            assert sandboxes.program(code).stdout.split() == [b"refused"] * 3
        finally:
            sandboxes.close()
