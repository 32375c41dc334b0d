"""Who the client is when proxies stand in front."""

from ipaddress import ip_address

from django.conf import settings

from engine.bridge import Scope

FORWARDED_FOR = b"x-forwarded-for"


def client_address(scope: Scope) -> tuple[str, int] | None:
    """The client's address and port; behind ENGINE_PROXY_HOPS proxies, the one that the outermost of them saw.

    Each proxy appends the address it saw, so only the last HOPS entries are theirs: what stands before them, the
    client may have written itself. Fewer entries than hops, or no address there: the peer's own.
    """
    peer: tuple[str, int] | None = tuple(scope["client"]) if scope.get("client") else None
    hops: int = settings.ENGINE_PROXY_HOPS
    if not hops:
        return peer
    entries = [
        entry.strip()
        for name, value in scope["headers"]
        if name == FORWARDED_FOR
        for entry in value.decode("latin-1").split(",")
    ]
    if len(entries) < hops:
        return peer
    try:
        return str(ip_address(entries[-hops])), 0
    except ValueError:
        return peer
