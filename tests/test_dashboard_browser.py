"""The dashboard in a real browser (headless Chromium) before a real web process."""

import os
import re
import shutil
import struct
import zlib
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from django.contrib.auth.models import Group, User
from django.contrib.sessions.models import Session
from django.test import Client
from django.utils import timezone
from playwright.sync_api import Browser, BrowserContext, Page, WebSocketRoute, expect, sync_playwright

from agents import services as agents
from apikeys.models import ApiKey
from jobs.models import Job
from jobs.notifying import links
from tests.agents import make_card, staff
from tests.dashboard import asking, completed, make_agent, make_artifact, make_person, sole_question
from tests.factories import make_key, make_project
from tests.jobs import (
    claim_one,
    log_line,
    make_job,
    make_version,
    make_worker,
    settlement,
    step_row,
    write,
)
from tests.processes import Instance, eventually
from tests.streams import Talker, environment

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]

HOSTILE = "<img src=x onerror='hacked=1'><script>hacked=1</script> \x1b[31mred \u202egnp.exe {{ 7*7 }}"
PAGES = [
    "/admin/",
    "/admin/jobs/job/",
    "/admin/jobs/job/new/",
    "/admin/jobs/question/",
    "/admin/jobs/webhookendpoint/",
    "/admin/jobs/worker/",
    "/admin/system/",
    "/admin/agents/agent/",
    "/admin/agents/agent/new/",
    "/admin/agents/agent/discover/",
    "/admin/apikeys/apikey/",
    "/admin/apikeys/apikey/connect/",
    "/admin/apikeys/apikey/add/",
    "/admin/apikeys/project/",
    "/admin/apikeys/project/add/",
    "/admin/apikeys/auditrow/",
    "/admin/auth/user/",
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser; each test has a context of its own in it."""
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with pytest.MonkeyPatch.context() as patch:
        # Playwright's own event loop runs in this thread; Django would refuse to query beside it.
        patch.setitem(os.environ, "DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
            yield browser
            browser.close()


@pytest.fixture(scope="module")
def server(
    django_db_setup: None, django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Instance]:
    """One web process for all tests here, on the tests' own rows and files."""
    with django_db_blocker.unblock():
        instance = Instance(tmp_path_factory.mktemp("dashboard"), environment())
    instance.serve()
    yield instance
    instance.stop()


class Visitor:
    """A member of staff with a browser. Whatever the page complains about is kept in `faults`."""

    def __init__(self, chromium: Browser, server: Instance, person: User, **options: Any) -> None:
        self.person = person
        self.faults: list[str] = []
        self.context: BrowserContext = chromium.new_context(base_url=server.url, **options)
        client = Client()
        client.force_login(person)
        self.session = client.cookies["sessionid"].value
        self.context.add_cookies([{"name": "sessionid", "value": self.session, "url": server.url}])
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(15_000)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", lambda said: self.faults.append(said.text) if said.type == "error" else None)
        self.page.on("dialog", lambda dialog: self.faults.append(dialog.message))

    def open(self, address: str) -> Page:
        self.page.goto(address)
        return self.page

    def watch(self, job: Job) -> Page:
        """A job's page, once its log is connected."""
        page = self.open(f"/admin/jobs/job/{job.id}/")
        expect(page.locator("[data-log-status]")).not_to_have_text("Connecting…")
        return page

    def seqs(self) -> list[int]:
        """The numbers of all events that the log has taken."""
        found: list[int] = self.page.evaluate(
            "document.querySelector('[data-log]').engineLog.events.map((event) => event.seq)"
        )
        return found

    def saw_up_to(self, last: int) -> None:
        """Wait until the log has event `last`; then it has each one once, in order."""
        eventually(lambda: last in self.seqs(), what=f"event {last} in the log")
        assert self.seqs() == list(range(1, last + 1))


@pytest.fixture
def visitors(chromium: Browser, server: Instance) -> Iterator[Any]:
    """Make visitors: `visitors("ada", color_scheme="dark")`. Nothing may have complained when the test ends."""
    made: list[Visitor] = []

    def make(name: str = "ada", **options: Any) -> Visitor:
        made.append(Visitor(chromium, server, make_person(name), **options))
        return made[-1]

    yield make
    for visitor in made:
        visitor.context.close()


@pytest.fixture
def ada(visitors: Any) -> Visitor:
    visitor: Visitor = visitors("ada")
    return visitor


@pytest.fixture
def talker(settings: Any) -> Talker:
    settings.ENGINE_LEASE_SECONDS = 600  # nobody here sends heartbeats
    return Talker.start(make_project())


def lines(page: Page) -> Any:
    return page.locator(".e-log-text")


def state(page: Page) -> Any:
    return page.locator("#job-head .e-chip").first


# --- signing in ---


def test_the_first_login_leads_to_the_overview(chromium: Browser, server: Instance) -> None:
    make_person("ada", password="correct horse battery")
    page = chromium.new_context(base_url=server.url).new_page()

    page.goto("/admin/login/")
    page.get_by_label("Username").fill("ada")
    page.get_by_label("Password").fill("correct horse battery")
    page.keyboard.press("Enter")

    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    expect(page.get_by_role("heading", name="Nothing has run here yet")).to_be_visible()
    page.context.close()


# --- the log ---


def test_a_log_is_watched_live_to_the_end(ada: Visitor, talker: Talker) -> None:
    talker.say(2)
    page = ada.watch(talker.job)
    expect(lines(page).filter(has_text="line 2")).to_be_visible()
    expect(state(page)).to_have_text("running")

    talker.say()
    expect(lines(page).filter(has_text="line 3")).to_be_visible()

    talker.end({"rows": 3708})
    expect(state(page)).to_have_text("completed")
    expect(page.locator("#result")).to_contain_text("3708")
    expect(page.locator("[data-log-status]")).to_have_text("Complete")
    ada.saw_up_to(talker.last)
    assert ada.faults == []


def test_hostile_lines_and_names_are_text(ada: Visitor, talker: Talker) -> None:
    write(talker.worker, events=[log_line(talker.claimed, 1, HOSTILE)])
    talker.said = 1
    Job.objects.filter(id=talker.job.id).update(task=HOSTILE, progress_message=HOSTILE, tags=[HOSTILE])
    make_artifact(talker.job, HOSTILE, b"x", "text/html")

    page = ada.watch(talker.job)

    expect(
        lines(page).filter(has_text="<script>hacked=1</script> ESC[31mred U+202Egnp.exe {{ 7*7 }}")
    ).to_be_visible()
    expect(page.locator("#job-artifacts")).to_contain_text("<script>hacked=1</script>")
    assert page.evaluate("typeof hacked") == "undefined"
    assert page.locator(".e-log-text img, .e-log-text script").count() == 0
    assert ada.faults == []


def test_only_lines_in_sight_are_in_the_page(ada: Visitor, talker: Talker) -> None:
    talker.say(5_000)
    page = ada.watch(talker.job)
    ada.saw_up_to(talker.last)

    expect(lines(page).filter(has_text="line 5000 .")).to_be_visible()  # it follows
    assert lines(page).count() < 200

    page.locator("[data-log-box]").focus()
    page.keyboard.press("Home")
    expect(lines(page).filter(has_text="line 1 .")).to_be_visible()
    expect(page.locator("[data-log-follow]")).to_have_attribute("aria-pressed", "false")

    talker.say()
    expect(page.locator("[data-log-count]")).to_contain_text("5,003 events")
    expect(lines(page).filter(has_text="line 1 .")).to_be_visible()  # and stays where one reads

    page.keyboard.press("End")
    expect(lines(page).filter(has_text="line 5001 .")).to_be_visible()
    expect(page.locator("[data-log-follow]")).to_have_attribute("aria-pressed", "true")


def test_lines_are_filtered_by_words_and_level(ada: Visitor, talker: Talker) -> None:
    talker.say(30)
    page = ada.watch(talker.job)

    page.locator("[data-log-search]").fill("LINE 30")
    expect(lines(page)).to_have_count(1)
    expect(page.locator(".e-log-text mark")).to_have_text("line 30")

    page.locator("[data-log-search]").fill("no such words")
    expect(page.locator("[data-log-note]")).to_have_text("No line passes the filter.")

    page.locator("[data-log-search]").fill("")
    page.locator("[data-log-level]").select_option(label="Errors only")
    expect(lines(page)).to_have_count(0)

    page.locator("[data-log-level]").select_option(label="All levels")
    page.locator("[data-log-source]").select_option("stderr")
    expect(lines(page)).to_have_count(0)
    page.locator("[data-log-source]").select_option("stdout")
    expect(lines(page)).to_have_count(30)
    page.locator("[data-log-times]").select_option("since")
    expect(page.locator(".e-log-time").first).to_have_text(re.compile(r"^\+0:\d\d\.\d{3}$"))

    ada.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("[data-log-copy]").click()
    expect(page.locator("[data-log-copy]")).to_have_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()").splitlines()
    assert (len(copied), "stdout line 30 ." in copied[-1]) == (30, True)


def test_a_million_lines_scroll(ada: Visitor, talker: Talker) -> None:
    page = ada.watch(talker.job)
    ada.saw_up_to(talker.last)
    page.evaluate(
        """() => {
            const events = [];
            for (let seq = 100; seq < 1000100; seq += 1) {
                events.push({seq, at: "2026-11-22T12:00:00Z", type: "log", source: "stdout", level: "info",
                             attempt: 1, message: `big ${seq}.`});
            }
            document.querySelector("[data-log]").engineLog.add(events);
        }"""
    )

    expect(lines(page).filter(has_text="big 1000099.")).to_be_visible()
    box = page.locator("[data-log-box]")
    box.focus()
    page.keyboard.press("Home")
    expect(lines(page).filter(has_text="big 100.")).to_be_visible()
    box.evaluate("(box) => { box.scrollTop = box.scrollHeight / 2; }")
    middle = lines(page).filter(has_text=re.compile(r"^big (499|500)\d{3}\.$"))
    expect(middle.first).to_be_attached()
    page.locator("[data-log-search]").fill("big 765432.")
    expect(lines(page)).to_have_count(1)
    assert ada.faults == []


def test_long_lines_wrap_when_asked_to(ada: Visitor, talker: Talker) -> None:
    talker.say(1, size=900)
    page = ada.watch(talker.job)
    box = page.locator("[data-log-box]")
    expect(lines(page).filter(has_text="line 1")).to_be_visible()
    before = lines(page).count()
    assert box.evaluate("(box) => box.scrollWidth > box.clientWidth")

    page.locator("[data-log-wrap]").click()

    assert lines(page).count() > before + 3
    assert not box.evaluate("(box) => box.scrollWidth > box.clientWidth + 1")


def test_the_network_lost_in_the_middle_of_a_log_loses_no_line(ada: Visitor, talker: Talker) -> None:
    talker.say(5)
    page = ada.watch(talker.job)
    ada.saw_up_to(talker.last)

    ada.context.set_offline(True)
    expect(page.locator("[data-log-status]")).to_contain_text("Connection lost")
    talker.say(50)
    ada.context.set_offline(False)

    ada.saw_up_to(talker.last)
    expect(page.locator("[data-log-status]")).to_have_text("Live")


def test_a_connection_that_is_cut_again_and_again_loses_and_repeats_nothing(
    ada: Visitor, talker: Talker
) -> None:
    connections = []

    def cut_after_seven(browser: WebSocketRoute) -> None:
        connections.append(browser.url)
        server, passed = browser.connect_to_server(), 0

        def relay(message: Any) -> None:
            nonlocal passed
            passed += 1
            browser.send(message)
            if passed == 7:
                browser.close(code=1011)

        server.on_message(relay)

    ada.page.route_web_socket("**/ws/v1/jobs/**", cut_after_seven)
    talker.say(40)

    ada.watch(talker.job)

    ada.saw_up_to(talker.last)
    assert len(connections) >= 6
    assert connections[1].endswith("after=7")


def test_a_frame_that_got_lost_is_asked_for_again(ada: Visitor, talker: Talker) -> None:
    dropped: list[Any] = []

    def drop_one(browser: WebSocketRoute) -> None:
        server = browser.connect_to_server()

        def relay(message: Any) -> None:
            if '"seq":9' in str(message).replace(" ", "") and not dropped:
                dropped.append(message)
            else:
                browser.send(message)

        server.on_message(relay)

    ada.page.route_web_socket("**/ws/v1/jobs/**", drop_one)
    talker.say(20)

    ada.watch(talker.job)

    ada.saw_up_to(talker.last)
    assert dropped


def test_whoever_is_signed_out_is_told(ada: Visitor, talker: Talker) -> None:
    page = ada.watch(talker.job)

    Session.objects.all().delete()
    page.evaluate("document.querySelector('[data-live]').engineLive.refresh()")

    expect(page.locator("[data-live-status]")).to_contain_text("You are signed out")


# --- questions ---


def test_a_question_is_answered_in_the_browser(ada: Visitor) -> None:
    options = ["formal", "warm"]
    job = asking(
        None, {"kind": "choice", "choices": options, "prompt": "Which tone?", "schema": {"enum": options}}
    )
    page = ada.watch(job)

    page.get_by_label("warm").check()
    page.get_by_role("button", name="Answer").click()

    expect(page.get_by_text("Answered. The job goes on.")).to_be_visible()
    expect(state(page)).to_have_text("queued")
    expect(page.locator("#job-history")).to_contain_text("user:ada")
    assert ada.faults == []


def test_of_two_browsers_the_second_learns_who_was_first(ada: Visitor, visitors: Any) -> None:
    job = asking()
    bob: Visitor = visitors("bob")
    for visitor in (ada, bob):
        visitor.watch(job).get_by_label("Your answer").fill(f"{visitor.person.username}'s")
    # As if nothing had told the second page yet.
    bob.page.route("**/parts/", lambda route: route.abort())

    ada.page.get_by_role("button", name="Answer").click()
    expect(ada.page.get_by_text("Answered. The job goes on.")).to_be_visible()
    bob.page.get_by_role("button", name="Answer").click()

    expect(bob.page.get_by_text("user:ada was first.")).to_be_visible()
    assert sole_answer(job) == "ada's"


def sole_answer(job: Job) -> Any:
    return job.questions.get().answer


def test_an_answer_begun_survives_a_refresh_until_somebody_else_answers(ada: Visitor, visitors: Any) -> None:
    job = asking(None, {"prompt": "Why?"}, {"prompt": "How?"})
    page = ada.watch(job)
    fields = page.get_by_label("Your answer")
    fields.first.fill("half a sent")
    fields.last.focus()

    page.evaluate("document.activeElement.blur()")
    page.evaluate("document.querySelector('[data-live]').engineLive.refresh()")
    expect(fields.first).to_have_value("half a sent")

    bob: Visitor = visitors("bob")
    bob_fields = bob.watch(job).get_by_label("Your answer")
    bob_fields.first.fill("because")
    bob.page.get_by_role("button", name="Answer").first.click()
    expect(page.locator("#job-history")).to_contain_text("user:bob")
    expect(fields).to_have_count(1)


# --- files, keys ---


def png() -> bytes:
    """A white picture, 8 by 8."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)
    pixels = zlib.compress((b"\0" + b"\xff" * 8) * 8)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.fixture
def shared_files(server: Instance, settings: Any) -> None:
    """Let this process store where the web process reads."""
    location = {"location": server.home / "artifacts"}
    settings.STORAGES = {
        **settings.STORAGES,
        "artifacts": {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": location},
    }


def test_a_picture_among_the_artifacts_is_seen(ada: Visitor, shared_files: None) -> None:
    job = completed()
    make_artifact(job, "chart.png", png(), "image/png")

    page = ada.watch(job)

    # Looked for anew each time: the page may draw its artifacts again meanwhile.
    width = """() => {
        const image = document.querySelector('img[alt="chart.png"]');
        image?.scrollIntoView();
        return image?.naturalWidth;
    }"""
    eventually(lambda: page.evaluate(width) == 8, what="the picture")
    assert ada.faults == []


def test_a_key_is_made_copied_and_revoked(ada: Visitor, server: Instance) -> None:
    make_project("default")
    ada.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = ada.open("/admin/apikeys/apikey/")

    page.get_by_role("link", name="New key").first.click()
    page.get_by_label("Name").fill("import")
    page.get_by_role("button", name="Create key").click()
    secret = page.locator("#secret").inner_text()
    page.get_by_role("button", name="Copy").first.click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == secret
    with server.client(secret) as client:
        assert client.get("/api/v1/jobs").status_code == 200

    page.reload()  # shows the list: no second key, and no secret
    assert ApiKey.objects.count() == 1
    expect(page.locator("#secret")).to_have_count(0)
    page.get_by_role("link", name="Revoke import").click()
    page.get_by_role("button", name="Revoke key").click()
    expect(page.locator("tbody .e-chip")).to_have_text("revoked")
    with server.client(secret) as client:
        assert client.get("/api/v1/jobs").json()["code"] == "key_revoked"
    assert ada.faults == []


def test_a_job_is_cancelled_after_a_question(ada: Visitor) -> None:
    job = make_job()
    page = ada.watch(job)
    page.on("dialog", lambda dialog: dialog.accept())

    page.get_by_role("button", name="Cancel job").click()

    expect(state(page)).to_have_text("cancelled")
    job.refresh_from_db()
    assert job.cancel_requested_by == "user:ada"


def test_ticked_jobs_are_cancelled_after_their_count_and_a_second_click(ada: Visitor) -> None:
    jobs = [make_job() for _ in range(3)]
    page = ada.open("/admin/jobs/job/")

    page.locator(f"#choose-{jobs[0].id}").check()
    page.locator(f"#choose-{jobs[1].id}").check()
    expect(page.locator("[data-chosen]")).to_contain_text("2")
    page.get_by_role("button", name="Cancel…").click()
    expect(page.get_by_role("heading", name="Cancel 2 jobs?")).to_be_visible()
    assert not Job.objects.filter(status="cancelled").exists()
    page.get_by_role("button", name="Cancel 2 jobs").click()

    expect(page.get_by_text("2 jobs cancelled.")).to_be_visible()
    assert sorted(Job.objects.filter(status="cancelled").values_list("id")) == sorted(
        (job.id,) for job in jobs[:2]
    )
    assert ada.faults == []


def test_files_are_read_in_place_as_what_they_are(ada: Visitor, shared_files: None) -> None:
    job = completed()
    for name, content, media_type in (
        (f"{HOSTILE}.csv", b"word,n\n<img src=x onerror='hacked=1'>,2\n", "text/csv"),
        ("notes.md", b"# Notes\n\nAll **good** <script>hacked=1</script>\n", "text/markdown"),
        ("stats.json", b'{"rows": [1, 2]}', "application/json"),
        ("page.html", b"<script>hacked=1</script>", "text/html"),
    ):
        make_artifact(job, name, content, media_type)
    page = ada.watch(job)

    previews = page.locator("details[data-preview]")
    expect(previews).to_have_count(3)  # HTML is a download alone
    for preview in previews.all():
        preview.locator("summary").click()

    expect(page.locator(".e-sheet td").first).to_have_text("<img src=x onerror='hacked=1'>")
    expect(page.locator(".e-document h1, .e-document h2, .e-document h3").first).to_have_text("Notes")
    expect(page.locator(".e-document strong")).to_have_text("good")
    expect(page.get_by_text('"rows": [').first).to_be_visible()
    assert page.evaluate("typeof hacked") == "undefined"
    assert ada.faults == []


def test_a_job_is_forked_from_a_checkpoint(ada: Visitor) -> None:
    job, worker = make_job(), make_worker()
    claimed = claim_one(worker)
    steps = [
        step_row(claimed, f"{name}#1", ended=True, result={"value": 1}, ordinal=number)
        for number, name in enumerate(("load", "score"), 1)
    ]
    write(worker, steps=steps, settlements=[settlement(claimed)])
    page = ada.watch(job)

    page.locator('a[href*="fork/?checkpoint"]').first.click()
    page.get_by_label("Go on after").select_option("load#1")
    page.locator(".e-page form button[type=submit]").click()

    expect(page.get_by_text("it goes on from the checkpoint you chose")).to_be_visible()
    assert list(Job.objects.get(retried_from=job).steps.values_list("key", flat=True)) == ["load#1"]


def test_versions_of_an_agent_are_compared(ada: Visitor) -> None:
    for text in ("one", "two"):
        source = {"agent.py": f"def main(task, inputs):\n    return {text!r}\n"}
        version = agents.register(staff(), make_card(source=source))

    page = ada.open(f"/admin/agents/agent/{version.agent_id}/diff/?older=1&newer=2")

    expect(page.locator("#content")).to_contain_text("return 'one'")
    expect(page.locator("#content")).to_contain_text("return 'two'")


# --- every page ---


def furnished() -> list[str]:
    """Rows of each kind, and every page that shows them."""
    key = make_key().key
    make_worker()
    make_version()
    agent = make_agent(HOSTILE)
    jobs = completed(None, "x" * 500, result={"text": "y" * 500}), asking()
    return [
        *PAGES,
        *(f"/admin/jobs/job/{job.id}/" for job in jobs),
        "/admin/jobs/question/?answered",
        "/admin/agents/agent/discover/?task=draw",
        *(f"/admin/agents/agent/{agent.id}/{page}" for page in ("", "edit/", "diff/")),
        *(f"/admin/apikeys/apikey/{key.id}/{page}/" for page in ("change", "revoke")),
        f"/admin/apikeys/project/{key.project_id}/change/",
        "/admin/auth/user/add/",
        f"/admin/auth/group/{Group.objects.order_by('id')[0].id}/change/",
    ]


def barriers(page: Page, *rules: str) -> list[str]:
    """What axe-core finds serious or worse: by all its rules, or by these."""
    page.evaluate(AXE_SCRIPT)
    options = {"resultTypes": ["violations"]} | ({"runOnly": list(rules)} if rules else {})
    found = page.evaluate("options => axe.run(options)", options)["violations"]
    return [
        f"{fault['id']}: {node['html'][:200]}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]


def test_no_page_breaks_its_policy_scrolls_sideways_or_shuts_anybody_out(visitors: Any) -> None:
    visitor = visitors("ada", color_scheme="dark", viewport={"width": 360, "height": 780})

    for address in furnished():
        visitor.open(address)
        visitor.page.wait_for_load_state("networkidle")
        assert visitor.faults == [], address
        assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 360, address
        assert barriers(visitor.page) == [], address
        assert visitor.page.evaluate("typeof hacked") == "undefined"


# Notes what within `place` gets the focus, and whether one sees that it has it; gives how many controls it has.
WATCH_FOCUS = """(place) => {
    const isReachable = (element) =>
        element.tabIndex >= 0 && !element.disabled && element.type !== "hidden" &&
        element.checkVisibility({ visibilityProperty: true }) && !element.closest("[inert], .ace_editor");
    const look = (element) => {
        const style = getComputedStyle(element);
        return [style.boxShadow, style.borderColor, style.backgroundColor, style.outlineStyle === "none"].join();
    };
    const groups = new Set();
    const all = "a[href], button, input, select, textarea, summary, [tabindex]";
    const controls = [...document.querySelector(place).querySelectorAll(all)].filter(isReachable).filter(
        ({ type, name }) => type !== "radio" || (!groups.has(name) && groups.add(name))  // arrows do the rest
    );
    const before = new Map(controls.map((element) => [element, look(element)]));
    const name = (element) => element.outerHTML.slice(0, 120);
    const reached = new Set();
    window.unseen = [];
    document.addEventListener("focusin", ({ target }) => {
        reached.add(target.type === "radio" ? target.name : target);
        if (before.has(target) && look(target) === before.get(target)) window.unseen.push(name(target));
    });
    window.missed = () => controls
        .filter((element) => element.isConnected && isReachable(element))
        .filter((element) => !reached.has(element) && !reached.has(element.name || "-"))
        .map(name);
    return controls.length;
}"""


def test_every_control_of_every_page_is_reached_by_tab_and_seen(visitors: Any) -> None:
    visitor = visitors("ada", viewport={"width": 1440, "height": 900})
    page = visitor.page
    faults = {}

    for address in furnished():
        place = "body" if address == "/admin/" else "#content"  # the navigation once
        visitor.open(address)
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        # What a refresh puts in anew would have to be reached again.
        page.evaluate(
            "document.querySelectorAll('[data-live]').forEach((one) => { one.engineLive.every = 0; })"
        )
        page.evaluate("document.body.tabIndex = -1; document.body.focus()")
        controls = page.evaluate(WATCH_FOCUS, place)
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        if place == "#content":
            page.keyboard.press("Enter")
        for _ in range(controls + 3):  # the editor is a stop of its own
            page.keyboard.press("Tab")
        found = page.evaluate("({ missed: window.missed(), unseen: window.unseen })")
        if found["missed"] or found["unseen"]:
            faults[address] = found
    assert faults == {}


def test_by_day_on_a_desk_everything_can_be_read_too(visitors: Any) -> None:
    visitor = visitors("ada", color_scheme="light")
    addresses = [address for address in furnished() if address not in PAGES or address == "/admin/"]

    for address in addresses:
        visitor.open(address)
        assert barriers(visitor.page, "color-contrast") == [], address


def test_the_editor_shows_a_fault_at_its_line_and_lets_the_keyboard_out(ada: Visitor) -> None:
    make_project("acme")
    page = ada.open("/admin/agents/agent/new/")
    page.get_by_label("Name", exact=True).fill("Echo")
    page.get_by_label("Description").fill("Says it again")
    code = page.get_by_role("textbox", name="Text of agent.py")

    code.focus()
    page.keyboard.press("Control+A")
    page.keyboard.insert_text("import os\n\ndef main(:\n")
    expect(page.locator("[data-faults]")).to_contain_text("agent.py: Line 3")
    expect(page.locator(".ace_error")).to_have_text("3")
    expect(page.locator("[data-check-status]")).to_have_text("Not valid yet")

    page.keyboard.press("Control+A")
    page.keyboard.insert_text("def main(task, inputs):\n    return {'said': task}\n")
    expect(page.locator("[data-check-status]")).to_have_text("Valid")
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('.e-ace')") is None
    page.get_by_role("button", name="Register").click()

    expect(page.get_by_role("heading", name="Try it")).to_be_visible()
    page.get_by_role("textbox", name="Task", exact=True).fill("Say it")
    page.get_by_role("button", name="Run it").click()
    expect(page.locator("[data-trial]")).to_contain_text("echo@1")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("[data-trial]")).to_contain_text("cancelled")
    assert Job.objects.get().cancel_requested_by == "user:ada"
    assert ada.faults == []


def test_an_answer_link_is_answered_without_an_account(visitors: Any, server: Instance) -> None:
    job = asking(None, {"prompt": HOSTILE, "kind": "choice", "choices": ["a", HOSTILE], "schema": {}})
    expires_at = timezone.now() + timedelta(hours=1)
    link = links.token(links.AnswerLink(sole_question(job).id, "ann@example.org", expires_at))
    visitor = visitors("ada", viewport={"width": 360, "height": 780})
    visitor.context.clear_cookies()

    page = visitor.open(f"/answer/{link}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.get_by_label("a", exact=True).check()
    page.get_by_role("button", name="Answer").click()
    expect(page.get_by_role("heading", name="Thank you, your answer is stored")).to_be_visible()
    visitor.open(f"/answer/{link}")
    expect(page.get_by_role("heading", name="The question has been answered already")).to_be_visible()

    assert page.evaluate("typeof hacked") == "undefined"
    assert [fault for fault in visitor.faults if "409" not in fault] == []
    assert job.questions.get().answered_by == "link:ann@example.org"


def test_the_navigation_is_reached_by_keyboard(visitors: Any) -> None:
    visitor = visitors("ada", viewport={"width": 360, "height": 780})
    page = visitor.open("/admin/")
    expect(page.get_by_role("link", name="Audit")).not_to_be_visible()

    page.get_by_role("button", name="Show or hide the navigation").locator("visible=true").first.focus()
    page.keyboard.press("Enter")

    expect(page.get_by_role("link", name="Audit")).to_be_visible()


def test_the_overview_refreshes_without_a_reload(ada: Visitor) -> None:
    make_job()
    page = ada.open("/admin/")
    expect(page.locator("[data-figure=queued]")).to_have_text("1")

    make_job()

    expect(page.locator("[data-figure=queued]")).to_have_text("2")
    assert ada.faults == []


def test_the_inbox_shows_a_new_question_by_itself(ada: Visitor) -> None:
    page = ada.open("/admin/jobs/question/")
    expect(page.get_by_text("Nobody is waiting for you")).to_be_visible()

    job = asking()

    expect(page.locator(f"#question-{sole_question(job).id}")).to_be_visible(timeout=10_000)
