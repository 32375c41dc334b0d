"""Files that agents hand back, and the storage they end in."""

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.files.storage import InMemoryStorage, storages

from jobs import storage
from jobs.execution import outputs
from jobs.execution.attempt import _trouble
from jobs.execution.outcomes import HandedBack
from jobs.execution.ports import AttemptControl, InputFile
from jobs.storage import StorageFailed
from tests.execution_harness import ENDED, MakeStory, failure_of, result_of

RESULT = {"t": "result", "result": None}


@pytest.fixture
def make_story(tmp_path: Path, settings: Any) -> MakeStory:
    return MakeStory(tmp_path, settings)


def stored_files(settings: Any) -> list[Path]:
    return [path for path in (settings.ENGINE_HOME / "artifacts").rglob("*") if path.is_file()]


def test_what_lies_in_the_outputs_becomes_artifacts(make_story: MakeStory) -> None:
    source = """
    from pathlib import Path
    from engine_agent import *

    def main(task, inputs):
        (outputs_dir / "sub").mkdir()
        (outputs_dir / "sub" / "data.csv").write_text("a,b\\n1,2\\n")
        (outputs_dir / "__pycache__").mkdir()
        (outputs_dir / "__pycache__" / "x.pyc").write_text("x")
        Path("report.md").write_text("# Report")
        assert artifact("report.md") == "report.md"
        assert artifact(outputs_dir / "sub" / "data.csv") == "sub/data.csv"
        assert artifact(b"\\x89PNG\\r\\n\\x1a\\n...", "charts/chart.png") == "charts/chart.png"
        return 1
    """
    story = make_story(source)

    result_of(story.attempt())

    kinds = {name: artifact.media_type for name, artifact in story.durable.artifacts.items()}
    assert kinds == {
        "sub/data.csv": "text/csv",
        "report.md": "text/markdown",
        "charts/chart.png": "image/png",
    }
    csv = story.durable.artifacts["sub/data.csv"]
    with storages["artifacts"].open(csv.storage_key) as file:
        content = file.read()
    assert content == b"a,b\n1,2\n"
    assert (csv.size, csv.sha256) == (8, hashlib.sha256(content).hexdigest())
    assert story.types().count("artifact.created") == 3  # announced, then collected: once each


@pytest.mark.parametrize("thread", ["", "threading.Thread(target=late).start()"])
def test_files_that_an_agent_left_open_are_whole(make_story: MakeStory, thread: str) -> None:
    source = f"""
    import atexit, ctypes, threading, time
    import helper
    from engine_agent import *

    kept = open(outputs_dir / "global.txt", "w")
    atexit.register(lambda: (outputs_dir / "atexit.txt").write_text("at exit"))

    def late():
        threading.main_thread().join(0.1)
        kept.write(" and late")

    def main(task, inputs):
        open(outputs_dir / "local.txt", "w").write("local")
        kept.write("global")
        helper.kept.write("helper")
        ctypes.CDLL(None).puts(b"from C")
        {thread or "pass"}
    """
    helper = "from engine_agent import outputs_dir\nkept = open(outputs_dir / 'helper.txt', 'w')\n"
    story = make_story(source, more_source={"helper.py": helper})

    result_of(story.attempt())

    content = {}
    for name, artifact in story.durable.artifacts.items():
        with storages["artifacts"].open(artifact.storage_key) as file:
            content[name] = file.read().decode()
    late = " and late" if thread else ""
    assert content == {
        "global.txt": f"global{late}",
        "helper.txt": "helper",
        "local.txt": "local",
        "atexit.txt": "at exit",
    }
    assert "from C" in story.lines("stdout")


def test_an_announced_artifact_is_there_while_the_agent_still_runs(make_story: MakeStory) -> None:
    source = """
    from engine_agent import *

    def main(task, inputs):
        artifact(b"early", "early.txt")
        raise ValueError("then it broke")
    """
    story = make_story(source)

    failure_of(story.attempt())

    assert list(story.durable.artifacts) == ["early.txt"]


def test_the_same_name_again_holds_the_latest_content(make_story: MakeStory) -> None:
    source = """
    from engine_agent import *

    def main(task, inputs):
        artifact(b"first", "a.txt")
        artifact(b"first", "a.txt")
        artifact(b"second", "a.txt")
    """
    story = make_story(source)

    result_of(story.attempt())

    assert story.durable.artifacts["a.txt"].size == 6
    assert story.types().count("artifact.created") == 2


@pytest.mark.parametrize(
    "call",
    [
        'artifact(b"x", "../x")',
        'artifact(b"x", "/etc/x")',
        'artifact(b"x", "a\\nb")',
        'artifact(b"x")',
        'artifact("absent")',
    ],
)
def test_an_artifact_that_cannot_be_is_an_error_on_the_agents_own_line(
    make_story: MakeStory, call: str
) -> None:
    failed = failure_of(
        make_story(f"from engine_agent import *\ndef main(task, inputs):\n    {call}\n").attempt()
    )

    assert call in failed.data["traceback"]


@pytest.mark.parametrize("name", ["a/../b", "a\x07b", "back\\slash", "x" * 300, "..", " "])
def test_a_hostile_name_is_left_out_with_a_line_in_the_log(make_story: MakeStory, name: str) -> None:
    files = {f"outputs/{name}": b"x", "outputs/good.txt": b"x"}
    story, _ = make_story.scripted(RESULT, ENDED, files=files)

    result_of(story.attempt())

    assert list(story.durable.artifacts) == ["good.txt"]
    assert "not handed back" in story.lines()[0]
    assert "\x07" not in story.lines()[0]


def test_an_announced_file_with_a_hostile_name_is_refused(make_story: MakeStory) -> None:
    announced = {"t": "artifact", "n": 1, "path": "outputs/ "}
    story, sandbox = make_story.scripted(
        announced, {"t": "result", "result": None}, ENDED, files={"outputs/ ": b"x"}
    )

    story.attempt()

    assert sandbox.sent[0]["code"] == "artifact_limit"
    assert story.durable.artifacts == {}


def test_names_are_normalised(make_story: MakeStory) -> None:
    story, _ = make_story.scripted(RESULT, ENDED, files={"outputs/re\u0301sume\u0301.txt": b"x"})

    story.attempt()

    assert list(story.durable.artifacts) == ["r\u00e9sum\u00e9.txt"]


def test_links_are_not_followed(make_story: MakeStory, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    source = f"""
    import os
    from engine_agent import *

    def main(task, inputs):
        os.symlink({str(secret)!r}, outputs_dir / "link")
        step("a", os.symlink, {str(secret)!r}, "link")
    """
    story = make_story(source)

    story.attempt()

    assert story.durable.artifacts == {}
    assert story.durable.steps["a#1"].files == ()


def test_too_many_outputs_fail_the_job(make_story: MakeStory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "MOST_ARTIFACTS", 3)
    story, _ = make_story.scripted(RESULT, ENDED, files={f"outputs/{n}": b"x" for n in range(4)})

    failed = failure_of(story.attempt())

    assert failed.code == "artifact_limit"
    assert not failed.retryable


def test_outputs_over_the_size_fail_the_job_and_leave_nothing_half_stored(
    make_story: MakeStory, settings: Any
) -> None:
    files = {"outputs/a": b"x" * 600_000, "outputs/b": b"y" * 600_000}
    story, _ = make_story.scripted(RESULT, ENDED, files=files, limits={"disk_mb": 1})

    failed = failure_of(story.attempt())

    assert failed.code == "artifact_limit"
    assert len(stored_files(settings)) == 1
    assert list((settings.ENGINE_HOME / "spool").iterdir()) == []


def test_storage_that_fails_hands_the_job_back(
    make_story: MakeStory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **named: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jobs.execution.attempt.PAUSE_SECONDS", (0.0, 0.01))
    monkeypatch.setattr("django.core.files.storage.FileSystemStorage.save", full)
    story, _ = make_story.scripted(RESULT, ENDED, files={"outputs/a": b"x"})

    assert isinstance(story.attempt(), HandedBack)


@pytest.mark.parametrize(("attempt", "times"), [(1, 1), (3, 3), (100, 8)])
def test_the_longer_the_storage_is_away_the_seldomer_a_job_looks_for_it(
    make_story: MakeStory, monkeypatch: pytest.MonkeyPatch, attempt: int, times: int
) -> None:
    waited: list[float | None] = []

    async def first(*happenings: asyncio.Event, seconds: float | None = None) -> None:
        waited.append(seconds)

    monkeypatch.setattr("jobs.execution.attempt.PAUSE_SECONDS", (2.0, 2.0))
    monkeypatch.setattr("jobs.execution.attempt.first", first)
    recorder: Any = SimpleNamespace(event=lambda *_, **__: None)

    async def handed_back() -> bool:
        outcome = await _trouble(StorageFailed("away"), recorder, AttemptControl(), attempt=attempt)
        return isinstance(outcome, HandedBack)

    assert asyncio.run(handed_back())
    assert waited == [2.0 * times]


def test_input_files_reach_the_agent(make_story: MakeStory) -> None:
    source = """
    from engine_agent import inputs_dir

    def main(task, inputs):
        return [task, inputs, (inputs_dir / "reviews.csv").read_text()]
    """
    story = make_story(source, task="Analyze", input={"a": 1})
    blob = storage.store_blocks([b"text\n", b"good"], folder="p/j", most_bytes=100)
    story.files = (InputFile("reviews.csv", blob.key, blob.size, blob.sha256, "text/csv"),)

    assert result_of(story.attempt()) == ["Analyze", {"a": 1}, "text\ngood"]


def test_an_input_file_that_is_gone_fails_the_job_for_good(make_story: MakeStory) -> None:
    story = make_story("def main(task, inputs): pass")
    story.files = (InputFile("reviews.csv", "p/j/absent", 1, "0" * 64, "text/csv"),)

    failed = failure_of(story.attempt())

    assert failed.code == "file_missing"
    assert not failed.retryable


# --- storage ---


async def blocks(*data: bytes) -> AsyncIterator[bytes]:
    for block in data:
        yield block


def test_a_stream_is_stored_with_its_size_and_hash(make_story: MakeStory, settings: Any) -> None:
    data = bytes(range(256)) * 20_000
    pieces = [data[start : start + 70_000] for start in range(0, len(data), 70_000)]

    blob = asyncio.run(storage.store(blocks(*pieces), folder="project/job", most_bytes=len(data)))

    assert blob.key == f"project/job/{hashlib.sha256(data).hexdigest()}"
    assert (blob.size, blob.head) == (len(data), data[:4096])
    with storage.local_file(blob.key) as path:
        assert path.read_bytes() == data
    assert list((settings.ENGINE_HOME / "spool").iterdir()) == []


def test_a_stream_over_the_cap_leaves_nothing(make_story: MakeStory, settings: Any) -> None:
    with pytest.raises(storage.TooLarge):
        asyncio.run(storage.store(blocks(b"x" * 50, b"y" * 51), folder="project/job", most_bytes=100))

    assert list((settings.ENGINE_HOME / "spool").iterdir()) == []
    assert stored_files(settings) == []


def test_a_stream_that_breaks_leaves_nothing(make_story: MakeStory, settings: Any) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        asyncio.run(storage.store(broken(), folder="project/job", most_bytes=100))

    assert list((settings.ENGINE_HOME / "spool").iterdir()) == []
    assert stored_files(settings) == []


def test_equal_content_stored_at_once_by_several_is_one_whole_file(
    make_story: MakeStory, settings: Any
) -> None:
    data = [b"x" * 100_000] * 10
    keys: list[str] = []
    threads = [
        threading.Thread(
            target=lambda: keys.append(storage.store_blocks(data, folder="p/j", most_bytes=2**20).key)
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(keys) == 8
    for key in keys:
        with storage.local_file(key) as path:
            assert path.read_bytes() == b"".join(data)


def test_a_storage_that_is_no_folder_works_too(
    make_story: MakeStory, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = InMemoryStorage()
    monkeypatch.setattr(storage, "storage", lambda: remote)

    blob = storage.store_blocks([b"far away"], folder="p/j", most_bytes=100)

    with storage.local_file(blob.key) as path:
        assert path.read_bytes() == b"far away"
    assert not path.exists()
    storage.delete([blob.key, "p/j/absent"])
    with pytest.raises(storage.BlobMissing), storage.local_file(blob.key):
        pass


PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("name", "head", "kind"),
    [
        ("a.png", PNG, "image/png"),
        ("a.txt", PNG, "image/png"),
        ("a.png", b"<script>alert(1)</script>", "text/plain"),
        ("a.png", b"\x00\x01", "application/octet-stream"),
        ("a.csv", b"a,b\n", "text/csv"),
        ("a.CSV", b"a,b\n", "text/csv"),
        ("a.csv", b"PK\x03\x04", "application/zip"),
        ("a.xlsx", b"PK\x03\x04", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
        ("a.xlsx", b"text", "text/plain"),
        ("a.pdf", b"%PDF-1.7", "application/pdf"),
        ("a.pdf", b"text", "text/plain"),
        ("a.webp", b"RIFF\x00\x00\x00\x00WEBPVP8 ", "image/webp"),
        ("a.svg", b"<svg>", "image/svg+xml"),
        ("a", b"plain", "text/plain"),
        ("a.json", b"\xff\xfe", "application/octet-stream"),
        ("a.md", ("é" * 2048).encode()[:4096], "text/markdown"),
        ("a.md", b"x" + ("é" * 2048).encode()[:4095], "text/markdown"),
        ("empty.csv", b"", "text/csv"),
    ],
)
def test_the_media_type_is_told_by_the_content(name: str, head: bytes, kind: str) -> None:
    assert storage.media_type(name, head) == kind


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("a.txt", "a.txt"),
        ("sub/a.txt", "sub/a.txt"),
        ("with space.txt", "with space.txt"),
        ("/a", None),
        ("a/", None),
        ("a//b", None),
        ("../a", None),
        ("a/./b", None),
        ("...", None),
        ("a\\b", None),
        ("a\tb", None),
        ("a\u202eb", None),
        ("", None),
        (None, None),
        (3, None),
    ],
)
def test_names_that_could_mislead_are_no_names(name: Any, cleaned: str | None) -> None:
    assert storage.clean_name(name) == cleaned


def test_uploads_are_stored_by_their_chunks(make_story: MakeStory) -> None:
    upload = BytesIO(b"x" * 200_000)

    blob = storage.store_blocks(iter(lambda: upload.read(65536), b""), folder="p/j", most_bytes=2**20)

    assert blob.size == 200_000
