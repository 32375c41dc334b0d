"""The `apikeys` app: who may call."""

from django.apps import AppConfig


class ApiKeysConfig(AppConfig):
    """Projects, keys, scopes, rate limits, idempotency, audit. Imports no other app."""

    name = "apikeys"
    verbose_name = "Keys and projects"
