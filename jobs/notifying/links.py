"""Links that answer one question: signed, for one holder, and over after a time. Nothing of them is stored."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from django.conf import settings
from django.core import signing
from django.db.models import Q
from django.db.models.functions import Now

from apikeys.callers import Caller
from apikeys.models import ApiKey, Project
from apikeys.scopes import Scope, holds
from jobs.errors import LinkExpired, LinkNotFound

_SALT = "jobs.answer-link"


@dataclass(frozen=True)
class AnswerLink:
    """What a link says of itself."""

    question_id: UUID
    holder: str  # how its answer is signed: an e-mail address, or who made it
    expires_at: datetime
    key_id: UUID | None = None  # of the key that made it: its end is the link's too


def lifetime() -> timedelta:
    """How long a link works unless its maker says otherwise."""
    return timedelta(seconds=settings.ENGINE_ANSWER_LINK_SECONDS)


def url(link: AnswerLink) -> str:
    """The link's address."""
    return f"{settings.ENGINE_PUBLIC_URL}/answer/{token(link)}"


def token(link: AnswerLink) -> str:
    """The same for the same link: a message that is sent again must say the same."""
    parts = {
        "q": str(link.question_id),
        "h": link.holder,
        "e": int(link.expires_at.timestamp()),
        "k": str(link.key_id) if link.key_id else "",
    }
    return signing.Signer(salt=_SALT).sign_object(parts)


def opened(given: str, *, now: datetime) -> AnswerLink:
    """The link of a token. Raises LinkNotFound, LinkExpired. `now` is the database's."""
    try:
        parts = signing.Signer(salt=_SALT).unsign_object(given)
        link = AnswerLink(
            UUID(parts["q"]),
            parts["h"],
            datetime.fromtimestamp(parts["e"], now.tzinfo),
            UUID(parts["k"]) if parts["k"] else None,
        )
    except (signing.BadSignature, ValueError, KeyError, TypeError):
        raise LinkNotFound from None
    if link.expires_at <= now or (link.key_id and not _may_answer(link.key_id)):
        raise LinkExpired
    return link


def _may_answer(key_id: UUID) -> bool:
    """Whether the key would still be let in, and still may answer."""
    in_time = Q(expires_at__isnull=True) | Q(expires_at__gt=Now())
    keys = ApiKey.objects.filter(in_time, id=key_id, revoked_at=None, disabled_at=None)
    key = keys.filter(project__archived_at=None).first()
    return key is not None and holds(key.scopes, Scope.JOBS_RESPOND)


def caller(link: AnswerLink, *, project: Project, ip: str | None = None) -> Caller:
    """Whoever holds the link: may answer, under the name it was made for. Which question, the link says."""
    scopes = frozenset({Scope.JOBS_RESPOND.value})
    return Caller(project=project, scopes=scopes, link_holder=link.holder, via="link", ip=ip)
