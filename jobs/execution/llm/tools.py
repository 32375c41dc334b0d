"""The tools that a model may be given: what they take, how risky a call is, and whether it changes anything."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.execution.ports import AgentSpec
from jobs.schemas import faults
from jobs.texts import clean

LONGEST_CODE_SECONDS = 3600
DEFAULT_CODE_SECONDS = 300
READ_CHARACTERS = 20_000  # of a file at once, and at most of any result that the model gets


@dataclass(frozen=True)
class Tool:
    """One tool as the model sees it."""

    name: str
    description: str
    parameters: dict[str, Any]  # JSON Schema of an object
    # Whether nobody may assume that a call which was cut off has not happened.
    has_side_effects: bool = False

    def as_json(self) -> dict[str, Any]:
        """As Chat Completions takes it."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


def _object(required: Sequence[str] = (), **properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _text(description: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "description": description, **more}


_KINDS = ["text", "choice", "multi_choice", "confirm"]

TOOLS = {
    tool.name: tool
    for tool in (
        Tool(
            "run_python",
            "Run Python in a sandbox without network. Variables stay between calls. The current folder is the"
            " workspace; the input files lie in ../inputs; files written to ../outputs are handed back to the user."
            " numpy, pandas and matplotlib are there. You get what is printed and the value of the last expression;"
            " figures are handed back to the user as PNG files.",
            _object(
                ["code"],
                code=_text("The code."),
                timeout_seconds={"type": "integer", "minimum": 1, "maximum": LONGEST_CODE_SECONDS},
            ),
            has_side_effects=True,
        ),
        Tool("list_files", "List the input files of the task with their types and sizes.", _object()),
        Tool(
            "read_file",
            f"Read an input file as text, up to {READ_CHARACTERS:,} characters at once.",
            _object(
                ["name"],
                name=_text("The file's name as listed."),
                offset={"type": "integer", "minimum": 0, "description": "Character to begin at."},
            ),
        ),
        Tool(
            "ask_human",
            "Ask the user, and wait for the answer, which may take long. Only for what you cannot find out yourself.",
            _object(
                ["question"],
                question=_text("The question, in Markdown.", minLength=1, maxLength=20_000),
                kind={"enum": _KINDS, "description": "text, unless choices are given."},
                choices={"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 200},
            ),
        ),
        Tool(
            "save_artifact",
            "Hand a file back to the user: either text as `content`, or a file of the sandbox by its `path`.",
            _object(
                ["name"],
                name=_text("The name for the user, such as report.md.", minLength=1, maxLength=400),
                content=_text("The file's text."),
                path=_text("A file that run_python wrote, such as workspace/table.csv."),
            ),
        ),
        Tool(
            "find_agents",
            "Find other agents that can do a part of the work, by meaning.",
            _object(["task"], task=_text("What should be done.", minLength=1, maxLength=8_000)),
        ),
        Tool(
            "run_agent",
            "Let another agent do a part of the work as a job of its own, and wait for its result.",
            _object(
                ["task"],
                task=_text("What it shall do, in plain words.", minLength=1, maxLength=50_000),
                agent=_text(
                    "Its slug, as find_agents gives it. Without one the best match is taken.", maxLength=100
                ),
                input={"type": "object", "description": "Its input, where it takes one."},
                files={
                    "type": "array",
                    "items": {"type": "string"},
                    "description": "Names of your input files to hand on. All of them, unless you say.",
                },
            ),
        ),
    )
}


def tools_of(agent: AgentSpec) -> dict[str, Tool]:
    """The tools that the agent's card names, by name."""
    return {name: TOOLS[name] for name in agent.tools if name in TOOLS}


class BadCall(Exception):
    """A call that cannot be made; the message is for the model."""


def arguments_of(name: str, text: str, tools: Mapping[str, Tool]) -> dict[str, Any]:
    """What a model wrote as arguments, checked. Raises BadCall."""
    tool = tools.get(name)
    if tool is None:
        raise BadCall(f"There is no tool {name[:100]!r}. The tools are: {', '.join(tools) or 'none'}.")
    try:
        arguments = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError) as error:
        raise BadCall(f"The arguments are not valid JSON: {error}. You wrote: {text[:500]}") from None
    if not isinstance(arguments, dict):
        raise BadCall("The arguments must be a JSON object.")
    arguments = dict(clean(arguments))
    wrong = faults(arguments, tool.parameters)
    if wrong:
        told = "; ".join(f"{fault['pointer'] or 'arguments'}: {fault['detail']}" for fault in wrong)
        raise BadCall(f"The arguments do not fit: {told}")
    return arguments


# What code of a model may reach for beyond working with data. It decides who is asked, not what is possible: the
# sandbox holds whatever the code does.
_REACHING = re.compile(
    r"\b(subprocess|socket|ctypes|requests|httpx|urllib|http\.client|paramiko|smtplib|ftplib|multiprocessing)\b"
    r"|\bos\.(system|popen|exec\w*|spawn\w*|fork|kill|remove|unlink|rmdir|removedirs)\b"
    r"|\bshutil\.rmtree\b|\.unlink\(|\b(eval|exec|__import__)\("
)


def risk(name: str, arguments: Mapping[str, Any], agent: AgentSpec) -> str:
    """`high` or `low`: running other agents, and code that has a network or reaches beyond its data."""
    if name == "run_agent":
        return "high"
    if name == "run_python" and (
        agent.limits.get("allow_hosts") or _REACHING.search(str(arguments.get("code")))
    ):
        return "high"
    return "low"


def policy(name: str, agent: AgentSpec) -> str:
    """`never`, `always` or `high_risk`: when a person must agree to a call of this tool."""
    if name in agent.settings.get("approve", ()):
        return "always"
    chosen = agent.settings.get("policy", "never")
    return str(chosen.get(name, "never") if isinstance(chosen, Mapping) else chosen)


def clipped(text: str, most: int = READ_CHARACTERS) -> str:
    """The text, its middle left out where it is too long for a model."""
    if len(text) <= most:
        return text
    left_out = len(text) - most
    return f"{text[: most // 2]}\n[… {left_out:,} characters left out …]\n{text[-most // 2 :]}"
