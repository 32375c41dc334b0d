"""Conversations for tests: a scripted model over HTTP, an interpreter in this process, a recorder in memory."""

import base64
import contextlib
import io
import traceback
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from jobs.execution.llm import breaker, client
from jobs.sandboxes.base import CodeError, CodeOutput, CodeResult, SandboxFileError, SandboxSpec
from tests.execution_harness import MakeStory, MemoryPlatform, PipeProvider, PipeSandbox, Story
from tests.model_server import KEY, ModelServer

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)


class NotebookSandbox(PipeSandbox):
    """Runs code in this process, in a folder of its own. `show_figure()` stands for matplotlib."""

    def __init__(self, folder: Path, spec: SandboxSpec) -> None:
        super().__init__(folder, spec, "none")
        self.outputs_shown: list[CodeOutput] = []
        self.names: dict[str, Any] = {"show_figure": self._show}

    def _show(self) -> None:
        self.outputs_shown.append(CodeOutput({"image/png": base64.b64encode(PIXEL).decode()}))

    async def run_code(self, code: str, *, timeout_seconds: float) -> CodeResult:
        printed, error = io.StringIO(), None
        self.outputs_shown = []
        with contextlib.redirect_stdout(printed), contextlib.chdir(self.folder / "workspace"):
            try:
                exec(code, self.names)
            except Exception as raised:  # whatever the code raises is its result
                error = CodeError(type(raised).__name__, str(raised), traceback.format_exc(limit=1))
        return CodeResult(printed.getvalue(), "", tuple(self.outputs_shown), error)

    def read_file(self, path: str, *, most_bytes: int) -> AsyncIterator[bytes]:
        if not path.startswith(("workspace/", "outputs/")) or ".." in path:
            raise SandboxFileError(f"{path} is no file")
        return super().read_file(path, most_bytes=most_bytes)


class NotebookProvider(PipeProvider):
    """Opens notebooks; `name` is that of the provider that they stand for."""

    async def open(self, spec: SandboxSpec) -> PipeSandbox:
        if self.opening is not None:
            await self.opening(spec)
        sandbox = NotebookSandbox(self.folder / f"sandbox-{len(self.opened)}", spec)
        self.opened.append(sandbox)
        return sandbox


@dataclass
class Talk:
    """A story of a conversation."""

    story: Story
    server: ModelServer

    @property
    def prompts(self) -> list[list[dict[str, Any]]]:
        """The messages of each request."""
        return [request["messages"] for request in self.server.requests]

    def results(self) -> list[str]:
        """What the tools answered, as the last request had it."""
        return [message["content"] for message in self.prompts[-1] if message["role"] == "tool"]


ALL_TOOLS = (
    "run_python",
    "list_files",
    "read_file",
    "ask_human",
    "save_artifact",
    "find_agents",
    "run_agent",
)


@dataclass
class MakeTalk:
    """Makes conversations; the script is what the model says."""

    make_story: MakeStory
    settings: Any
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __call__(
        self,
        *script: Any,
        tools: tuple[str, ...] = ALL_TOOLS,
        policy: dict[str, Any] | None = None,
        platform: MemoryPlatform | None = None,
        knows_stream_options: bool = True,
        **job: Any,
    ) -> Talk:
        server = self.stack.enter_context(ModelServer(*script, knows_stream_options=knows_stream_options))
        self.settings.OPENAI_BASE_URL = server.url
        self.settings.OPENAI_API_KEY = KEY
        story = Story(
            NotebookProvider(self.make_story.folder / f"notebooks-{id(server)}"),
            "",
            kind="llm",
            agent={
                "instructions": "You help.",
                "tools": tools,
                "settings": policy or {},
                "model": "scripted",
            },
            platform=platform or MemoryPlatform(),
            **job,
        )
        return Talk(story, server)


@pytest.fixture
def make_talk(tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeTalk]:
    """Conversations with quick retries; what one test teaches about a server is forgotten after it."""
    monkeypatch.setattr(client, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(breaker, "OPEN_SECONDS", 0.2)
    making = MakeTalk(MakeStory(tmp_path, settings), settings)
    with making.stack:
        yield making
    for talks in (breaker.breakers, client._dialects):
        talks.clear()
