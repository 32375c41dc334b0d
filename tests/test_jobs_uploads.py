"""Names of input files: whatever a client calls them, they are safe to store, show and open."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.storage import clean_name
from jobs.uploads import LONGEST_NAME, safe_name, unique_names


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("reviews.csv", "reviews.csv"),
        ("/etc/passwd", "passwd"),
        ("..\\..\\windows\\win.ini", "win.ini"),
        ("..", "file"),
        (".", "file"),
        ("", "file"),
        ("   ", "file"),
        ("a/", "file"),
        (".env", ".env"),
        ("two\nlines.txt", "two lines.txt"),
        ("gnp\u202egnp.exe", "gnp gnp.exe"),
        ("zero\u200bwidth.csv", "zero width.csv"),
        ("nul\x00byte.csv", "nul byte.csv"),
        ('a<b>:"c|d?e*.txt', "a_b___c_d_e_.txt"),
        ("trailing dots...", "trailing dots"),
        ("e\u0301t\u00e9.csv", "\u00e9t\u00e9.csv"),
        ("日本語.csv", "日本語.csv"),
    ],
)
def test_names_are_made_safe(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_a_long_name_keeps_its_suffix_and_no_half_character() -> None:
    name = safe_name("ü" * 300 + ".csv")

    assert name.endswith(".csv")
    assert len(name.encode()) <= LONGEST_NAME
    assert set(name.removesuffix(".csv")) == {"ü"}


def test_names_that_a_file_system_would_take_for_the_same_are_told_apart() -> None:
    names = unique_names(["a.csv", "A.CSV", "x/a.csv", "a (2).csv", "b", "B"])

    assert names == ["a.csv", "A (2).CSV", "a (3).csv", "a (2) (2).csv", "b", "B (2)"]


@given(st.lists(st.text(max_size=300), max_size=8))
def test_any_names_come_out_safe_and_different(names: list[str]) -> None:
    given_names = unique_names([name.encode("utf-8", "ignore").decode() for name in names])

    assert len({name.casefold() for name in given_names}) == len(names)
    for name in given_names:
        assert clean_name(name) == name  # what the sandbox's side asks of a name
        assert "/" not in name
        assert unicodedata.is_normalized("NFC", name)
        assert len(name.encode()) < 255
