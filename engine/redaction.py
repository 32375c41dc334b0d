"""Secrets are taken out of what is logged: by their form, by what this installation holds, by what a job was given."""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings

REDACTED = "[redacted]"
# Shorter values would take ordinary words out of the text.
SHORTEST = 8

# By form: each begins with what nothing else begins with. None matches a quotation mark or a backslash, so that a JSON
# text stays one.
_FORMS = re.compile(
    r"""
    \b(?:
        engine_(?:live|test)_[0-9A-Za-z]{20,}                 # ours
      | whsec_[0-9A-Za-z+/=]{20,}
      | sk-[0-9A-Za-z_-]{20,}                                 # OpenAI, Anthropic
      | (?:sk|rk)_(?:live|test)_[0-9A-Za-z]{16,}              # Stripe
      | e2b_[0-9a-f]{20,}
      | hf_[0-9A-Za-z]{30,}
      | gh[pousr]_[0-9A-Za-z]{30,} | github_pat_\w{30,} | glpat-[\w-]{20,}
      | xox[abeoprs]-[0-9A-Za-z-]{10,}                        # Slack
      | (?:AKIA|ASIA)[0-9A-Z]{16}                             # AWS
      | AIza[\w-]{35}                                         # Google
      | eyJ[\w-]{10,500}\.eyJ[\w-]{10,4000}\.[\w-]{10,2000}  # JSON Web Tokens
    )
    | -----BEGIN\ [A-Z ]*PRIVATE\ KEY-----[^"]*?(?:-----END\ [A-Z ]*PRIVATE\ KEY-----|\Z)
    """,
    re.VERBOSE,
)
# The name stays, what it names goes: `Authorization: Bearer …`, `postgresql://user:…@host`.
_NAMED = re.compile(
    r"(?i)(\bauthorization[\"']?\s*[:=]\s*[\"']?(?:bearer|basic)\s+)[\w.~+/=-]{8,}|(\b[a-z][a-z0-9+]*://[^\s:/@\"]*:)[^\s@/\"]+(?=@)"
    r"|(/answer/)[\w.~:=-]{8,}"  # the link is the credential (jobs.answering)
)
# Members of a job's input whose values are not for its log.
_SECRET_NAME = re.compile(
    r"(?i)(password|passwd|passphrase|secret|token|credential|api[-_]?key|private[-_]?key)"
)


class Redactor:
    """Takes out the known forms, this installation's own secrets, and the given values."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        found = sorted({*_own_secrets(), *values}, key=len, reverse=True)
        longest_first = [re.escape(value) for value in found if len(value) >= SHORTEST]
        self._values = re.compile("|".join(longest_first)) if longest_first else None

    def __call__(self, text: str) -> str:
        """The text with `[redacted]` in the place of each secret."""
        if self._values is not None:
            text = self._values.sub(REDACTED, text)
        # Most lines hold neither of what the longer search begins with.
        if "_" in text or "-" in text or "eyJ" in text or "AKIA" in text or "ASIA" in text or "AIza" in text:
            text = _FORMS.sub(REDACTED, text)
        if "://" in text or "uthorization" in text or "UTHORIZATION" in text or "/answer/" in text:
            text = _NAMED.sub(lambda found: (found[1] or found[2] or found[3]) + REDACTED, text)
        return text

    def inside(self, value: Any) -> Any:
        """A JSON value with each text in it redacted; in its JSON a password of digits may be a number, too."""
        if isinstance(value, str):
            return self(value)
        if isinstance(value, Mapping):
            return {self(str(name)): self.inside(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.inside(inner) for inner in value]
        return value


def redactor_of(given: Any) -> Redactor:
    """The redactor for a job with this input. Most inputs hold no secret, and compiling takes time."""
    values = list(secrets_in(given))
    return Redactor(values) if values else of_installation()


def secrets_in(given: Any) -> Iterator[str]:
    """The texts in a job's input that stand under a name such as `password` or `api_key`."""
    stack: list[tuple[Any, bool]] = [(given, False)]
    while stack:
        value, is_secret = stack.pop()
        if isinstance(value, Mapping):
            stack.extend(
                (inner, is_secret or bool(_SECRET_NAME.search(str(name)))) for name, inner in value.items()
            )
        elif isinstance(value, list):
            stack.extend((inner, is_secret) for inner in value)
        elif isinstance(value, str) and is_secret:
            yield value


@cache
def of_installation() -> Redactor:
    """The redactor for what belongs to no job."""
    return Redactor()


def _own_secrets() -> Iterator[str]:
    yield settings.SECRET_KEY
    yield from settings.SECRET_KEY_FALLBACKS
    yield settings.OPENAI_API_KEY
    yield settings.E2B_API_KEY
    yield settings.DATABASES["default"].get("PASSWORD") or ""
    yield urlsplit(settings.REDIS_URL).password or ""
    yield getattr(settings, "EMAIL_HOST_PASSWORD", "")
    yield settings.SECRETS.get("ADMIN_PASSWORD") or ""  # as `make run` made it
    yield urlsplit(settings.OTEL_EXPORTER_OTLP_TRACES_ENDPOINT).password or ""
    for value in settings.OTEL_EXPORTER_OTLP_HEADERS.values():
        yield from value.split()  # Bearer, and what it bears
