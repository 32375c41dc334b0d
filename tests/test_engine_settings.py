"""Settings come from the environment, and a value that cannot be used stops the start with its name and the fix."""

import ast
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import get_commands
from environ import Env

from engine import environment
from engine.secretfile import SecretFile
from tests.processes import ROOT

SHOW = """
import json, sys
import engine.settings as settings
print(json.dumps({name: getattr(settings, name) for name in sys.argv[1:]}, default=str))
"""
PRODUCTION = {"ENGINE_ENV": "production", "SECRET_KEY": "k" * 50, "ALLOWED_HOSTS": "engine.example"}


def load(home: Path, *names: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Import the settings in a process of their own, and print some."""
    clean = {"PATH": os.environ["PATH"], "ENGINE_HOME": str(home)}
    return subprocess.run(
        [sys.executable, "-c", SHOW, *names],
        cwd=ROOT, env={**clean, **environment}, text=True, capture_output=True, timeout=60,
    )  # fmt: skip


def values(home: Path, *names: str, **environment: str) -> dict[str, Any]:
    loaded = load(home, *names, **environment)
    assert loaded.returncode == 0, loaded.stderr
    shown: dict[str, Any] = json.loads(loaded.stdout)
    return shown


def test_a_fresh_machine_needs_no_variable(tmp_path):
    shown = values(tmp_path, "DEBUG", "PORT", "ENGINE_HOST", "ALLOWED_HOSTS", "ENGINE_SANDBOX", "DATABASES")

    assert shown["DEBUG"] is False
    assert (shown["ENGINE_HOST"], shown["PORT"]) == ("127.0.0.1", 8000)
    assert "127.0.0.1" in shown["ALLOWED_HOSTS"]
    assert shown["ENGINE_SANDBOX"] == "auto"
    assert shown["DATABASES"]["default"]["ENGINE"] == "engine.pgbackend"


def test_loading_settings_starts_no_database(tmp_path):
    values(tmp_path, "DATABASES")

    assert not (tmp_path / "postgres").exists()


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("PORT", "eighty", "whole number"),
        ("PORT", "70000", "1 to 65535"),
        ("PORT", "٨٠٠٠", "whole number"),
        ("DEBUG", "maybe", "1 or 0"),
        ("ENGINE_SANDBOX", "docker", "auto, local, gvisor, e2b"),
        ("ENGINE_ENV", "prod", "development, production"),
        ("ENGINE_LEASE_SECONDS", "15s", "seconds"),
        ("ENGINE_LEASE_SECONDS", "nan", "seconds"),
        ("ENGINE_HEARTBEAT_SECONDS", "10", "at most half"),
        ("DATABASE_URL", "mysql://root@localhost/x", "postgresql://"),
        ("DATABASE_URL", "postgresql://user:hunter2@localhost", "names no database"),
        ("DATABASE_URL", "postgresql://user:hunter2@localhost:port/x?bad", "postgresql://"),
        ("ENGINE_DIRECT_DATABASE_URL", "postgresql://localhost/x", "set both"),
        ("REDIS_URL", "localhost:6379", "redis://"),
        ("OPENAI_BASE_URL", "api.openai.com", "https://"),
        ("ENGINE_MAX_UPLOAD_BYTES", "100MB", "whole number"),
        ("LOG_LEVEL", "loud", "DEBUG"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318", "http://"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization: hunter2", "name=value"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=hunter2%0D%0Ab", "name=value"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/authority.pem", "PEM"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "README.md", "PEM"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip", "gzip"),
        ("OTEL_TRACES_SAMPLER", "sometimes", "parentbased_always_on"),
        ("OTEL_TRACES_SAMPLER_ARG", "10%", "from 0 to 1"),
        ("OTEL_TRACES_SAMPLER_ARG", "1.5", "from 0 to 1"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_the_fix(tmp_path, name, value, fix):
    loaded = load(tmp_path, **{name: value})

    assert loaded.returncode != 0
    message = loaded.stderr.splitlines()[-1]
    assert "ImproperlyConfigured" in message
    assert name in message
    assert fix in message
    assert "hunter2" not in loaded.stderr


def test_traces_are_off_unless_a_collector_is_named(tmp_path):
    name = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
    collector = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318/"}

    assert values(tmp_path, name) == {name: ""}
    assert values(tmp_path, name, **collector) == {name: "http://collector:4318/v1/traces"}
    assert values(tmp_path, name, **collector, OTEL_SDK_DISABLED="true") == {name: ""}
    refused = load(tmp_path, **collector, OTEL_EXPORTER_OTLP_PROTOCOL="grpc")
    assert "OTEL_EXPORTER_OTLP_PROTOCOL='grpc' cannot be used" in refused.stderr


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"SECRET_KEY": ""}, "SECRET_KEY"),
        ({"SECRET_KEY": "short"}, "SECRET_KEY"),
        ({"SECRET_KEY": "django-insecure-" + "k" * 50}, "SECRET_KEY"),
        ({"SECRET_KEY_FALLBACKS": "f" * 50 + ",short"}, "SECRET_KEY_FALLBACKS"),
        ({"ALLOWED_HOSTS": " , "}, "ALLOWED_HOSTS"),
        ({"ALLOWED_HOSTS": "engine.example,*"}, "ALLOWED_HOSTS"),
        ({"DEBUG": "1"}, "DEBUG"),
        ({"ENGINE_ENV": "development", "DEBUG": "1", "ENGINE_HOST": "0.0.0.0"}, "DEBUG"),
    ],
)
def test_production_refuses_what_is_only_good_for_development(tmp_path, change, named):
    loaded = load(tmp_path, **{**PRODUCTION, **change})

    assert loaded.returncode != 0
    assert named in loaded.stderr.splitlines()[-1]


def test_production_is_closed(tmp_path):
    shown = values(
        tmp_path,
        "SECURE_SSL_REDIRECT",
        "SESSION_COOKIE_SECURE",
        "CSRF_COOKIE_SECURE",
        "SECURE_HSTS_SECONDS",
        **PRODUCTION,
    )

    assert all(shown.values())


def test_no_secret_is_printed_with_the_message(tmp_path):
    for name in ("SECRET_KEY", "SECRET_KEY_FALLBACKS"):
        loaded = load(tmp_path, **{**PRODUCTION, name: "too-short-to-be-good"})

        assert loaded.returncode != 0
        assert "too-short-to-be-good" not in loaded.stderr


def test_earlier_secret_keys_are_listed_with_commas_and_there_are_none_by_default(tmp_path):
    old = ["a" * 50, "b" * 50]

    assert values(tmp_path, "SECRET_KEY_FALLBACKS") == {"SECRET_KEY_FALLBACKS": []}
    given = values(tmp_path, "SECRET_KEY_FALLBACKS", **{**PRODUCTION, "SECRET_KEY_FALLBACKS": ", ".join(old)})
    assert given == {"SECRET_KEY_FALLBACKS": old}


def test_database_url_wins_and_is_read_as_libpq_reads_it(tmp_path):
    url = "postgresql://me:p%40ss@one:5432,two:5433/engine?target_session_attrs=read-write&application_name=mine"

    database = values(tmp_path, "DATABASES", DATABASE_URL=url)["DATABASES"]["default"]

    assert database["ENGINE"] == "django.db.backends.postgresql"
    assert (database["NAME"], database["USER"], database["PASSWORD"]) == ("engine", "me", "p@ss")
    assert (database["HOST"], database["PORT"]) == ("one,two", "5432,5433")
    options = database["OPTIONS"]
    assert (options["target_session_attrs"], options["application_name"]) == ("read-write", "mine")
    assert options["connect_timeout"] == 5
    assert "idle_in_transaction_session_timeout" in options["options"]


def test_behind_a_pooler_sessions_are_not_relied_on(tmp_path):
    shown = values(
        tmp_path, "DATABASES", "DIRECT_DATABASE",
        DATABASE_URL="postgresql://pooler/x", ENGINE_DIRECT_DATABASE_URL="postgresql://database/x",
    )  # fmt: skip

    assert shown["DATABASES"]["default"]["DISABLE_SERVER_SIDE_CURSORS"] is True
    assert "options" not in shown["DATABASES"]["default"]["OPTIONS"]
    assert shown["DIRECT_DATABASE"]["HOST"] == "database"


def test_our_runworker_wins_over_channels():
    assert get_commands()["runworker"] == "jobs"


def test_every_variable_is_documented_in_the_example():
    settings = (ROOT / "engine" / "settings.py").read_text()
    readers = "|".join(name for name in vars(environment) if name.islower() and not name.startswith("_"))
    read = set(re.findall(rf'\b(?:{readers})\(\s*"([A-Z0-9_]+)"', settings))
    documented = set(re.findall(r"^#? ?([A-Z0-9_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))

    assert len(read) > 25
    assert read == documented


KINDS = {
    "text": "text", "word": "text", "flag": "flag", "whole": "whole number", "seconds": "seconds", "choice": "choice",
    "names": "list", "hosts": "list", "origins": "list", "networks": "list of networks", "folder": "folder",
    "address": "URL", "mail": "URL",
    "postgres": "URL", "prices": "JSON",
}  # fmt: skip


def test_the_example_gives_each_variable_its_type_and_its_default():
    lines = (ROOT / ".env.example").read_text().splitlines()
    shown = {
        found[1]: (above.rpartition("[")[2].rstrip("]"), found[2])
        for above, line in pairwise(lines)
        if (found := re.fullmatch(r"# ([A-Z0-9_]+)=(.*)", line))
    }
    settings = ast.parse((ROOT / "engine" / "settings.py").read_text())

    calls = [node for node in ast.walk(settings) if isinstance(node, ast.Call) and node.args]
    read = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in KINDS]
    assert {call.func.id for call in read if isinstance(call.func, ast.Name)} == set(KINDS)
    for call in read:
        assert isinstance(call.func, ast.Name)
        name = ast.literal_eval(call.args[0])
        kind, default = shown[name]
        if not (
            name in ("EMAIL_URL", "ENGINE_EMBED_MODEL_DIR") and call.func.id == "text"
        ):  # only whether it is set
            assert kind == KINDS[call.func.id], f"{name}: .env.example says [{KINDS[call.func.id]}] above it"
        given = [*call.args[1:2], *(word.value for word in call.keywords if word.arg == "default")]
        if call.func.id in ("text", "word", "flag", "whole", "seconds", "choice") and given and default:
            literal = given[0].value if isinstance(given[0], ast.Constant) else None
            wanted = {True: "1", False: "0"}.get(literal) if isinstance(literal, bool) else literal
            assert literal is None or str(wanted).removesuffix(".0") == default.removesuffix(".0"), name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REDIS_URL", "localhost:6379"),
        ("REDIS_URL", "redis://cache:port/0"),
        ("REDIS_URL", "redis://:6379"),
        ("ENGINE_PUBLIC_URL", "https://engine.example:99999"),
        ("ENGINE_S3_ENDPOINT", "minio:9000"),
        ("ENGINE_S3_ENDPOINT", "http://minio:9000"),  # without a bucket
        ("AWS_ACCESS_KEY_ID", "half of a pair"),
        ("LOG_FORMAT", "xml"),
        ("EMAIL_URL", "smtp://[::1"),
        ("ENGINE_HOST", "http://0.0.0.0"),
        ("ALLOWED_HOSTS", "https://engine.example"),
        ("ALLOWED_HOSTS", "engine.example:8000"),
        ("CSRF_TRUSTED_ORIGINS", "engine.example"),
        ("ENGINE_S3_BUCKET", "s3://bucket/folder"),
        ("ENGINE_S3_PREFIX", "/artifacts"),
        ("OPENAI_API_KEY", "Bearer sk-hunter2"),
        ("E2B_API_KEY", "e2b_hunter2\u200b"),
        ("ENGINE_MAIL_FROM", "engine"),
        ("ENGINE_WORKER_HEALTH_FILE", "/nowhere/at/all"),
        ("ENGINE_EMBED_MODEL_DIR", "/nowhere/at/all"),
        ("ENGINE_MODEL", "x" * 40_000),
        ("SECURE_SSL_REDIRECT", "maybe"),
        ("SECRET_KEY", "one line\nand another, as pasted from a file with more than it should hold"),
    ],
)
def test_a_value_that_would_fail_later_stops_the_start_by_name(tmp_path, name, value):
    loaded = load(tmp_path, **{name: value})

    assert loaded.returncode != 0
    assert f"ImproperlyConfigured: {name}" in loaded.stderr
    assert "hunter2" not in loaded.stderr


def test_only_settings_read_the_environment():
    allowed = {"engine/settings.py", "engine/environment.py", "manage.py", "engine/asgi.py"}
    # They pass the environment on to programs, and read no setting of ours from it.
    allowed |= {"engine/backup.py", "engine/embedded.py", "engine/installation.py"}
    reading = {
        str(path.relative_to(ROOT))
        for folder in ("engine", "apikeys", "agents", "jobs")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"os\.environ|os\.getenv", path.read_text())
    }
    # What runs inside a sandbox has no settings: the provider tells it what it needs by its environment.
    inside = {
        path for path in reading if path.startswith(("jobs/sdk/", "jobs/sandboxes/", "agents/catalog/"))
    }

    assert reading - allowed - inside == set()


def test_a_folder_that_cannot_be_made_is_named_by_its_variable(tmp_path):
    (tmp_path / "file").touch()

    loaded = load(tmp_path, ENGINE_STATIC_DIR=str(tmp_path / "file" / "static"))

    assert "set ENGINE_STATIC_DIR to a folder" in loaded.stderr.splitlines()[-1]


@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_command_says_in_one_line_what_is_wrong(tmp_path, command):
    ended = subprocess.run(
        [sys.executable, "manage.py", command],
        cwd=ROOT, env={"PATH": os.environ["PATH"], "ENGINE_HOME": str(tmp_path), "PORT": "eighty"},
        text=True, capture_output=True, timeout=60,
    )  # fmt: skip

    assert ended.returncode == 1
    assert ended.stderr == "PORT='eighty' cannot be used: write a whole number from 1 to 65535.\n"


# --- the .env file ---


@pytest.fixture
def read_text(tmp_path, monkeypatch) -> Callable[[bytes], dict[str, str]]:
    """What the environment holds of a .env file's variables, beside one that was set before."""
    variables = {"SET": "before"}
    monkeypatch.setattr(os, "environ", variables)
    monkeypatch.setattr(Env, "ENVIRON", variables)

    def read(content: bytes) -> dict[str, str]:
        (tmp_path / ".env").write_bytes(content)
        environment.read_file(tmp_path / ".env")
        return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}

    return read


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"PORT=9\n", {"PORT": "9"}),
        (b"\xef\xbb\xbfPORT=9\r\nLOG_LEVEL=INFO\r\n", {"PORT": "9", "LOG_LEVEL": "INFO"}),  # of Windows
        (b"  # a comment\n\n  export PORT=9  \n", {"PORT": "9"}),
        (b"A='a b#c'\nB=\"a b\"\nC=a#b=c\nD=\n", {"A": "a b#c", "B": "a b", "C": "a#b=c", "D": ""}),
        (b"SET=after\n", {}),
        ("A=é\n".encode(), {"A": "é"}),
    ],
)
def test_a_file_of_variables_is_read_as_people_write_it(read_text, content, found):
    assert read_text(content) == {"SET": "before"} | found


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"A=1\nPORT = 9\n", "line 2"),
        (b"hunter2\n", "line 1"),
        (b"A=hunter2\0\n", "line 1"),
        (b"export hunter2\n", "line 1"),
        (b"A='hunter2\n", "line 1: A"),
        (b"A='hunter2' # mine\n", "line 1: A"),
        (b"A=hunter2\nB=1\nA=hunter3\n", "sets A twice, in lines 1 and 3"),
        ("A=hunter2\n".encode("utf-16"), "UTF-8"),
    ],
)
def test_a_line_that_cannot_be_used_is_named_by_its_number_and_never_shown(read_text, content, said):
    with pytest.raises(ImproperlyConfigured, match=said) as refused:
        read_text(content)

    assert "hunter" not in str(refused.value)


def test_a_folder_in_place_of_the_file_is_refused(tmp_path):
    with pytest.raises(ImproperlyConfigured, match="cannot be read"):
        environment.read_file(tmp_path)


def test_no_file_is_needed(read_text, tmp_path):
    environment.read_file(tmp_path / "nothing")


# --- the secrets file ---


def test_secrets_are_made_once_and_only_their_owner_can_read_them(tmp_path):
    shown = [values(tmp_path, "SECRET_KEY")["SECRET_KEY"] for _ in range(2)]

    assert shown[0] == shown[1]
    assert len(shown[0]) >= 50
    assert stat.S_IMODE((tmp_path / "secrets.json").stat().st_mode) == 0o600


def test_a_home_is_made_for_its_owner_alone(tmp_path):
    values(tmp_path / "deep" / "home", "SECRET_KEY")

    assert stat.S_IMODE((tmp_path / "deep" / "home").stat().st_mode) == 0o700


def test_processes_that_start_together_agree_on_one_secret(tmp_path):
    with ThreadPoolExecutor(6) as pool:
        keys = list(pool.map(lambda _: values(tmp_path, "SECRET_KEY")["SECRET_KEY"], range(6)))

    assert len(set(keys)) == 1


def test_a_secret_that_appeared_meanwhile_is_not_made_again(tmp_path, monkeypatch):
    secrets = SecretFile(tmp_path / "secrets.json")
    secrets.put("name", "theirs")
    monkeypatch.setattr(SecretFile, "get", lambda self, name: None)  # as it was a moment ago

    assert secrets.get_or_create("name", lambda: "ours") == "theirs"


def test_threads_that_make_different_secrets_lose_none(tmp_path):
    secrets = SecretFile(tmp_path / "secrets.json")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: secrets.get_or_create(f"name-{n}", lambda: f"secret-{n}"), range(40)))

    assert [secrets.get(f"name-{n}") for n in range(40)] == [f"secret-{n}" for n in range(40)]


def test_a_secrets_file_that_others_can_read_is_refused(tmp_path):
    secrets = SecretFile(tmp_path / "secrets.json")
    secrets.put("name", "secret")
    secrets.path.chmod(0o640)

    with pytest.raises(ImproperlyConfigured, match="chmod 600"):
        secrets.get("name")


def test_a_link_in_place_of_the_secrets_file_is_not_followed(tmp_path):
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_text("{}")
    elsewhere.chmod(0o600)
    (tmp_path / "secrets.json").symlink_to(elsewhere)

    with pytest.raises(OSError, match="symbolic links"):
        SecretFile(tmp_path / "secrets.json").get("name")


def test_a_damaged_secrets_file_is_not_overwritten(tmp_path):
    path = tmp_path / "secrets.json"
    path.write_text("{ half")
    path.chmod(0o600)

    with pytest.raises(ImproperlyConfigured, match="damaged"):
        SecretFile(path).get_or_create("SECRET_KEY", lambda: "new")

    assert path.read_text() == "{ half"


def test_a_home_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()

    loaded = load(tmp_path / "file" / "home")

    assert "set ENGINE_HOME to a folder" in loaded.stderr.splitlines()[-1]
