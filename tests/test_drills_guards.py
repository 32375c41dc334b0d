"""What `make guards` takes away is there, and docs/chaos.md has a row for each."""

import re

import pytest

from drills.guard import Guard
from drills.guards import ALL_GUARDS
from tests.processes import ROOT


@pytest.mark.parametrize("guard", ALL_GUARDS, ids=lambda guard: guard.name)
def test_a_guard_names_lines_and_a_test_that_are_there(guard: Guard) -> None:
    file, _, name = guard.test.partition("::")

    assert guard.lines in (ROOT / guard.file).read_text()
    assert guard.without != guard.lines
    assert not name or re.search(rf"def {re.escape(name.partition('[')[0])}\(", (ROOT / file).read_text())


def test_the_page_has_a_row_for_each_guard() -> None:
    page = (ROOT / "docs/chaos.md").read_text().split("## Guards")[1]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.startswith("| ")]

    assert rows[2:] == [guard.name for guard in ALL_GUARDS]
