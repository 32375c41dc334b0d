"""llm agents from outside: real web and worker processes, a real sandbox, a scripted model, and SIGKILL."""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.model_server import KEY, Item, ModelServer, Refused, Said, call, calls, say
from tests.processes import Instance, copy_home
from tests.sandboxes import needs_bubblewrap
from tests.test_end_to_end import LEASE, Client, Site, assert_history_is_sound, runtime

pytestmark = needs_bubblewrap

TOOLS = ["run_python", "list_files", "read_file", "ask_human", "save_artifact", "find_agents", "run_agent"]
ECHO = "def main(task, inputs):\n    return {'said': task}\n"
FIGURE = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\nx = 41"


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


@pytest.fixture(scope="module")
def running(
    migrated_home: Path, model: ModelServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("thinking") / "home"
    copy_home(migrated_home, home)
    instance = Instance(home, LEASE | runtime() | model.environment())
    instance.serve()
    client = Client(instance, instance.key())
    client.register("echo-agent", ECHO)
    register(client, "thinker")
    yield Site(instance, client)
    client.http.close()
    instance.stop()


@pytest.fixture
def site(running: Site, model: ModelServer) -> Iterator[Site]:
    before = len(running.instance.programs)
    model.script, model.requests, model.at, model.faults = [], [], [], []
    yield running
    for program in running.instance.programs[before:]:
        program.stop()
    assert not model.faults


def register(client: Client, slug: str, **card: Any) -> None:
    body = {
        "slug": slug,
        "name": slug,
        "description": f"The thinking test agent {slug}, called by its name.",
        "kind": "llm",
        "instructions": "You are a test.",
        "tools": TOOLS,
        **card,
    }
    reply = client.http.post("/api/v1/agents", json=body)
    assert reply.status_code in (200, 201), reply.text


def script(model: ModelServer, *items: Item) -> None:
    model.script = list(items)


def test_code_figures_files_and_an_answer(site: Site, model: ModelServer) -> None:
    client = site.client
    site.worker()
    script(
        model,
        calls(("run_python", {"code": FIGURE}), text="I draw."),
        calls(("run_python", {"code": "print(open('../inputs/a.csv').read(), x + 1)"})),
        call("ask_human", question="Shall I go on?", choices=["yes", "no"]),
        call("run_python", code="'x' in globals()"),
        say("It is done."),
    )

    reply = client.http.post(
        "/api/v1/jobs",
        data={"task": "Draw it", "agent": "thinker"},
        files={"files": ("a.csv", b"n\n1\n", "text/csv")},
    )
    assert reply.status_code == 201, reply.text
    waiting = client.until(reply.json()["id"], "waiting_for_input")
    assert [question["choices"] for question in waiting["questions"]] == [["yes", "no"]]
    client.http.post(f"/api/v1/jobs/{waiting['id']}/respond", json={"answer": "yes"})
    job = client.until(waiting["id"], "completed")

    assert job["result"] == "It is done."
    assert [(file["name"], file["media_type"]) for file in job["artifacts"]] == [
        ("figure-1.png", "image/png")
    ]
    results = [message["content"] for message in model.requests[-1]["messages"] if message["role"] == "tool"]
    assert "n\n1\n 42" in results[1]
    assert results[2] == "yes"
    assert results[3].endswith("False")
    said = [event["message"] for event in client.events(job["id"]) if event["source"] == "agent"]
    assert "I draw." in said
    assert_history_is_sound(client, job["id"])


def test_a_worker_killed_between_reply_and_result(site: Site, model: ModelServer) -> None:
    client = site.client
    first = site.worker()
    script(
        model,
        calls(
            ("save_artifact", {"name": "a.txt", "content": "a"}),
            ("run_python", {"code": "import time\ntime.sleep(60)"}),
        ),
        say("never minds"),
    )
    job_id = client.submit("thinker")
    until_event(client, job_id, "step.started", "model#1/run_python#2")

    first.kill(signal.SIGKILL)
    site.worker()
    waiting = client.until(job_id, "waiting_for_input")
    (question,) = waiting["questions"]
    assert question["details"] == {"step": "model#1/run_python#2"}
    answer = {"answer": question["choices"][0]}
    assert client.http.post(f"/api/v1/jobs/{job_id}/respond", json=answer).status_code == 200
    job = client.until(job_id, "completed")

    assert len(model.requests) == 2, "the durable reply is not asked for again"
    assert [attempt["outcome"] for attempt in job["attempts"]] == ["lost", "suspended", "completed"]
    created = [event["message"] for event in client.events(job_id) if event["type"] == "artifact.created"]
    assert created == ["a.txt"]
    assert_history_is_sound(client, job_id)


def until_event(client: Client, job_id: str, type: str, key: str) -> None:
    from tests.processes import eventually

    def there() -> bool:
        return any(
            event["type"] == type and (event["data"] or {}).get("key") == key
            for event in client.events(job_id)
        )

    eventually(there, seconds=60, what=f"{type} {key}")


def test_a_worker_killed_while_the_model_speaks(site: Site, model: ModelServer) -> None:
    client = site.client
    first = site.worker()
    script(model, call("list_files"), Said("word " * 400, pause=0.05), say("Again, and whole."))
    job_id = client.submit("thinker")
    until_event(client, job_id, "step.completed", "model#1/list_files#1")
    until_requests(model, 2)

    first.kill(signal.SIGKILL)
    site.worker()
    job = client.until(job_id, "completed")

    assert job["result"] == "Again, and whole."
    assert len(model.requests) == 3
    assert_history_is_sound(client, job_id)


def until_requests(model: ModelServer, number: int) -> None:
    from tests.processes import eventually

    eventually(lambda: len(model.requests) >= number, what=f"{number} requests to the model")


def test_a_child_job_wakes_its_parent_which_holds_no_slot(site: Site, model: ModelServer) -> None:
    client = site.client
    site.worker("--concurrency", "1")
    script(
        model,
        call("run_agent", agent="echo-agent", task="say hello"),
        say("It said hello."),
    )
    job_id = client.submit("thinker")
    job = client.until(job_id, "completed")

    result = json.loads(model.requests[-1]["messages"][-1]["content"])
    assert (result["status"], result["result"]) == ("completed", {"said": "say hello"})
    child = client.job(result["job_id"])
    assert child["parent_id"] == job_id
    assert [attempt["outcome"] for attempt in job["attempts"]] == ["suspended", "completed"]
    for one in (job_id, child["id"]):
        assert_history_is_sound(client, one)


def test_cancelling_the_parent_cancels_its_children(site: Site, model: ModelServer) -> None:
    client = site.client
    client.register("sleeper", "import time\ndef main(task, inputs):\n    time.sleep(120)\n")
    site.worker()
    script(
        model,
        calls(
            ("run_agent", {"agent": "sleeper", "task": "a"}), ("run_agent", {"agent": "sleeper", "task": "b"})
        ),
    )
    job_id = client.submit("thinker")
    client.until(job_id, "waiting_for_input")
    children = [
        event["data"]["job_id"] for event in client.events(job_id) if event["type"] == "job.child_started"
    ]
    assert len(children) == 2
    client.until(children[0], "running")

    assert client.http.delete(f"/api/v1/jobs/{job_id}").status_code == 200

    for child in children:
        assert client.until(child, "cancelled", seconds=20)["status"] == "cancelled"
        assert_history_is_sound(client, child)


def test_a_budget_in_tokens_asks_and_is_extended(site: Site, model: ModelServer) -> None:
    client = site.client
    site.worker()
    script(model, call("list_files"), say("done"))
    job_id = client.submit("thinker", budget={"tokens": 150})
    waiting = client.until(job_id, "waiting_for_input")
    (question,) = waiting["questions"]
    assert (question["kind"], question["details"]["arguments"]) == ("approval", {"tokens": 300})
    too_little = {"answer": {"decision": "edit", "arguments": {"tokens": 100}}}
    assert client.http.post(f"/api/v1/jobs/{job_id}/respond", json=too_little).status_code == 422

    client.http.post(f"/api/v1/jobs/{job_id}/respond", json={"answer": {"decision": "approve"}})
    job = client.until(job_id, "completed")

    assert job["usage"]["input_tokens"] == 200
    assert job["usage"]["output_tokens"] == 40


def test_the_key_is_nowhere_but_in_the_request(site: Site, model: ModelServer) -> None:
    client = site.client
    site.worker()
    look = "import os, pathlib\nprint(dict(os.environ))\nfor p in pathlib.Path('/proc').glob('*/environ'):\n"
    look += "    try: print(p.read_bytes())\n    except OSError: pass"
    script(model, call("run_python", code=look), Refused(500, KEY), say(f"The key is {KEY}", piece=100))
    job_id = client.submit("thinker")
    job = client.until(job_id, "completed")

    assert KEY not in json.dumps(model.requests)
    assert KEY not in json.dumps(job)
    assert KEY not in json.dumps(client.events(job_id))
    assert not any(KEY in program.output() for program in site.instance.programs)
    files = subprocess.run(
        ["grep", "-rl", "--binary-files=text", KEY, str(site.instance.home)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert files.stdout == ""
