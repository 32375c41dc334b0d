"""The protocol's own client, in both eras, and ours beside it, over a web process that is really served."""

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from django.db import connections
from mcp import MCPError

from jobs.models import Job, Question
from tests.dashboard import make_artifact
from tests.factories import KeyInHand, make_key
from tests.jobs import question
from tests.mcp import InProcess, RawClient, official
from tests.processes import Instance, eventually
from tests.streams import PATIENCE, Talker, environment

pytestmark = pytest.mark.django_db(transaction=True)

TOOLS = [
    "answer_question",
    "cancel_job",
    "create_job",
    "discover_agents",
    "get_artifact",
    "get_job",
    "get_logs",
    "list_questions",
    "register_agent",
    "wait_for_job",
]


@pytest.fixture(scope="module")
def server(
    django_db_setup: None, django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Instance]:
    """One web process for all tests here; each has rows of its own."""
    with django_db_blocker.unblock():
        instance = Instance(tmp_path_factory.mktemp("mcp"), {**environment(), "ENGINE_WEB_THREADS": "2"})
    instance.serve()
    yield instance
    instance.stop()


@pytest.fixture
def key() -> KeyInHand:
    return make_key()


@pytest.fixture
def talker(key: KeyInHand, settings: Any) -> Talker:
    settings.ENGINE_LEASE_SECONDS = 600  # nobody here sends heartbeats
    return Talker.start(key.project)


@pytest.fixture
def raw(server: Instance, key: KeyInHand) -> Iterator[RawClient]:
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as http:
        yield RawClient(http, key.secret)


def end(talker: Talker, result: Any = None) -> None:
    """Complete the job from a thread of its own, which closes the connection it opened."""
    talker.end(result)
    connections.close_all()


@pytest.mark.parametrize(("mode", "version"), [("legacy", "2025-11-25"), ("auto", "2026-07-28")])
def test_the_official_client_lists_and_calls_in_both_eras(
    server: Instance, key: KeyInHand, talker: Talker, mode: str, version: str
) -> None:
    talker.say(3)

    async def use() -> Any:
        async with official(server.url, key.secret, mode) as client:
            assert client.protocol_version == version
            listed = (await client.list_tools()).tools
            logs = await client.call_tool("get_logs", {"job_id": str(talker.job.id)})
            missing = await client.call_tool("get_job", {"job_id": str(talker.worker)})
            created = await client.call_tool(
                "create_job", {"task": "read it", "files": [{"name": "a.txt", "text": "hello"}]}
            )
            return listed, logs, missing, created

    listed, logs, missing, created = asyncio.run(use())

    assert [tool.name for tool in listed] == TOOLS
    for tool in listed:
        assert tool.output_schema
        assert tool.annotations
        assert len(tool.description) < 2048
    assert any("line 3" in line for line in logs.structured_content["lines"])
    assert missing.is_error
    assert missing.structured_content["code"] == "job_not_found"
    assert created.structured_content["status"] == "rejected"  # no agent is registered here


@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_a_wait_ends_with_the_job_and_tells_how_far_it_is(
    server: Instance, key: KeyInHand, talker: Talker, mode: str
) -> None:
    heard: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        if not heard:
            threading.Thread(target=end, args=(talker, {"rows": 3})).start()
        heard.append(progress)

    async def use() -> Any:
        async with official(server.url, key.secret, mode) as client:
            arguments = {"job_id": str(talker.job.id), "timeout_s": 60}
            return await client.call_tool("wait_for_job", arguments, progress_callback=on_progress)

    result = asyncio.run(use())

    assert result.structured_content["status"] == "completed"
    assert result.structured_content["result"] == {"rows": 3}
    assert heard
    assert heard == sorted(heard)


@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_prompts_and_resources_are_there_in_both_eras(
    server: Instance, key: KeyInHand, talker: Talker, mode: str
) -> None:
    talker.say(2)
    job = f"engine://jobs/{talker.job.id}"

    async def use() -> Any:
        async with official(server.url, key.secret, mode) as client:
            names = [prompt.name for prompt in (await client.list_prompts()).prompts]
            prompt = await client.get_prompt("delegate", {"task": "count the rows"})
            listed = [str(item.uri) for item in (await client.list_resources()).resources]
            templates = (await client.list_resource_templates()).resource_templates
            contents = [(await client.read_resource(uri)).contents[0] for uri in (job, f"{job}/logs")]
            with pytest.raises(MCPError, match="no such job"):
                await client.read_resource(f"engine://jobs/{talker.worker}")
            read = [item.model_dump()["text"] for item in contents]
            return names, prompt.messages[0].content.model_dump()["text"], listed, len(templates), read

    names, prompt, listed, templates, (document, log) = asyncio.run(use())

    assert names == ["delegate", "inbox", "write_agent"]
    assert "count the rows" in prompt
    assert job in listed
    assert templates == 3
    assert json.loads(document)["id"] == str(talker.job.id)
    assert "line 2" in log


def test_more_calls_wait_than_there_are_threads(server: Instance, key: KeyInHand, talker: Talker) -> None:
    async def use() -> list[Any]:
        async with official(server.url, key.secret, "auto") as client:
            arguments = {"job_id": str(talker.job.id), "timeout_s": 60}
            waits = [asyncio.create_task(client.call_tool("wait_for_job", arguments)) for _ in range(6)]
            looked = await client.call_tool("get_job", {"job_id": str(talker.job.id)})
            assert looked.structured_content["status"] == "running"
            assert not any(wait.done() for wait in waits)
            await asyncio.to_thread(end, talker)
            return list(await asyncio.gather(*waits))

    assert {result.structured_content["status"] for result in asyncio.run(use())} == {"completed"}


def test_a_wait_that_runs_out_says_to_call_again(raw: RawClient, talker: Talker) -> None:
    job = raw.call("wait_for_job", job_id=str(talker.job.id), timeout_s=0.2)

    assert job["status"] == "running"
    assert job["next"] == f'call wait_for_job with job_id="{talker.job.id}".'


def test_a_client_that_takes_no_stream_waits_all_the_same(raw: RawClient, talker: Talker) -> None:
    threading.Timer(0.3, end, [talker]).start()
    frame = {
        "jsonrpc": "2.0",
        "id": "w",
        "method": "tools/call",
        "params": {"name": "wait_for_job", "arguments": {"job_id": str(talker.job.id)}},
    }

    answer = raw.post(frame, Accept="application/json")

    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["id"] == "w"
    assert answer.json()["result"]["structuredContent"]["status"] == "completed"
    assert "x-engine-mcp-wait" not in answer.headers


def test_a_question_ends_the_wait_and_is_answered(raw: RawClient, talker: Talker) -> None:
    talker.ask(question(kind="choice", prompt="Which tone?", choices=["formal", "warm"]))

    job = raw.call("wait_for_job", job_id=str(talker.job.id))
    listed = raw.call("list_questions", job_id=str(talker.job.id))
    asked = job["questions"][0]["id"]
    wrong = raw.refused("answer_question", question_id=asked, answer={"no": "choice"})
    answered = raw.call("answer_question", question_id=asked, answer="warm")
    late = raw.refused("answer_question", question_id=asked, answer="formal")

    assert job["status"] == "waiting_for_input"
    assert asked in job["next"]
    assert [item["id"] for item in listed["items"]] == [asked]
    assert wrong["code"] in ("invalid_answer", "validation_failed")
    assert answered["status"] == "queued"
    assert late["code"] in ("question_already_answered", "job_not_waiting")
    stored = Question.objects.get(id=asked)
    assert (stored.answer, stored.answered_via) == ("warm", "mcp")
    assert stored.answered_by.startswith("key:")


def test_files_come_back_as_text_in_pages_and_as_images(key: KeyInHand, talker: Talker) -> None:
    raw = RawClient(InProcess(), key.secret)  # whose storage is ours
    job_id = str(talker.job.id)
    make_artifact(talker.job, "notes.txt", "größe\n".encode() * 100, "text/plain")
    make_artifact(talker.job, "chart.png", b"\x89PNG\r\n\x1a\n" + bytes(50), "image/png")

    page = raw.call("get_artifact", job_id=job_id, artifact="notes.txt", max_bytes=100)
    rest = raw.call("get_artifact", job_id=job_id, artifact=page["id"], offset=page["next_offset"])
    chart = raw.result(
        "tools/call", name="get_artifact", arguments={"job_id": job_id, "artifact": "chart.png"}
    )

    assert page["text"] + rest["text"] == "größe\n" * 100
    assert chart["content"][1]["type"] == "image"
    assert raw.refused("get_artifact", job_id=job_id, artifact="none")["code"] == "artifact_not_found"


def test_a_job_is_cancelled(raw: RawClient, talker: Talker) -> None:
    assert raw.call("cancel_job", job_id=str(talker.job.id))["cancel_requested_at"]
    done = raw.call("create_job", task="nobody can do this")

    assert raw.refused("cancel_job", job_id=done["id"])["code"] == "job_already_ended"


def test_a_key_sees_the_tools_it_may_use_and_no_others_work(server: Instance) -> None:
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as http:
        reader = RawClient(http, make_key("jobs:read").secret)
        runner = RawClient(http, make_key("agents:only-this:run").secret)

        seen = [tool["name"] for tool in reader.result("tools/list")["tools"]]
        assert seen == ["get_artifact", "get_job", "get_logs", "list_questions", "wait_for_job"]
        assert reader.refused("create_job", task="x")["missing_scope"] == "jobs:write"
        assert reader.refused("register_agent", name="x", description="y")["missing_scope"] == "agents:write"
        assert "create_job" in [tool["name"] for tool in runner.result("tools/list")["tools"]]
        assert runner.refused("create_job", task="x", agent="another")["code"] == "scope_missing"


def test_an_agent_is_registered_found_and_given_work(raw: RawClient) -> None:
    card = {
        "name": "Row counter",
        "description": "Counts the rows of a CSV file.",
        "examples": ["How many rows does this table have?"],
        "source": {"agent.py": "def main(task, inputs):\n    return {'rows': 3}\n"},
    }

    first, again = raw.call("register_agent", **card), raw.call("register_agent", **card)
    bad = raw.refused("register_agent", name="x", description="")
    job = raw.call("create_job", task="count", agent="row-counter", files=[{"name": "x", "base64": "AAAA"}])

    assert (first["slug"], first["version"], again["version"]) == ("row-counter", 1, 1)
    assert bad["errors"]
    assert job["status"] == "queued"
    assert Job.objects.get(id=job["id"]).input_files.get().size == 3


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("create_job", {}),
    ("create_job", {"task": ""}),
    ("create_job", {"task": "x", "no_such": 1}),
    ("create_job", {"task": "x", "priority": "extreme"}),
    ("create_job", {"task": "x", "files": [{"name": "a"}]}),
    ("create_job", {"task": "x", "files": [{"name": "a", "base64": "%%%"}]}),
    ("create_job", {"task": "x", "files": [{"name": "a", "text": "b", "base64": ""}]}),
    ("create_job", {"task": "x", "run_at": "yesterday"}),
    ("get_job", {"job_id": "not-an-id"}),
    ("get_job", {"job_id": None}),
    ("wait_for_job", {"job_id": "0" * 8 + "-0000-0000-0000-" + "0" * 12, "timeout_s": 1e9}),
    ("get_logs", {"job_id": "0" * 8 + "-0000-0000-0000-" + "0" * 12, "limit": 10**9}),
    ("answer_question", {"answer": "x"}),
    ("discover_agents", {"task": "x", "limit": -1}),
]


def test_wrong_arguments_are_told_with_a_pointer(raw: RawClient) -> None:
    for tool, arguments in WRONG:
        problem = raw.refused(tool, **arguments)
        assert problem["code"] in ("validation_failed", "invalid_input"), (arguments, problem)
        assert problem["errors"], (arguments, problem)


def test_a_file_with_a_hostile_name_is_stored_under_a_safe_one(raw: RawClient) -> None:
    files = [{"name": name, "text": "x"} for name in ("../../etc/passwd", "..", "a\nb", "/")]

    job = raw.call("create_job", task="x", files=files)

    assert json.dumps(job).count("passwd") == 0
    names = eventually(lambda: list(Job.objects.get(id=job["id"]).input_files.values_list("name", flat=True)))
    assert "passwd" in names
    assert not any("/" in name or ".." in name for name in names)
