"""The Python that runs inside local sandboxes, and the read-only layers with an agent's own requirements.

    RUNTIME_DIR/python-<key>/   python/  the interpreter and its standard library, relocated   etc/
                                packages/  what requirements/sandbox.lock names
    RUNTIME_DIR/guest-<key>/    inside.pyc, interpreter.pyc: our two files in there
    RUNTIME_DIR/layers/<key>/   the packages of one set of requirements

A copy, because the interpreter that runs Engine may lie below a private home that a sandbox's user cannot enter, and
because nothing in it may change under a running sandbox. Everything is built under a temporary name and renamed, so
what is there is whole; a lock lets several processes ask at once. Nothing here runs code of a package: wheels only
for an agent's requirements, which are unpacked and compiled, never executed.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import py_compile
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from .base import RequirementsFailed, SandboxError

FORMAT = "3"  # part of every key: raise it when the layout changes
ETC = {
    "passwd": "agent:x:1000:1000:agent:/home/agent:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
    "group": "agent:x:1000:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
# Left out of the copied standard library: needs a screen, installs things, or tests Python itself.
NOT_COPIED = (
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "turtledemo",
    "ensurepip",
)
SITE = """import os
import sys

sys.path += [folder for folder in ("/opt/layer", "/opt/packages") if os.path.isdir(folder)]
"""
FONT_CACHE = """import os, sys
sys.path.append(sys.argv[1])
import matplotlib, matplotlib.font_manager as fonts
manager = fonts.fontManager
manager.ttflist = [font for font in manager.ttflist if font.fname.startswith(matplotlib.get_data_path())]
manager.afmlist = [font for font in manager.afmlist if font.fname.startswith(matplotlib.get_data_path())]
fonts.json_dump(manager, os.path.join(sys.argv[2], f"fontlist-v{fonts.FontManager.__version__}.json"))
"""
LAYER_MB = 1024
LAYER_SECONDS = 300.0
MOST_REQUIREMENTS = 64

Say = Callable[[str, float], None]  # what was done, in how many seconds


@dataclass(frozen=True)
class Runtime:
    """A built runtime."""

    folder: Path
    key: str


def find(folder: Path, lock: Path) -> Runtime | None:
    """The runtime for this interpreter and this lock, if it has been built."""
    key = runtime_key(lock)
    built = folder / f"python-{key}"
    return Runtime(built, key) if (built / "manifest.json").is_file() else None


def build(folder: Path, lock: Path, say: Say = lambda what, seconds: None) -> Runtime:
    """Build the runtime, or wait for whoever is building it, and return it. Raises SandboxError."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / f"python-{runtime_key(lock)}.lock"):
        ready = find(folder, lock)
        if ready is not None:
            return ready
        key = runtime_key(lock)
        with scratch(folder) as new:
            with timed(say, "copied the interpreter and its standard library"):
                copy_interpreter(new / "python")
            with timed(say, f"installed {lock.name}"):
                output = install(new / "packages", ["--require-hashes", "-r", str(lock)], seconds=900)
                if output is not None:
                    raise SandboxError(f"{lock.name} could not be installed:\n{output}")
            with timed(say, "compiled"):
                compile_all(new)
            with timed(say, "prepared fonts and system files"):
                write_etc(new)
            check(new)
            (new / "manifest.json").write_text(json.dumps({"python": sys.version, "built_at": time.time()}))
            make_readable(new)
            new.rename(folder / f"python-{key}")
    return Runtime(folder / f"python-{key}", key)


def runtime_key(lock: Path) -> str:
    """Names what a runtime is made of: interpreter, platform, packages, layout."""
    return digest([FORMAT, sys.version, sysconfig.get_platform(), lock.read_text()])


def build_guest(folder: Path) -> Path:
    """Our own files for inside, compiled; they follow the code, not the runtime."""
    sources = [Path(__file__).with_name(name) for name in ("inside.py", "inside_gvisor.py", "interpreter.py")]
    built = folder / f"guest-{digest([sys.version, *(source.read_text() for source in sources)])}"
    if not built.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "guest.lock"), scratch(folder) as new:
            for source in sources:
                py_compile.compile(
                    str(source),
                    str(new / f"{source.stem}.pyc"),
                    dfile=f"/opt/guest/{source.name}",
                    doraise=True,
                    invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
                )
            make_readable(new)
            if not built.is_dir():
                new.rename(built)
    return built


# --- the parts of a build ---


def copy_interpreter(target: Path) -> None:
    """The base interpreter, its standard library and its own shared libraries, below a prefix of their own."""
    base = Path(sys.base_prefix)
    prefixes = {
        "base": str(base),
        "platbase": str(base),
    }  # without them a virtual environment answers for itself
    stdlib, platstdlib = (Path(sysconfig.get_path(name, vars=prefixes)) for name in ("stdlib", "platstdlib"))
    for folder in {stdlib, platstdlib}:
        shutil.copytree(
            folder,
            target / folder.relative_to(base),
            ignore=shutil.ignore_patterns(*NOT_COPIED, "__pycache__", "config-*", "sitecustomize.py"),
            ignore_dangling_symlinks=True,
            dirs_exist_ok=True,
        )
    library = target / stdlib.relative_to(base)
    (library / "sitecustomize.py").write_text(SITE)
    (target / "bin").mkdir()
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy2(os.path.realpath(getattr(sys, "_base_executable", sys.executable)), target / "bin" / name)
    for alias in ("python", "python3"):
        (target / "bin" / alias).symlink_to(name)
    (target / "lib").mkdir(exist_ok=True)
    for shared in own_libraries([target / "bin" / name, *library.glob("lib-dynload/*.so")]):
        shutil.copy2(shared, target / "lib" / shared.name)


def own_libraries(binaries: Sequence[Path]) -> set[Path]:
    """Shared libraries these need from outside the system's folders, which a sandbox does not see."""
    listing = subprocess.run(["ldd", *map(str, binaries)], capture_output=True, text=True, check=False)
    needed = {Path(match) for match in re.findall(r"=> (/\S+)", listing.stdout)}
    return {path for path in needed if not str(path).startswith(("/lib", "/usr/lib"))}


def install(
    target: Path, arguments: Sequence[str], *, seconds: float, most_mb: int | None = None
) -> str | None:
    """Install packages into a folder, from the host's configured index. Returns what went wrong, or None."""
    own = Path(sys.executable).with_name("uv")
    uv = own if own.is_file() else shutil.which("uv")
    if uv:
        command = [
            str(uv),
            "pip",
            "install",
            "--python",
            sys.executable,
            "--link-mode",
            "copy",
            "--no-progress",
        ]
    else:
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--no-compile",
            "--no-input",
        ]
    command += ["--target", str(target), *arguments]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        problem = watch(process, target, seconds=seconds, most_mb=most_mb)
        output.seek(0)
        said = output.read()[-20_000:]
    if problem is None and process.returncode == 0:
        return None
    return f"{said}\n{problem}".strip() if problem else said.strip() or f"exit code {process.returncode}"


def watch(
    process: "subprocess.Popen[bytes]", target: Path, *, seconds: float, most_mb: int | None
) -> str | None:
    """Wait for an installer; stop it when it takes too long or too much. Returns why it was stopped."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.5 if most_mb else seconds)
        too_large = most_mb is not None and size_of(target) > most_mb * 1024 * 1024
        too_late = process.returncode is None and time.monotonic() > deadline
        if too_large or too_late:
            process.kill()
            process.wait()
            return f"stopped: over {most_mb} MB" if too_large else f"stopped: over {seconds:.0f} seconds"
        if process.returncode is not None:
            return None


def compile_all(new: Path) -> None:
    """Bytecode for everything but tests. Unchecked: nothing changes here once it is built."""
    command = [*interpreter(new), "-m", "compileall", "-q", "-j", "0", "-x", "/tests?/"]
    command += ["--invalidation-mode", "unchecked-hash", str(new)]
    # A few packages ship files for other Python versions, which do not compile: exit code 1, and no harm.
    subprocess.run(command, env=environment(new), capture_output=True, check=False)


def write_etc(new: Path) -> None:
    """The few files below /etc that programs expect, and matplotlib's font cache."""
    (new / "etc").mkdir()
    for name, text in ETC.items():
        (new / "etc" / name).write_text(text)
    cache = new / "etc" / "matplotlib"
    cache.mkdir()
    if (new / "packages" / "matplotlib").is_dir():
        run(new, [*interpreter(new), "-c", FONT_CACHE, str(new / "packages"), str(cache)])


def check(new: Path) -> None:
    """The relocated interpreter must start and know its own libraries, or the build is worth nothing."""
    run(new, [*interpreter(new), "-c", "import ctypes, json, ssl, sqlite3, zlib, hashlib, _socket"])


def run(new: Path, command: Sequence[str]) -> None:
    """Run a step of the build with the new interpreter. Raises SandboxError with what it printed."""
    done = subprocess.run(command, env=environment(new), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SandboxError(f"the sandbox's Python does not work: {done.stderr[-2000:]}")


def interpreter(new: Path) -> list[str]:
    """The new interpreter, without the folders it will only have inside."""
    return [str(new / "python" / "bin" / "python3"), "-I"]


def environment(new: Path) -> dict[str, str]:
    """What the new interpreter needs before it lies where it belongs."""
    return {
        "PATH": "/usr/bin:/bin",
        "LD_LIBRARY_PATH": str(new / "python" / "lib"),
        "LANG": "C.UTF-8",
        "MPLCONFIGDIR": str(new / "etc" / "matplotlib"),
        "HOME": str(new),
    }


# --- requirements of agents ---


def layer(folder: Path, runtime: Runtime, requirements: Sequence[str]) -> Path:
    """The layer with these requirements, built if it is new. Blocks; raises RequirementsFailed."""
    lines = checked(requirements)
    key = digest([FORMAT, runtime.key, *lines])
    layers = folder / "layers"
    layers.mkdir(parents=True, exist_ok=True)
    built = layers / key
    if not built.is_dir():
        with locked(layers / f"{key}.lock"):
            if not built.is_dir():
                build_layer(built, lines, runtime)
    os.utime(built)  # what has not been used for long is deleted first
    return built


def build_layer(built: Path, lines: Sequence[str], runtime: Runtime) -> None:
    """Install into a folder of its own. Wheels only: building a source distribution runs its code, on this host."""
    with scratch(built.parent) as new:
        listed = new / "requirements.txt"
        listed.write_text("\n".join(lines) + "\n")
        arguments = ["--only-binary", ":all:", "-r", str(listed)]
        output = install(new / "packages", arguments, seconds=LAYER_SECONDS, most_mb=LAYER_MB)
        if output is not None:
            raise RequirementsFailed(
                f"the requirements {', '.join(lines)} could not be installed", output=output
            )
        command = [*interpreter(runtime.folder), "-m", "compileall", "-q", "-x", "/tests?/"]
        command += ["--invalidation-mode", "unchecked-hash", str(new)]
        subprocess.run(command, env=environment(runtime.folder), capture_output=True, check=False)
        make_readable(new)
        (new / "packages").rename(built)


def checked(requirements: Sequence[str]) -> list[str]:
    """Requirement lines, normalised and sorted. Only names and versions: no option, address, path or file."""
    if len(requirements) > MOST_REQUIREMENTS:
        raise RequirementsFailed(f"more than {MOST_REQUIREMENTS} requirements")
    lines = set()
    for line in requirements:
        try:
            requirement = Requirement(line)
        except InvalidRequirement as error:
            raise RequirementsFailed(f"not a requirement: {line!r}", output=str(error)) from error
        if requirement.url:
            raise RequirementsFailed(f"a requirement may not name an address: {line!r}")
        lines.add(str(requirement))
    return sorted(lines)


def delete_unused_layers(folder: Path, *, older_than_seconds: float) -> None:
    """Delete layers that no job has used for long."""
    for built in (folder / "layers").glob("*"):
        if built.suffix == ".tar" and time.time() - built.stat().st_mtime > older_than_seconds:
            built.unlink(missing_ok=True)
        elif built.is_dir() and time.time() - built.stat().st_mtime > older_than_seconds:
            doomed = built.with_name(f"tmp-{built.name}")
            built.rename(doomed)  # at once: nobody finds half a layer
            shutil.rmtree(doomed)


# --- small helpers ---


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock over processes; the kernel drops it with its holder."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A new folder beside where the result will be, deleted if it is still there afterwards."""
    new = Path(tempfile.mkdtemp(prefix="tmp-", dir=folder))
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)


@contextmanager
def timed(say: Say, what: str) -> Iterator[None]:
    """Say what was done, and how long it took."""
    start = time.monotonic()
    yield
    say(what, time.monotonic() - start)


def make_readable(folder: Path) -> None:
    """Let every user read what is there: sandboxes run as users of their own."""
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder, while somebody may be at work in it."""
    total = 0
    for path, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                total += (Path(path) / name).lstat().st_size
    return total


def digest(parts: Sequence[str]) -> str:
    """A short name for content."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
