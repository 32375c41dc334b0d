"""The examples that docs/webhooks.md gives to receivers verify what Engine signs."""

import json
import re
import subprocess
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.conf import settings
from django.utils import timezone
from playwright._impl._driver import compute_driver_executable

from jobs.notifying import signing

Verify = Callable[[str, dict[str, str], bytes], bool]


def example(language: str) -> str:
    text = (settings.BASE_DIR / "docs" / "webhooks.md").read_text()
    (found,) = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return str(found)


def by_python(secret: str, headers: dict[str, str], body: bytes) -> bool:
    names: dict[str, Any] = {}
    exec(example("python"), names)
    try:
        names["verify"](secret, headers, body)
    except ValueError:
        return False
    return True


def by_node(secret: str, headers: dict[str, str], body: bytes) -> bool:
    node, _ = compute_driver_executable()  # a Node.js that the tests' own dependencies bring
    call = f"verify({json.dumps(secret)}, {json.dumps(headers)}, {json.dumps(body.decode())});"
    script = f"{example('js')}\n{call}"
    finished = subprocess.run(
        [node, "--input-type=module", "-e", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert finished.returncode == 0 or "Error: " in finished.stderr, finished.stderr
    return finished.returncode == 0


@pytest.mark.parametrize("verify", [by_python, by_node])
def test_the_example_takes_what_is_signed_and_nothing_else(verify: Verify) -> None:
    secret, other = signing.secret(uuid4(), 1), signing.secret(uuid4(), 1)
    body = '{"type": "job.completed", "data": "ä"}'.encode()
    headers = signing.headers("one", timezone.now(), body, by=[other, secret])
    old = signing.headers("one", timezone.now() - timedelta(minutes=6), body, by=[secret])

    assert verify(secret, headers, body)
    assert verify(other, headers, body)
    assert not verify(signing.secret(uuid4(), 1), headers, body)
    assert not verify(secret, headers, body + b" ")
    assert not verify(secret, {**headers, "webhook-id": "two"}, body)
    assert not verify(secret, old, body)
