"""What may pass through the SDK, and what an author is told when it may not."""

import ast
import dataclasses
import datetime
import enum
import os
import re
import uuid
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.execution import fields, protocol
from jobs.sandboxes.base import Limits
from jobs.sdk import engine_agent as sdk
from jobs.sdk.engine_agent import UserError, step


class Color(enum.Enum):
    RED = "red"


class Tone(enum.StrEnum):
    WARM = "warm"


@dataclasses.dataclass
class Point:
    x: int
    label: str


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (None, None),
        (True, True),
        (3, 3),
        (2**80, 2**80),
        (1.5, 1.5),
        (float("nan"), None),
        (float("-inf"), None),
        ("text", "text"),
        ("nul \0 and half \ud800", "nul \ufffd and half \ufffd"),
        ((1, [2, (3,)]), [1, [2, [3]]]),
        ({1: "a", None: "b", False: "c", 1.5: "d"}, {"1": "a", "null": "b", "false": "c", "1.5": "d"}),
        ({3, 1, 2}, [1, 2, 3]),
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        ({np.int64(1): np.float64("nan")}, {"1": None}),
        (np.datetime64("2026-01-02"), "2026-01-02"),
        (Path("a/b"), "a/b"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (uuid.UUID(int=0), "00000000-0000-0000-0000-000000000000"),
        (Color.RED, "red"),
        (Tone.WARM, "warm"),
        (Point(1, "a"), {"x": 1, "label": "a"}),
    ],
)
def test_values_come_back_as_json_would_give_them(value: Any, kept: Any) -> None:
    assert step("a", lambda: value) == kept


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"bytes", "bytes at /"),
        ({"a": [1, {"b": object()}]}, "object at /a/1/b"),
        ({"a": Decimal("1.5")}, "Decimal at /a"),
        ({(1, 2): 3}, "key that is a tuple"),
        (step, "function"),
    ],
)
def test_a_value_that_json_cannot_hold_is_named_with_its_place(value: Any, words: str) -> None:
    with pytest.raises(TypeError, match=re.escape(words)):
        step("a", lambda: value)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def test_endless_nesting_is_an_error_and_no_crash() -> None:
    loop: list[Any] = []
    loop.append(loop)

    for value in (loop, nested(1000)):
        with pytest.raises(TypeError, match="nested deeper"):
            step("a", lambda value=value: value)


@pytest.mark.parametrize(
    "value", ["x" * 1_048_577, list(range(500_000)), {str(n): n for n in range(200_000)}]
)
def test_a_result_over_the_most_says_to_write_a_file(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdk, "STEP_RESULT_BYTES", 1024 * 1024)

    with pytest.raises(UserError, match="1 MiB") as caught:
        step("a", lambda: value)
    assert "file" in caught.value.remedy


@pytest.mark.parametrize(
    ("span", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("30m", 1800),
        ("1.5h", 5400),
        ("2d", 172_800),
        ("1w", 604_800),
        (5, 5),
        (0.5, 0.5),
        (datetime.timedelta(hours=1), 3600),
    ],
)
def test_times_are_read_as_people_write_them(span: Any, seconds: float) -> None:
    assert sdk._seconds(span) == seconds


@pytest.mark.parametrize("span", ["", "soon", "-1", "1y", "0", 0, -3, "1e3", "99999w", "1d 2h"])
def test_other_times_are_refused(span: Any) -> None:
    with pytest.raises(ValueError, match="time"):
        sdk._seconds(span)


@pytest.mark.parametrize("name", ["", " ", "a#b", "a\nb", "x" * 201, "nul\0", 3])
def test_names_that_could_not_be_keys_are_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="name"):
        step(name, int)


def test_without_a_runner_steps_run_and_questions_say_how_to_be_asked() -> None:
    assert step("a", lambda: 3) == 3
    assert 0 <= sdk.random() < 1
    assert sdk.job.now().tzinfo is datetime.UTC
    assert sdk.uuid().version == 4
    with pytest.raises(RuntimeError, match=r"engine_agent\.py run"):
        sdk.ask("Well?")


def test_an_idempotency_key_is_for_the_inside_of_a_step() -> None:
    assert re.fullmatch(r"[0-9a-f]{32}", step("a", sdk.idempotency_key))
    with pytest.raises(RuntimeError, match="inside of a step"):
        sdk.idempotency_key()


def test_the_sdk_needs_nothing_newer_than_python_3_9() -> None:
    source = Path(sdk.__file__).read_text()

    tree = ast.parse(source, feature_version=(3, 9))

    assert "from __future__ import annotations" in source
    for node in ast.walk(tree):  # annotations are never evaluated, but these would be
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            names = [argument for argument in node.args if isinstance(argument, ast.BinOp)]
            assert node.func.id != "isinstance" or not names, f"line {node.lineno}: X | Y"
            assert node.func.id != "zip" or not node.keywords, f"line {node.lineno}: zip(strict=)"


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)


def test_the_sdk_imports_the_standard_library_alone() -> None:
    import sys

    tree = ast.parse(Path(sdk.__file__).read_text())

    assert {name.partition(".")[0] for name in imported(tree)} <= set(sys.stdlib_module_names)


def test_the_limits_of_the_sdk_are_within_those_of_the_worker() -> None:
    assert sdk.RESULT_BYTES == fields.RESULT_BYTES
    assert Limits().record_bytes > sdk.RECORD_BYTES
    assert sdk.LOG_CHARACTERS < protocol.LOG_CHARACTERS
    assert sdk.MOST_FILES == protocol.MOST_FILES
    assert sdk.KEY_CHARACTERS == fields.KEY_CHARACTERS
    assert sdk.PATH_CHARACTERS == fields.PATH_CHARACTERS
    assert sdk.DEEPEST < protocol.DEEPEST


def test_a_file_changed_just_now_may_change_again_unseen(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()

    fresh = sdk._Files._mark(path.stat())
    os.utime(path, (1_000_000, 1_000_000))
    settled = sdk._Files._mark(path.stat())

    assert fresh is None  # the clock of file times may stand still between two writes
    assert settled is not None
