"""What tests share: a real PostgreSQL, the embedded one unless DATABASE_URL names another."""

import pytest
from django.conf import settings

from engine.embedded import server_for


def pytest_configure(config: pytest.Config) -> None:
    """Keep the embedded server for the whole session: parallel test processes end without leaving it."""
    if settings.DATABASES["default"]["ENGINE"] == "engine.pgbackend":
        server_for(settings.ENGINE_HOME).ensure()
