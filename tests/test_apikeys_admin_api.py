"""Keys and projects over the API: made, changed, rotated, revoked, and never beyond the maker's own rights."""

import json
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.db import DatabaseError, connection, transaction
from django.db.models.functions import Now
from django.utils import timezone
from rest_framework.test import APIClient

from apikeys import services
from apikeys.errors import ScopeMissing
from apikeys.models import ApiKey, AuditRow, Project
from apikeys.queries import forget_audit
from apikeys.scopes import PROJECT_SCOPES
from tests.factories import KeyInHand, make_key, make_project

pytestmark = pytest.mark.django_db

KEYS, PROJECTS = "/api/v1/admin/keys", "/api/v1/admin/projects"


def client_with(secret: str) -> APIClient:
    client = APIClient(raise_request_exception=False)
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {secret}")
    return client


def works(secret: str) -> bool:
    return bool(client_with(secret).get(KEYS).status_code == 200)


@pytest.fixture
def admin() -> KeyInHand:
    return make_key("admin")


# --- create ---


def test_a_new_key_is_shown_once_with_its_secret_and_works_at_once(admin: KeyInHand) -> None:
    answer = admin.client.post(KEYS, {"name": "ci", "scopes": ["admin:keys", "jobs:read"]})

    assert answer.status_code == 201
    body = answer.json()
    assert answer["Location"] == f"{KEYS}/{body['id']}"
    assert answer["Cache-Control"] == "no-store"
    assert body["secret"].startswith(body["prefix"])
    assert works(body["secret"])
    shown = admin.client.get(answer["Location"])
    assert "secret" not in shown.json()
    assert shown.json() | {"secret": body["secret"], "last_used_at": None} == body


def test_a_new_key_belongs_to_its_makers_project_and_says_who_made_it(admin: KeyInHand) -> None:
    body = admin.client.post(KEYS, {"name": "ci", "scopes": ["jobs:read"]}).json()

    assert (body["project"], body["created_by"]) == (admin.project.slug, f"key:{admin.key.name}")
    assert body["windows"] == [{"limit": 6000, "seconds": 60}]


def test_every_setting_is_kept(admin: KeyInHand) -> None:
    settings = {
        "name": "ci",
        "scopes": ["jobs:read", "agents:a:run", "jobs:read"],
        "windows": [{"limit": 100, "seconds": 3600}, {"limit": 5, "seconds": 1}],
        "max_concurrent_jobs": 3,
        "expires_at": "2099-01-01T00:00:00Z",
        "allowed_cidrs": ["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"],
        "mode": "test",
    }

    body = admin.client.post(KEYS, settings).json()

    assert body["secret"].startswith("engine_test_")
    assert body["scopes"] == ["jobs:read", "agents:a:run"]
    assert body["windows"] == [{"limit": 5, "seconds": 1}, {"limit": 100, "seconds": 3600}]
    assert (body["max_concurrent_jobs"], body["expires_at"]) == (3, "2099-01-01T00:00:00Z")
    assert body["allowed_cidrs"] == ["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/name"),
        ({"name": ""}, "/name"),
        ({"name": "x" * 101}, "/name"),
        ({"name": ["x"]}, "/name"),
        ({"scopes": []}, "/scopes"),
        ({"scopes": "admin"}, "/scopes"),
        ({"scopes": ["jobs:read", "nope"]}, "/scopes/1"),
        ({"scopes": [{"a": 1}]}, "/scopes/0"),
        ({"scopes": [f"agents:a{n}:run" for n in range(101)]}, "/scopes"),
        ({"windows": [{"limit": 0, "seconds": 60}]}, "/windows/0/limit"),
        ({"windows": [{"limit": 1}]}, "/windows/0/seconds"),
        ({"windows": [{"limit": 1, "seconds": 10**12}]}, "/windows/0/seconds"),
        ({"windows": [{"limit": 1, "seconds": 1}] * 2}, "/windows"),
        ({"windows": [{"limit": 1, "seconds": n} for n in range(1, 7)]}, "/windows"),
        ({"windows": {"limit": 1}}, "/windows"),
        ({"max_concurrent_jobs": 0}, "/max_concurrent_jobs"),
        ({"max_concurrent_jobs": 2**40}, "/max_concurrent_jobs"),
        ({"max_concurrent_jobs": True}, "/max_concurrent_jobs"),
        ({"expires_at": "tomorrow"}, "/expires_at"),
        ({"expires_at": 10**18}, "/expires_at"),
        ({"allowed_cidrs": ["10.0.0.1/8"]}, "/allowed_cidrs/0"),
        ({"allowed_cidrs": ["everywhere"]}, "/allowed_cidrs/0"),
        ({"allowed_cidrs": ["10.0.0.0/33"]}, "/allowed_cidrs/0"),
        ({"mode": "prod"}, "/mode"),
        ({"project": "other"}, "/project"),
        ({"secret_hash": "x"}, "/secret_hash"),
        ({"revoked_at": None}, "/revoked_at"),
    ],
)
def test_a_body_that_is_wrong_is_refused_with_a_pointer(
    admin: KeyInHand, body: dict[str, Any], pointer: str
) -> None:
    good = {"name": "ci", "scopes": ["jobs:read"]} if body else {"scopes": ["jobs:read"]}

    answer = admin.client.post(KEYS, good | body)

    assert answer.status_code == 422
    assert pointer in [fault["pointer"] for fault in answer.json()["errors"]]
    assert ApiKey.objects.count() == 1


# --- never beyond the own rights ---


@pytest.mark.parametrize(
    ("held", "wanted"),
    [
        (["admin:keys"], "jobs:read"),
        (["admin:keys"], "admin"),
        (["admin:keys", "jobs:read"], "jobs:write"),
        (["admin:keys", "agents:a:run"], "agents:b:run"),
        (["admin:keys", "agents:a:run"], "jobs:write"),
        (["admin:keys", "agents:write"], "agents:a:run"),
    ],
)
def test_a_key_cannot_give_a_scope_it_lacks(held: list[str], wanted: str) -> None:
    maker = make_key(*held)

    answer = maker.client.post(KEYS, {"name": "x", "scopes": [wanted]})

    assert (answer.status_code, answer.json()["code"]) == (403, "beyond_own_rights")
    assert answer.json()["scopes"] == [wanted]
    assert ApiKey.objects.count() == 1


@pytest.mark.parametrize(
    ("held", "wanted"),
    [
        (["admin:keys", "jobs:read"], "jobs:read"),
        (["admin:keys", "agents:a:run"], "agents:a:run"),
        (["admin:keys", "jobs:write"], "agents:a:run"),
        (["admin"], "admin"),
    ],
)
def test_a_key_can_give_what_it_holds(held: list[str], wanted: str) -> None:
    assert make_key(*held).client.post(KEYS, {"name": "x", "scopes": [wanted]}).status_code == 201


def test_what_a_maker_may_not_outlive_or_leave_its_keys_may_not_either() -> None:
    ends = timezone.now() + timedelta(hours=1)
    maker = make_key("admin", expires_at=ends, allowed_cidrs=["127.0.0.0/8"])
    new = {"name": "x", "scopes": ["jobs:read"]}

    inherited = maker.client.post(KEYS, new).json()
    longer = maker.client.post(KEYS, {**new, "expires_at": "2099-01-01T00:00:00Z"})
    further = maker.client.post(KEYS, {**new, "allowed_cidrs": ["126.0.0.0/7"]})
    narrower = maker.client.post(KEYS, {**new, "allowed_cidrs": ["127.0.0.1"]})

    assert inherited["allowed_cidrs"] == ["127.0.0.0/8"]
    assert inherited["expires_at"] == ends.isoformat().replace("+00:00", "Z")
    assert {longer.json()["code"], further.json()["code"]} == {"beyond_own_rights"}
    assert narrower.status_code == 201


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("patch", "", {"name": "mine now"}),
        ("patch", "", {"scopes": ["admin:keys"]}),
        ("post", "/rotate", {}),
        ("post", "/enable", {}),
    ],
)
def test_a_key_cannot_change_or_take_over_one_that_holds_more(method: str, path: str, body: Any) -> None:
    clerk = make_key("admin:keys")
    stronger = make_key("admin", project=clerk.project, disabled_at=Now())

    answer = getattr(clerk.client, method)(f"{KEYS}/{stronger.key.id}{path}", body)

    assert (answer.status_code, answer.json()["code"]) == (403, "beyond_own_rights")
    stronger.key.refresh_from_db()
    assert stronger.key.disabled_at is not None
    assert stronger.key.scopes == ["admin"]


def test_a_key_cannot_widen_itself() -> None:
    held = make_key("admin:keys", expires_at=Now() + timedelta(hours=1))
    mine = f"{KEYS}/{held.key.id}"

    for widening in ({"scopes": ["admin"]}, {"expires_at": None}, {"expires_at": "2099-01-01T00:00:00Z"}):
        assert held.client.patch(mine, widening).json()["code"] == "beyond_own_rights"


@pytest.mark.parametrize(("method", "path"), [("delete", ""), ("post", "/disable")])
def test_any_holder_of_admin_keys_can_stop_a_stronger_key(method: str, path: str) -> None:
    clerk = make_key("admin:keys")
    leaked = make_key("admin", project=clerk.project)

    assert getattr(clerk.client, method)(f"{KEYS}/{leaked.key.id}{path}").status_code == 200

    assert not works(leaked.secret)


# --- change, switch off, revoke ---


def test_a_change_holds_from_the_next_request_on(admin: KeyInHand) -> None:
    other = make_key("admin:keys", project=admin.project)

    answer = admin.client.patch(f"{KEYS}/{other.key.id}", {"scopes": ["jobs:read"], "name": "new"})

    assert (answer.json()["scopes"], answer.json()["name"]) == (["jobs:read"], "new")
    assert other.client.get(KEYS).json()["missing_scope"] == "admin:keys"


def test_a_patch_changes_what_it_names_and_nothing_else(admin: KeyInHand) -> None:
    windows = [{"limit": 7, "seconds": 9}]
    other = make_key("jobs:read", project=admin.project, windows=windows, max_concurrent_jobs=2)

    body = admin.client.patch(f"{KEYS}/{other.key.id}", {"max_concurrent_jobs": None}).json()

    assert (body["windows"], body["scopes"], body["max_concurrent_jobs"]) == (windows, ["jobs:read"], None)


def test_a_patch_takes_whole_windows_only(admin: KeyInHand) -> None:
    answer = admin.client.patch(f"{KEYS}/{admin.key.id}", {"windows": [{"limit": 5}]})

    assert answer.json()["errors"][0]["pointer"] == "/windows/0/seconds"


def test_a_disabled_key_is_refused_until_it_is_enabled(admin: KeyInHand) -> None:
    other = make_key("admin:keys", project=admin.project)

    assert admin.client.post(f"{KEYS}/{other.key.id}/disable").json()["disabled_at"]
    assert not works(other.secret)
    assert admin.client.post(f"{KEYS}/{other.key.id}/enable").json()["disabled_at"] is None
    assert works(other.secret)


def test_a_revoked_key_stays_to_be_seen_and_never_works_again(admin: KeyInHand) -> None:
    other = make_key("admin:keys", project=admin.project)
    address = f"{KEYS}/{other.key.id}"

    first, second = admin.client.delete(address), admin.client.delete(address)

    assert first.json()["revoked_at"]
    assert first.content == second.content
    assert not works(other.secret)
    assert admin.client.post(f"{address}/enable").status_code == 200
    assert not works(other.secret)
    assert admin.client.patch(address, {"name": "x"}).json()["code"] == "key_not_active"


# --- rotate ---


def test_rotation_gives_a_new_secret_and_lets_the_old_one_overlap(admin: KeyInHand) -> None:
    old = make_key("admin:keys", project=admin.project, allowed_cidrs=["127.0.0.0/8"], max_concurrent_jobs=2)

    body = admin.client.post(f"{KEYS}/{old.key.id}/rotate", {"overlap_seconds": 3600}).json()

    assert works(body["secret"])
    assert works(old.secret)
    same = ("name", "scopes", "windows", "max_concurrent_jobs", "allowed_cidrs", "project")
    before = admin.client.get(f"{KEYS}/{old.key.id}").json()
    assert {name: body[name] for name in same} == {name: before[name] for name in same}
    assert before["replaced_by"] == body["id"]
    old.key.refresh_from_db()
    assert old.key.expires_at is not None
    assert timedelta(minutes=59) < old.key.expires_at - timezone.now() <= timedelta(hours=1)


def test_rotation_without_overlap_ends_the_old_secret_at_once(admin: KeyInHand) -> None:
    old = make_key("admin:keys", project=admin.project)

    admin.client.post(f"{KEYS}/{old.key.id}/rotate", {"overlap_seconds": 0})

    assert not works(old.secret)


def test_rotation_never_lengthens_the_old_keys_life(admin: KeyInHand) -> None:
    old = make_key("jobs:read", project=admin.project, expires_at=Now() + timedelta(minutes=5))
    old.key.refresh_from_db()
    ends = old.key.expires_at

    body = admin.client.post(f"{KEYS}/{old.key.id}/rotate").json()

    old.key.refresh_from_db()
    assert old.key.expires_at == ends
    assert ApiKey.objects.get(id=body["id"]).expires_at == ends


def test_a_key_can_rotate_itself() -> None:
    held = make_key("admin:keys")

    assert held.client.post(f"{KEYS}/{held.key.id}/rotate").status_code == 201


@pytest.mark.parametrize("ended", [{"revoked_at": Now()}, {"expires_at": Now()}], ids=["revoked", "expired"])
def test_a_key_that_ended_cannot_be_rotated_back_to_life(admin: KeyInHand, ended: dict[str, Any]) -> None:
    old = make_key("jobs:read", project=admin.project, **ended)

    assert admin.client.post(f"{KEYS}/{old.key.id}/rotate").json()["code"] == "key_not_active"


def test_a_key_is_rotated_once(admin: KeyInHand) -> None:
    old = make_key("jobs:read", project=admin.project)
    admin.client.post(f"{KEYS}/{old.key.id}/rotate")

    assert admin.client.post(f"{KEYS}/{old.key.id}/rotate").json()["code"] == "key_not_active"


# --- whose ---


def test_the_list_holds_the_projects_own_keys_newest_first(admin: KeyInHand) -> None:
    second = make_key(project=admin.project)
    make_key()

    items = admin.client.get(KEYS).json()["items"]

    assert [item["id"] for item in items] == [str(second.key.id), str(admin.key.id)]


ANSWERS_ABOUT_KEYS = [
    ("get", "", None),
    ("patch", "", {"name": "x"}),
    ("delete", "", None),
    ("post", "/rotate", {}),
    ("post", "/disable", {}),
    ("post", "/enable", {}),
]


@pytest.mark.parametrize(("method", "path", "body"), ANSWERS_ABOUT_KEYS)
def test_another_projects_key_is_byte_equal_to_a_missing_one(
    admin: KeyInHand, method: str, path: str, body: Any
) -> None:
    theirs = make_key()

    def ask(key_id: UUID) -> Any:
        return getattr(admin.client, method)(f"{KEYS}/{key_id}{path}", body, HTTP_X_REQUEST_ID="same")

    found, missing = ask(theirs.key.id), ask(UUID(int=7))

    assert found.status_code == missing.status_code == 404
    assert found.content == missing.content
    assert dict(found.headers).keys() == dict(missing.headers).keys()
    theirs.key.refresh_from_db()
    assert (theirs.key.revoked_at, theirs.key.disabled_at, theirs.key.replaced_by) == (None, None, None)


@pytest.mark.parametrize("method", ["get", "patch"])
def test_another_project_is_byte_equal_to_a_missing_one(admin: KeyInHand, method: str) -> None:
    theirs = make_project("theirs")

    answers = [
        getattr(admin.client, method)(
            f"{PROJECTS}/{slug}", {"name": "x"} if method == "patch" else None, HTTP_X_REQUEST_ID="same"
        )
        for slug in (theirs.slug, "nobodys")
    ]

    assert answers[0].status_code == 404
    assert answers[0].content == answers[1].content


@pytest.mark.parametrize(
    ("method", "path"),
    [("get", KEYS), ("post", KEYS), ("get", f"{KEYS}/{UUID(int=7)}"), ("get", PROJECTS), ("post", PROJECTS)],
)
def test_these_addresses_need_admin_rights(method: str, path: str) -> None:
    everything_else = make_key("jobs:read", "jobs:write", "jobs:respond", "agents:read", "agents:write")

    assert getattr(everything_else.client, method)(path).json()["code"] == "scope_missing"
    assert getattr(APIClient(), method)(path).status_code == 401


@pytest.mark.parametrize("key_id", ["1", "x", "%00", f"{UUID(int=7)}x", "../keys", "0" * 5000])
def test_an_id_that_is_none_is_a_404(admin: KeyInHand, key_id: str) -> None:
    assert admin.client.get(f"{KEYS}/{key_id}").status_code == 404


# --- projects ---


def test_a_new_project_comes_with_a_key_that_holds_everything_inside_it(admin: KeyInHand) -> None:
    answer = admin.client.post(PROJECTS, {"slug": "acme", "max_running": 3, "storage_bytes": 2**40})

    assert answer.status_code == 201
    body = answer.json()
    assert (body["slug"], body["name"], body["max_running"], body["storage_bytes"]) == (
        "acme",
        "acme",
        3,
        2**40,
    )
    assert body["key"]["scopes"] == list(PROJECT_SCOPES)
    theirs = client_with(body["key"]["secret"])
    assert [item["slug"] for item in theirs.get(PROJECTS).json()["items"]] == ["acme"]
    assert "secret" not in json.dumps(theirs.get(KEYS).json())


def test_the_makers_project_does_not_see_into_the_new_one(admin: KeyInHand) -> None:
    key = admin.client.post(PROJECTS, {"slug": "acme"}).json()["key"]

    assert admin.client.get(f"{PROJECTS}/acme").status_code == 404
    assert admin.client.get(f"{KEYS}/{key['id']}").status_code == 404


def test_only_admin_makes_projects_and_changes_limits() -> None:
    tenant = make_key(*PROJECT_SCOPES)
    mine = f"{PROJECTS}/{tenant.project.slug}"

    assert tenant.client.post(PROJECTS, {"slug": "acme"}).json()["missing_scope"] == "admin"
    assert tenant.client.patch(mine, {"max_running": None}).json()["missing_scope"] == "admin"
    changed = tenant.client.patch(mine, {"name": "We", "on_weak_match": "ask", "discovery_cut": "off"})
    assert (changed.json()["name"], changed.json()["on_weak_match"]) == ("We", "ask")


def test_the_service_asks_for_admin_too_whoever_calls_it() -> None:
    with pytest.raises(ScopeMissing):
        services.create_project(make_key(*PROJECT_SCOPES).caller, slug="acme")


def test_admin_changes_the_limits_of_its_project(admin: KeyInHand) -> None:
    body = admin.client.patch(f"{PROJECTS}/{admin.project.slug}", {"weight": 5, "max_queued": 9}).json()

    assert (body["weight"], body["max_queued"]) == (5, 9)


def test_a_slug_is_taken_once(admin: KeyInHand) -> None:
    admin.client.post(PROJECTS, {"slug": "acme"})

    answer = admin.client.post(PROJECTS, {"slug": "acme"})

    assert (answer.status_code, answer.json()["code"]) == (409, "project_exists")
    assert Project.objects.filter(slug="acme").count() == 1


@pytest.mark.parametrize(
    "body",
    [
        {},
        *({"slug": slug} for slug in ["", "A", "a b", "-a", "a-", "a" * 64, "é", "a/b", 1.5, None, ["a"]]),
        {"slug": "ok", "weight": 0},
        {"slug": "ok", "max_running": -1},
        {"slug": "ok", "storage_bytes": 2.0**63},
        {"slug": "ok", "on_weak_match": "maybe"},
        {"slug": "ok", "archived_at": None},
    ],
)
def test_a_project_that_is_wrong_is_refused(admin: KeyInHand, body: dict[str, Any]) -> None:
    assert admin.client.post(PROJECTS, body).status_code == 422
    assert Project.objects.count() == 1


# --- audit ---


def test_what_was_done_to_keys_and_projects_is_recorded(admin: KeyInHand) -> None:
    made = admin.client.post(KEYS, {"name": "ci", "scopes": ["jobs:read"]}).json()
    address = f"{KEYS}/{made['id']}"
    admin.client.patch(address, {"name": "cd"})
    admin.client.post(f"{address}/disable")
    admin.client.post(f"{address}/enable")
    successor = admin.client.post(f"{address}/rotate").json()
    admin.client.delete(address, HTTP_X_REQUEST_ID="r-7")
    admin.client.post(PROJECTS, {"slug": "acme"})
    admin.client.patch(f"{PROJECTS}/{admin.project.slug}", {"max_running": 4})

    rows = list(AuditRow.objects.order_by("id"))

    assert [row.action for row in rows] == [
        "key.created",
        "key.changed",
        "key.disabled",
        "key.enabled",
        "key.rotated",
        "key.revoked",
        "project.created",
        "key.created",
        "project.changed",
    ]
    assert {row.actor for row in rows} == {f"key:{admin.key.name}"}
    revoked = rows[5]
    assert (revoked.object, revoked.project, revoked.via) == (f"key:{made['id']}", admin.project, "api_key")
    assert (revoked.ip, revoked.request_id) == ("127.0.0.1", "r-7")
    assert rows[8].data == {"max_running": 4}
    text = json.dumps([row.data for row in rows])
    assert made["secret"] not in text
    assert successor["secret"] not in text


@pytest.mark.parametrize(
    "statement", ["UPDATE apikeys_auditrow SET actor = 'me'", "DELETE FROM apikeys_auditrow"]
)
def test_the_audit_trail_cannot_be_changed(admin: KeyInHand, statement: str) -> None:
    admin.client.post(KEYS, {"name": "ci", "scopes": ["jobs:read"]})

    with (
        pytest.raises(DatabaseError, match="append-only"),
        transaction.atomic(),
        connection.cursor() as cursor,
    ):
        cursor.execute(statement)

    assert AuditRow.objects.get().actor == f"key:{admin.key.name}"


def test_old_audit_rows_are_forgotten_and_no_young_one() -> None:
    for days in (29, 31, 400, 500):
        AuditRow.objects.create(
            at=timezone.now() - timedelta(days=days), actor="cli", via="cli", action="x", object=str(days)
        )

    assert forget_audit(60) == 2
    assert set(AuditRow.objects.values_list("object", flat=True)) == {"29", "31"}
    with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
        forget_audit(7)
    assert AuditRow.objects.count() == 2


def test_a_refused_act_leaves_no_trace_of_having_been_done() -> None:
    make_key("admin:keys").client.post(KEYS, {"name": "x", "scopes": ["admin"]})

    assert not AuditRow.objects.exists()
