"""Which pages may open WebSockets here."""

from channels.security.websocket import OriginValidator
from django.conf import settings

from engine.bridge import ASGIApplication, Receive, Scope, Send


class OriginCheck:
    """Refuses handshakes from pages of other hosts; lets programs and ENGINE_CORS_ORIGINS in, but without cookies.

    A browser always names the page's origin, and sends its cookies along whoever wrote the page. A program names
    none and brings a key; taking its cookies away means that leaving the header out wins nothing.
    """

    def __init__(self, app: ASGIApplication) -> None:
        self.app = app
        origins = [*settings.ALLOWED_HOSTS, *settings.CSRF_TRUSTED_ORIGINS]
        self.validator = OriginValidator(app, origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the connection on, or refuse it with 403."""
        origin = dict(scope["headers"]).get(b"origin")
        if origin is not None and origin.decode("latin-1") not in settings.CORS_ALLOWED_ORIGINS:
            await self.validator(scope, receive, send)
        else:
            headers = [pair for pair in scope["headers"] if pair[0] != b"cookie"]
            await self.app({**scope, "headers": headers}, receive, send)
