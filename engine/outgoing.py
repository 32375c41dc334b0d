"""HTTP to addresses that callers name: public hosts alone, and each connection to the very address that was checked.

Checking a name and connecting to it later would leave room for a second, other answer of the name's owner (DNS
rebinding). So the name is resolved once, every address it has is judged, and the socket is opened to one of these.
"""

import asyncio
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any
from urllib.parse import urlsplit

import httpx
from django.conf import settings

Address = IPv4Address | IPv6Address

# IPv6 prefixes behind which an IPv4 address is reached: NAT64 (RFC 6052, RFC 8215) and 6to4 (RFC 3056).
_NAT64 = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))
_SIX_TO_FOUR = IPv6Network("2002::/16")
# `is_global` is true of these in some releases of Python, or says nothing about them.
_NEVER = (IPv4Network("192.0.0.0/24"), IPv4Network("192.88.99.0/24"), IPv6Network("fec0::/10"))


class AddressRefused(Exception):
    """The host has an address that no call may go to; the message says which, and what would allow it."""


def check(address: str, *, is_plain: bool = False) -> None:
    """Raise AddressRefused unless calls may go there. `is_plain`: without TLS, and so to allowed networks alone."""
    for meant in _meanings(ip_address(address.partition("%")[0])):
        if any(meant in network for network in settings.ENGINE_WEBHOOK_ALLOWED_NETWORKS):
            continue
        if not meant.is_global or meant.is_multicast or any(meant in network for network in _NEVER):
            raise AddressRefused(
                f"{address} is not a public address. ENGINE_WEBHOOK_ALLOWED_NETWORKS can allow its network."
            )
        if is_plain:
            raise AddressRefused(
                f"http:// goes to networks in ENGINE_WEBHOOK_ALLOWED_NETWORKS alone, and {address} is in none: use https://."
            )


def check_url(url: str) -> None:
    """Refuse what could never be called: a literal private address, a user in the URL. Raises AddressRefused.

    Names are resolved when a message is sent, and judged then: what they mean may change.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise AddressRefused("A URL with a user or password in it would stand in logs: leave them out.")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise AddressRefused("The port must be a number from 1 to 65535.")
    host = parts.hostname or ""
    try:
        check(host, is_plain=parts.scheme == "http")
    except ValueError:
        if host == "localhost" or host.endswith(".localhost"):
            check("127.0.0.1", is_plain=parts.scheme == "http")


def _meanings(address: Address) -> list[Address]:
    """The address, or in its place the IPv4 address that packets to it end up at."""
    if isinstance(address, IPv4Address):
        return [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address.teredo is not None:
        return [*address.teredo]
    if address in _SIX_TO_FOUR and address.sixtofour is not None:
        return [address.sixtofour]
    if any(address in prefix for prefix in _NAT64):
        return [IPv4Address(int(address) & 0xFFFFFFFF)]
    return [address]


async def resolve(host: str, port: int, *, is_plain: bool) -> list[str]:
    """The host's addresses, each checked: one that is refused refuses the host. Raises AddressRefused, OSError."""
    loop = asyncio.get_running_loop()
    found: Sequence[Any] = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for address in addresses:
        check(address, is_plain=is_plain)
    return addresses


class CheckedTransport(httpx.AsyncBaseTransport):
    """An httpx transport that connects to checked addresses only. TLS still proves the name that was asked for."""

    def __init__(self) -> None:
        # No connection is kept: one to an address would serve any other name that has the same address.
        limits = httpx.Limits(max_keepalive_connections=0)
        self._inner = httpx.AsyncHTTPTransport(limits=limits, trust_env=False)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send it. Raises AddressRefused before anything was sent, httpx.TransportError as httpx does."""
        host, is_plain = request.url.host, request.url.scheme != "https"
        port = request.url.port or (80 if is_plain else 443)
        try:
            addresses = await resolve(host, port, is_plain=is_plain)
        except (OSError, UnicodeError) as error:
            raise httpx.ConnectError(f"The name {host} cannot be resolved", request=request) from error
        failure: httpx.TransportError | None = None
        for address in addresses:
            # The Host header was made from the name when the request was built; `sni_hostname` is what TLS checks.
            request.url = request.url.copy_with(host=address)
            request.extensions = {**request.extensions, "sni_hostname": host}
            try:
                return await self._inner.handle_async_request(request)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure = error  # nothing was sent: the host's next address may answer
        raise failure or httpx.ConnectError(f"The name {host} has no address", request=request)

    async def aclose(self) -> None:
        """Close what is open."""
        await self._inner.aclose()


def client(*, timeout: float) -> httpx.AsyncClient:
    """A client for addresses that callers name: no redirects, no proxies from the environment, `timeout` in seconds."""
    return httpx.AsyncClient(
        transport=CheckedTransport(), timeout=timeout, follow_redirects=False, trust_env=False
    )
