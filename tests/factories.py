"""Rows that tests start from: each names only what matters to it."""

from dataclasses import dataclass
from itertools import count
from typing import Any

from rest_framework.test import APIClient

from apikeys.callers import Caller
from apikeys.models import ApiKey, Project
from apikeys.scopes import Scope
from apikeys.secret import digest, new_secret, prefix

_numbers = count(1)


@dataclass(frozen=True)
class KeyInHand:
    """A key as its owner has it: with the secret."""

    key: ApiKey
    secret: str

    @property
    def project(self) -> Project:
        return self.key.project

    @property
    def caller(self) -> Caller:
        return Caller(self.key.project, frozenset(self.key.scopes), self.key)

    @property
    def client(self) -> APIClient:
        """Sends JSON with this key; a fault of the server is an answer, not an exception."""
        client = APIClient(raise_request_exception=False)
        client.credentials(HTTP_AUTHORIZATION=f"Bearer {self.secret}")
        return client


def make_project(slug: str = "", **fields: Any) -> Project:
    slug = slug or f"project-{next(_numbers)}"
    return Project.objects.create(slug=slug, **{"name": slug, **fields})


def make_key(*scopes: str, project: Project | None = None, mode: str = "live", **fields: Any) -> KeyInHand:
    """A key with `admin` unless scopes are named, in a project of its own unless one is given."""
    secret = new_secret(mode)
    key = ApiKey.objects.create(
        project=project or make_project(),
        scopes=list(scopes) or [Scope.ADMIN],
        prefix=prefix(secret),
        secret_hash=digest(secret),
        **{"name": f"key-{next(_numbers)}", "created_by": "test", **fields},
    )
    return KeyInHand(key, secret)
