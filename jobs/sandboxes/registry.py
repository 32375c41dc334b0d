"""Picks the sandbox provider that the settings name."""

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from .base import Provider
from .gvisor import GvisorProvider
from .local import LocalProvider


def provider_from_settings() -> Provider:
    """A provider that has not been started yet. Raises ImproperlyConfigured for a choice that cannot be met."""
    chosen = settings.ENGINE_SANDBOX
    if chosen == "auto" and settings.PRODUCTION:
        raise ImproperlyConfigured(
            "ENGINE_SANDBOX must be set where ENGINE_ENV=production: `local` isolates by Linux namespaces, which is "
            "enough for agents of people you trust; `gvisor` adds a kernel of its own; `e2b` gives each attempt a "
            "virtual machine."
        )
    if chosen in ("auto", "local", "gvisor"):
        local = GvisorProvider if chosen == "gvisor" else LocalProvider
        return local(
            runtime_folder=settings.ENGINE_RUNTIME_DIR,
            lock=settings.BASE_DIR / "requirements" / "sandbox.lock",
            scratch_folder=settings.ENGINE_HOME / "sandboxes",
            warm=settings.ENGINE_WARM_SANDBOXES,
        )
    return _e2b()


def _e2b() -> Provider:
    try:
        from .e2b.budget import PostgresBudget
        from .e2b.provider import E2BProvider
    except ImportError as error:
        raise ImproperlyConfigured(
            f"ENGINE_SANDBOX=e2b needs the packages of the extra `e2b` ({error.name} is missing): run make install."
        ) from error
    return E2BProvider(
        api_key=settings.E2B_API_KEY,
        domain=settings.E2B_DOMAIN,
        template=settings.ENGINE_E2B_TEMPLATE,
        pause=settings.ENGINE_E2B_PAUSE,
        layer_folder=settings.ENGINE_RUNTIME_DIR,
        budget=PostgresBudget(
            "e2b", most=settings.ENGINE_E2B_SANDBOXES, per_second=settings.ENGINE_E2B_CREATES_PER_SECOND
        ),
    )
