"""The web process: what reaches Django, what is refused before, what a slow client costs, how it stops."""

import hashlib
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as open_websocket

from engine.embedded import DATABASE, USER, EmbeddedServer
from tests.processes import Instance, Program, children_of, copy_home, eventually, is_running

MEGABYTE = 1024 * 1024
LIMITS = {"ENGINE_MAX_BODY_BYTES": str(MEGABYTE), "ENGINE_MAX_UPLOAD_BYTES": str(200 * MEGABYTE)}


@pytest.fixture(scope="module")
def site(migrated_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """One web process on the views of tests.serving_urls, for tests that leave it as it is."""
    environment = {"DJANGO_SETTINGS_MODULE": "tests.serving_settings", "ENGINE_WEB_THREADS": "2", **LIMITS}
    home = tmp_path_factory.mktemp("site") / "home"
    copy_home(migrated_home, home)
    instance = Instance(home, environment)
    instance.serve()
    yield instance
    instance.stop()


@pytest.fixture
def client(site: Instance) -> Iterator[httpx.Client]:
    with site.client() as client:
        yield client


@pytest.fixture
def make_site(make_instance: Callable[..., Instance]) -> Callable[..., Instance]:
    """A web process of the test's own."""

    def make(*arguments: str, **environment: str) -> Instance:
        instance = make_instance(DJANGO_SETTINGS_MODULE="tests.serving_settings", **environment)
        instance.serve(*arguments)
        return instance

    return make


def web_process(instance: Instance) -> Program:
    return next(program for program in instance.programs if program.name.endswith("serve"))


def address(instance: Instance) -> tuple[str, int]:
    host, port = instance.url.removeprefix("http://").split(":")
    return host, int(port)


@contextmanager
def raw(instance: Instance) -> Iterator[socket.socket]:
    with socket.create_connection(address(instance), timeout=20) as connection:
        yield connection


def read_all(connection: socket.socket) -> bytes:
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    return received


def memory(program: Program) -> int:
    """Bytes of the process's memory that belong to it alone (what its files cache does not count)."""
    status = Path(f"/proc/{program.pid}/status").read_text()
    match = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) * 1024


# --- in ---


def test_a_request_reaches_django_whole(client):
    body = os.urandom(300_000)

    seen = client.post("/echo?a=1&b=%C3%A9", content=body, headers={"Content-Type": "application/x-y"}).json()

    assert seen["method"] == "POST"
    assert seen["query"] == {"a": "1", "b": "é"}
    assert (seen["length"], seen["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())
    assert (seen["content_type"], seen["content_length"]) == ("application/x-y", str(len(body)))
    assert seen["client"] == "127.0.0.1"
    assert seen["thread"].startswith("web")


def test_a_chunked_body_arrives_with_its_length(client):
    seen = client.post("/echo", content=iter([b"one ", b"two"])).json()

    assert (seen["length"], seen["content_length"]) == (7, "7")
    assert "Transfer-Encoding" not in seen["headers"]


@pytest.mark.parametrize(
    ("sent", "path"),
    [
        ("/echo/gr%C3%BC%C3%9Fe", "/echo/grüße"),
        ("/echo/%E6%97%A5%E6%9C%AC", "/echo/日本"),
        ("/echo/a%2Fb%20c", "/echo/a/b c"),
        ("/echo/%ff", "/echo/%FF"),
    ],
)
def test_any_path_arrives_as_it_was_meant(client, sent, path):
    assert client.get(httpx.URL(client.base_url).copy_with(raw_path=sent.encode())).json()["path"] == path


def test_repeated_headers_are_joined_and_headers_with_underscores_dropped(site):
    with raw(site) as connection:
        connection.sendall(
            b"GET /echo HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Two: a\r\nX-Two: b\r\n"
            b"X_Forged: yes\r\nCookie: a=1\r\nCookie: b=2\r\n\r\n"
        )
        headers = json.loads(read_all(connection).partition(b"\r\n\r\n")[2])["headers"]

    assert (headers["X-Two"], headers["Cookie"]) == ("a,b", "a=1; b=2")
    assert "X-Forged" not in headers


def test_a_client_cannot_move_the_site_to_another_root(site, client):
    evil = {"Daphne-Root-Path": "/evil"}

    assert client.get("/echo/x", headers=evil).json()["path"] == "/echo/x"
    with greeter(site, **evil) as websocket:
        assert json.loads(websocket.recv())["root"] == ""


def test_requests_at_once_are_answered_by_as_many_threads_as_set(client, tmp_path):
    names = {client.get("/echo").json()["thread"] for _ in range(20)}

    assert names <= {"web_0", "web_1"}


# --- too large ---


@pytest.mark.parametrize(
    ("head", "status", "code"),
    [
        (f"GET /x?{'a' * 20_000} HTTP/1.1\r\nHost: localhost\r\n\r\n", 431, "head_too_large"),
        (f"GET /x HTTP/1.1\r\nHost: localhost\r\nX-A: {'a' * 20_000}\r\n\r\n", 431, "head_too_large"),
        ("GET /x HTTP/1.1\r\nHost: localhost\r\n" + "X-A: a\r\n" * 600 + "\r\n", 431, "head_too_large"),
        ("GET /x HTTP/1.1\r\nHost: localhost\r\nno colon\r\n\r\n", 400, "bad_request"),
    ],
)
def test_a_head_that_cannot_be_taken_is_answered(site: Instance, head: str, status: int, code: str) -> None:
    with raw(site) as connection:
        connection.sendall(head.encode())
        received = b"".join(iter(lambda: connection.recv(65536), b""))

    answer, _, body = received.partition(b"\r\n\r\n")
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"application/problem+json" in answer
    assert json.loads(body)["code"] == code


def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(site):
    with raw(site) as connection:
        connection.sendall(
            b"POST /echo HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: mine-1\r\nExpect: 100-continue\r\n"
            b"Content-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n"
        )
        head, _, body = read_all(connection).partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 413 ")
    assert b"application/problem+json" in head
    problem = json.loads(body)
    assert (problem["status"], problem["code"], problem["request_id"]) == (413, "body_too_large", "mine-1")


def test_a_body_that_turns_out_too_large_is_refused_while_it_comes(client):
    def endless() -> Iterator[bytes]:
        for _ in range(40):
            yield b"x" * 100_000

    answer = client.post("/echo", content=endless(), headers={"Content-Type": "application/json"})

    assert answer.status_code == 413
    assert answer.json()["code"] == "body_too_large"


def test_a_client_that_sends_first_and_reads_later_still_sees_the_refusal(client):
    answer = client.post("/echo", content=b"x" * (8 * MEGABYTE))

    assert answer.status_code == 413


def test_the_server_goes_on_after_a_refusal(client):
    assert client.post("/echo", content=b"x" * (2 * MEGABYTE)).status_code == 413
    assert client.post("/echo", content=b"x" * 1000).json()["length"] == 1000


def test_files_may_be_larger_and_are_not_held_in_memory(site, client, tmp_path):
    file = tmp_path / "large.bin"
    with file.open("wb") as content:
        content.truncate(150 * MEGABYTE)
    client.post("/upload", files={"file": b"warm"})
    before = memory(web_process(site))

    with file.open("rb") as content:
        answer = client.post("/upload", files={"file": ("large.bin", content)})

    assert answer.json() == {"size": 150 * MEGABYTE, "on_disk": True}
    assert memory(web_process(site)) - before < 32 * MEGABYTE


def test_files_over_their_limit_are_refused(client, tmp_path):
    file = tmp_path / "huge.bin"
    with file.open("wb") as content:
        content.truncate(201 * MEGABYTE)

    with file.open("rb") as content:
        answer = client.post("/upload", files={"file": ("huge.bin", content)})

    assert answer.status_code == 413


# --- out ---


def test_a_stream_that_fails_breaks_off_so_that_its_client_does_not_wait_for_the_rest(client):
    with pytest.raises(httpx.TransportError) as broken:
        client.get("/broken", timeout=20)

    assert not isinstance(broken.value, httpx.TimeoutException)


def test_a_stream_is_sent_as_it_is_made(client, tmp_path):
    gate = tmp_path / "gate"

    with client.stream("GET", "/stream", params={"gate": str(gate)}) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "first"
        gate.touch()
        assert next(lines) == "second"


def read_so_far(program: Program, file: Path) -> list[int]:
    """How far the process has read each of its open descriptors of the file."""
    folder = Path(f"/proc/{program.pid}")
    positions = []
    for entry in (folder / "fd").iterdir():
        with suppress(FileNotFoundError):  # closed since the folder was listed
            if os.path.realpath(entry) == str(file):
                positions.append(int((folder / "fdinfo" / entry.name).read_text().split()[1]))
    return positions


def test_downloads_that_nobody_reads_cost_neither_memory_nor_threads(site, client, tmp_path):
    file = tmp_path / "large.bin"
    with file.open("wb") as content:
        content.truncate(40 * MEGABYTE)
    client.get("/echo")
    before = memory(web_process(site))

    with ExitStack() as stack:
        for _ in range(6):  # three times as many as there are threads
            reader = stack.enter_context(raw(site))
            reader.sendall(f"GET /download?file={file} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert reader.recv(12) == b"HTTP/1.1 200"
        # Threads serve in turn: while these are answered, each download could be read to its end.
        for _ in range(300):
            assert client.get("/echo", timeout=10).status_code == 200

        positions = read_so_far(web_process(site), file)
        assert len(positions) == 6
        assert max(positions) < 16 * MEGABYTE  # what the kernel's and the server's buffers take
        assert memory(web_process(site)) - before < 16 * MEGABYTE


def test_a_large_file_arrives_as_it_is(client, tmp_path):
    file = tmp_path / "file.bin"
    file.write_bytes(os.urandom(3 * MEGABYTE + 17))

    answer = client.get("/download", params={"file": str(file)})

    assert hashlib.sha256(answer.content).digest() == hashlib.sha256(file.read_bytes()).digest()
    assert answer.headers["content-length"] == str(3 * MEGABYTE + 17)


def test_a_client_that_leaves_in_the_middle_leaves_no_open_file(site, client, tmp_path):
    file = tmp_path / "large.bin"
    with file.open("wb") as content:
        content.truncate(10**12)  # sparse; nobody reads it to its end
    with raw(site) as reader:
        reader.sendall(f"GET /download?file={file} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        reader.recv(12)
        assert read_so_far(web_process(site), file)

    # Daphne would cancel after ten seconds; until then the file would be read for nobody.
    eventually(lambda: not read_so_far(web_process(site), file), seconds=6)


def test_a_fault_is_a_problem_document_with_the_id_of_its_log_lines(site, client):
    answer = client.get("/api/fault")

    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    given = answer.json()["request_id"]
    assert given == answer.headers["x-request-id"]
    assert f"a fault of ours request={given}" not in answer.text
    eventually(lambda: web_process(site).output().count(f"request={given}") >= 2, what="lines with the id")


@pytest.mark.parametrize(
    "content_type", ["text/plain; a*=nope''x", "text/plain; charset*=\"a\0\"''x", "a/b; c*=idna''%ff"]
)
def test_a_content_type_that_cannot_be_read_is_no_fault_of_ours(site, content_type):
    head = f"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nContent-Type: {content_type}\r\n"
    with raw(site) as connection:
        connection.sendall(f"{head}Connection: close\r\n\r\n".encode())
        answer = read_all(connection)

    assert answer.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 400 ")), answer


def test_an_upgrade_that_no_socket_takes_is_passed_over(client):
    upgrade = {
        "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }  # fmt: skip

    answer = client.get("/api/fault", headers=upgrade)

    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")  # as without it


@pytest.mark.parametrize(
    ("status", "words"), [(404, "Not Found"), (429, "Too Many Requests"), (599, "Unknown Status")]
)
def test_a_status_comes_with_the_words_that_belong_to_it(client, status, words):
    assert client.get(f"/status/{status}").reason_phrase == words


def test_a_request_that_daphne_refuses_gets_a_problem_document(site):
    with raw(site) as connection:
        connection.sendall(
            b"GET /echo HTTP/1.1\r\nHost: localhost\r\nX-Bad: a\x0bb\r\nConnection: close\r\n\r\n"
        )
        head, _, body = read_all(connection).partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"x-request-id" in head.lower()
    assert json.loads(body)["code"] == "bad_request"


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("trace-7.a_B", True), ("a b", False), ("<script>", False), ("x" * 129, False), ("", False)],
)
def test_a_request_id_is_kept_if_it_is_fit_for_a_log(client, sent, kept):
    answer = client.get("/echo", headers={"X-Request-Id": sent})

    given = answer.headers["x-request-id"]
    assert (given == sent) is kept
    assert answer.json()["headers"]["X-Request-Id"] == given


def test_no_answer_names_the_software_and_each_has_a_date(client):
    headers = client.get("/echo").headers

    assert "server" not in headers
    assert headers["date"].endswith(" GMT")


def test_a_body_reaches_an_asynchronous_application_too(client):
    for size in (10, 900_000):
        body = os.urandom(size)
        assert client.post("/repeat", content=body, headers={"X-Async": "1"}).content == body
    assert client.post("/repeat", content=b"x").status_code == 404  # not wanted: Django answers


# --- database ---


def backends(client: httpx.Client, requests: int) -> set[int]:
    return {client.get("/backend").json()["pid"] for _ in range(requests)}


def test_database_connections_persist_and_are_no_more_than_threads(client):
    assert len(backends(client, 40)) <= 2


def test_no_statement_of_the_web_process_runs_longer_than_five_seconds(client):
    assert client.get("/backend").json()["statement_timeout"] == "5s"


def test_a_connection_that_the_database_closed_is_replaced_without_an_error(site, client):
    before = backends(client, 10)
    folder = EmbeddedServer(site.home).socket_folder
    with psycopg.connect(host=str(folder), user=USER, dbname=DATABASE) as connection:
        for pid in before:
            connection.execute("SELECT pg_terminate_backend(%s)", [pid])

    after = backends(client, 10)

    assert not before & after


def test_a_killed_database_is_back_within_seconds(make_site):
    site = make_site()
    with site.client() as client:
        client.get("/backend")
        os.kill(int((site.home / "postgres" / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)

        eventually(lambda: client.get("/backend").status_code == 200, seconds=20)


# --- sockets ---


def greeter(instance: Instance, **headers: str) -> ClientConnection:
    return open_websocket(
        instance.url.replace("http", "ws") + "/ws/greeter", additional_headers=headers, open_timeout=20
    )


def test_a_program_may_open_a_websocket_but_its_cookies_do_not_count(site):
    with greeter(site, Cookie="sessionid=stolen") as websocket:
        assert json.loads(websocket.recv())["cookies"] == []


def test_a_page_of_ours_may_open_a_websocket_with_its_cookies(site):
    with greeter(site, Cookie="a=1", Origin=site.url) as websocket:
        assert json.loads(websocket.recv())["cookies"] == ["a=1"]


@pytest.mark.parametrize("origin", ["http://127.0.0.1:1", "http://127.0.0.1", "http://localhost:8000"])
def test_cookies_do_not_count_on_pages_of_other_ports(site, origin):
    """A host's cookies go to all its ports, whoever serves there."""
    with greeter(site, Cookie="sessionid=stolen", Origin=origin) as websocket:
        assert json.loads(websocket.recv())["cookies"] == []


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost.evil.example", "http://[::", "http://a\xff"]
)
def test_a_page_of_another_site_may_not_open_a_websocket(site, origin):
    with pytest.raises(InvalidStatus) as refused, greeter(site, Origin=origin):
        pass

    assert refused.value.response.status_code in (400, 403)  # "null" is refused by the protocol itself


def test_a_websocket_has_a_request_id_like_any_request(site):
    with greeter(site, **{"X-Request-Id": "ws-1"}) as websocket:
        assert json.loads(websocket.recv())["request_id"] == "ws-1"


# --- stopping ---


def test_a_request_in_progress_is_answered_before_the_process_ends(make_site, tmp_path):
    site = make_site()
    gate = tmp_path / "gate"
    size = 5 * MEGABYTE  # more than the kernel's buffers take at once
    with raw(site) as connection:
        connection.sendall(f"GET /wait?gate={gate}&bytes={size} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        eventually(gate.with_suffix(".waiting").exists)

        web_process(site).kill(signal.SIGTERM)
        eventually(lambda: refuses_connections(site))
        gate.touch()
        head, _, body = read_all(connection).partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in head.lower()
    assert len(body) == size
    assert web_process(site).wait() == 0


def refuses_connections(instance: Instance) -> bool:
    try:
        socket.create_connection(address(instance), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_sockets_and_streams_are_closed_at_once_so_that_clients_come_again(make_site):
    site = make_site(ENGINE_DRAIN_SECONDS="60")
    with greeter(site) as websocket, site.client() as client, client.stream("GET", "/ticks") as stream:
        websocket.recv()
        lines = stream.iter_lines()
        assert next(lines) == "data: tick"
        begun = time.monotonic()

        web_process(site).kill(signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv(timeout=20)
        rest = list(lines)  # httpx raises if the stream broke off instead of ending

    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4001
    assert rest in ([], [""])
    assert web_process(site).wait() == 0
    assert time.monotonic() - begun < 20


def test_idle_connections_do_not_hold_the_process_up(make_site):
    site = make_site(ENGINE_DRAIN_SECONDS="60")
    with site.client() as client:
        client.get("/echo")  # stays open for the next request
        begun = time.monotonic()

        assert web_process(site).stop() == 0

    assert time.monotonic() - begun < 10


def test_a_request_that_does_not_end_is_left_after_the_grace(make_site, tmp_path):
    site = make_site(ENGINE_DRAIN_SECONDS="0.5")
    gate = tmp_path / "gate"
    with raw(site) as connection:
        connection.sendall(f"GET /wait?gate={gate} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        eventually(gate.with_suffix(".waiting").exists)

        web_process(site).kill(signal.SIGTERM)
        web_process(site).printed("connections were still open")
        gate.touch()

    assert web_process(site).wait() == 0


def test_a_second_signal_does_not_wait(make_site, tmp_path):
    site = make_site(ENGINE_DRAIN_SECONDS="60")
    gate = tmp_path / "gate"
    with raw(site) as connection:
        connection.sendall(f"GET /wait?gate={gate} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        eventually(gate.with_suffix(".waiting").exists)
        begun = time.monotonic()

        web_process(site).kill(signal.SIGTERM)
        eventually(lambda: refuses_connections(site))
        web_process(site).kill(signal.SIGTERM)
        assert read_all(connection) == b""
        gate.touch()  # the thread is still in the view; a process ends with its threads

    assert web_process(site).wait() == 0
    assert time.monotonic() - begun < 20


# --- several processes ---


def pair_of_children(parent: Program) -> set[int]:
    """The pids of its two children; empty while there is another number of them."""
    children = set(children_of(parent.pid))
    return children if len(children) == 2 else set()


def test_several_processes_share_the_port_and_one_that_dies_is_replaced(make_site):
    site = make_site("--processes", "2")
    parent = web_process(site)
    first = eventually(lambda: pair_of_children(parent))
    victim = min(first)

    os.kill(victim, signal.SIGKILL)
    eventually(lambda: victim not in (pair_of_children(parent) or {victim}))

    with site.client() as client:
        assert client.get("/echo").status_code == 200
    assert parent.stop() == 0
    assert not any(is_running(pid) for pid in first)


def test_no_process_outlives_a_parent_that_was_killed(make_site):
    site = make_site("--processes", "2")
    parent = web_process(site)
    children = eventually(lambda: pair_of_children(parent))

    parent.kill()

    eventually(lambda: not any(is_running(pid) for pid in children))


def test_a_port_that_is_taken_is_named_with_the_way_out(site, make_instance):
    other: Any = make_instance().manage("serve", "--port", str(address(site)[1]), check=False)

    assert other.returncode != 0
    assert f"{address(site)[1]} is taken" in other.stderr
    assert "PORT=" in other.stderr
