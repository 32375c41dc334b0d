"""`make run`: everything is prepared and started by one command, and nothing is left when it ends."""

import json
import os
import re
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.processes import Instance, Program, eventually, read_process

READY = "Ctrl.C stops it"
START_SECONDS = 180.0  # registering the catalog embeds it


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def up(instance: Instance, *arguments: str) -> Program:
    instance.env["PORT"] = str(free_port())
    instance.url = f"http://127.0.0.1:{instance.env['PORT']}"
    return instance.start("up", *arguments)


def up_and_ready(instance: Instance, *arguments: str) -> Program:
    program = up(instance, *arguments)
    program.printed(READY, seconds=START_SECONDS)
    return program


def processes_of(instance: Instance) -> list[int]:
    """Every process that works in the home, the database's included."""
    marks = (f"ENGINE_HOME={instance.home}".encode(), str(instance.home).encode())
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                environment = (entry / "environ").read_bytes().split(b"\0")
                if marks[0] in environment or bytes((entry / "cwd").readlink()).startswith(marks[1]):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def child(instance: Instance, command: str) -> int:
    for pid in processes_of(instance):
        if command in read_process(pid, "cmdline").split("\0"):
            return pid
    return 0


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Instance]:
    """A machine that Engine never ran on."""
    instance = Instance(tmp_path / "home")
    yield instance
    instance.stop()


@pytest.fixture
def furnished(make_instance: Callable[..., Instance]) -> Instance:
    """One that has everything but the first rows, which is faster."""
    return make_instance(catalog=True)


def test_the_first_start_ends_in_a_result_and_the_second_is_quick(fresh):
    first = up_and_ready(fresh)
    output = first.output()

    assert re.search(r"Job \S+: Analyze the sentiment of customer reviews, with reviews.csv", output)
    assert "40 of 40 reviews scored" in output
    assert "Completed. The result:" in output
    artifact = re.search(r"sentiment.png  (http://\S+)", output)
    secret = re.search(r"Bearer (engine_live_\w+)", output)
    password = re.search(r"user admin, password (\S+)", output)
    assert artifact is not None
    assert secret is not None
    assert password is not None
    with fresh.client(secret[1]) as client:
        assert client.get(artifact[1]).content.startswith(b"\x89PNG")
    for log in (fresh.home / "logs").iterdir():
        assert secret[1] not in log.read_text()
        assert password[1] not in log.read_text()
    assert first.stop() == 0
    assert processes_of(fresh) == []

    begun = time.monotonic()
    second = up_and_ready(fresh)
    took = time.monotonic() - begun

    assert "A first job" not in second.output()
    assert secret[1] in second.output()
    assert password[1] in second.output()
    assert took < 30  # 10 s is the aim on a quiet machine; tests share theirs
    assert stat.S_IMODE((fresh.home / "secrets.json").stat().st_mode) == 0o600
    assert second.stop() == 0
    assert processes_of(fresh) == []


def test_after_any_process_was_killed_it_comes_up_again_with_every_job(furnished):
    program = up_and_ready(furnished, "--no-sample")
    with furnished.client(furnished.key("admin")) as client:
        job = client.post("/api/v1/jobs", json={"task": "Analyze the sentiment of customer reviews"}).json()
        assert "id" in job, job
        address = f"/api/v1/jobs/{job['id']}"
        eventually(lambda: client.get(address).json()["status"] == "waiting_for_input", seconds=60)

        for name, command in (("web process", "serve"), ("worker", "runworker")):
            os.kill(child(furnished, command), signal.SIGKILL)
            program.printed(f"The {name} ended .killed by SIGKILL., and is started again")
        furnished.ready()
        assert client.get(address).json()["status"] == "waiting_for_input"

        program.kill()
        program.wait()
        again = up_and_ready(furnished, "--no-sample")
        client.base_url = furnished.url
        client.post(
            f"{address}/respond", json={"answer": "Yes, proceed with the analysis"}
        ).raise_for_status()
        eventually(lambda: client.get(address).json()["status"] == "completed", seconds=60)

    assert again.stop() == 0
    eventually(lambda: processes_of(furnished) == [])


def test_a_second_run_in_the_same_home_is_refused_with_the_way_out(furnished):
    up_and_ready(furnished, "--no-sample")

    second = up(furnished)

    assert second.wait(seconds=60) == 1
    assert f"already (process {furnished.programs[0].pid})" in second.output()
    assert "ENGINE_HOME=" in second.output()


def test_a_port_that_is_taken_is_said_before_anything_is_started(fresh):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        fresh.env["PORT"] = str(other.getsockname()[1])

        program = fresh.start("up")

        assert program.wait(seconds=60) == 1
    assert "is taken by another program" in program.output()
    assert "To fix it: PORT=" in program.output()
    assert not (fresh.home / "postgres").exists()


def test_it_ends_when_the_make_that_started_it_is_killed(furnished):
    instance = furnished
    instance.env["PORT"] = str(free_port())
    command = ["manage.py", "up", "--no-sample", "--end-with-parent"]
    parent = instance.run("parent", f"import subprocess, sys; subprocess.run([sys.executable, *{command}])")
    parent.printed(READY, seconds=START_SECONDS)

    parent.kill()
    parent.wait()

    eventually(lambda: processes_of(instance) == [], seconds=60)


def test_what_cannot_run_jobs_is_told_with_the_remedy(furnished):
    furnished.env["ENGINE_SANDBOX"] = "e2b"  # without an account

    program = up(furnished, "--no-sample")
    program.printed(READY, seconds=START_SECONDS)

    assert "E2B_API_KEY is not set" in program.output()
    assert "set E2B_API_KEY to a key of your E2B team" in program.output()


def test_the_doctor_names_each_part_and_its_remedy(furnished):
    sick = furnished.manage("doctor", check=False)
    assert sick.returncode == 1
    assert re.search(r"FAIL  workers .*\n.*To fix it: Run manage.py runworker", sick.stdout)
    assert re.search(r"ok    database +PostgreSQL 18", sick.stdout)

    up_and_ready(furnished, "--no-sample")
    well = furnished.manage("doctor", check=False)

    assert well.returncode == 0, well.stdout
    assert "FAIL" not in well.stdout


def test_secrets_are_in_one_file_and_nowhere_else(furnished):
    up_and_ready(furnished, "--no-sample").stop()
    secrets = json.loads((furnished.home / "secrets.json").read_text())

    assert set(secrets) == {"SECRET_KEY", "ADMIN_PASSWORD", "API_KEY"}
    for path in furnished.home.rglob("*"):
        if path.is_file() and path.name != "secrets.json":
            content = path.read_bytes()
            assert not any(value.encode() in content for value in secrets.values()), path
