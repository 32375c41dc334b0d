"""Which pages may open WebSockets here."""

from urllib.parse import urlsplit

from channels.security.websocket import OriginValidator
from django.conf import settings

from engine.bridge import ASGIApplication, Receive, Scope, Send


class OriginCheck:
    """Refuses handshakes from pages of other hosts, and takes the cookies of all but our own pages away.

    A browser always names the page's origin, and sends its cookies along whoever wrote the page, to every port of a
    host. Programs name none and bring a key, as pages of ENGINE_CORS_ORIGINS do; pages that came from the address
    that they call, or from one of CSRF_TRUSTED_ORIGINS, may use the session.
    """

    def __init__(self, app: ASGIApplication) -> None:
        self.app = app
        self.ours = OriginValidator(app, settings.CSRF_TRUSTED_ORIGINS)
        self.hosts = OriginValidator(app, settings.ALLOWED_HOSTS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the connection on, or refuse it with 403."""
        headers = dict(scope["headers"])
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and self._is_ours(origin, headers.get(b"host", b"").decode("latin-1")):
            await self.app(scope, receive, send)
        elif (
            b"origin" not in headers or origin in settings.CORS_ALLOWED_ORIGINS or _is_of(self.hosts, origin)
        ):
            without = [pair for pair in scope["headers"] if pair[0] != b"cookie"]
            await self.app({**scope, "headers": without}, receive, send)
        else:
            await send({"type": "websocket.close"})

    def _is_ours(self, origin: str, host: str) -> bool:
        """As Django's protection against forged forms sees it."""
        is_same = origin.partition("://")[2].lower() == host.lower() and _is_of(self.hosts, origin)
        return is_same or _is_of(self.ours, origin)


def _is_of(validator: OriginValidator, origin: str) -> bool:
    try:
        return bool(validator.valid_origin(urlsplit(origin)))
    except ValueError:  # such as http://[::
        return False
