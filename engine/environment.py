"""Typed, strict readers of the environment. Used by `engine/settings.py` alone."""

import io
import json
import os
import re
import ssl
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured
from environ import Env

TRUE, FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


def malformed(name: str, value: str, fix: str) -> ImproperlyConfigured:
    """Name the variable and the fix; the value is shown only in part, for it may be a secret pasted askew."""
    shown = value if len(value) <= 24 else value[:8] + "…"
    return ImproperlyConfigured(f"{name}={shown!r} cannot be used: {fix}.")


ENV_LINE = re.compile(r"(?:export )?([A-Za-z_][A-Za-z_0-9]*)=(.*)")


def read_file(path: Path) -> None:
    """Set the variables of a .env file that the environment does not set.

    Raises ImproperlyConfigured with the line's number, never its text, which may be a secret.
    """
    try:
        lines = path.read_text(
            encoding="utf-8-sig"
        ).splitlines()  # editors of Windows begin files with a mark
    except FileNotFoundError:
        return
    except UnicodeDecodeError:
        raise ImproperlyConfigured(f"{path} cannot be read: save it as UTF-8.") from None
    except OSError as error:
        raise ImproperlyConfigured(
            f"{path} cannot be read ({error.strerror}): make it a file that this user may read."
        ) from error
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = ENV_LINE.fullmatch(line.strip())
        if found is None or "\0" in line:
            raise ImproperlyConfigured(
                f"{path}, line {number} cannot be used: write NAME=value, without spaces around the sign."
            )
        name, value = found[1], found[2].strip()
        if value[:1] in ("'", '"') and (len(value) < 2 or value[-1] != value[0]):
            raise ImproperlyConfigured(
                f"{path}, line {number}: {name} cannot be used: end the value with the quotation mark it begins with, "
                "on the same line and without a comment behind it."
            )
        if name in seen:
            raise ImproperlyConfigured(
                f"{path} sets {name} twice, in lines {seen[name]} and {number}: leave one of them."
            )
        seen[name] = number
    Env.read_env(io.StringIO("\n".join(line.strip() for line in lines)))


# Longer than any value that means something: a file pasted by mistake.
MOST_CHARACTERS = 32_768


def text(name: str, default: str = "") -> str:
    """The value without surrounding space; empty counts as not set, as in `NAME=` in a .env file."""
    value = os.environ.get(name, "").strip()
    if len(value) > MOST_CHARACTERS:
        raise ImproperlyConfigured(f"{name} cannot be used: it is longer than {MOST_CHARACTERS} characters.")
    if not value.isprintable():
        # Never the value: it may be a secret, pasted with more than itself.
        raise ImproperlyConfigured(
            f"{name} cannot be used: it holds a line break or another control character."
        )
    return value or default


def word(name: str, default: str = "", *, form: str = r"[!-~]+", fix: str = "write it without spaces") -> str:
    """A text of a closed form, such as a key or a name: ASCII without spaces, or narrower."""
    value = text(name, default)
    if value and not re.fullmatch(form, value, re.ASCII):
        raise ImproperlyConfigured(f"{name} cannot be used: {fix}.")
    return value


def flag(name: str, *, default: bool) -> bool:
    """1/true/yes/on or 0/false/no/off, in any case."""
    value = text(name).lower()
    if not value:
        return default
    if value not in TRUE | FALSE:
        raise malformed(name, value, "write 1 or 0")
    return value in TRUE


def whole(name: str, default: int, *, least: int = 0, most: int = 2**31) -> int:
    """A whole number within bounds."""
    value = text(name)
    if not value:
        return default
    if not re.fullmatch(r"-?\d{1,19}", value, re.ASCII) or not least <= int(value) <= most:
        raise malformed(name, value, f"write a whole number from {least} to {most}")
    return int(value)


def seconds(name: str, default: float, *, least: float = 0.0, most: float = 10**8) -> float:
    """A duration in seconds, fractions allowed."""
    value = text(name)
    if not value:
        return default
    if not re.fullmatch(r"\d{1,12}(\.\d{1,6})?", value, re.ASCII) or not least <= float(value) <= most:
        raise malformed(name, value, f"write seconds as a number from {least:g} to {most:g}")
    return float(value)


def ratio(name: str, default: float) -> float:
    """A share of a whole: a number from 0 to 1."""
    value = text(name)
    if not value:
        return default
    if not re.fullmatch(r"\d(\.\d{1,12})?", value, re.ASCII) or float(value) > 1:
        raise malformed(name, value, "write a number from 0 to 1, such as 0.1")
    return float(value)


def choice(name: str, default: str, choices: Sequence[str]) -> str:
    """One of a closed list."""
    value = text(name, default)
    if value not in choices:
        raise malformed(name, value, f"write one of {', '.join(choices)}")
    return value


def names(name: str, default: Sequence[str] = ()) -> list[str]:
    """A comma-separated list; empty members are dropped."""
    value = text(name)
    return [part.strip() for part in value.split(",") if part.strip()] if value else list(default)


def pairs(name: str) -> dict[str, str]:
    """A comma-separated list of `name=value` as OpenTelemetry writes it: `%2C` in a value is a comma."""
    found = {}
    for part in names(name):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        plain = unquote(value)
        if not equals or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", key) or not plain.isprintable():
            # Never the value: headers carry secrets.
            raise ImproperlyConfigured(
                f"{name} cannot be used: write it as name=value,name=value with special characters as %2C."
            )
        found[key] = plain
    return found


def hosts(name: str, default: Sequence[str] = ()) -> list[str]:
    """A comma-separated list of hosts, without scheme, port and path; `.example.com` is every host below, too."""
    found = names(name, default)
    for part in found:
        if not re.fullmatch(r"\*|\[[0-9a-fA-F:.]+\]|\.?[a-zA-Z0-9_-]+(\.[a-zA-Z0-9_-]+)*", part, re.ASCII):
            raise malformed(name, part, "write hosts such as engine.example.com, with commas between")
    return found


def origins(name: str, *, any_below: bool = False) -> list[str]:
    """A comma-separated list of origins as browsers send them: scheme, host and perhaps a port, nothing more.

    `any_below`: `https://*.example.com` stands for every host below.
    """
    found = names(name)
    below = r"(\*\.)?" if any_below else ""
    for part in found:
        if not re.fullmatch(rf"https?://(\[[0-9a-f:.]+\]|{below}[a-z0-9.-]+)(:\d{{1,5}})?", part, re.ASCII):
            raise malformed(name, part, "write origins such as https://app.example.com, with commas between")
    return found


def networks(name: str) -> list[IPv4Network | IPv6Network]:
    """A comma-separated list of networks; a single address is a network of one."""
    found = []
    for part in names(name):
        try:
            found.append(ip_network(part))
        except ValueError:
            raise malformed(name, part, "write networks such as 10.0.0.0/8, with commas between") from None
    return found


def folder(name: str, default: Path) -> Path:
    """An absolute folder; `~` is expanded, and a relative path counts from the repository's root."""
    value = text(name)
    if "\0" in value or (value and len(value) > 3000):
        raise malformed(name, value, "write the path of a folder")
    path = Path(value).expanduser() if value else default
    return path if path.is_absolute() else Path(__file__).resolve().parent.parent / path


def authority(name: str) -> str:
    """A file with the certificates of the authorities that TLS is to trust, or nothing."""
    value = text(name)
    if value:
        try:
            ssl.create_default_context(cafile=value)
        except (OSError, ValueError):  # no such file, not ours to read, no certificate
            raise malformed(name, value, "write the path of a file of certificates in PEM") from None
    return value


def address(name: str, default: str = "", *, schemes: Sequence[str]) -> str:
    """A URL with one of `schemes` and a host."""
    value = text(name, default)
    if not value:
        return ""
    if not _is_address(value, schemes):
        wanted = " or ".join(f"{scheme}://" for scheme in schemes)
        # Never the value: addresses carry passwords.
        raise ImproperlyConfigured(f"{name} cannot be used: write a URL that begins with {wanted}.")
    return value


def _is_address(value: str, schemes: Sequence[str], *, hostless: bool = False) -> bool:
    if any(char.isspace() or not char.isprintable() for char in value):
        return False
    try:
        parts = urlsplit(value)
        _ = parts.port  # raises for one that is no number, or too large
    except ValueError:
        return False
    return parts.scheme in schemes and bool(
        hostless or parts.hostname or (parts.scheme == "unix" and parts.path)
    )


def mail(name: str) -> dict[str, Any]:
    """Django's e-mail settings from one address; without it mail is off.

    smtp://, smtp+tls:// (STARTTLS), smtp+ssl://, each with user:password@host:port; consolemail:// prints,
    filemail:///folder writes files.
    """
    value = text(name)
    if not value:
        return {"EMAIL_BACKEND": "django.core.mail.backends.dummy.EmailBackend"}
    schemes = ("smtp", "smtp+tls", "smtp+ssl", "consolemail", "filemail")
    parts = urlsplit(value if _is_address(value, schemes, hostless=True) else "")
    if parts.scheme not in schemes or (parts.scheme.startswith("smtp") and not parts.hostname):
        # Never the value: it carries a password.
        raise ImproperlyConfigured(f"{name} cannot be used: write smtp+tls://user:password@host:587.")
    if parts.scheme == "filemail":
        backend = "django.core.mail.backends.filebased.EmailBackend"
        return {"EMAIL_BACKEND": backend, "EMAIL_FILE_PATH": parts.path}
    found: dict[str, Any] = Env.email_url_config(value)
    found["EMAIL_PORT"] = found["EMAIL_PORT"] or (465 if parts.scheme == "smtp+ssl" else 587)
    return found


# OpenAI's list prices as of November 2025, in US dollars per million tokens.
DEFAULT_PRICES = {
    "gpt-5": {"input": 1.25, "output": 10.0},
    "gpt-5-mini": {"input": 0.25, "output": 2.0},
    "gpt-5-nano": {"input": 0.05, "output": 0.4},
    "gpt-4.1": {"input": 2.0, "output": 8.0},
    "gpt-4.1-mini": {"input": 0.4, "output": 1.6},
    "gpt-4o": {"input": 2.5, "output": 10.0},
    "gpt-4o-mini": {"input": 0.15, "output": 0.6},
}


def prices(name: str, default: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """A JSON object of model names, each with the price of `input` and `output` tokens; it is added to `default`."""
    value = text(name)
    fix = 'write JSON such as {"my-model": {"input": 0.25, "output": 2.0}}, in US dollars per million tokens'
    try:
        given = json.loads(value) if value else {}
    except ValueError:
        raise malformed(name, value, fix) from None
    if not isinstance(given, dict):
        raise malformed(name, value, fix)
    for price in given.values():
        if not isinstance(price, dict) or price.keys() != {"input", "output"}:
            raise malformed(name, value, fix)
        if not all(type(amount) in (int, float) and 0 <= amount <= 10**6 for amount in price.values()):
            raise malformed(name, value, fix)
    return {**default, **given}


def postgres(name: str) -> dict[str, Any] | None:
    """A PostgreSQL address as libpq reads it (several hosts and parameters included), or None if not set.

    Read by libpq itself, so `postgresql://a,b/engine?target_session_attrs=read-write` means what it says.
    """
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    value = text(name)
    if not value:
        return None
    problem = f"{name} cannot be used: write it as postgresql://user:password@host:5432/database."
    if not value.startswith(("postgresql://", "postgres://")):
        raise ImproperlyConfigured(problem)
    try:
        parts = dict(conninfo_to_dict(value))
    except ProgrammingError:
        # libpq's message quotes the address, password included.
        raise ImproperlyConfigured(problem) from None
    if not parts.get("dbname"):
        raise ImproperlyConfigured(f"{name} names no database: {problem}")
    return {
        "NAME": str(parts.pop("dbname")),
        "USER": str(parts.pop("user", "")),
        "PASSWORD": str(parts.pop("password", "")),
        "HOST": str(parts.pop("host", "")),
        "PORT": str(parts.pop("port", "")),
        "OPTIONS": parts,
    }
