"""Read by Django: `DATABASES["default"]["ENGINE"] = "engine.pgbackend"`."""

from typing import Any

from django.conf import settings
from django.db.backends.postgresql import base

from engine.embedded import server_for


class DatabaseWrapper(base.DatabaseWrapper):
    """Connections to the embedded PostgreSQL. Nothing starts before a connection is wanted."""

    def get_connection_params(self) -> dict[str, Any]:
        """As Django's, after making sure that there is a server to connect to."""
        server_for(settings.ENGINE_HOME).ensure()
        return super().get_connection_params()
