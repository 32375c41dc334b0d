"""Webhooks as their receivers see them: what is sent, how it is signed, when it is tried again."""

import asyncio
from collections.abc import Callable, Iterator
from datetime import timedelta
from ipaddress import ip_network
from typing import Any
from uuid import uuid4

import pytest
from django.core import mail
from django.db import connection, transaction
from django.utils import timezone

from apikeys.models import Project
from jobs import continuing, queries, services
from jobs.errors import DeliveryPending
from jobs.models import Attempt, Job, Question
from jobs.notifying import courier, outbox, payloads, sending, signing
from jobs.notifying import services as webhooks
from jobs.notifying.models import Delivery, WebhookEndpoint
from tests.jobs import (
    ask,
    claim_one,
    end_lease,
    make_caller,
    make_job,
    make_project,
    make_worker,
    question,
    settlement,
    sweep,
    write,
)
from tests.processes import eventually
from tests.receivers import LOOPBACK, Receiver, receiving

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _loopback_allowed(settings: Any) -> None:
    settings.ENGINE_WEBHOOK_ALLOWED_NETWORKS = [ip_network(network) for network in LOOPBACK]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@pytest.fixture
def deliver(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let a courier work until something is true, by default until nothing is due."""
    monkeypatch.setattr(courier, "POLL_SECONDS", 0.02)

    def nothing_is_due() -> bool:
        return not Delivery.objects.filter(state="pending", next_try_at__lte=timezone.now()).exists()

    def all_are_noted() -> bool:
        return all(len(row.log) == row.tries for row in Delivery.objects.filter(state="pending"))

    def work(until: Callable[[], Any] = nothing_is_due) -> None:
        async def in_database(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            return await asyncio.to_thread(_closing, function, *args, **kwargs)

        async def run() -> None:
            running = asyncio.create_task(courier.Courier(in_database).run())
            try:
                await asyncio.to_thread(_closing, eventually, until, what="the courier's work")
                # What was taken is noted.
                await asyncio.to_thread(_closing, eventually, all_are_noted, what="the log")
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

        asyncio.run(run())

    return work


def _closing(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return function(*args, **kwargs)
    finally:
        connection.close()


def endpoint(receiver: Receiver, *events: str, project: Project | None = None) -> tuple[WebhookEndpoint, str]:
    return webhooks.create(make_caller(project), url=receiver.url, events=events)


def complete(job: Job, result: str = '{"rows": 3}') -> None:
    worker = make_worker()
    write(worker, settlements=[settlement(claim_one(worker), result=result)])


def asking(**fields: Any) -> tuple[Job, Question]:
    job, worker = make_job(webhook_url=fields.pop("webhook_url", "")), make_worker()
    ask(worker, claim_one(worker), question(**fields))
    return Job.objects.get(id=job.id), Question.objects.get(job=job)


def events() -> list[str]:
    return list(Delivery.objects.order_by("id").values_list("event", flat=True))


# --- what is told ---


def test_a_job_with_an_address_tells_each_change_of_its_state(
    receiver: Receiver, deliver: Callable[..., None]
) -> None:
    job = make_job(webhook_url=receiver.url, tags=["nightly"], metadata={"order": 7})
    complete(job)

    deliver()

    assert sorted(receiver.types()) == ["job.completed", "job.queued", "job.started"]
    (last,) = (call.json for call in receiver.calls if call.json["type"] == "job.completed")
    told = last["data"]["job"]
    assert told["id"] == str(job.id)
    assert (told["status"], told["result"], told["error"]) == ("completed", {"rows": 3}, None)
    assert (told["tags"], told["metadata"], told["agent"]["slug"]) == (["nightly"], {"order": 7}, "echo")
    assert last["timestamp"].endswith("Z")
    assert set(Delivery.objects.values_list("state", flat=True)) == {"delivered"}


def test_every_way_in_which_a_state_changes_is_told(receiver: Receiver) -> None:
    """Batches, sweeps, promotions, deadlines and callers: none of them can forget."""
    endpoint(receiver)
    later = timezone.now() + timedelta(hours=1)
    scheduled = make_job(run_at=later)
    Job.objects.filter(id=scheduled.id).update(run_at=timezone.now())
    queries.promote()
    worker = make_worker()
    claim_one(worker)
    end_lease(worker)
    sweep()
    worker = make_worker()
    failed = settlement(
        claim_one(worker),
        Job.Status.SCHEDULED,
        Attempt.Outcome.FAILED,
        retry_after=timedelta(seconds=9),
        error={"code": "agent_error", "message": "no"},
    )
    write(worker, settlements=[failed])
    Job.objects.filter(id=scheduled.id).update(deadline_at=timezone.now())
    queries.fail_overdue()
    continuing.retry(scheduled.id, by=make_caller())
    queued = Job.objects.get(status="queued")
    services.cancel(queued.id, by=make_caller())

    assert events() == [
        "job.scheduled",
        "job.queued",
        "job.started",
        "job.queued",
        "job.started",
        "job.retrying",
        "job.failed",
        "job.queued",
        "job.cancelled",
    ]


def test_a_question_is_told_with_a_link_that_answers_it(
    receiver: Receiver, deliver: Callable[..., None]
) -> None:
    job, asked = asking(webhook_url=receiver.url, prompt="Which tone?")
    services.respond(job.id, by=make_caller(), answer="warm")

    deliver()

    calls = {call.json["type"]: call.json["data"] for call in receiver.calls}
    opened, answered = calls["question.opened"]["question"], calls["question.answered"]["question"]
    # It is told as it was when it was asked, although it has its answer by now.
    assert (opened["status"], opened["answer"], opened["prompt"]) == ("open", None, "Which tone?")
    assert "/answer/" in opened["answer_url"]
    assert (answered["id"], answered["status"], answered["answer"]) == (str(asked.id), "answered", "warm")
    assert (answered["answered_by"], answered["answered_via"]) == ("user:tester", "api_key")
    assert "answer_url" not in answered
    assert calls["question.opened"]["job"]["id"] == str(job.id)


def test_expiry_and_cancel_are_told_as_no_persons_answer(receiver: Receiver) -> None:
    endpoint(receiver, "question.expired", "question.superseded")
    other, _ = asking()
    job, asked = asking(
        expires_in=timedelta(seconds=60), on_timeout="default", has_default=True, default="plain"
    )
    Question.objects.filter(id=asked.id).update(expires_at=timezone.now())
    services.expire_question(job.id, asked.id)
    services.cancel(other.id, by=make_caller())

    assert events() == ["question.expired", "question.superseded"]
    assert set(Question.objects.values_list("answered_by", flat=True)) == {""}


def test_an_endpoint_hears_its_projects_events_and_only_those_it_asked_for(receiver: Receiver) -> None:
    other = make_project("other")
    endpoint(receiver, "job.completed")
    endpoint(receiver, "job.queued", project=other)
    switched_off, _ = endpoint(receiver)
    webhooks.change(make_caller(), switched_off.id, enabled=False)

    complete(make_job())

    assert [(row.event, row.project.slug) for row in Delivery.objects.all()] == [("job.completed", "acme")]


def test_where_nobody_listens_nothing_is_written() -> None:
    complete(make_job())
    asking()

    assert not Delivery.objects.exists()


def test_a_change_that_is_rolled_back_tells_nothing(receiver: Receiver) -> None:
    with transaction.atomic():
        make_job(webhook_url=receiver.url)
        assert Delivery.objects.exists()
        transaction.set_rollback(True)

    assert not Delivery.objects.exists()


def test_a_large_result_is_left_to_the_api(receiver: Receiver, deliver: Callable[..., None]) -> None:
    endpoint(receiver, "job.completed")
    complete(make_job(), result='"' + "x" * 100_000 + '"')

    deliver()

    told = receiver.calls[0].json["data"]["job"]
    assert (told["result"], told["result_omitted"]) == (None, True)


# --- signatures ---


def test_messages_are_signed_with_the_secret_that_was_shown_once(
    receiver: Receiver, deliver: Callable[..., None]
) -> None:
    _made, secret = endpoint(receiver, "job.queued")
    make_job()

    deliver()

    (call,) = receiver.calls
    assert secret.startswith("whsec_")
    assert call.is_signed_by(secret)
    assert not call.is_signed_by(signing.secret(uuid4(), 1))
    assert call.headers["webhook-id"] == str(Delivery.objects.get().id)
    assert abs(int(call.headers["webhook-timestamp"]) - timezone.now().timestamp()) < 60
    assert call.headers["content-type"] == "application/json"


def test_after_a_rotation_both_secrets_sign_until_the_overlap_ends(
    receiver: Receiver, deliver: Callable[..., None]
) -> None:
    made, old = endpoint(receiver, "job.queued")
    _, new = webhooks.rotate(make_caller(), made.id)
    make_job()
    deliver()
    assert receiver.calls[0].is_signed_by(old)
    assert receiver.calls[0].is_signed_by(new)

    WebhookEndpoint.objects.update(rotated_until=timezone.now() - timedelta(seconds=1))
    make_job()
    deliver()
    assert not receiver.calls[1].is_signed_by(old)
    assert receiver.calls[1].is_signed_by(new)


def test_a_jobs_own_address_is_signed_with_the_projects_secret(
    receiver: Receiver, deliver: Callable[..., None]
) -> None:
    first = webhooks.job_secret(make_caller())
    make_job(webhook_url=receiver.url)
    deliver()
    second = webhooks.job_secret(make_caller())
    make_job(webhook_url=receiver.url)
    deliver()

    assert receiver.calls[0].is_signed_by(first)
    assert not receiver.calls[0].is_signed_by(second)
    assert receiver.calls[1].is_signed_by(first)
    assert receiver.calls[1].is_signed_by(second)


def test_a_new_secret_key_signs_beside_the_old_one(
    receiver: Receiver, deliver: Callable[..., None], settings: Any
) -> None:
    _, old = endpoint(receiver, "job.queued")
    settings.SECRET_KEY_FALLBACKS, settings.SECRET_KEY = [settings.SECRET_KEY], "another" * 10
    make_job()

    deliver()

    assert receiver.calls[0].is_signed_by(old)


# --- tries ---


def due_now() -> None:
    Delivery.objects.filter(state="pending").update(next_try_at=timezone.now() - timedelta(seconds=1))


def test_what_failed_is_tried_again_under_the_same_id_with_the_same_body(
    receiver: Receiver, deliver: Callable[..., None]
) -> None:
    endpoint(receiver, "job.queued")
    receiver.answers, receiver.body = [500, 503], b"not now"
    job = make_job()

    deliver()
    failed = Delivery.objects.get()
    wait = failed.next_try_at - timezone.now()
    services.cancel(job.id, by=make_caller())  # what the job has become since is no part of that message
    due_now()
    deliver()
    due_now()
    deliver()

    stored = Delivery.objects.get()
    assert timedelta(seconds=3) < wait < timedelta(seconds=6)
    assert (failed.state, stored.state, stored.tries) == ("pending", "delivered", 3)
    assert len({call.headers["webhook-id"] for call in receiver.calls}) == 1
    assert len({call.body for call in receiver.calls}) == 1
    assert [entry["status"] for entry in stored.log] == [204, 503, 500]
    assert stored.log[-1]["error"] == "HTTP 500"
    assert stored.log[-1]["response"] == "not now"
    assert stored.delivered_at is not None


def test_waits_grow_to_76_hours_and_then_it_is_given_up(
    receiver: Receiver, deliver: Callable[..., None]
) -> None:
    waits = [outbox.wait_before(tries) for tries in range(1, 11)]
    assert waits[9] is None
    known = [wait for wait in waits if wait is not None]
    assert known == sorted(known)
    assert 75 < sum(known, timedelta()).total_seconds() / 3600 < 84

    receiver.status = 500
    endpoint(receiver, "job.queued")
    make_job()
    Delivery.objects.update(tries=9, log=[{}] * 9)
    deliver(lambda: Delivery.objects.filter(state="failed").exists())
    assert len(receiver.calls) == 1


def test_a_receiver_may_ask_for_a_later_try(receiver: Receiver, deliver: Callable[..., None]) -> None:
    endpoint(receiver, "job.queued")
    receiver.status, receiver.headers = 429, {"retry-after": "600"}
    make_job()

    deliver()

    assert Delivery.objects.get().next_try_at - timezone.now() > timedelta(seconds=590)


@pytest.mark.parametrize(
    ("value", "date", "seconds"),
    [
        ("30", "", 30),
        ("Wed, 21 Oct 2026 07:28:30 GMT", "Wed, 21 Oct 2026 07:28:00 GMT", 30),
        ("Wed, 21 Oct 2026 07:28:00 GMT", "Wed, 21 Oct 2026 07:28:30 GMT", 0),
        ("soon", "Wed, 21 Oct 2026 07:28:30 GMT", None),
        ("٣", "", None),
        ("", "", None),
    ],
)
def test_retry_after_is_read_in_both_forms(value: str, date: str, seconds: int | None) -> None:
    asked = sending.retry_after(value, date)
    assert asked == (None if seconds is None else timedelta(seconds=seconds))


def test_a_receiver_that_is_gone_is_switched_off(receiver: Receiver, deliver: Callable[..., None]) -> None:
    _made, _ = endpoint(receiver, "job.queued")
    receiver.status = 410
    make_job()
    deliver(lambda: WebhookEndpoint.objects.filter(enabled=False).exists())
    make_job()

    stored = WebhookEndpoint.objects.get()
    assert (stored.enabled, stored.disabled_reason) == (False, "It answered 410 Gone.")
    assert Delivery.objects.get().state == "failed"


def test_redirects_are_a_failure_and_are_not_followed(
    receiver: Receiver, deliver: Callable[..., None]
) -> None:
    with receiving() as elsewhere:
        receiver.status, receiver.headers = 302, {"location": elsewhere.url}
        endpoint(receiver, "job.queued")
        make_job()
        deliver()

    assert not elsewhere.calls
    assert "Redirects are not followed" in Delivery.objects.get().log[0]["error"]


def test_a_private_address_is_refused_when_it_is_called_too(
    receiver: Receiver, deliver: Callable[..., None], settings: Any
) -> None:
    """A name may mean something else by the time a message is sent."""
    make_job(webhook_url=receiver.url)
    settings.ENGINE_WEBHOOK_ALLOWED_NETWORKS = []

    deliver()

    stored = Delivery.objects.get()
    assert not receiver.calls
    assert stored.state == "failed"
    assert "ENGINE_WEBHOOK_ALLOWED_NETWORKS" in stored.log[0]["error"]


def test_a_receiver_that_hangs_holds_up_nobody_else(receiver: Receiver, deliver: Callable[..., None]) -> None:
    at_once: list[int] = []
    with receiving() as hanging:
        hanging.may_answer.clear()
        for _ in range(30):
            make_job(webhook_url=hanging.url)
        endpoint(receiver, "job.completed")
        complete(make_job())

        def is_heard_beside_it() -> bool:
            if not receiver.calls:
                return False
            at_once.append(len(hanging.calls))
            hanging.may_answer.set()
            return True

        deliver(is_heard_beside_it)

    assert 1 <= at_once[0] <= outbox.MOST_TO_ONE_HOST


def test_a_receiver_that_hangs_is_given_up_after_a_while(
    receiver: Receiver, deliver: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "TRY_SECONDS", 0.2)
    receiver.may_answer.clear()
    endpoint(receiver, "job.queued")
    make_job()

    deliver(lambda: Delivery.objects.exclude(log=[]).exists())

    assert Delivery.objects.get().log[0]["error"] == "No answer within 0.2 seconds."


def test_a_huge_answer_is_not_read(receiver: Receiver, deliver: Callable[..., None]) -> None:
    receiver.status, receiver.body = 200, b"\x00x" * 5_000_000
    endpoint(receiver, "job.queued")
    make_job()

    deliver()

    assert len(Delivery.objects.get().log[0]["response"]) == sending.MOST_RESPONSE_BYTES


def test_what_a_killed_sender_had_taken_is_sent_by_the_next(
    receiver: Receiver, deliver: Callable[..., None]
) -> None:
    make_job(webhook_url=receiver.url)
    (taken,) = outbox.take(most=10, busy=[])
    assert outbox.take(most=10, busy=[]) == []
    lease = Delivery.objects.get().next_try_at - timezone.now()

    due_now()  # its lease is over
    deliver()

    assert sending.TRY_SECONDS + 10 < lease.total_seconds() <= outbox.LEASE_SECONDS
    assert len(receiver.calls) == 1
    # The first one, if it lives, changes nothing any more.
    assert not outbox.note(taken, outbox.Tried(Delivery.State.FAILED, error="late"))
    assert Delivery.objects.get().state == "delivered"


def test_a_fault_of_our_own_uses_up_a_try_and_is_logged(
    receiver: Receiver, deliver: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(delivery: Delivery) -> None:
        raise KeyError

    make_job(webhook_url=receiver.url)
    with monkeypatch.context() as patched:
        patched.setattr(payloads, "document", broken)
        deliver()
    assert Delivery.objects.get().log[0]["error"] == "Engine itself failed: KeyError."
    due_now()
    deliver()

    assert len(receiver.calls) == 1


def test_a_delivery_is_sent_again_by_hand_under_the_same_id(
    receiver: Receiver, deliver: Callable[..., None]
) -> None:
    make_job(webhook_url=receiver.url)
    with pytest.raises(DeliveryPending):
        webhooks.redeliver(make_caller(), Delivery.objects.get().id)
    deliver()

    webhooks.redeliver(make_caller(), Delivery.objects.get().id)
    deliver()

    first, second = receiver.calls
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.body == second.body
    assert (Delivery.objects.get().tries, len(Delivery.objects.get().log)) == (2, 2)


def test_a_new_address_takes_over_what_waits_for_another_try(
    receiver: Receiver, deliver: Callable[..., None]
) -> None:
    with receiving() as wrong:
        wrong.status = 500
        made, _ = endpoint(wrong, "job.queued")
        make_job()
        deliver()
        webhooks.change(make_caller(), made.id, url=receiver.url)
        due_now()
        deliver()

    assert (len(wrong.calls), len(receiver.calls)) == (1, 1)


def test_a_deleted_endpoint_hears_nothing_more(receiver: Receiver, deliver: Callable[..., None]) -> None:
    made, _ = endpoint(receiver, "job.queued")
    make_job()
    webhooks.delete(make_caller(), made.id)

    deliver()

    assert not receiver.calls
    assert Delivery.objects.get().state == "skipped"


# --- mail ---


@pytest.fixture
def mailed(settings: Any) -> None:
    settings.ENGINE_MAIL = True


@pytest.mark.usefixtures("mailed")
def test_assignees_with_an_address_get_a_mail_with_a_link_of_their_own(deliver: Callable[..., None]) -> None:
    _job, _asked = asking(
        prompt="Which *tone*?\nFormal?", assignees=["ann@example.org", "ben", "cy@example.org"]
    )

    deliver(lambda: len(mail.outbox) == 2)

    by_address = {message.to[0]: message for message in mail.outbox}
    assert sorted(by_address) == ["ann@example.org", "cy@example.org"]
    ann = by_address["ann@example.org"]
    assert ann.subject == "Which *tone*? Formal?"
    assert "/answer/" in ann.body
    assert ann.body != by_address["cy@example.org"].body
    assert set(Delivery.objects.values_list("channel", "state")) == {("email", "delivered")}


def test_without_mail_the_log_says_why_nothing_was_sent(deliver: Callable[..., None]) -> None:
    asking(assignees=["ann@example.org"])

    deliver()

    stored = Delivery.objects.get()
    assert stored.state == "skipped"
    assert "EMAIL_URL" in stored.log[0]["error"]
    assert not mail.outbox


@pytest.mark.usefixtures("mailed")
def test_a_prompt_cannot_write_the_headers_of_a_mail(deliver: Callable[..., None]) -> None:
    asking(prompt="Hello\r\nBcc: all@example.org\r\n\r\nworld", assignees=["ann@example.org"])

    deliver(lambda: mail.outbox)

    assert mail.outbox[0].recipients() == ["ann@example.org"]
    assert "\n" not in mail.outbox[0].subject


# --- reminders ---


def remind_all() -> None:
    for job_id, question_id in queries.due_reminders():
        services.remind(job_id, question_id)


@pytest.mark.usefixtures("mailed")
def test_reminders_come_when_they_are_due_and_once_each(
    receiver: Receiver, deliver: Callable[..., None]
) -> None:
    spans = (timedelta(hours=2), timedelta(hours=1), timedelta(days=9))
    _job, asked = asking(remind_after=spans, assignees=["ann@example.org"], webhook_url=receiver.url)
    remind_all()
    assert asked.remind_at is not None
    assert asked.remind_at - asked.created_at == timedelta(hours=1)

    move_back(asked, timedelta(hours=1))
    remind_all()
    remind_all()
    first = Question.objects.get()
    move_back(asked, timedelta(hours=1))
    remind_all()

    stored = Question.objects.get()
    assert (first.reminded, stored.reminded, stored.status) == (1, 2, "open")
    told = Delivery.objects.filter(event="question.reminder", channel="webhook").order_by("id")
    assert [row.data["reminder"] for row in told] == [1, 2]
    deliver(lambda: len(mail.outbox) == 3)
    assert sum(message.subject.startswith("Reminder: ") for message in mail.outbox) == 2


def move_back(asked: Question, span: timedelta) -> None:
    row = Question.objects.get(id=asked.id)
    row.created_at -= span
    assert row.remind_at is not None
    row.remind_at -= span
    row.save(update_fields=["created_at", "remind_at"])


def test_reminders_that_fell_into_an_outage_come_as_one() -> None:
    job, asked = asking(remind_after=tuple(timedelta(hours=hours) for hours in (1, 2, 3)))
    move_back(asked, timedelta(hours=2, minutes=30))

    for _ in range(2):  # two workers found it due
        services.remind(job.id, asked.id)

    stored = Question.objects.get()
    assert stored.reminded == 2
    assert stored.remind_at is not None
    types = [event.type for event in job.events.order_by("seq")]
    assert types.count("question.reminder") == 1


def test_an_answered_question_reminds_nobody() -> None:
    job, asked = asking(remind_after=(timedelta(hours=1),))
    move_back(asked, timedelta(hours=1))
    services.respond(job.id, by=make_caller(), answer="yes")

    services.remind(job.id, asked.id)
    assert queries.due_reminders() == []
    assert "question.reminder" not in [event.type for event in job.events.all()]
