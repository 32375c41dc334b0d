"""The Python inside, and the layers with agents' own requirements."""

import asyncio
import base64
import hashlib
import io
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command

from jobs.sandboxes import runtime
from jobs.sandboxes.base import RequirementsFailed, SandboxError
from tests.sandboxes import LOCK, Sandboxes, built_runtime, collect, local_provider, needs_bubblewrap, spec


def make_wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> None:
    """A wheel as an index would have it."""
    info = f"{name}-{version}.dist-info"
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            lines.append(f"{path},sha256={digest},{len(text.encode())}")
        wheel.writestr(f"{info}/RECORD", "\n".join([*lines, f"{info}/RECORD,,"]) + "\n")


def make_source(folder: Path, name: str, marker: Path) -> None:
    """A source distribution whose build would leave a mark on this host."""
    script = f"open({str(marker)!r}, 'w').close()\nfrom setuptools import setup\nsetup(name={name!r}, version='1.0')\n"
    with tarfile.open(folder / f"{name}-1.0.tar.gz", "w:gz") as archive:
        for path, text in (
            ("setup.py", script),
            ("PKG-INFO", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"),
        ):
            member = tarfile.TarInfo(f"{name}-1.0/{path}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that installers take packages from, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    for installer in ("UV", "PIP"):
        monkeypatch.setenv(f"{installer}_FIND_LINKS", str(folder))
        monkeypatch.setenv(f"{installer}_NO_INDEX", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    make_wheel(folder, "teapot", "1.0", {"teapot/__init__.py": "short = 'stout'\n"})
    make_wheel(folder, "teapot", "2.0", {"teapot/__init__.py": "short = 'tall'\n"})
    return folder


@pytest.fixture
def layers(tmp_path: Path) -> Path:
    return tmp_path / "runtime"


@pytest.fixture
def built() -> runtime.Runtime:
    found = runtime.find(built_runtime(), LOCK)
    assert found is not None
    return found


@pytest.fixture
def sandboxes(tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandboxes]:
    shared = built_runtime() / "layers"
    before = set(shared.glob("*"))
    running = Sandboxes(local_provider(tmp_path / "scratch"))
    assert running.health.ok, running.health
    yield running
    running.close()
    for made in set(shared.glob("*")) - before:
        shutil.rmtree(made) if made.is_dir() else made.unlink()


def count_installs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []
    install = runtime.install

    def counted(*arguments: Any, **options: Any) -> str | None:
        calls.append(arguments)
        return install(*arguments, **options)

    monkeypatch.setattr(runtime, "install", counted)
    return calls


@needs_bubblewrap
def test_an_agent_s_requirements_are_there_and_read_only(sandboxes: Sandboxes) -> None:
    code = "import teapot, os; print(teapot.short, os.access(os.path.dirname(teapot.__file__), os.W_OK))"

    assert sandboxes.program(code, requirements=["teapot==1.0"]).stdout == b"stout False\n"
    assert sandboxes.program(code, requirements=["teapot>1"]).stdout == b"tall False\n"
    assert b"No module named 'teapot'" in sandboxes.program(code).stderr


@needs_bubblewrap
def test_ten_jobs_at_once_build_a_layer_once(
    sandboxes: Sandboxes, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_installs(monkeypatch)
    make_wheel(index, "kettle", "1.0", {"kettle.py": "lid = 'on'\n"})

    async def one() -> bytes:
        sandbox = await sandboxes.provider.open(
            spec("import kettle; print(kettle.lid)", requirements=["kettle"])
        )
        try:
            await sandbox.start(["python", "../agent/agent.py"])
            return (await collect(sandbox)).stdout
        finally:
            await sandbox.close()

    async def work() -> list[bytes]:
        return await asyncio.gather(*(one() for _ in range(10)))

    assert sandboxes.run(work()) == [b"on\n"] * 10
    assert len(calls) == 1


def test_workers_at_once_build_a_layer_once(
    index: Path, layers: Path, built: runtime.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_installs(monkeypatch)

    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: runtime.layer(layers, built, ["teapot"]), range(4)))

    assert len(found) == len(calls) == 1


def test_a_layer_is_found_again_whatever_the_order_of_its_lines(
    index: Path, layers: Path, built: runtime.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(index, "kettle", "1.0", {"kettle.py": ""})
    first = runtime.layer(layers, built, ["teapot ==1.0", "kettle"])
    calls = count_installs(monkeypatch)

    assert runtime.layer(layers, built, ["kettle", "teapot==1.0"]) == first
    assert runtime.layer(layers, built, ["kettle"]) != first
    assert len(calls) == 1


def test_what_cannot_be_installed_says_why_and_leaves_nothing(
    index: Path, layers: Path, built: runtime.Runtime
) -> None:
    with pytest.raises(RequirementsFailed) as failed:
        runtime.layer(layers, built, ["teapot==9.9"])

    assert "teapot" in failed.value.output
    assert [path.name for path in (layers / "layers").iterdir() if path.is_dir()] == []


def test_installing_never_runs_a_package_s_code(
    index: Path, layers: Path, built: runtime.Runtime, tmp_path: Path
) -> None:
    marker = tmp_path / "it-ran"
    make_source(index, "trojan", marker)

    with pytest.raises(RequirementsFailed):
        runtime.layer(layers, built, ["trojan"])

    assert not marker.exists()


@pytest.mark.parametrize(
    "line",
    [
        "-r /etc/passwd",
        "--index-url=https://example.com",
        "teapot @ file:///tmp/x.whl",
        "git+https://example.com/x.git",
        "./teapot",
        "/tmp/teapot.whl",
        "teapot\n--pre",
        "",
    ],
)
def test_only_names_and_versions_may_be_required(line: str) -> None:
    with pytest.raises(RequirementsFailed):
        runtime.checked([line])


def test_a_layer_over_its_size_is_stopped(
    index: Path, layers: Path, built: runtime.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(index, "heavy", "1.0", {"heavy.py": "x" * 3_000_000})
    monkeypatch.setattr(runtime, "LAYER_MB", 2)

    with pytest.raises(RequirementsFailed) as failed:
        runtime.layer(layers, built, ["heavy"])

    assert "over 2 MB" in failed.value.output


def test_an_installer_that_hangs_is_stopped(tmp_path: Path) -> None:
    sleeping = subprocess.Popen(["sleep", "600"])

    assert runtime.watch(sleeping, tmp_path, seconds=0.1, most_mb=None) == "stopped: over 0 seconds"
    assert sleeping.returncode == -9


def test_layers_that_nobody_used_for_long_are_deleted(
    index: Path, layers: Path, built: runtime.Runtime
) -> None:
    kept = runtime.layer(layers, built, ["teapot"])

    runtime.delete_unused_layers(layers, older_than_seconds=60)
    assert kept.exists()

    runtime.delete_unused_layers(layers, older_than_seconds=-1)
    assert not kept.exists()


@needs_bubblewrap
def test_the_usual_libraries_work_inside(sandboxes: Sandboxes) -> None:
    code = """
import sqlite3, ssl, ctypes, zoneinfo, bz2, lzma, hashlib, decimal, multiprocessing, concurrent.futures
import numpy, pandas, subprocess, sys, warnings
warnings.simplefilter("error")
import matplotlib.pyplot as plt
plt.plot([1, 2]); plt.savefig("../outputs/chart.png")
def double(n): return 2 * n
if __name__ == "__main__":
    with concurrent.futures.ProcessPoolExecutor(2) as pool: print(list(pool.map(double, [1, 2])))
    with multiprocessing.get_context("spawn").Pool(1) as pool: print(pool.map(double, [3]))
    print(subprocess.check_output([sys.executable, "-c", "import numpy; print(numpy.arange(3))"]))
    print(zoneinfo.ZoneInfo("Europe/Berlin"), sqlite3.connect(":memory:").execute("select 1").fetchone())
"""
    run = sandboxes.program(code)

    assert run.stderr == b""
    assert run.stdout.decode().split("\n") == [
        "[2, 4]",
        "[6]",
        "b'[0 1 2]\\n'",
        "Europe/Berlin (1,)",
        "",
    ]


def test_building_again_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    built_runtime()

    call_command("build_runtime")

    assert capsys.readouterr().out == "The sandbox runtime is ready.\n"


def test_another_lock_is_another_runtime(tmp_path: Path) -> None:
    other = tmp_path / "other.lock"
    other.write_text(LOCK.read_text() + "# changed\n")

    assert runtime.find(built_runtime(), LOCK) is not None
    assert runtime.find(built_runtime(), other) is None


def test_a_runtime_that_cannot_be_installed_leaves_nothing(index: Path, tmp_path: Path) -> None:
    lock = tmp_path / "bad.lock"
    lock.write_text("no-such-package==1.0 --hash=sha256:" + "0" * 64 + "\n")

    with pytest.raises(SandboxError, match="no-such-package"):
        runtime.build(tmp_path / "runtime", lock)

    assert [path for path in (tmp_path / "runtime").iterdir() if path.is_dir()] == []
