"""Picks the sandbox provider that the settings name."""

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from .base import Provider


def provider_from_settings() -> Provider:
    """A provider that has not been started yet. Raises ImproperlyConfigured for a choice that cannot be met."""
    if settings.ENGINE_SANDBOX in ("auto", "local"):
        from .local import LocalProvider

        return LocalProvider(
            runtime_folder=settings.ENGINE_RUNTIME_DIR,
            lock=settings.BASE_DIR / "requirements" / "sandbox.lock",
            scratch_folder=settings.ENGINE_HOME / "sandboxes",
            warm=settings.ENGINE_WARM_SANDBOXES,
        )
    raise ImproperlyConfigured(f"ENGINE_SANDBOX={settings.ENGINE_SANDBOX} is not available here: set local")
