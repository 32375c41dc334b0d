"""What the other apps learn from this one."""

from django.apps import AppConfig


class JobsConfig(AppConfig):
    """Tells `agents` whether sandboxes can be had."""

    name = "jobs"

    def ready(self) -> None:
        """Models may be imported from here on."""
        from agents.health import set_provider
        from jobs.provider_health import provider_problem

        set_provider(provider_problem)
