"""Calls to addresses that callers name: which hosts they reach, and that nothing can be put between check and call."""

import asyncio
import socket
from ipaddress import ip_network
from typing import Any

import httpx
import pytest

from engine import outgoing
from engine.outgoing import AddressRefused, check, check_url
from tests.receivers import LOOPBACK, receiving


@pytest.fixture(autouse=True)
def _nothing_allowed(settings: Any) -> None:
    settings.ENGINE_WEBHOOK_ALLOWED_NETWORKS = []


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",  # where clouds keep credentials
        "100.64.0.1",
        "192.0.0.8",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:7f00:1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::a00:1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "2001:0:7f00:1::",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd00:ec2::254",
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
    ],
)
def test_no_call_goes_to_an_address_that_is_not_public(address: str) -> None:
    with pytest.raises(AddressRefused):
        check(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1"])
def test_public_addresses_are_called_with_tls_only(address: str) -> None:
    check(address)
    with pytest.raises(AddressRefused, match="https"):
        check(address, is_plain=True)


def test_an_allowed_network_is_called_however_its_addresses_are_written(settings: Any) -> None:
    settings.ENGINE_WEBHOOK_ALLOWED_NETWORKS = [ip_network("10.0.0.0/8"), ip_network("::1/128")]

    for address in ("10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::a01:203", "::1"):
        check(address, is_plain=True)
    with pytest.raises(AddressRefused):
        check("192.168.1.1")


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]:8443/",
        "https://localhost/hook",
        "https://a.localhost/hook",
        "http://93.184.216.34/",
        "https://user:password@example.com/",
    ],
)
def test_an_address_that_could_never_be_called_is_refused_before(url: str) -> None:
    with pytest.raises(AddressRefused):
        check_url(url)


def post(url: str) -> httpx.Response:
    async def call() -> httpx.Response:
        async with outgoing.client(timeout=5) as client:
            return await client.post(url, content=b"x")

    return asyncio.run(call())


def names(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Let the name server give these answers, one after another; returns what it was asked."""
    asked: list[str] = []
    given = iter(answers)

    async def getaddrinfo(loop: Any, host: str, port: int, **kwargs: Any) -> list[Any]:
        asked.append(host)
        family = {True: socket.AF_INET6, False: socket.AF_INET}
        return [
            (family[":" in address], socket.SOCK_STREAM, 6, "", (address, port)) for address in next(given)
        ]

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", getaddrinfo)
    return asked


def test_the_connection_goes_to_the_address_that_was_checked(
    monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    """A name that would mean another host when asked again is asked once."""
    settings.ENGINE_WEBHOOK_ALLOWED_NETWORKS = [ip_network(LOOPBACK[0])]
    with receiving() as receiver:
        port = httpx.URL(receiver.url).port
        asked = names(monkeypatch, ["127.0.0.1"], ["10.255.255.1"])

        answer = post(f"http://rebinding.example:{port}/hook")

    assert answer.status_code == 204
    assert asked.count("rebinding.example") == 1
    assert receiver.calls[0].headers["host"] == f"rebinding.example:{port}"


def test_one_private_address_among_public_ones_refuses_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch, ["93.184.216.34", "127.0.0.1"])

    with pytest.raises(AddressRefused, match=r"127\.0\.0\.1"):
        post("https://mixed.example/")


def test_the_next_address_is_tried_when_one_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    settings.ENGINE_WEBHOOK_ALLOWED_NETWORKS = [ip_network(LOOPBACK[0])]
    with receiving("127.0.0.3") as receiver:
        names(monkeypatch, ["127.0.0.2", "127.0.0.3"])

        assert post(f"http://two.example:{httpx.URL(receiver.url).port}/").status_code == 204


def test_a_name_without_an_answer_is_a_connection_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(loop: Any, host: str, port: int, **kwargs: Any) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", getaddrinfo)

    with pytest.raises(httpx.ConnectError):
        post("https://nowhere.example/")


def test_redirects_and_proxies_of_the_environment_are_not_followed(
    monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    settings.ENGINE_WEBHOOK_ALLOWED_NETWORKS = [ip_network(LOOPBACK[0])]
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    with receiving() as receiver, receiving() as other:
        receiver.status, receiver.headers = 307, {"location": other.url}

        assert post(receiver.url).status_code == 307
    assert not other.calls
