"""What a client may send as a body, and what it is told otherwise."""

import json
import sys
from typing import Any

import pytest
from django.test import Client
from hypothesis import example, given
from hypothesis import strategies as st

from engine.gate import MalformedJson, UnacceptableJson, parse_json

pytestmark = pytest.mark.urls("tests.probe")


def send(client: Client, body: bytes, content_type: str = "application/json", path: str = "/api/echo") -> Any:
    return client.generic("POST", path, body, content_type=content_type)


@pytest.fixture
def web() -> Client:
    return Client(raise_request_exception=False)


MALFORMED = {
    "nothing but space": b"   ",
    "a bare word": b"hello",
    "half an object": b'{"a": 1',
    "a trailing comma": b'{"a": 1,}',
    "single quotes": b"{'a': 1}",
    "a comment": b'{"a": 1} // x',
    "two values": b"{} {}",
    "a raw line break in a string": b'"a\nb"',
    "a raw NUL": b'{"a": "\x00"}',
    "a leading zero": b"[01]",
    "a plus sign": b"[+1]",
    "a string without end": b'"' + b'\\"' * 200_000,
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "UTF-32": '{"a": 1}'.encode("utf-32"),
    "latin-1": '{"a": "é"}'.encode("latin-1"),
    "an overlong NUL": b'{"a": "\xc0\x80"}',
    "a raw surrogate": b'{"a": "\xed\xa0\x80"}',
    "two byte order marks": b"\xef\xbb\xbf\xef\xbb\xbf{}",
}

UNACCEPTABLE: dict[str, tuple[bytes, str]] = {
    "NUL in a value": (rb'{"a": "x\u0000"}', "/a"),
    "NUL in a name": (rb'{"a": {"x\u0000": 1}}', "/a/x\0"),
    "NUL alone": (rb'"\u0000"', ""),
    "half a surrogate pair": (rb'{"a": ["", "\ud83d"]}', "/a/1"),
    "a pair the wrong way round": (rb'{"a": "\ude00\ud83d"}', "/a"),
    "a surrogate in a name": (rb'{"\udfff": 1}', r"/\udfff"),
    "a name twice": (b'{"a": {"b": 1, "b": 2}}', "/a/b"),
    "a name twice, once escaped": (rb'{"ab": 1, "\u0061b": 2}', "/ab"),
    "NaN": (b'{"a": NaN}', "/a"),
    "minus infinity": (b"[-Infinity]", "/0"),
    "a float too large": (b'{"a": 1e999}', "/a"),
    "2**63": (b'{"a": 9223372036854775808}', "/a"),
    "-2**63 - 1": (b'{"a": -9223372036854775809}', "/a"),
    "5,000 digits": (b'{"a": ' + b"9" * 5000 + b"}", "/a"),
    "a name that needs escaping": (rb'{"a/b~c": "\u0000"}', "/a~1b~0c"),
}

TOO_MUCH = {
    "33 levels": b"[" * 33 + b"]" * 33,
    "100,000 levels without end": b"[" * 100_000,
    "100,000 objects without end": b'{"a":' * 100_000,
    "levels between strings": b'["' * 50_000,
    "levels behind a string of brackets": b'["]]]]]]]]", ' + b"[" * 40 + b"]" * 41,
    "50,001 members": json.dumps({str(n): 0 for n in range(50_001)}).encode(),
    "100,001 items": b"[" + b"0," * 100_000 + b"0]",
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_not_json_in_utf8_is_malformed(web: Client, body: bytes) -> None:
    answer = send(web, body)

    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_json")


@pytest.mark.parametrize(("body", "pointer"), UNACCEPTABLE.values(), ids=UNACCEPTABLE.keys())
def test_what_the_database_cannot_hold_is_refused_with_a_pointer(
    web: Client, body: bytes, pointer: str
) -> None:
    answer = send(web, body)

    assert (answer.status_code, answer.json()["code"]) == (400, "unacceptable_json")
    assert [fault["pointer"] for fault in answer.json()["errors"]] == [pointer]


@pytest.mark.parametrize("body", TOO_MUCH.values(), ids=TOO_MUCH.keys())
def test_what_is_too_deep_or_too_much_is_refused(web: Client, body: bytes) -> None:
    answer = send(web, body)

    assert (answer.status_code, answer.json()["code"]) == (400, "unacceptable_json")


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 32 + b"]" * 32,
        json.dumps({str(n): 0 for n in range(50_000)}).encode(),
        b'{"a": "' + b"[" * 1000 + b'"}',
        rb'{"a": "\\", "b": "[\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["}',
        rb'{"a": "\ud83d\ude00"}',
        b"[9223372036854775807, -9223372036854775808, 1e308, 0.1, -0]",
    ],
    ids=["32 levels", "50,000 members", "brackets in a string", "escapes", "a surrogate pair", "edges"],
)
def test_what_is_just_within_the_limits_is_taken(web: Client, body: bytes) -> None:
    answer = send(web, body)

    assert answer.status_code == 200
    assert answer.json() == {"got": json.loads(body)}


def test_one_byte_order_mark_is_passed_over(web: Client) -> None:
    assert send(web, b"\xef\xbb\xbf{}").json() == {"got": {}}


def test_a_long_string_is_refused_where_it_stands(web: Client, settings: Any) -> None:
    settings.ENGINE_JSON_MAX_STRING = 10

    answer = send(web, b'{"a": ["12345678901"]}')

    assert answer.json()["errors"] == [{"pointer": "/a/0", "detail": "Longer than 10 characters"}]


def test_a_body_over_the_limit_is_a_413(web: Client, settings: Any) -> None:
    settings.ENGINE_MAX_BODY_BYTES = 100

    answer = send(web, b'"' + b"x" * 99 + b'"')

    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "text/plain",
        "text/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/xml",
        "application/json; charset=utf-16",
        "application/json; charset=latin-1",
        "application/json; charset=no-such-thing",
        "application/json; charset*=utf-8''utf-16",
        "application/jsonp",
        "application",
        ";",
        "application/json\x00",
        "ä/ö",
    ],
)
def test_another_content_type_is_a_415(web: Client, content_type: str) -> None:
    answer = send(web, b'{"a": 1}', content_type)

    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", "utf8", '"utf-8"'])
def test_utf8_may_be_named(web: Client, charset: str) -> None:
    assert send(web, b"{}", f"application/json; charset={charset}").status_code == 200


def test_no_body_is_an_empty_object(web: Client) -> None:
    assert send(web, b"").json() == {"got": {}}


# --- multipart, where a view takes files ---


def multipart(*parts: bytes, charset: str = "") -> tuple[bytes, str]:
    body = b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + b"--b--\r\n"
    return body, f"multipart/form-data; boundary=b{charset}"


def test_fields_and_files_are_taken_where_a_view_says_so(web: Client) -> None:
    body, content_type = multipart(
        b'Content-Disposition: form-data; name="task"\r\n\r\nh\xc3\xa9llo',
        b'Content-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n1,2',
    )

    assert send(web, body, content_type, "/api/upload").json() == {"task": "héllo", "file": "a.csv"}


@pytest.mark.parametrize(
    "part",
    [
        b'Content-Disposition: form-data; name="task"\r\n\r\nx\x00',
        b'Content-Disposition: form-data; name="ta\x00sk"\r\n\r\nx',
    ],
    ids=["in a value", "in a name"],
)
def test_nul_in_a_form_field_is_refused(web: Client, part: bytes) -> None:
    body, content_type = multipart(part)

    answer = send(web, body, content_type, "/api/upload")

    assert (answer.status_code, answer.json()["code"]) == (400, "unacceptable_json")


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"--b--\r\n", "multipart/form-data", 400),
        (b"--b--\r\n", "multipart/form-data; boundary=" + "b" * 500, 415),
        (b"no boundary here", "multipart/form-data; boundary=b", 200),
        (b"--b\r\n\r\n\r\n--b--\r\n", "multipart/form-data; boundary=b; charset=utf-16", 415),
        (multipart(*[b'Content-Disposition: form-data; name="a"\r\n\r\nx'] * 1001)[0], multipart()[1], 400),
        (
            multipart(b'Content-Disposition: form-data; name="a"\r\n\r\n' + b"x" * 3_000_000)[0],
            multipart()[1],
            413,
        ),
        (
            multipart(*[b'Content-Disposition: form-data; name="a"; filename="f"\r\n\r\nx'] * 101)[0],
            multipart()[1],
            400,
        ),
    ],
    ids=[
        "no boundary",
        "a long boundary",
        "no parts",
        "charset",
        "1,001 fields",
        "a huge field",
        "101 files",
    ],
)
def test_a_hostile_form_gets_an_answer(web: Client, body: bytes, content_type: str, status: int) -> None:
    answer = send(web, body, content_type, "/api/upload")

    assert answer.status_code == status
    assert answer["Content-Type"] in ("application/json", "application/problem+json")


# --- unknown fields ---


def test_faults_and_unknown_fields_are_all_reported_with_pointers(web: Client) -> None:
    body = {"name": "too long", "nmae": 1, "parts": [{"size": 1}, {"size": "x", "b/d": 2}], "tags": [1, "x"]}

    answer = send(web, json.dumps(body).encode(), path="/api/form")

    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert sorted(fault["pointer"] for fault in answer.json()["errors"]) == [
        "/name",
        "/nmae",
        "/parts/1/b~1d",
        "/parts/1/size",
        "/tags/1",
    ]


def test_an_unknown_field_alone_is_refused(web: Client) -> None:
    answer = send(web, b'{"name": "a", "nmae": 1}', path="/api/form")

    assert answer.status_code == 422
    assert [fault["pointer"] for fault in answer.json()["errors"]] == ["/nmae"]


def test_the_detail_names_the_first_fault_and_counts_the_others(web: Client) -> None:
    body = json.dumps({"name": "x", "b": 1, "c": 2}).encode()

    assert send(web, body, path="/api/form").json()["detail"] == "/b: There is no such field (and 1 more)"


@pytest.mark.parametrize("body", [b"[]", b'"x"', b"1", b"null", b"true"])
def test_a_body_that_is_no_object_is_a_422(web: Client, body: bytes) -> None:
    answer = send(web, body, path="/api/form")

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == ""


def test_an_answer_lists_at_most_50_faults(web: Client) -> None:
    body = json.dumps({"name": "ok", **{f"x{n}": 1 for n in range(1000)}}).encode()

    assert len(send(web, body, path="/api/form").json()["errors"]) == 50


# --- whatever else ---

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\0", codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(st.characters(exclude_characters="\0", codec="utf-8")), inner)
    ),
    max_leaves=20,
)


@given(json_values)
def test_every_acceptable_value_comes_through_unchanged(value: Any) -> None:
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


fragments = st.sampled_from(
    [
        b'"',
        b"\\",
        b"[",
        b"]",
        b"{",
        b"}",
        b":",
        b",",
        b"\\u0000",
        b"\\ud800",
        b"\\udc00",
        b"NaN",
        b"1e999",
        b"9" * 25,
        b"\xff",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b" ",
        b"a",
        b'"a"',
        b"null",
        b"-",
        b"0",
    ]
)


@given(st.lists(fragments, max_size=60).map(b"".join) | st.binary(max_size=200))
@example(b"[" * sys.getrecursionlimit())
def test_any_bytes_are_either_storable_or_refused_with_a_code(body: bytes) -> None:
    try:
        value = parse_json(body)
    except (MalformedJson, UnacceptableJson):
        return
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    text.encode("utf-8")
    assert "\\u0000" not in text.replace("\\\\", "")
    assert parse_json(text.encode()) == value
