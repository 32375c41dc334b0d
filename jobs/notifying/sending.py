"""One try to deliver one message."""

import asyncio
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
from django.conf import settings
from django.core.mail import EmailMessage
from django.db.models import BooleanField, ExpressionWrapper, Q
from django.db.models.functions import Now
from django.template.loader import render_to_string

from engine import __version__, tracing
from engine.outgoing import AddressRefused
from jobs.models import Job
from jobs.notifying import payloads, signing
from jobs.notifying.models import Delivery, JobWebhookSecret, WebhookEndpoint
from jobs.notifying.outbox import Taken, Tried

TRY_SECONDS = 15.0
MOST_RESPONSE_BYTES = 1_000  # of the receiver's answer, for the log; the rest is not read
SUBJECT_CHARS = 120


@dataclass(frozen=True)
class Message:
    """What goes out, ready but for the connection."""

    url: str
    body: bytes
    headers: dict[str, str]
    event: str = ""
    tries: int = 1
    traceparent: str = ""  # of the job that it tells of


def prepare(taken: Taken) -> Message | EmailMessage | Tried:
    """The message of a delivery, or why there is none to send. Reads the database; sends nothing."""
    row = taken.delivery
    try:
        if row.channel == Delivery.Channel.EMAIL:
            return _mail(row)
        secrets = _secrets(row)
        if secrets is None:
            return Tried(Delivery.State.SKIPPED, error="The endpoint was deleted or disabled.")
        body = json.dumps(payloads.document(row), separators=(",", ":"), ensure_ascii=False).encode()
    except payloads.Gone:
        return Tried(Delivery.State.SKIPPED, error="The job it tells of was deleted.")
    headers = signing.headers(str(row.id), taken.now, body, by=secrets)
    return Message(row.receiver, body, headers, row.event, row.tries, _traceparent(row))


def _traceparent(row: Delivery) -> str:
    if not tracing.is_on() or row.job_id is None:
        return ""
    return Job.objects.values_list("traceparent", flat=True).filter(id=row.job_id).first() or ""


def _secrets(row: Delivery) -> list[str] | None:
    """What signs the message; None if its endpoint is no more. A rotation's end is by the database's clock."""
    is_rotating = ExpressionWrapper(Q(rotated_until__gt=Now()), output_field=BooleanField(null=True))
    if row.endpoint_id is None:
        secrets = JobWebhookSecret.objects.filter(project_id=row.project_id)
        found = secrets.values_list("generation", is_rotating).first()
        generation, rotating = found or (1, False)
        return signing.secrets(row.project_id, generation, with_previous=bool(rotating))
    endpoints = WebhookEndpoint.objects.filter(id=row.endpoint_id, enabled=True)
    found = endpoints.values_list("generation", is_rotating).first()
    if found is None:
        return None
    return signing.secrets(row.endpoint_id, found[0], with_previous=bool(found[1]))


def _mail(row: Delivery) -> EmailMessage | Tried:
    if not settings.ENGINE_MAIL:
        return Tried(Delivery.State.SKIPPED, error="No e-mail is configured: set EMAIL_URL.")
    question = payloads.question_of(row)
    if row.event == "question.reminder" and question.status != question.Status.OPEN:
        return Tried(Delivery.State.SKIPPED, error="The question was closed before its reminder went out.")
    task = Job.objects.values_list("task", flat=True).get(id=question.job_id)
    link = payloads.answer_url(row, holder=row.receiver)
    context = {
        "question": question,
        "task": task,
        "link": link,
        "is_reminder": row.event == "question.reminder",
    }
    prefix = "Reminder: " if context["is_reminder"] else ""
    subject = re.sub(r"\s+", " ", f"{prefix}{question.prompt}").strip()[:SUBJECT_CHARS]
    mail = EmailMessage(
        subject=subject, body=render_to_string("jobs/answer/mail.txt", context), to=[row.receiver]
    )
    # The same id in each try: mail programs show a message that came twice once.
    mail.extra_headers["Message-ID"] = f"<{row.id}@engine>"
    mail.extra_headers["Auto-Submitted"] = "auto-generated"
    return mail


async def send(message: Message | EmailMessage, http: httpx.AsyncClient) -> Tried:
    """Send it once. Never raises: what went wrong is in the outcome."""
    started = time.monotonic()

    def tried(state: Delivery.State, **how: Any) -> Tried:
        return Tried(state, milliseconds=round((time.monotonic() - started) * 1000), **how)

    try:
        async with asyncio.timeout(TRY_SECONDS):
            if isinstance(message, EmailMessage):
                await asyncio.to_thread(message.send)
                return tried(Delivery.State.DELIVERED)
            with _span(message) as span:
                outcome = await _post(message, http, tried)
                span.note({"http.response.status_code": outcome.status})
                if outcome.state != Delivery.State.DELIVERED:
                    span.failed(str(outcome.status))
                return outcome
    except AddressRefused as error:
        return tried(Delivery.State.FAILED, error=str(error))
    except TimeoutError:
        return tried(Delivery.State.PENDING, error=f"No answer within {TRY_SECONDS:g} seconds.")
    # OSError: SMTP's errors are of that class too. ValueError: an address or a header that cannot be one.
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        return tried(Delivery.State.PENDING, error=f"{type(error).__name__}: {error}"[:500])


def _span(message: Message) -> tracing.Span:
    """Of one try, in the trace of its job; of the address only the host: the rest may hold a secret."""
    if not tracing.is_on():
        return tracing.NO_SPAN
    about = {
        "http.request.method": "POST",
        "http.request.resend_count": message.tries - 1 or None,
        "server.address": httpx.URL(message.url).host,
        "engine.webhook.event": message.event,
    }
    return tracing.span("webhook", about, kind="client", parent=message.traceparent)


async def _post(message: Message, http: httpx.AsyncClient, tried: Callable[..., Tried]) -> Tried:
    headers = {"content-type": "application/json", "user-agent": f"engine/{__version__}", **message.headers}
    headers |= tracing.headers()
    async with http.stream("POST", message.url, content=message.body, headers=headers) as answer:
        text = (await _beginning(answer)).decode("utf-8", "replace").replace("\x00", "\ufffd")
        status = answer.status_code
        how: dict[str, Any] = {"status": status, "response": text}
        if 200 <= status < 300:
            return tried(Delivery.State.DELIVERED, **how)
        if 300 <= status < 400:
            return tried(
                Delivery.State.PENDING, error="Redirects are not followed: give the address itself.", **how
            )
        if status == httpx.codes.GONE:
            return tried(Delivery.State.FAILED, error="The receiver is gone for good (410).", **how)
        asked = retry_after(answer.headers.get("retry-after", ""), answer.headers.get("date", ""))
        return tried(Delivery.State.PENDING, error=f"HTTP {status}", retry_after=asked, **how)


async def _beginning(answer: httpx.Response) -> bytes:
    """The first bytes as they came, unpacked by nobody: a small answer can unpack to a huge one."""
    head = b""
    async for chunk in answer.aiter_raw():
        head += chunk
        if len(head) >= MOST_RESPONSE_BYTES:
            break
    return head[:MOST_RESPONSE_BYTES]


def retry_after(value: str, date: str) -> timedelta | None:
    """What `Retry-After` asks for, in seconds or as a date, which is measured by the receiver's own clock."""
    if re.fullmatch(r"\d{1,9}", value, re.ASCII):
        return timedelta(seconds=int(value))
    try:
        until, now = parsedate_to_datetime(value), parsedate_to_datetime(date)
        return max(until - now, timedelta()) if _is_comparable(until, now) else None
    except (ValueError, TypeError):
        return None


def _is_comparable(one: datetime, other: datetime) -> bool:
    return (one.tzinfo is None) == (other.tzinfo is None)
