"""Carries out a Dockerfile without a container engine: each step runs as root in a bare Debian tree.

It knows what our Dockerfiles use, and refuses what it does not know. Base images are made by debootstrap.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).resolve().parent.parent
ENTER = Path(__file__).with_name("enter.sh")
SUITES = {"debian:12": "bookworm"}
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
STEP_SECONDS = 900
Say = Callable[[str], None]


class StepFailed(Exception):
    """A step of a Dockerfile ended badly; the message has its last lines."""


@dataclass(frozen=True)
class Image:
    """A tree, and how a container of it would be started."""

    tree: Path
    env: Mapping[str, str] = field(default_factory=lambda: {"PATH": PATH})
    folder: str = "/"
    user: str = "0:0"
    entrypoint: Sequence[str] = ()
    command: Sequence[str] = ()
    healthcheck: Sequence[str] = ()


@dataclass(frozen=True)
class Registry:
    """How this machine reaches its package registries, for the time of a build step and no longer."""

    folder: Path
    env: Mapping[str, str]


def registry(folder: Path) -> Registry:
    """Copies this machine's own client configuration to a folder that steps see under /run/registry."""
    for part in ("sources.list.d", "apt.conf.d"):
        shutil.copytree(Path("/etc/apt") / part, folder / part, dirs_exist_ok=True)
    env = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_"))}
    certificates = Path("/etc/ssl/certs/ca-certificates.crt")
    if certificates.exists():
        shutil.copy(certificates, folder / "certificates.crt")
        env |= dict.fromkeys(("PIP_CERT", "SSL_CERT_FILE"), "/run/registry/certificates.crt")
    if Path("/etc/pip.conf").exists():
        shutil.copy("/etc/pip.conf", folder / "pip.conf")
        env["PIP_CONFIG_FILE"] = "/run/registry/pip.conf"
    env.pop("PIP_FIND_LINKS", None)  # a folder of this machine
    return Registry(folder, env)


def enter(
    image: Image, program: Sequence[str], *, env: Mapping[str, str], via: Registry | None = None
) -> list[str]:
    """The command that becomes `program` inside the image's tree, as the image's user."""
    given = {**(via.env if via else {}), **image.env, **env}
    return [
        *("unshare", "--mount", "--pid", "--ipc", "--fork", "--kill-child"),
        *(str(ENTER), str(image.tree), str(via.folder) if via else "", image.user, image.folder),
        *("env", "-i", *(f"{name}={value}" for name, value in given.items()), *program),
    ]  # fmt: skip


class Builder:
    """Builds images under one folder. A stage whose steps were carried out before is not built again."""

    def __init__(self, folder: Path, via: Registry, say: Say) -> None:
        self.folder, self.via, self.say = folder, via, say
        self._built: dict[tuple[str, ...], Image] = {}

    def build(self, dockerfile: Path) -> Image:
        """The image of a Dockerfile's last stage. Raises StepFailed."""
        arguments: dict[str, str] = {}
        stages: dict[str, Image] = {}
        lines: list[tuple[str, str]] = [
            (step["instruction"], step["value"])
            for step in DockerfileParser(path=str(dockerfile)).structure
            if step["instruction"] != "COMMENT"
        ]
        while lines[0][0] == "ARG":
            name, _, default = lines.pop(0)[1].partition("=")
            arguments[name] = default
        image = None
        for stage in split(lines):
            base, _, name = expand(stage[0][1], arguments).partition(" AS ")
            image = self._stage(stages.get(base) or self._base(base), base, stage[1:], stages)
            stages[name or dockerfile.stem] = image
        if image is None:
            raise StepFailed(f"{dockerfile.name} has no stage")
        return image

    def _base(self, name: str) -> Image:
        suite = next((SUITES[base] for base in SUITES if name.startswith(f"{base}.")), None)
        if suite is None:
            raise StepFailed(f"There is no bare tree for the base {name}")
        tree = self.folder / suite
        if not (tree / "etc/debian_version").exists() or not (tree / ".whole").exists():
            shutil.rmtree(tree, ignore_errors=True)
            with self._step(f"debootstrap {suite}, for {name}"):
                self._run(["debootstrap", "--variant=minbase", suite, str(tree)])
                (tree / ".whole").touch()
        return Image(tree)

    def _stage(
        self, base: Image, base_name: str, steps: list[tuple[str, str]], stages: Mapping[str, Image]
    ) -> Image:
        key = (base_name, str(base.tree), *(f"{name} {value}" for name, value in steps))
        if key in self._built:
            return self._built[key]
        tree = self.folder / f"stage-{len(self._built)}"
        shutil.rmtree(tree, ignore_errors=True)
        subprocess.run(["cp", "-a", "--reflink=auto", str(base.tree), str(tree)], check=True)
        image = replace(base, tree=tree)
        for name, value in steps:
            with self._step(f"{name} {value}"):
                image = self._carry_out(image, name, value, stages)
        self._built[key] = image
        return image

    def _carry_out(self, image: Image, name: str, value: str, stages: Mapping[str, Image]) -> Image:
        """One step of a stage."""
        match name:
            case "RUN":
                self._run(enter(image, ["/bin/sh", "-c", value], env={"HOME": "/root"}, via=self.via))
                return image
            case "COPY":
                copy(image, value, stages)
                return image
            case "ENV":
                pairs = [part.partition("=") for part in shlex.split(value)]
                return replace(
                    image, env={**image.env, **{key: expand(set_to, image.env) for key, _, set_to in pairs}}
                )
            case "WORKDIR":
                (image.tree / value.lstrip("/")).mkdir(parents=True, exist_ok=True)
                return replace(image, folder=value)
            case "USER":
                return replace(image, user=value)
            case "ENTRYPOINT":
                return replace(image, entrypoint=exec_form(value))
            case "CMD":
                return replace(image, command=exec_form(value))
            case "HEALTHCHECK":
                return replace(image, healthcheck=exec_form(value.partition("CMD ")[2]))
            case "LABEL" | "EXPOSE" | "STOPSIGNAL":
                return image
        raise StepFailed(f"{name} is not known here")

    def _step(self, what: str) -> "Step":
        return Step(" ".join(what.split()), self.say)

    def _run(self, command: list[str]) -> None:
        log = self.folder / "build.log"
        with log.open("w+b") as output:
            ended = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=STEP_SECONDS,
                check=False,
            )
        if ended.returncode:
            raise StepFailed("\n".join(log.read_text(errors="replace").splitlines()[-25:]))


class Step:
    """Says what is done, and how long it took."""

    def __init__(self, what: str, say: Say) -> None:
        self.what, self.say = what, say

    def __enter__(self) -> None:
        self.begun = time.monotonic()

    def __exit__(self, *failure: object) -> None:
        shown = self.what if len(self.what) <= 90 else f"{self.what[:89]}…"
        self.say(f"{time.monotonic() - self.begun:7.1f} s  {shown}{'  FAILED' if failure[0] else ''}")


def split(lines: list[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """The lines of each stage, FROM first."""
    stages: list[list[tuple[str, str]]] = []
    for line in lines:
        if line[0] == "FROM":
            stages.append([])
        stages[-1].append(line)
    return stages


def expand(value: str, names: Mapping[str, str]) -> str:
    """`$NAME` and `${NAME}` replaced."""
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda found: names[found[1] or found[2]], value)


def exec_form(value: str) -> list[str]:
    """The JSON list that our Dockerfiles use, so that signals reach the program itself. Raises StepFailed."""
    try:
        words: list[str] = json.loads(value)
    except ValueError:
        raise StepFailed(f"not in the exec form: {value}") from None
    return words


def copy(image: Image, value: str, stages: Mapping[str, Image]) -> None:
    """COPY, from another stage or from the build context."""
    words = value.split()
    flags = dict(word.removeprefix("--").split("=", 1) for word in words if word.startswith("--"))
    *sources, target = [word for word in words if not word.startswith("--")]
    if flags.keys() - {"from"}:
        raise StepFailed(f"COPY {value}: this option is not known here")
    into = image.tree / (target if target.startswith("/") else f"{image.folder}/{target}").lstrip("/")
    for source in sources:
        if "from" in flags:
            found = stages[flags["from"]].tree / source.lstrip("/")
            into.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-a", f"{found}/.", str(into)], check=True)
        else:
            for name in context():
                if source == "." or name == source or name.startswith(f"{source}/"):
                    place = into / (name if source == "." else name[len(source) :].lstrip("/"))
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / name, place)  # owned by root, as COPY does


def context() -> list[str]:
    """The files that .dockerignore lets through, of those that git has or would take."""
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    return [name for name in listed if (ROOT / name).is_file() and not ignored(name, rules)]


def ignored(name: str, rules: Sequence[str]) -> bool:
    """Whether the last rule that fits a file, or a folder that it is in, leaves it out."""
    out = False
    for rule in rules:
        pattern = (
            re.escape(rule.removeprefix("!").rstrip("/"))
            .replace(r"\*\*/", "(?:.*/)?")
            .replace(r"\*", "[^/]*")
        )
        if re.match(f"{pattern}(?:/|$)", name):
            out = not rule.startswith("!")
    return out
