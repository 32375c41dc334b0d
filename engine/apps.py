"""The project package as an app: the dashboard's people and their roles."""

from django.apps import AppConfig, apps
from django.db.models.signals import post_migrate


class EngineConfig(AppConfig):
    """Makes the dashboard's roles once all permissions are there."""

    name = "engine"

    def ready(self) -> None:
        """Listen for the end of `migrate`. The app `jobs` is the last one with permissions that a role holds."""
        from engine.dashboard.roles import make_roles  # models may be imported from here on

        post_migrate.connect(make_roles, sender=apps.get_app_config("jobs"))
