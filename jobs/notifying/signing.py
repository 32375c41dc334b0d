"""Signatures of Standard Webhooks 1.0.0 (symmetric, `v1`), by secrets that are derived and stored nowhere.

A secret is an HMAC of what it belongs to under SECRET_KEY: whoever reads the database can sign nothing. While an old
SECRET_KEY stands in SECRET_KEY_FALLBACKS, messages carry signatures by both, as they do after a rotation.
"""

import hmac
from base64 import b64decode, b64encode
from datetime import datetime
from hashlib import sha256
from uuid import UUID

from django.conf import settings
from django.utils.crypto import salted_hmac

PREFIX = "whsec_"


def secret(owner: UUID, generation: int, *, key: str | bytes | None = None) -> str:
    """The secret of an endpoint, or of a project's jobs, in the form that receivers configure: 256 bits."""
    derived = salted_hmac(
        "engine.webhooks", f"{owner}:{generation}", secret=key or settings.SECRET_KEY, algorithm="sha256"
    )
    return PREFIX + b64encode(derived.digest()).decode()


def secrets(owner: UUID, generation: int, *, with_previous: bool) -> list[str]:
    """Every secret that signs now, the newest first."""
    generations = [generation, generation - 1] if with_previous and generation > 1 else [generation]
    keys = [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS]
    return [secret(owner, number, key=key) for number in generations for key in keys]


def headers(message_id: str, at: datetime, body: bytes, *, by: list[str]) -> dict[str, str]:
    """The three headers; `at` is the time of this try, which receivers compare with their clock."""
    stamp = str(int(at.timestamp()))
    signed = f"{message_id}.{stamp}.".encode() + body
    signatures = [hmac.new(b64decode(one.removeprefix(PREFIX)), signed, sha256).digest() for one in by]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": stamp,
        "webhook-signature": " ".join(f"v1,{b64encode(one).decode()}" for one in signatures),
    }
