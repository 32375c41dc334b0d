"""What arrives at /mcp besides good requests: malformed, hostile, of the wrong era, from the wrong page."""

import json
from typing import Any
from uuid import uuid4

import pytest
from django.test import Client

from jobs.models import Job
from tests.factories import KeyInHand, make_key
from tests.mcp import META, STATELESS, InProcess, RawClient

pytestmark = pytest.mark.django_db

PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}


@pytest.fixture
def key() -> KeyInHand:
    return make_key()


@pytest.fixture
def old(key: KeyInHand) -> RawClient:
    return RawClient(InProcess(), key.secret)


@pytest.fixture
def new(key: KeyInHand) -> RawClient:
    return RawClient(InProcess(), key.secret, capabilities={})


BAD: list[tuple[bytes, int]] = [
    (b" ", -32700),
    (b"{", -32700),
    (b"\xff\xfe", -32700),
    (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":NaN}}', -32700),
    (b'{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}', -32700),
    (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":"\\u0000"}}', -32700),
    (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":"\\ud800"}}', -32700),
    (b"[" * 5000 + b"]" * 5000, -32700),
    (b'{"jsonrpc":"2.0","id":1e999,"method":"ping"}', -32700),
    (b'{"jsonrpc":"2.0","id":123456789012345678901234567890,"method":"ping"}', -32700),
    (b"[]", -32600),
    (b"[" + json.dumps(PING).encode() + b"]", -32600),
    (b"null", -32600),
    (b'"ping"', -32600),
    (b"{}", -32600),
    (b'{"id":1,"method":"ping"}', -32600),
    (b'{"jsonrpc":"1.0","id":1,"method":"ping"}', -32600),
    (b'{"jsonrpc":2.0,"id":1,"method":"ping"}', -32600),
    (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', -32600),
    (b'{"jsonrpc":"2.0","id":true,"method":"ping"}', -32600),
    (b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}', -32600),
    (b'{"jsonrpc":"2.0","id":{},"method":"ping"}', -32600),
    (b'{"jsonrpc":"2.0","id":"' + b"x" * 10_000 + b'","method":"ping"}', -32600),
    (b'{"jsonrpc":"2.0","id":1,"method":7}', -32600),
    (b'{"jsonrpc":"2.0","id":1}', -32600),
    (b'{"jsonrpc":"2.0","id":1,"result":{}}', -32600),
    (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":null}', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"_meta":3}}', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"cursor":"x"}}', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"initialize"}', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":1}}', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"no/such"}', -32601),
    (b'{"jsonrpc":"2.0","id":1,"method":"server/discover"}', -32601),
    (b'{"jsonrpc":"2.0","id":1,"method":"tools/call"}', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":["x"]}}', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"no_such_tool"}}', -32602),
    (
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"get_job","arguments":[]}}',
        -32602,
    ),
]


def test_a_bad_frame_is_answered_by_an_error_of_json_rpc(old: RawClient) -> None:
    for body, code in BAD:
        answer = old.post(body)
        assert answer.json().get("error", {}).get("code") == code, (body[:100], answer.text)
        assert "id" in answer.json()
        assert answer.status_code == (400 if code in (-32700, -32600) else 200)


def test_a_body_over_the_cap_is_refused(old: RawClient, settings: Any) -> None:
    answer = old.post(b"x" * (settings.ENGINE_MAX_BODY_BYTES + 1))

    assert answer.status_code == 413


def test_a_notification_is_taken_without_an_answer(old: RawClient, new: RawClient) -> None:
    frame = {"jsonrpc": "2.0", "method": "notifications/initialized"}

    plain, stateless = old.post(frame), new.post(frame, MCP_Protocol_Version=STATELESS)

    assert (plain.status_code, plain.content) == (202, b"")
    assert (stateless.status_code, stateless.content) == (202, b"")


def test_a_call_without_an_id_does_nothing(old: RawClient, key: KeyInHand) -> None:
    call = {"name": "create_job", "arguments": {"task": "never"}}

    answer = old.post({"jsonrpc": "2.0", "method": "tools/call", "params": call})

    assert answer.status_code == 202
    assert not Job.objects.filter(project=key.project).exists()


# --- eras ---


@pytest.mark.parametrize(
    ("asked", "agreed"),
    [("2024-11-05", "2024-11-05"), ("2025-06-18", "2025-06-18"), ("2099-01-01", "2025-11-25")],
)
def test_initialize_agrees_on_a_version_without_a_session(old: RawClient, asked: str, agreed: str) -> None:
    answer = old.send("initialize", protocolVersion=asked, capabilities={}, clientInfo={"name": "x"})

    assert answer.json()["result"]["protocolVersion"] == agreed
    assert "mcp-session-id" not in answer.headers
    assert len(answer.json()["result"]["instructions"]) < 2048


def test_discover_names_both_eras(new: RawClient) -> None:
    result = new.result("server/discover")

    assert result["supportedVersions"][0] == STATELESS
    assert "2025-11-25" in result["supportedVersions"]
    assert result["resultType"] == "complete"
    assert result["_meta"][f"{META}/serverInfo"]["name"] == "engine"


def test_an_unknown_version_is_told_the_known_ones(old: RawClient) -> None:
    answer = old.post(PING, MCP_Protocol_Version="2031-01-01")

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == -32022
    assert STATELESS in answer.json()["error"]["data"]["supported"]


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Mcp-Method", "tools/list"),
        ("Mcp-Name", "cancel_job"),
        ("MCP-Protocol-Version", "2025-11-25x"),
    ],
)
def test_headers_that_do_not_say_what_the_body_says_are_refused(
    new: RawClient, header: str, value: str
) -> None:
    params = {
        "name": "get_job",
        "arguments": {},
        "_meta": {f"{META}/protocolVersion": STATELESS, f"{META}/clientCapabilities": {}},
    }
    good = {"MCP-Protocol-Version": STATELESS, "Mcp-Method": "tools/call", "Mcp-Name": "get_job"}
    frame = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}

    changed = new.post(frame, **{**good, header: value})
    missing = new.post(frame, **{name: good[name] for name in good if name != header})

    assert new.post(frame, **good).status_code == 200
    for answer in (changed, missing):
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, -32020), answer.text


def test_a_name_that_is_no_ascii_comes_encoded(new: RawClient) -> None:
    name = "größe"
    params = {
        "name": name,
        "_meta": {f"{META}/protocolVersion": STATELESS, f"{META}/clientCapabilities": {}},
    }
    frame = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    headers = {"MCP-Protocol-Version": STATELESS, "Mcp-Method": "tools/call"}

    answer = new.post(frame, **headers, **{"Mcp-Name": "=?base64?Z3LDtsOfZQ==?="})

    assert answer.json()["error"]["code"] == -32602  # the header was fine: it is the tool that is not there


def test_a_method_that_is_not_there_is_a_404_in_the_new_era(new: RawClient) -> None:
    for method in ("initialize", "ping", "no/such"):
        answer = new.send(method)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, -32601), method


# --- who, and from where ---


def test_without_a_key_there_is_a_401_that_asks_for_a_bearer_and_offers_no_oauth(old: RawClient) -> None:
    for secret in ("", "engine_live_nonsense"):
        answer = RawClient(old.http, secret).post(PING, **({} if secret else {"Authorization": ""}))
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost.evil.example", "http://[::", "file://"]
)
def test_a_page_of_another_site_is_refused(old: RawClient, origin: str) -> None:
    assert old.post(PING, Origin=origin).status_code == 403


@pytest.mark.parametrize("origin", ["http://localhost:5173", "http://127.0.0.1:8000"])
def test_a_page_of_this_host_is_not(old: RawClient, origin: str) -> None:
    assert old.post(PING, Origin=origin).status_code == 200


def test_other_methods_and_types_are_refused(old: RawClient, key: KeyInHand) -> None:
    client = Client(headers={"Authorization": f"Bearer {key.secret}"})

    assert client.get("/mcp").status_code == 405
    assert client.delete("/mcp").status_code == 405
    assert old.post(PING, Content_Type="text/plain").status_code == 415
    assert old.post(PING, Content_Type="application/json; charset=utf-16").status_code == 415


def test_a_request_counts_against_the_keys_rate() -> None:
    client = RawClient(InProcess(), make_key(windows=[{"limit": 1, "seconds": 3600}]).secret)

    first, second = client.post(PING), client.post(PING)

    assert (first.status_code, second.status_code) == (200, 429)
    assert "retry-after" in second.headers


def test_wrong_prompts_and_resources_are_refused(old: RawClient) -> None:
    refused: list[tuple[str, dict[str, Any], int]] = [
        ("prompts/get", {}, -32602),
        ("prompts/get", {"name": "none"}, -32602),
        ("prompts/get", {"name": "delegate"}, -32602),
        ("prompts/get", {"name": "delegate", "arguments": {"task": 3}}, -32602),
        ("prompts/get", {"name": "inbox", "arguments": {"task": "x"}}, -32602),
        ("resources/read", {}, -32602),
        ("resources/read", {"uri": "file:///etc/passwd"}, -32002),
        ("resources/read", {"uri": "engine://jobs/../agents"}, -32002),
        ("resources/read", {"uri": f"engine://jobs/{uuid4()}"}, -32002),
        ("resources/read", {"uri": "engine://agents/none"}, -32002),
    ]

    for method, params, code in refused:
        assert old.request(method, **params)["error"]["code"] == code, (method, params)


def test_resources_ask_for_the_scopes_of_rest() -> None:
    client = RawClient(InProcess(), make_key("jobs:respond").secret)

    assert client.result("resources/list")["resources"] == []
    for uri in (f"engine://jobs/{uuid4()}", "engine://agents/any"):
        assert client.request("resources/read", uri=uri)["error"]["data"]["code"] == "scope_missing"


# --- the wall between projects ---


def test_another_projects_job_is_like_a_missing_one(old: RawClient) -> None:
    owner = RawClient(InProcess(), make_key().secret)
    theirs = owner.call("create_job", task="anything at all")["id"]
    missing = str(uuid4())
    more: dict[str, Any] = {"get_artifact": {"artifact": "x.txt"}, "answer_question": {"answer": "x"}}
    for tool in ("get_job", "wait_for_job", "cancel_job", "get_logs", "get_artifact", "answer_question"):
        answers = [old.refused(tool, job_id=job_id, **more.get(tool, {})) for job_id in (theirs, missing)]
        assert answers[0]["code"] == "job_not_found"
        assert json.dumps(answers[0]).replace(theirs, "ID") == json.dumps(answers[1]).replace(missing, "ID")
    assert owner.call("get_job", job_id=theirs)["status"] != "cancelled"
