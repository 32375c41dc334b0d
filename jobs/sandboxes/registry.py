"""Picks the sandbox provider that the settings name."""

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from .base import Provider
from .local import LocalProvider


def provider_from_settings() -> Provider:
    """A provider that has not been started yet. Raises ImproperlyConfigured for a choice that cannot be met."""
    chosen = settings.ENGINE_SANDBOX
    if chosen == "auto" and settings.PRODUCTION:
        raise ImproperlyConfigured(
            "ENGINE_SANDBOX must be set where ENGINE_ENV=production: `local` isolates by Linux namespaces, which is "
            "enough for agents of people you trust."
        )
    if chosen in ("auto", "local"):
        return LocalProvider(
            runtime_folder=settings.ENGINE_RUNTIME_DIR,
            lock=settings.BASE_DIR / "requirements" / "sandbox.lock",
            scratch_folder=settings.ENGINE_HOME / "sandboxes",
            warm=settings.ENGINE_WARM_SANDBOXES,
        )
    raise ImproperlyConfigured(f"ENGINE_SANDBOX={chosen} is not available yet: set it to local.")
