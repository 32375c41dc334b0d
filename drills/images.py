"""Builds both images without a container engine, starts a web process and a worker from them, and runs a job.

    python -m drills.images

As root, with debootstrap; without either it says so and ends with 0 (`--must` ends with 1). Each step of
deploy/*.Dockerfile is carried out in a bare Debian tree, entered by a mount namespace and pivot_root. Then `release`
runs twice at once, and web and worker start as the images say (their user, no capability, no way to gain one), against
a PostgreSQL, an S3 server and, where it is installed, a redis-server outside. The README's sample job goes through,
over what a proxy with TLS would send. Both are told to end. What this cannot show is in docs/deployment.md.
"""

import argparse
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import boto3
import django
import httpx

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "engine.settings")
django.setup()

from drills.dockerfiles import ROOT, Builder, Image, StepFailed, enter, registry  # noqa: E402 (after setup)
from drills.proxy import Loop, Proxy  # noqa: E402
from engine.embedded import DATABASE, USER, EmbeddedServer  # noqa: E402
from engine.sample import FINAL, TASK  # noqa: E402
from tests.buckets import BUCKET, bucket_server  # noqa: E402
from tests.processes import eventually  # noqa: E402

HOST = "engine.example"
READY_SECONDS = 90.0
JOB_SECONDS = 120.0
STOP_SECONDS = 45.0  # what compose.yaml and the others give
# What a proxy that ends TLS sends.
PROXIED = {"Host": HOST, "X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.7"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the drill that the command line asks for."""
    parser = argparse.ArgumentParser(prog="drills.images", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--must", action="store_true", help="fail where it cannot be run")
    parser.add_argument(
        "--folder", type=Path, help="where the trees lie; kept if given, so that a base is reused"
    )
    chosen = parser.parse_args(arguments)
    if missing := what_is_missing():
        print(f"The images were not proved: {missing}.")
        return 1 if chosen.must else 0
    with ExitStack() as ends:
        folder = chosen.folder or Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="images-")))
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        try:
            prove(folder.resolve(), ends)
        except (StepFailed, AssertionError, httpx.HTTPError) as error:
            print(f"FAILED: {error}", flush=True)
            return 1
    print("Both images were built and ran.")
    return 0


def what_is_missing() -> str:
    """Why this machine cannot do it, or nothing."""
    if os.geteuid() != 0:
        return "this needs root, for mounts and for debootstrap"
    for program in ("debootstrap", "unshare", "pivot_root"):
        if shutil.which(program) is None:
            return f"{program} is not installed (apt-get install debootstrap util-linux)"
    return ""


def say(line: str) -> None:
    """Print a line now."""
    print(line, flush=True)


def prove(folder: Path, ends: ExitStack) -> None:
    """Build, look, run. Raises AssertionError or StepFailed."""
    via = registry(Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="registry-"))))
    builder = Builder(folder, via, say)
    images = {}
    for name in ("web", "worker"):
        begun = time.monotonic()
        images[name] = builder.build(ROOT / "deploy" / f"{name}.Dockerfile")
        say(f"{time.monotonic() - begun:7.1f} s  image {name}: {megabytes(images[name].tree)} MB unpacked")
        look_at(images[name])
    env = ends.enter_context(services(folder))
    run(images["web"], images["worker"], env, ends)


def megabytes(tree: Path) -> int:
    """The size of a tree."""
    return int(
        subprocess.run(["du", "-sm", str(tree)], capture_output=True, text=True, check=True).stdout.split()[0]
    )


def look_at(image: Image) -> None:
    """What must not be in an image, and what its user must not be able to do."""
    secret = [
        path
        for name in ("secrets.json", ".env", "*.pem.key", ".git", "pip.conf")
        for path in (image.tree / "opt/engine").rglob(name)
        if ".venv" not in path.parts
    ]
    assert not secret, f"the image holds {secret}"
    assert image.user != "0:0", "the image runs as root"
    assert image.entrypoint[0] == "/usr/bin/tini", "nothing reaps what agents leave behind"
    assert image.healthcheck, "the image has no health check"
    program = "import os; print([f for f in ('/opt/engine', '/opt/engine/.venv', '/usr/bin') if os.access(f, os.W_OK)])"
    assert output(image, ["/opt/engine/.venv/bin/python", "-c", program]) == "[]", (
        "its user can change the program"
    )


def output(image: Image, program: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    """What a program in the image prints. Raises AssertionError when it ends badly."""
    ended = subprocess.run(
        enter(image, program, env=env or {}),
        capture_output=True,
        text=True,
        timeout=READY_SECONDS * 2,
        check=False,
    )
    assert ended.returncode == 0, f"{' '.join(program)}:\n{ended.stdout[-2000:]}\n{ended.stderr[-2000:]}"
    return ended.stdout.strip()


@contextmanager
def services(folder: Path) -> Iterator[dict[str, str]]:
    """PostgreSQL, an S3 server and Redis outside the images; yields what the images are told of them."""
    with ExitStack() as ends:
        home = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="outside-")))
        server = EmbeddedServer(home / "database")
        server.ensure()
        ends.callback(server.leave)
        loop = Loop()
        ends.callback(loop.close)
        proxy = Proxy(loop, server.socket_folder / ".s.PGSQL.5432")
        ends.callback(proxy.close)
        bucket = ends.enter_context(bucket_server())
        client: Any = boto3.client(
            "s3",
            endpoint_url=bucket.url,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        client.create_bucket(Bucket=BUCKET)
        env = {
            "DATABASE_URL": f"postgresql://{USER}@127.0.0.1:{proxy.port}/{DATABASE}?sslmode=disable&gssencmode=disable",
            "SECRET_KEY": "of a drill, and long enough to be taken for a good one: 0123456789",
            "ALLOWED_HOSTS": HOST,
            "ENGINE_PUBLIC_URL": f"https://{HOST}",
            "ENGINE_PROXY_HOPS": "1",
            "ENGINE_SANDBOX": "local",
            "ENGINE_S3_BUCKET": BUCKET,
            "ENGINE_S3_ENDPOINT": bucket.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "PORT": str(free_port()),
        }
        if shutil.which("redis-server"):
            port = free_port()
            redis = subprocess.Popen(
                ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""],
                stdout=subprocess.DEVNULL,
            )
            ends.callback(redis.wait, 10)
            ends.callback(redis.terminate)
            env["REDIS_URL"] = f"redis://127.0.0.1:{port}/0"
        yield env


class Container:
    """The image's own program, started as its user."""

    def __init__(self, image: Image, name: str, env: Mapping[str, str], logs: Path) -> None:
        self.image, self.env = image, env
        self.log = logs / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                enter(image, [*image.entrypoint, *image.command], env=env),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def healthy(self) -> bool:
        """What the image's HEALTHCHECK says."""
        assert self.process.poll() is None, f"it ended:\n{self.log.read_text(errors='replace')[-3000:]}"
        probe = enter(self.image, self.image.healthcheck, env=self.env)
        return subprocess.run(probe, capture_output=True, timeout=30, check=False).returncode == 0

    def stop(self) -> tuple[int, float]:
        """SIGTERM to its first process, as an engine does; its exit code, and the seconds it took."""
        begun = time.monotonic()
        pid = self.process.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            os.kill(int(child), signal.SIGTERM)
        return self.process.wait(STOP_SECONDS), time.monotonic() - begun

    def end(self) -> None:
        """End it, however far it came."""
        self.process.kill()
        self.process.wait(10)


def run(web_image: Image, worker_image: Image, env: dict[str, str], ends: ExitStack) -> None:
    """Release, start, health, a job, stop."""
    logs = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="containers-")))
    release = [*web_image.entrypoint, "release"]
    begun = time.monotonic()
    twice = [subprocess.Popen(enter(web_image, release, env=env), stdout=subprocess.PIPE) for _ in range(2)]
    assert [process.wait(READY_SECONDS * 2) for process in twice] == [0, 0], (
        "release failed, started twice at once"
    )
    done(begun, "release, started twice at once")
    key = output(
        web_image,
        [*web_image.entrypoint, "createkey", "--name", "drill", "--project", "default", "--scope", "admin"],
        env,
    ).split()[-1]
    begun = time.monotonic()
    web = Container(web_image, "web", env, logs)
    ends.callback(web.end)
    worker = Container(worker_image, "worker", env, logs)
    ends.callback(worker.end)
    eventually(
        lambda: web.healthy() and worker.healthy(), seconds=READY_SECONDS, what="the images' health checks"
    )
    done(begun, "healthy, by the images' own health checks")
    url = f"http://127.0.0.1:{env['PORT']}"
    with httpx.Client(base_url=url, headers=PROXIED, timeout=30) as client:
        eventually(
            lambda: client.get("/health/ready").is_success, seconds=READY_SECONDS, what="/health/ready"
        )
        ready = client.get("/health/ready")
        done(begun, f"ready: {', '.join(ready.json()['parts'])}")
        static_files(client)
        client.headers["Authorization"] = f"Bearer {key}"
        sample_job(client)
    for name, container in (("worker", worker), ("web", web)):
        code, seconds = container.stop()
        assert code in (0, 128 + signal.SIGTERM), (
            f"{name} ended with {code}:\n{container.log.read_text()[-2000:]}"
        )
        say(f"{seconds:7.1f} s  {name} ended after SIGTERM")


def static_files(client: httpx.Client) -> None:
    """The dashboard's own, collected while the image was built, under names that say what is in them."""
    page = client.get("/admin/login/")
    assert page.status_code == 200, page.text[:500]
    found = re.search(r'href="(/static/[^"]+\.[0-9a-f]{12}\.css)"', page.text)
    assert found, "the login page names no collected stylesheet"
    assert "immutable" in client.get(found[1]).headers["Cache-Control"]


def sample_job(client: httpx.Client) -> None:
    """The README's: a task in plain words, a file, no agent named; its chart comes back from the bucket."""
    begun = time.monotonic()
    with (ROOT / "samples" / "reviews.csv").open("rb") as file:
        made = client.post("/api/v1/jobs", data={"task": TASK}, files={"files": ("reviews.csv", file)})
    assert made.status_code == 201, made.text
    path = f"/api/v1/jobs/{made.json()['id']}"
    eventually(lambda: client.get(path).json()["status"] in FINAL, seconds=JOB_SECONDS, what="the job's end")
    job = client.get(path).json()
    assert job["status"] == "completed", job
    artifacts = client.get(f"{path}/artifacts").json()["items"]
    sizes = [len(client.get(f"{path}/artifacts/{artifact['id']}").content) for artifact in artifacts]
    assert sizes, "the job made no artifact"
    assert sizes == [artifact["size"] for artifact in artifacts]
    done(begun, f"sample job: {job['agent']['slug']}, {len(sizes)} artifacts from the bucket")


def done(begun: float, what: str) -> None:
    """Say what was done since `begun`."""
    say(f"{time.monotonic() - begun:7.1f} s  {what}")


def free_port() -> int:
    """A port that nobody listens on now."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
