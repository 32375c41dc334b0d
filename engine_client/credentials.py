"""Which Engine, and with which key: arguments, then the environment, then what `engine login` has stored."""

import json
import os
from pathlib import Path

from engine_client.core import DEFAULT_URL


def path() -> Path:
    """The file of `engine login`, readable by its owner alone."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "engine" / "credentials.json"


def stored() -> dict[str, str]:
    """What the last login left; empty without one, or where the file holds something else."""
    try:
        found = json.loads(path().read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def store(url: str, key: str) -> Path:
    """Keep them for later calls."""
    target = path()
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    target.unlink(missing_ok=True)  # so that the mode below is the file's from its first byte
    with os.fdopen(
        os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8"
    ) as file:
        json.dump({"url": url, "key": key}, file)
    return target


def connection(url: str | None, key: str | None) -> tuple[str, str]:
    """Address and key to use. A stored key goes to the address that it was stored for, and nowhere else."""
    kept = stored()
    address = (url or os.environ.get("ENGINE_URL") or kept.get("url") or DEFAULT_URL).rstrip("/")
    secret = (
        key or os.environ.get("ENGINE_API_KEY") or (kept.get("key") if address == kept.get("url") else None)
    )
    return address, secret or ""
