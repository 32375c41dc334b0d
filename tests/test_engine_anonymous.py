"""What comes without a key: the login and its one-time codes, pages that anybody may open, pages of other origins."""

import base64
import io
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.contrib.auth.models import User
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django_otp.oath import TOTP
from django_otp.plugins.otp_totp.models import TOTPDevice

from apikeys.models import AuditRow
from engine import environment
from tests.dashboard import make_person
from tests.factories import make_key

LOGIN = "/admin/login/"
PASSWORD = "correct horse battery staple"


@pytest.fixture(autouse=True)
def _fast_passwords(settings: Any) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture
def person() -> User:
    return make_person("ada", password=PASSWORD)


def sign_in(name: str = "ada", password: str = PASSWORD, *, client: Client | None = None, **more: str) -> Any:
    return (client or Client()).post(LOGIN, {"username": name, "password": password, **more})


# --- the login ---


@pytest.mark.django_db
def test_a_password_cannot_be_guessed_in_a_hurry(person: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.anonymous.LOGINS_AT_A_NAME", "3/d")
    wrong = [sign_in(password=f"guess {number}").status_code for number in range(3)]
    refused = sign_in()
    elsewhere = Client(REMOTE_ADDR="192.0.2.7")

    assert wrong == [200] * 3
    assert (refused.status_code, refused["Retry-After"]) == (429, "300")
    assert "sessionid" not in refused.cookies
    assert sign_in(client=elsewhere).status_code == 302


@pytest.mark.django_db
def test_one_address_cannot_try_many_names(person: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.anonymous.LOGINS", "3/d")
    codes = [sign_in(f"name-{number}", "x").status_code for number in range(4)]

    assert codes == [200] * 3 + [429]


@pytest.mark.django_db
def test_looking_at_the_login_is_no_try(person: User) -> None:
    client = Client()
    for _ in range(40):
        client.get(LOGIN)

    assert sign_in(client=client).status_code == 302


# --- one-time codes ---


@pytest.fixture
def totp(person: User) -> TOTP:
    """The authenticator of a person who was given codes."""
    out = io.StringIO()
    call_command("totp", "ada", stdout=out)
    found = re.search(r"otpauth://\S+", out.getvalue())
    assert found
    key = base64.b32decode(parse_qs(urlsplit(found[0]).query)["secret"][0])
    return TOTP(key)


def code(totp: TOTP) -> str:
    totp.time = time.time()
    return f"{totp.token():06}"


@pytest.mark.django_db
def test_who_has_codes_signs_in_with_one_and_only_once(totp: TOTP) -> None:
    without = sign_in()
    wrong = sign_in(otp_token="000000")
    TOTPDevice.objects.update(throttling_failure_count=0)  # a moment later
    given = code(totp)
    right = sign_in(otp_token=given)
    again = sign_in(otp_token=given)

    assert (without.status_code, wrong.status_code, right.status_code, again.status_code) == (
        200,
        200,
        302,
        200,
    )
    said = [
        re.findall(r"Please enter[^<]*", answer.content.decode()) for answer in (wrong, sign_in(password="x"))
    ]
    assert said[0] == said[1] != []


@pytest.mark.django_db
def test_who_has_none_needs_none_unless_all_do(person: User, settings: Any) -> None:
    assert sign_in().status_code == 302
    settings.ENGINE_TOTP = "required"
    refused = sign_in()
    assert (refused.status_code, b"manage.py totp" in refused.content) == (200, True)
    settings.ENGINE_TOTP = "off"
    assert b"otp_token" not in Client().get(LOGIN).content
    assert sign_in().status_code == 302


@pytest.mark.django_db
def test_codes_can_be_taken_away_and_both_stand_in_the_audit(totp: TOTP) -> None:
    call_command("totp", "ada", "--remove", stdout=io.StringIO())

    assert sign_in().status_code == 302
    actions = list(
        AuditRow.objects.filter(object="person:ada").order_by("id").values_list("action", flat=True)
    )
    assert actions == ["person.codes_set", "person.codes_removed"]
    with pytest.raises(CommandError, match="nobody named eve"):
        call_command("totp", "eve")


@pytest.mark.django_db
def test_the_dashboard_shows_no_secret_of_a_code(totp: TOTP) -> None:
    User.objects.update(is_superuser=True)
    client = Client()
    client.force_login(User.objects.get())

    assert client.get("/admin/otp_totp/totpdevice/").status_code == 404


# --- counters for all processes ---


@pytest.mark.django_db(transaction=True)
def test_what_django_ratelimit_counts_in_is_shared_and_exact() -> None:
    cache = caches["counters"]

    def counted(_: int) -> int:
        try:
            return 1 if cache.add("x", 1, 60) else cache.incr("x")
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        seen = sorted(pool.map(counted, range(40)))

    assert seen == list(range(1, 41))
    assert cache.get("x") == 40
    assert cache.delete("x")
    assert cache.get("x") is None
    with pytest.raises(ValueError, match="Nothing is counted"):
        cache.incr("x")


@pytest.mark.django_db
def test_the_apis_description_is_for_everybody_but_not_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.anonymous.PAGES", "3/d")
    client = Client(headers={"Accept": "application/json"})

    codes = [client.get("/api/schema").status_code for _ in range(4)]
    refused = client.get("/api/docs")

    assert codes == [200, 200, 200, 429]
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests")
    assert refused["Retry-After"] == "60"


# --- other origins ---

APP = "https://app.example.com"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}


@pytest.mark.django_db
def test_no_other_origin_is_let_in_by_default() -> None:
    client = make_key().client
    read = client.get("/api/v1/jobs", headers={"Origin": APP})
    asked = client.options("/api/v1/jobs", headers={"Origin": APP, **PREFLIGHT})

    assert (read.status_code, asked.status_code) == (200, 405)
    assert not [
        name for answer in (read, asked) for name in answer.headers if name.startswith("Access-Control")
    ]


@pytest.mark.django_db
def test_the_origins_of_the_setting_are_let_in_without_cookies(settings: Any) -> None:
    settings.CORS_ALLOWED_ORIGINS = [APP]
    settings.CORS_URLS_REGEX = r"^/api/"
    client = make_key().client

    read = client.get("/api/v1/jobs", headers={"Origin": APP})
    refused = client.post("/api/v1/jobs", {}, headers={"Origin": APP})
    asked = client.options("/api/v1/jobs", headers={"Origin": APP, **PREFLIGHT})
    other = client.get("/api/v1/jobs", headers={"Origin": "https://evil.example"})
    page = client.get(LOGIN, headers={"Origin": APP})

    assert read["Access-Control-Allow-Origin"] == refused["Access-Control-Allow-Origin"] == APP
    assert "RateLimit" in read["Access-Control-Expose-Headers"]
    assert asked.status_code == 200
    assert "authorization" in asked["Access-Control-Allow-Headers"]
    assert "origin" in read["Vary"].lower()
    for answer in (read, asked):
        assert "Access-Control-Allow-Credentials" not in answer
    assert "Access-Control-Allow-Origin" not in other
    assert "Access-Control-Allow-Origin" not in page


@pytest.mark.parametrize(
    "value", ["*", "app.example.com", "https://a.example/path", "ftp://a.example", "null"]
)
def test_an_origin_that_is_none_stops_the_start(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ENGINE_CORS_ORIGINS", value)

    with pytest.raises(ImproperlyConfigured, match="ENGINE_CORS_ORIGINS"):
        environment.origins("ENGINE_CORS_ORIGINS")
