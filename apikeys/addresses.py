"""Where a request comes from, and whether that is inside the networks a key allows."""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from django.http import HttpRequest


def client_ip(request: HttpRequest) -> str:
    """The client's address. What proxies say about it was settled before (`engine/proxies.py`)."""
    address: str = request.META.get("REMOTE_ADDR", "")
    return address


def is_inside(address: str, networks: Iterable[str]) -> bool:
    """Whether the address lies in one of the networks; an address that cannot be read lies in none."""
    parsed = _parsed(address)
    return parsed is not None and any(parsed in ip_network(network) for network in networks)


def _parsed(address: str) -> IPv4Address | IPv6Address | None:
    try:
        parsed = ip_address(address)
    except ValueError:
        return None
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped:
        return parsed.ipv4_mapped  # how a socket that takes both kinds reports IPv4
    return parsed
