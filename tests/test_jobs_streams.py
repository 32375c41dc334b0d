"""Live events from a real web process: SSE and WebSocket, cut, resumed, robbed of their connections."""

import asyncio
import contextlib
import hashlib
import json
import random
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, cast
from unittest import mock
from uuid import UUID, uuid4

import httpx
import pytest
from django.contrib.auth.models import User
from django.contrib.sessions.backends.db import SessionStore
from django.db import connection, connections
from django.test import Client
from django.utils import timezone
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from apikeys import services as keys
from apikeys.models import ApiKey
from jobs import storage, streams, watching
from jobs.hub import Line, Watch
from jobs.models import Artifact, Job
from tests.factories import KeyInHand, make_key
from tests.jobs import claim_one, make_caller, make_job, make_version, make_worker, question
from tests.processes import Instance, eventually
from tests.streams import (
    HTTP,
    SERVER,
    Talker,
    close_code,
    environment,
    frames,
    sent_events,
    socket,
    sse,
    took,
)

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(scope="module")
def server(
    django_db_setup: None, django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Instance]:
    """One web process for all tests here; each has rows of its own."""
    with django_db_blocker.unblock():
        instance = Instance(tmp_path_factory.mktemp("streams"), environment())
    instance.serve()
    yield instance
    instance.stop()


@pytest.fixture
def key() -> KeyInHand:
    return make_key("jobs:read", "jobs:write", "jobs:respond")


@pytest.fixture
def talker(key: KeyInHand, settings: Any) -> Talker:
    settings.ENGINE_LEASE_SECONDS = 600  # nobody here sends heartbeats
    return Talker.start(key.project)


# --- what is sent ---


def test_an_event_stream_sends_what_is_stored_then_follows_to_the_end(
    server: Instance, key: KeyInHand, talker: Talker
) -> None:
    talker.say(2)
    with sse(server, key.secret, talker.job.id) as response:
        events = sent_events(response)
        stored = [next(events) for _ in range(4)]
        talker.say()
        live = next(events)
        talker.end({"ok": True})
        last, end = next(events), next(events)

        assert list(events) == []  # the server ends the stream

    page = key.client.get(f"/api/v1/jobs/{talker.job.id}/logs").json()["items"]
    assert [event.data for event in (*stored, live, last)] == page
    assert [event.id for event in (*stored, live, last)] == [1, 2, 3, 4, 5, 6]
    assert (last.data["type"], end.name, end.data) == ("job.completed", "end", {"status": "completed"})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-request-id"]
    assert response.headers["ratelimit"]


def test_a_socket_sends_the_same_objects_and_closes_at_the_end(
    server: Instance, key: KeyInHand, talker: Talker
) -> None:
    talker.say(2)
    with socket(server, talker.job.id, secret=key.secret) as client:
        stored = frames(client, until=4)
        talker.say()
        live = frames(client, until=5)
        talker.end()
        rest = frames(client)

        page = key.client.get(f"/api/v1/jobs/{talker.job.id}/logs").json()["items"]
        assert stored + live + rest == page
        assert close_code(client) == 4000


def test_a_live_line_arrives_at_once(server: Instance, key: KeyInHand, talker: Talker) -> None:
    with socket(server, talker.job.id, secret=key.secret) as client:
        frames(client, until=talker.last)
        delays = []
        for _ in range(20):
            started = time.monotonic()
            talker.say()
            frames(client, until=talker.last)
            delays.append(took(started))

    assert sorted(delays)[10] < 0.5  # the poll alone would take half a second on average


def test_without_any_notification_polling_finds_the_news(
    server: Instance, key: KeyInHand, talker: Talker
) -> None:
    with socket(server, talker.job.id, secret=key.secret) as client:
        frames(client, until=talker.last)
        talker.say()
        frames(client, until=talker.last)  # the last hint there is
        for _ in range(3):
            started = time.monotonic()
            talker.say(3, aloud=False)
            frames(client, until=talker.last)

            assert took(started) < 5


def test_a_stream_stays_open_while_the_job_waits_for_a_person(
    server: Instance, key: KeyInHand, talker: Talker
) -> None:
    with sse(server, key.secret, talker.job.id) as response:
        events = sent_events(response)
        talker.ask(question())
        assert [next(events).data["type"] for _ in range(4)][2:] == ["question.opened", "job.waiting"]
        key.client.post(f"/api/v1/jobs/{talker.job.id}/respond", {"answer": "so"})
        assert [next(events).data["type"] for _ in range(2)] == ["question.answered", "job.queued"]


def test_filters_hold_for_streams_too(server: Instance, key: KeyInHand, talker: Talker) -> None:
    talker.say(2)
    talker.end()

    with sse(server, key.secret, talker.job.id, "?source=system&type=job.started,job.completed") as response:
        events = list(sent_events(response))

    assert [event.data.get("type") for event in events] == ["job.started", "job.completed", None]


def test_a_browser_that_has_seen_the_end_is_stopped(server: Instance, key: KeyInHand, talker: Talker) -> None:
    talker.end()

    with sse(server, key.secret, talker.job.id, Last_Event_ID=str(talker.last)) as response:
        assert response.status_code == 204
    with sse(server, key.secret, talker.job.id, f"?after={talker.last}") as response:
        assert [event.name for event in sent_events(response)] == ["end"]


# --- cut and resumed ---

CUTS = 100


def chatter(talker: Talker, dice: random.Random, done: threading.Event) -> None:
    """Talk in bursts until told to stop, then end the job."""
    try:
        while not done.is_set():
            talker.say(dice.randrange(1, 40), size=dice.randrange(1, 400), aloud=dice.random() < 0.8)
            done.wait(dice.random() * 0.02)
        talker.end()
    finally:
        connections.close_all()


@contextlib.contextmanager
def talking(talker: Talker, dice: random.Random) -> Iterator[threading.Event]:
    """A job that talks meanwhile; set the event to let it end."""
    done = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(chatter, talker, dice, done)
        try:
            yield done
        finally:
            done.set()
        future.result()


def new_dice() -> random.Random:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    return random.Random(seed)


def test_an_event_stream_cut_a_hundred_times_loses_and_repeats_nothing(
    server: Instance, key: KeyInHand, talker: Talker
) -> None:
    dice = new_dice()
    seen: list[int | None] = []
    with talking(talker, dice) as done:
        for cut in range(CUTS + 1):
            if cut == CUTS:
                done.set()
            most = dice.randrange(0, 60)
            resume = {"Last_Event_ID": str(seen[-1])} if seen else {}
            with sse(server, key.secret, talker.job.id, **resume) as response:
                for number, event in enumerate(sent_events(response)):
                    if event.name == "end":
                        break
                    seen.append(event.id)
                    if number >= most and cut < CUTS:
                        break

    assert seen == list(range(1, talker.last + 1))


def test_a_socket_cut_a_hundred_times_loses_and_repeats_nothing(
    server: Instance, key: KeyInHand, talker: Talker
) -> None:
    dice, seen = new_dice(), [0]
    with talking(talker, dice) as done:
        for _ in range(CUTS):
            with socket(server, talker.job.id, f"?after={seen[-1]}", secret=key.secret) as client:
                wanted = seen[-1] + dice.randrange(1, 60)
                seen += [frame["seq"] for frame in frames(client, until=wanted)]
                client.socket.shutdown(2)  # no goodbye
        done.set()
        with socket(server, talker.job.id, f"?after={seen[-1]}", secret=key.secret) as client:
            seen += [frame["seq"] for frame in frames(client)]

    assert seen == list(range(talker.last + 1))


def test_followers_survive_the_loss_of_every_database_connection(
    server: Instance, key: KeyInHand, talker: Talker
) -> None:
    def sessions(query: str = "%") -> set[int]:
        with connection.cursor() as cursor:
            sql = "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND query LIKE %s"
            cursor.execute(sql, [SERVER, query])
            return {row[0] for row in cursor.fetchall()}

    def listeners_but(known: set[int]) -> set[int]:
        return sessions("LISTEN%") - known

    with socket(server, talker.job.id, secret=key.secret) as client, talking(talker, new_dice()) as done:
        seen = frames(client, until=10)
        for _ in range(3):
            before = eventually(partial(listeners_but, set()), what="a listener")
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s) AS pid", [list(sessions())])
            eventually(partial(listeners_but, before), what="a new listener")
            seen += frames(client, until=seen[-1]["seq"] + 50)
        done.set()
        seen += frames(client)

    assert [frame["seq"] for frame in seen] == list(range(1, talker.last + 1))


def test_many_sockets_on_one_job_each_see_every_line(
    server: Instance, key: KeyInHand, talker: Talker
) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket(server, talker.job.id, secret=key.secret)) for _ in range(30)]
        for _ in range(20):
            talker.say(10)
        talker.end()

        # All at once: who is not read from for long is taken for dead.
        for received in stack.enter_context(ThreadPoolExecutor(30)).map(frames, clients):
            assert [frame["seq"] for frame in received] == list(range(1, talker.last + 1))


def test_a_reader_who_is_slow_at_the_end_still_gets_the_end(
    server: Instance, key: KeyInHand, talker: Talker
) -> None:
    with socket(server, talker.job.id, secret=key.secret, max_queue=1) as client:
        frames(client, until=talker.last)
        talker.say(300, size=2_000)
        talker.end()
        with socket(server, talker.job.id, secret=key.secret) as other:
            assert close_code(other) == 4000  # the server has closed the slow one as well
        time.sleep(2)  # what is tested is time: Autobahn by itself waits one second for an answer

        assert [frame["seq"] for frame in frames(client)] == list(range(3, talker.last + 1))
        assert close_code(client) == 4000


def memory_kb(pid: int) -> int:
    """What a process holds in memory."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1])


def test_a_reader_that_does_not_read_costs_no_memory_and_holds_nobody_up(
    server: Instance, key: KeyInHand, talker: Talker
) -> None:
    (program,) = server.programs
    with socket(server, talker.job.id, secret=key.secret) as quick:
        seen = frames(quick, until=talker.last)

        def say_and_read(rounds: int) -> int:
            for _ in range(rounds):
                talker.say(500, size=2_000)
                seen.extend(frames(quick, until=talker.last))
            return memory_kb(program.pid)

        usual = say_and_read(10)
        with socket(server, talker.job.id, secret=key.secret, max_queue=1) as slow:
            beside_a_slow_one = say_and_read(20)
            talker.end()
            seen_slowly = frames(slow)

    assert beside_a_slow_one - usual < 10_000  # of 30 MB that the slow one has not taken
    assert [frame["seq"] for frame in seen] == list(range(1, talker.last))
    assert [frame["seq"] for frame in seen_slowly] == list(range(1, talker.last + 1))


# --- who may watch ---


def refused(server: Instance, job_id: UUID, query: str = "", **options: Any) -> int | None:
    """The code with which a socket is closed."""
    with socket(server, job_id, query, **options) as client:
        return close_code(client)


def test_a_socket_says_why_it_was_closed(server: Instance, key: KeyInHand, talker: Talker) -> None:
    job_id, stranger = talker.job.id, make_key("jobs:read")

    assert refused(server, job_id) == 4401
    assert refused(server, job_id, secret="engine_live_nonsense") == 4401
    assert refused(server, job_id, f"?key={key.secret}&token={key.secret}") == 4401
    assert refused(server, job_id, secret=make_key("jobs:write", project=key.project).secret) == 4403
    assert (
        refused(server, job_id, secret=stranger.secret) == refused(server, uuid4(), secret=key.secret) == 4404
    )
    for after in ("-1", "x", "1.5", str(2**63), "٣"):
        assert refused(server, job_id, f"?after={after}", secret=key.secret) == 4400


def test_a_handshake_counts_as_a_request(server: Instance, key: KeyInHand, talker: Talker) -> None:
    counted = make_key("jobs:read", project=key.project, windows=[{"limit": 2, "seconds": 86_400}])
    for _ in range(2):
        with socket(server, talker.job.id, secret=counted.secret) as client:
            assert frames(client, until=1)

    with socket(server, talker.job.id, secret=counted.secret) as client:
        assert close_code(client) == 4429
    answer = HTTP.get(f"{server.url}/api/v1/jobs", headers={"Authorization": f"Bearer {counted.secret}"})
    assert answer.status_code == 429


def test_a_browser_brings_its_key_as_a_subprotocol(server: Instance, key: KeyInHand, talker: Talker) -> None:
    with socket(server, talker.job.id, subprotocols=["engine.v1", f"bearer.{key.secret}"]) as client:
        assert client.subprotocol == "engine.v1"
        assert [frame["seq"] for frame in frames(client, until=2)] == [1, 2]


def test_a_page_of_another_host_is_refused_at_the_handshake(
    server: Instance, key: KeyInHand, talker: Talker
) -> None:
    for origin in ("https://evil.example", "null"):
        with (
            pytest.raises(InvalidStatus) as refusal,
            socket(server, talker.job.id, secret=key.secret, headers={"Origin": origin}),
        ):
            pass
        assert refusal.value.response.status_code == 403


def test_a_socket_to_nowhere_is_refused_quietly(server: Instance, key: KeyInHand) -> None:
    # Outside of /ws/ the wish for a socket is no part of the request: these pages are not there, with or without it.
    for address, status in (("ws/v1/jobs", 403), ("ws/v1/jobs/1", 403), ("ws", 404), ("nowhere", 404)):
        with (
            pytest.raises(InvalidStatus) as refusal,
            connect(f"{server.url.replace('http', 'ws')}/{address}"),
        ):
            pass
        assert refusal.value.response.status_code == status

    assert "Exception inside application" not in server.programs[0].output()


@pytest.mark.parametrize("query", ["", "?after=1", "?level=loud", "?after=x"])
def test_an_event_stream_is_refused_by_the_same_errors_as_a_page(
    server: Instance, key: KeyInHand, talker: Talker, query: str
) -> None:
    stranger, writer = make_key("jobs:read"), make_key("jobs:write", project=key.project)
    url = f"{server.url}/api/v1/jobs/{talker.job.id}/logs{query}"
    secrets = [stranger.secret, writer.secret, "engine_live_nonsense"] + (
        [key.secret] if "o" in query else []
    )
    if query == "?after=x":
        secrets.append(key.secret)
    for secret in secrets:

        def answer(accept: str, secret: str = secret) -> httpx.Response:
            sent = {"Authorization": f"Bearer {secret}", "Accept": accept, "X-Request-Id": "same"}
            return httpx.get(url, headers=sent)

        page, stream = answer("application/json"), answer("text/event-stream")

        assert page.status_code >= 400
        assert (stream.status_code, stream.content) == (page.status_code, page.content)
        assert stream.headers["content-type"] == "application/problem+json"


def test_a_last_event_id_that_is_no_number_is_pointed_at(
    server: Instance, key: KeyInHand, talker: Talker
) -> None:
    with sse(server, key.secret, talker.job.id, Last_Event_ID="x") as response:
        response.read()

    assert response.status_code == 400
    assert response.json()["errors"][0]["pointer"] == "?after"


def end_key(key: KeyInHand, how: str) -> None:
    if how == "revoked":
        keys.revoke_key(make_caller(key.project), key.key.id)
    elif how == "archived":
        type(key.project).objects.filter(id=key.project.id).update(archived_at=timezone.now())
    else:
        ApiKey.objects.filter(id=key.key.id).update(scopes=["jobs:write"])


@pytest.mark.parametrize("how", ["revoked", "archived", "scope taken"])
def test_streams_end_when_their_key_does(server: Instance, key: KeyInHand, talker: Talker, how: str) -> None:
    other = make_key("jobs:read", project=key.project)
    with (
        socket(server, talker.job.id, secret=key.secret) as client,
        socket(server, talker.job.id, secret=other.secret) as kept,
        sse(server, key.secret, talker.job.id) as response,
    ):
        events = sent_events(response)
        frames(client, until=talker.last)
        frames(kept, until=talker.last)
        assert [next(events).id for _ in range(talker.last)][-1] == talker.last
        started = time.monotonic()
        end_key(key, how)

        assert close_code(client) == 4401
        assert [event.name for event in events] == ["access_ended"]
        assert took(started) < 8
        talker.say()
        if how != "archived":
            assert frames(kept, until=talker.last)[-1]["seq"] == talker.last


# --- tickets and sessions ---


def test_a_ticket_opens_one_stream_once(server: Instance, key: KeyInHand, talker: Talker) -> None:
    response = key.client.post("/api/v1/stream-tickets", {"job_id": talker.job.id})
    query = response.json()["url"].partition("?")[2]

    with socket(server, talker.job.id, f"?{query}&after=1") as client:
        assert [frame["seq"] for frame in frames(client, until=2)] == [2]

    assert response.status_code == 201
    assert key.secret not in query
    assert refused(server, talker.job.id, f"?{query}") == 4401


def test_a_ticket_is_good_for_its_job_for_a_moment_and_for_nobody_elses_key(
    server: Instance, key: KeyInHand, talker: Talker
) -> None:
    other = make_job(key.project)
    ticket = watching.issue_ticket(talker.job.id, by=key.caller)
    with mock.patch("time.time", return_value=time.time() - watching.TICKET_SECONDS - 1):
        late = watching.issue_ticket(talker.job.id, by=key.caller)

    assert refused(server, other.id, f"?ticket={ticket}") == 4401
    assert refused(server, talker.job.id, f"?ticket={late}") == 4401
    assert refused(server, talker.job.id, f"?ticket={ticket[:-1]}") == 4401
    keys.revoke_key(make_caller(key.project), key.key.id)
    assert refused(server, talker.job.id, f"?ticket={ticket}") == 4401


@pytest.fixture
def signed_in(server: Instance) -> tuple[dict[str, str], User]:
    """The headers of a page of the dashboard, and whose it is."""
    user = User.objects.create_superuser("ada", password="correct horse battery")
    client = Client()
    client.force_login(user)
    headers = {"Origin": server.url, "Cookie": f"sessionid={client.cookies['sessionid'].value}"}
    return headers, user


def test_staff_watch_by_their_session_on_the_dashboards_own_pages(
    server: Instance, talker: Talker, signed_in: tuple[dict[str, str], User]
) -> None:
    headers, user = signed_in

    with socket(server, talker.job.id, headers=headers) as client:
        assert [frame["seq"] for frame in frames(client, until=2)] == [1, 2]

    assert refused(server, talker.job.id, headers={"Cookie": headers["Cookie"]}) == 4401
    User.objects.filter(id=user.id).update(is_superuser=False)
    assert refused(server, talker.job.id, headers=headers) == 4403
    User.objects.filter(id=user.id).update(is_staff=False)
    assert refused(server, talker.job.id, headers=headers) == 4401


def test_a_sessions_streams_end_with_it(
    server: Instance, talker: Talker, signed_in: tuple[dict[str, str], User]
) -> None:
    headers, _ = signed_in
    with socket(server, talker.job.id, headers=headers) as client:
        frames(client, until=2)
        SessionStore(headers["Cookie"].partition("=")[2]).delete()

        assert close_code(client) == 4401


# --- Prefer: wait ---


def submit(server: Instance, key: KeyInHand, seconds: int, **body: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key.secret}", "Prefer": f"wait={seconds}"}
    body = {"task": "x", "agent": "echo", **body}
    return httpx.post(f"{server.url}/api/v1/jobs", json=body, headers=headers, timeout=60)


@contextlib.contextmanager
def waiting(server: Instance, key: KeyInHand, seconds: int, **body: Any) -> Iterator[tuple[Any, Talker]]:
    """A submit that waits for its answer, and the worker that has taken the job."""
    make_version("echo")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(submit, server, key, seconds, **body)
        eventually(Job.objects.filter(status="queued").exists, what="a queued job")
        worker = make_worker()
        yield answer, Talker(Job.objects.get(), worker, claim_one(worker))


def test_a_submit_waits_for_the_end_of_its_job(server: Instance, key: KeyInHand) -> None:
    with waiting(server, key, 30) as (answer, talker):
        talker.say(5)
        assert not answer.done()
        talker.end({"rows": 3})
        response = answer.result(20)

    assert response.status_code == 201
    assert (response.json()["status"], response.json()["result"]) == ("completed", {"rows": 3})
    assert response.headers["preference-applied"] == "wait=30"
    assert response.headers["location"].endswith(response.json()["id"])
    assert response.json() == key.client.get(response.headers["location"]).json()


def test_a_submit_that_waits_returns_when_the_job_asks(server: Instance, key: KeyInHand) -> None:
    with waiting(server, key, 30) as (answer, talker):
        talker.ask(question(prompt="Which column?"))
        response = answer.result(20)

    assert response.json()["status"] == "waiting_for_input"
    assert response.json()["questions"][0]["prompt"] == "Which column?"


def test_a_submit_returns_when_its_time_is_up(server: Instance, key: KeyInHand) -> None:
    started = time.monotonic()
    with waiting(server, key, 1) as (answer, _):
        response = answer.result(20)

    assert took(started) >= 1
    assert (response.status_code, response.json()["status"]) == (201, "running")
    assert response.headers["preference-applied"] == "wait=1"


def test_a_rejected_job_is_not_waited_for(server: Instance, key: KeyInHand) -> None:
    response = submit(server, key, 30, agent=None)

    assert (response.status_code, response.json()["status"]) == (201, "rejected")


def test_errors_come_at_once(server: Instance, key: KeyInHand) -> None:
    assert submit(server, key, 30, agent="nobody").json()["code"] == "agent_not_found"
    assert submit(server, key, 30, taks="x").status_code == 422


def test_a_repeated_submit_waits_for_the_same_job(server: Instance, key: KeyInHand) -> None:
    make_version("echo")
    url, body = f"{server.url}/api/v1/jobs", {"task": "x", "agent": "echo"}
    headers = {"Authorization": f"Bearer {key.secret}", "Idempotency-Key": "k"}
    first = httpx.post(url, json=body, headers=headers).json()

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, url, json=body, headers={**headers, "Prefer": "wait=30"}, timeout=60)
        worker = make_worker()
        Talker(Job.objects.get(), worker, claim_one(worker)).end()
        again = answer.result(20).json()

    assert (again["id"], again["status"]) == (first["id"], "completed")


def test_files_of_a_waiting_submit_arrive(server: Instance, key: KeyInHand) -> None:
    make_version("echo")
    content = random.Random(1).randbytes(3_000_000)
    headers = {"Authorization": f"Bearer {key.secret}", "Prefer": "wait=1"}
    form = {"task": "x", "agent": "echo"}

    response = httpx.post(
        f"{server.url}/api/v1/jobs",
        data=form,
        files={"files": ("a.bin", content)},
        headers=headers,
        timeout=60,
    )

    (file,) = response.json()["input_files"]
    assert (file["size"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


def test_an_answer_can_wait_for_what_comes_of_it(server: Instance, key: KeyInHand, talker: Talker) -> None:
    talker.ask(question())
    headers = {"Authorization": f"Bearer {key.secret}", "Prefer": "respond-async, wait=30"}
    url = f"{server.url}/api/v1/jobs/{talker.job.id}"

    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(httpx.post, f"{url}/respond", json={"answer": "so"}, headers=headers, timeout=60)
        eventually(lambda: Job.objects.get().status == "queued")
        look = pool.submit(httpx.get, url, headers=headers, timeout=60)
        Talker(talker.job, talker.worker, claim_one(talker.worker)).end("done")
        answered, looked = answer.result(20), look.result(20)

    assert (answered.status_code, answered.json()["status"]) == (200, "completed")
    assert (looked.status_code, looked.json()["result"]) == (200, "done")
    assert looked.json() == answered.json()


def test_those_who_wait_hold_no_thread(server: Instance, key: KeyInHand, talker: Talker) -> None:
    headers = {"Authorization": f"Bearer {key.secret}", "Prefer": "wait=30"}
    url = f"{server.url}/api/v1/jobs/{talker.job.id}"

    with ThreadPoolExecutor(60) as pool:  # the server has 8
        answers = [pool.submit(httpx.get, url, headers=headers, timeout=60) for _ in range(60)]
        with httpx.Client(headers={"Authorization": f"Bearer {key.secret}"}) as client:
            delays = []
            for _ in range(30):
                started = time.monotonic()
                assert client.get(url, timeout=10).status_code == 200
                delays.append(took(started))
        assert not any(answer.done() for answer in answers)
        talker.end()
        statuses = {answer.result(30).json()["status"] for answer in answers}

    assert statuses == {"completed"}
    assert sorted(delays)[15] < 2


# --- downloads ---


def test_slow_downloads_hold_no_thread(
    server: Instance, key: KeyInHand, talker: Talker, settings: Any
) -> None:
    folder = {"location": server.home / "artifacts"}
    settings.STORAGES = {
        **settings.STORAGES,
        "artifacts": {**settings.STORAGES["artifacts"], "OPTIONS": folder},
    }
    content = random.Random(1).randbytes(8_000_000)
    blob = storage.store_blocks([content], folder="test", most_bytes=10**9)
    artifact = Artifact.objects.create(
        job=talker.job, project=key.project, attempt=1, name="big.bin", media_type=storage.UNKNOWN,
        size=blob.size, sha256=blob.sha256, storage_key=blob.key,
    )  # fmt: skip
    url = f"/api/v1/jobs/{talker.job.id}/artifacts/{artifact.id}"
    headers = {"Authorization": f"Bearer {key.secret}"}
    with contextlib.ExitStack() as stack:
        downloads = [
            stack.enter_context(contextlib.closing(HTTPConnection(server.url.removeprefix("http://"))))
            for _ in range(20)  # the server has 8 threads
        ]
        for download in downloads:
            download.request("GET", url, headers=headers)  # and takes nothing
        with httpx.Client(headers=headers) as client:
            for _ in range(10):
                assert client.get(f"{server.url}/api/v1/jobs/{talker.job.id}", timeout=10).status_code == 200
        response = downloads[0].getresponse()
        assert response.read() == content
        part = HTTP.get(f"{server.url}{url}", headers={**headers, "Range": "bytes=-5"})
        assert (part.status_code, part.content) == (206, content[-5:])


# --- the server stops ---


def test_streams_are_closed_in_order_when_the_server_stops(
    tmp_path: Path, key: KeyInHand, talker: Talker
) -> None:
    server = Instance(tmp_path / "home", {**environment(), "ENGINE_DRAIN_SECONDS": "1"})
    program = server.serve()
    try:
        with (
            socket(server, talker.job.id, secret=key.secret) as client,
            sse(server, key.secret, talker.job.id) as response,
            contextlib.closing(HTTPConnection(server.url.removeprefix("http://"), timeout=30)) as late,
        ):
            frames(client, until=2)
            events = sent_events(response)
            assert [next(events).id for _ in range(2)] == [1, 2]
            headers = {"Authorization": f"Bearer {key.secret}", "Prefer": "wait=30"}
            late.request("GET", f"/api/v1/jobs/{talker.job.id}", headers=headers)  # sent; not yet answered
            program.kill(signal.SIGTERM)

            assert close_code(client) == 4001
            assert list(events) == []  # ended as a whole response: no error at the client
            assert json.loads(late.getresponse().read())["status"] == "running"
        assert program.wait() == 0
    finally:
        server.stop()


# --- one by one ---


def test_a_silent_stream_is_kept_open_by_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        """A job that says nothing four times, and then ends."""

        is_ended, final_status = False, "failed"
        looked = 0

        async def lines(self, *, patience: float) -> list[Line]:
            self.looked += 1
            await asyncio.sleep(patience)
            self.is_ended = self.looked > 4
            return []

    sent: list[str] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message.get("body", b"").decode())

    monkeypatch.setattr(streams, "PING_SECONDS", 0.001)
    wanted = streams.Wanted(0, frozenset(), frozenset(), frozenset())
    asyncio.run(streams._stream(send, [], cast(Watch, Silent()), wanted, resumed=False))

    assert sent[1] == "retry: 1000\n\n"
    assert ": ping\n\n" in sent
    assert sent[-2:] == ['event: end\ndata: {"status": "failed"}\n\n', ""]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (b"wait=30", 30),
        (b"respond-async, wait=5", 5),
        (b"handling=lenient; wait = 7", 7),
        (b'Wait="9"', 9),
        (b"wait=3600", 60),
        (b"wait=0", 0),
        (b"wait=-1", 0),
        (b"wait=x", 0),
        (b"await=30", 0),
        (b"", 0),
    ],
)
def test_the_preference_is_read_within_bounds(header: bytes, seconds: int) -> None:
    assert streams.wait_seconds({b"prefer": header}) == seconds
