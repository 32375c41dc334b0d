"""What deploy/ says of Engine is true: variables, ports, paths and times are the ones that the code has."""

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from configparser import RawConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.conf import settings
from django.core.management import get_commands, load_command_class
from django.test import Client

from drills.dockerfiles import context, ignored
from tests.processes import ROOT

DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted(DEPLOY.glob("*.Dockerfile"))
FILES = [
    ROOT / "compose.yaml",
    *(path for path in sorted(DEPLOY.rglob("*")) if path.is_file() and path.suffix not in (".pyc", ".md")),
]
# Of our own, or of a library that reads it; what stands in .env.example is what settings read.
OTHERS = {
    "COPY", "HOME", "PATH", "PYTHONUNBUFFERED", "PIP_DISABLE_PIP_VERSION_CHECK", "UV_LINK_MODE", "UV_NO_CACHE",
    "DEBIAN", "MC_HOST_s3", "S3_SECRET_KEY",
}  # fmt: skip
HAND_BACK_SECONDS = 10  # from the end of the grace to the end of the process; the drill measured under 3


def documented() -> set[str]:
    return set(re.findall(r"^#? ?([A-Z0-9_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))


def kubernetes() -> Iterator[dict[str, Any]]:
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        yield from yaml.safe_load_all(path.read_text())


def pod(name: str) -> dict[str, Any]:
    found = next(
        part for part in kubernetes() if part["kind"] == "Deployment" and part["metadata"]["name"] == name
    )
    spec: dict[str, Any] = found["spec"]["template"]["spec"]
    return spec


def unit(name: str) -> RawConfigParser:
    parser = RawConfigParser(strict=False)
    parser.read(DEPLOY / "systemd" / name)
    return parser


def compose() -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    return services


def worker_commands() -> dict[str, list[str]]:
    """How each platform starts a worker."""
    said = re.search(r"^CMD (\[.*\])$", (DEPLOY / "worker.Dockerfile").read_text(), re.MULTILINE)
    assert said is not None
    image = json.loads(said[1])
    fly = tomllib.loads((DEPLOY / "fly.toml").read_text())
    return {
        "compose": compose()["worker"].get("command", image),
        "railway": image,
        "fly": shlex.split(fly["processes"]["worker"]),
        "systemd": shlex.split(unit("engine-worker@.service")["Service"]["ExecStart"])[2:],
        "kubernetes": pod("worker")["containers"][0]["args"],
    }


def stop_seconds(role: str) -> dict[str, float]:
    """How long each platform waits after SIGTERM."""
    fly = tomllib.loads((DEPLOY / "fly.toml").read_text())
    systemd = unit("engine-web.service" if role == "web" else "engine-worker@.service")
    return {
        "compose": float(compose()[role]["stop_grace_period"].removesuffix("s")),
        "railway": json.loads((DEPLOY / "railway" / f"{role}.json").read_text())["deploy"]["drainingSeconds"],
        "fly": float(fly["kill_timeout"].removesuffix("s")),
        "systemd": float(systemd["Service"]["TimeoutStopSec"]),
        "kubernetes": pod(role)["terminationGracePeriodSeconds"],
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_variable_that_a_file_names_is_one_that_settings_read(path: Path):
    text = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))

    named = set(
        re.findall(r"\b(?:ENGINE|E2B|AWS|OPENAI|SECURE|SECRET|DATABASE|REDIS|LOG)_[A-Z0-9_]+\b", text)
    )

    assert named - documented() - OTHERS == set()


def test_compose_sets_only_what_settings_read():
    for name in ("release", "web", "worker"):
        assert compose()[name]["environment"].keys() - documented() == set()


@pytest.mark.parametrize("platform", ["compose", "railway", "fly", "systemd", "kubernetes"])
def test_a_worker_is_given_longer_to_stop_than_its_jobs_are(platform: str):
    name, *arguments = worker_commands()[platform]
    parser = load_command_class(get_commands()[name], name).create_parser("manage.py", name)

    options = parser.parse_args(arguments)  # the real command's own parser

    assert stop_seconds("worker")[platform] >= options.grace + HAND_BACK_SECONDS


@pytest.mark.parametrize("platform", ["compose", "railway", "fly", "systemd", "kubernetes"])
def test_a_web_process_is_given_longer_to_stop_than_its_requests_are(platform: str):
    before = 5 if platform == "kubernetes" else 0  # preStop, while the service forgets the pod

    assert stop_seconds("web")[platform] >= settings.ENGINE_DRAIN_SECONDS + before + HAND_BACK_SECONDS


@pytest.mark.django_db
def test_the_paths_that_platforms_probe_answer(client: Client):
    fly = tomllib.loads((DEPLOY / "fly.toml").read_text())
    railway = json.loads((DEPLOY / "railway" / "web.json").read_text())
    probes = [
        pod("web")["containers"][0][f"{kind}Probe"]["httpGet"]
        for kind in ("startup", "liveness", "readiness")
    ]
    dockerfile = re.search(r"/health/\w+", (DEPLOY / "web.Dockerfile").read_text())
    assert dockerfile is not None
    paths = {
        *(check["path"] for check in fly["http_service"]["checks"]),
        railway["deploy"]["healthcheckPath"],
        *(probe["path"] for probe in probes),
        dockerfile[0],
    }

    assert {path: client.get(path).status_code for path in paths} == dict.fromkeys(paths, 200)


def test_platforms_ask_at_the_port_that_the_image_listens_on():
    port = re.search(r"\bPORT=(\d+)", (DEPLOY / "web.Dockerfile").read_text())
    assert port is not None
    fly = tomllib.loads((DEPLOY / "fly.toml").read_text())

    assert str(fly["http_service"]["internal_port"]) == port[1]
    assert str(pod("web")["containers"][0]["ports"][0]["containerPort"]) == port[1]
    assert compose()["web"]["ports"][0].endswith(f":{port[1]}")
    assert f"EXPOSE {port[1]}\n" in (DEPLOY / "web.Dockerfile").read_text()


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_is_pinned_runs_as_nobody_special_and_holds_no_secret(path: Path):
    text = path.read_text()

    assert re.search(r"^ARG DEBIAN=debian:\d+\.\d+-slim$", text, re.MULTILINE)
    assert text.count("--require-hashes") == 2
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["10001:10001"]
    assert not re.search(r"^(ENV|ARG).*(SECRET|PASSWORD|KEY|TOKEN|DATABASE_URL)", text, re.MULTILINE)
    assert 'ENTRYPOINT ["/usr/bin/tini", "--"' in text
    assert "HEALTHCHECK" in text


def test_both_images_are_built_of_the_same_packages():
    build = [
        re.search(r"^FROM .* AS build\n.*?\n\n", path.read_text(), re.MULTILINE | re.DOTALL)
        for path in DOCKERFILES
    ]

    assert build[0] is not None
    assert build[1] is not None
    assert build[0][0] == build[1][0]


def test_the_images_are_given_the_program_and_nothing_else():
    names = context()

    assert {"manage.py", "requirements/runtime.lock", "engine/settings.py", "jobs/worker.py"} <= set(names)
    assert not [
        name for name in names if name.startswith((".git", ".env", "tests/", "drills/", "docs/", ".engine"))
    ]


@pytest.mark.parametrize(
    ("name", "out"),
    [
        (".env", True),
        ("engine/x.py", False),
        ("engine/__pycache__/x.py", True),
        ("engine2/x", True),
        ("a.pyc", True),
    ],
)
def test_the_last_rule_that_fits_decides_what_an_image_is_given(name: str, out: bool):
    rules = ["*", "!engine", "**/__pycache__", "**/*.pyc"]

    assert ignored(name, rules) is out


def test_kustomize_lists_every_file_of_its_folder():
    folder = DEPLOY / "kubernetes"
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())

    assert set(listed["resources"]) == {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
    assert {image["name"] for image in listed["images"]} == {"engine-web", "engine-worker"}


@pytest.mark.django_db
def test_the_scalers_query_counts_due_and_running_jobs():
    from django.db import connection

    scaler = next(part for part in kubernetes() if part["kind"] == "ScaledObject")
    concurrency = pod("worker")["containers"][0]["args"]
    with connection.cursor() as cursor:
        cursor.execute(scaler["spec"]["triggers"][0]["metadata"]["query"])
        assert cursor.fetchone() == (0,)
    assert scaler["spec"]["triggers"][0]["metadata"]["targetQueryValue"] == concurrency[2]


def test_the_watchdog_waits_for_more_than_two_heartbeats():
    watchdog = float(unit("engine-worker@.service")["Service"]["WatchdogSec"])

    assert watchdog > 2 * settings.ENGINE_HEARTBEAT_SECONDS
