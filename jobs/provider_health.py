"""Whether sandboxes can be had, as the workers say that are alive: what agents cannot run without."""

from django.conf import settings
from django.db.models.functions import Now

from jobs.models import Worker

# All workers of an installation have one provider; whether it works may differ by host.
MOST_ASKED = 50


def provider_problem() -> str:
    """Why no worker can open a sandbox, with what to do; empty while one can, and while nobody knows.

    Workers that are away for a moment are no reason: their jobs wait. Before the first worker the settings decide.
    """
    alive = Worker.objects.filter(lease_until__gt=Now(), stopped_at=None)
    said = [health.get("sandbox") or {} for health in alive.values_list("health", flat=True)[:MOST_ASKED]]
    if any(sandbox.get("ok", True) for sandbox in said):
        return ""
    if said:
        sandbox = said[0]
        remedy = f": {sandbox['remedy']}" if sandbox.get("remedy") else ""
        return f"No worker has a sandbox ({sandbox.get('detail') or 'its probe failed'}){remedy}"
    if settings.ENGINE_SANDBOX == "e2b" and not settings.E2B_API_KEY and not Worker.objects.exists():
        return "No sandbox can be opened (E2B_API_KEY is not set): set E2B_API_KEY to a key of your E2B team"
    return ""
