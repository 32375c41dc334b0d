"""A worker believes in its sandbox only after a program in one has tried to leave, and says what would fix it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from jobs.sandboxes import bubblewrap, registry
from jobs.sandboxes.base import ProviderHealth, SandboxUnavailable
from jobs.sandboxes.inside import HOME
from jobs.sandboxes.local import LocalProvider
from tests.sandboxes import LOCK, Sandboxes, local_provider, needs_bubblewrap, spec


def health_of(provider: LocalProvider) -> ProviderHealth:
    sandboxes = Sandboxes(provider)
    try:
        if not sandboxes.health.ok:
            with pytest.raises(SandboxUnavailable):
                sandboxes.run(provider.open(spec()))
        return sandboxes.health
    finally:
        sandboxes.close()


def without(*words: str) -> Callable[[list[str]], list[str]]:
    """Take a run of words out of a command line."""

    def change(line: list[str]) -> list[str]:
        for start in range(len(line)):
            if tuple(line[start : start + len(words)]) == words:
                return line[:start] + line[start + len(words) :]
        raise AssertionError(f"{words} is not in {line}")

    return change


def with_first(*words: str) -> Callable[[list[str]], list[str]]:
    """Put words before the end of the mounts."""

    def change(line: list[str]) -> list[str]:
        return [*line[: line.index("--chdir")], *words, *line[line.index("--chdir") :]]

    return change


@needs_bubblewrap
@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(without("--seccomp", "8"), "has no system call filter", id="filter"),
        pytest.param(without("--seccomp", "8"), "makes namespaces", id="namespaces"),
        pytest.param(without("--unshare-net"), "has a network", id="network"),
        pytest.param(without("--remount-ro", "/"), "writes to the root", id="root"),
        pytest.param(with_first("--cap-add", "ALL"), "has capabilities", id="capabilities"),
        pytest.param(with_first("--ro-bind", "/var", "/var"), "sees host files", id="files"),
        pytest.param(without("--unshare-pid"), "bubblewrap: ", id="processes"),
    ],
)
def test_a_missing_wall_is_found_and_named(
    change: Callable[[list[str]], list[str]], says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    complete = bubblewrap.arguments
    monkeypatch.setattr(
        bubblewrap, "arguments", lambda *given, **options: change(complete(*given, **options))
    )
    monkeypatch.setattr("jobs.sandboxes.probe.HOST_FILE", Path("/var/lib/dpkg/status"))

    health = health_of(local_provider(tmp_path / "scratch"))

    assert not health.ok
    assert says in health.detail


@needs_bubblewrap
def test_a_whole_sandbox_passes_and_says_what_limits_it(tmp_path: Path) -> None:
    health = health_of(local_provider(tmp_path / "scratch"))

    assert health.ok
    assert health.detail in (
        "bubblewrap, cgroup v1",
        "bubblewrap, cgroup v2",
        "bubblewrap, rlimits and a watchdog",
    )


def test_without_bubblewrap_the_remedy_installs_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bubblewrap, "find_bwrap", lambda folder: None)

    health = health_of(local_provider(tmp_path / "scratch"))

    assert (health.ok, health.remedy) == (False, bubblewrap.INSTALL)


def test_without_a_runtime_the_remedy_builds_it(tmp_path: Path) -> None:
    provider = LocalProvider(runtime_folder=tmp_path / "none", lock=LOCK, scratch_folder=tmp_path / "scratch")

    health = health_of(provider)

    assert (health.ok, health.remedy) == (False, "python manage.py build_runtime")


def test_a_program_that_is_no_bubblewrap_is_no_sandbox(tmp_path: Path) -> None:
    assert not health_of(local_provider(tmp_path / "scratch", bwrap=Path("/bin/true"))).ok


@needs_bubblewrap
def test_a_worker_that_could_not_have_one_finds_it_at_the_next_look(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as missing:
        missing.setattr(bubblewrap, "find_bwrap", lambda folder: None)
        sandboxes = Sandboxes(local_provider(tmp_path / "scratch"))
        assert not sandboxes.health.ok

    try:
        assert sandboxes.run(sandboxes.provider.start()).ok
        assert sandboxes.run(sandboxes.provider.start()).ok, "and looking again does no harm"
        assert sandboxes.program("print(1)").stdout == b"1\n"
    finally:
        sandboxes.close()


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("bwrap: setting up uid map: Permission denied", bubblewrap.APPARMOR),
        ("bwrap: loopback: Failed RTM_NEWADDR: Operation not permitted", bubblewrap.APPARMOR),
        ("bwrap: No permissions to create a new namespace", bubblewrap.USERNS),
        ("bwrap: Creating new namespace failed: No space left on device", bubblewrap.USERNS),
    ],
)
def test_what_bubblewrap_complains_about_has_a_line_that_fixes_it(
    said: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bubblewrap, "in_container", lambda: False)
    assert bubblewrap.remedy_for(said) == remedy

    monkeypatch.setattr(bubblewrap, "in_container", lambda: True)
    assert bubblewrap.remedy_for(said) == bubblewrap.CONTAINER


def test_elsewhere_than_on_linux_it_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.platform", "darwin")

    health = health_of(LocalProvider(runtime_folder=tmp_path, lock=LOCK, scratch_folder=tmp_path))

    assert (health.ok, health.remedy) == (False, bubblewrap.NOT_LINUX)


def test_settings_choose_the_provider(settings: Any) -> None:
    for chosen in ("auto", "local"):
        settings.ENGINE_SANDBOX = chosen
        assert registry.provider_from_settings().name == "local"

    settings.ENGINE_SANDBOX = "e2b"
    assert registry.provider_from_settings().name == "e2b"

    settings.ENGINE_SANDBOX = "gvisor"
    assert registry.provider_from_settings().name == "gvisor"


def test_production_wants_the_local_sandbox_to_be_chosen_on_purpose(settings: Any) -> None:
    settings.PRODUCTION = True
    settings.ENGINE_SANDBOX = "auto"
    with pytest.raises(ImproperlyConfigured, match="ENGINE_SANDBOX"):
        registry.provider_from_settings()

    settings.ENGINE_SANDBOX = "local"
    assert registry.provider_from_settings().name == "local"


def test_no_mount_lands_below_a_folder_that_programs_write() -> None:
    """CVE-2026-87766: a link that a program left there would make bubblewrap create files on the host."""
    places = bubblewrap.Places(
        Path("/runtime"), Path("/guest"), Path("/box"), Path("/layer"), ("fonts.json",)
    )
    line = bubblewrap.arguments(places, memory_mb=64, disk_mb=8, warm=())
    binds = [
        (line[index + 1], line[index + 2])
        for index, word in enumerate(line)
        if word in ("--bind", "--ro-bind", "--ro-bind-try", "--dev-bind")
    ]

    assert not {"--bind", "--dev-bind", "--bind-try"} & set(line), "nothing of the host can be written"
    for source, target in binds:
        written = [f"{HOME}/{folder}" for folder in (*bubblewrap.WRITABLE_FOLDERS, ".tmp")]
        assert not any(target == folder or target.startswith(f"{folder}/") for folder in written)
        assert source.startswith(("/usr/", "/lib", "/bin", "/runtime/", "/guest", "/box/", "/layer"))
