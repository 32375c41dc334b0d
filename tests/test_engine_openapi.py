"""The description of the API is true: a served instance is held against it by schemathesis."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.conf import settings
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.validation import validate_schema

from tests.dashboard import asking, make_artifact
from tests.factories import make_key
from tests.jobs import make_version
from tests.processes import Instance
from tests.streams import environment
from tests.test_engine_routes import ROUTES

# The same inputs each time. What a run may take is for machines that are very busy: it has an end of its own.
SEED, SECONDS = 7, 60


@pytest.fixture(scope="module")
def schema() -> Any:
    generator: Any = SchemaGenerator
    return generator().get_schema(public=True)


def test_the_description_is_valid_and_names_every_route(schema: Any) -> None:
    validator: Any = validate_schema
    validator(schema)
    described = {
        f"{method.upper()} {re.sub('{[^}]*}', '{}', path)}"
        for path, operations in schema["paths"].items()
        for method in operations
        if path.startswith("/api/v1/")
    }

    assert {re.sub("{[^}]*}", "{}", str(route)) for route in ROUTES} == described


def test_every_body_is_closed(schema: Any) -> None:
    """Members that nobody knows are refused, and so the description has none beside those it names."""
    components = schema["components"]["schemas"]
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                name = content["schema"].get("$ref", "").rpartition("/")[2]
                body = components[name] if name else content["schema"]
                assert body["additionalProperties"] is False, path


@pytest.mark.django_db(transaction=True)
def test_what_is_served_is_what_is_described(tmp_path: Path) -> None:
    instance = Instance(tmp_path / "home", environment())
    try:
        make_version("echo")
        key = make_key(windows=[])
        make_artifact(asking(key.project, {"schema": {"type": "string"}}), "a.txt", b"a", "text/plain")
        instance.serve()
        options = {
            "--seed": SEED,
            "--max-time": SECONDS,
            "--max-examples": 1,
            "--phases": "examples,coverage,fuzzing",
            "--header": f"Authorization: Bearer {key.secret}",
            # These end the key that all others are asked with; what they do is tested elsewhere.
            "--exclude-operation-id-regex": "^keys_(revoke|disable|rotate|change)$",
        }
        run = subprocess.run(
            [
                Path(sys.executable).with_name("schemathesis"), "--no-color",
                "--config-file", settings.BASE_DIR / "tests/schemathesis.toml",
                "run", f"{instance.url}/api/schema",
                *(str(part) for pair in options.items() for part in pair),
            ],
            cwd=tmp_path, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        still = httpx.get(f"{instance.url}/api/v1/jobs", headers={"Authorization": f"Bearer {key.secret}"})
    finally:
        instance.stop()

    assert run.returncode == 0, "\n".join(line[:300] for line in run.stdout.splitlines())[-30_000:]
    assert still.status_code == 200  # else it was refused at the door all the time
    assert int(re.search(r"(\d+) generated", run.stdout)[1]) > 500  # type: ignore[index]  # then it fails here
