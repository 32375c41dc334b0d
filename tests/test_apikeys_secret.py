"""The secret of a key: what it looks like, and what is told apart without a query."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apikeys.secret import digest, is_well_formed, new_secret, prefix


@pytest.mark.parametrize("mode", ["live", "test"])
def test_a_secret_is_a_prefix_256_bits_in_base_62_and_a_checksum(mode: str) -> None:
    secret = new_secret(mode)

    assert re.fullmatch(rf"engine_{mode}_[0-9A-Za-z]{{43}}[0-9A-Za-z]{{6}}", secret)
    assert is_well_formed(secret)


def test_secrets_do_not_repeat_and_use_the_whole_alphabet() -> None:
    secrets = [new_secret() for _ in range(2000)]

    assert len({digest(secret) for secret in secrets}) == 2000
    assert len(set("".join(secret[12:55] for secret in secrets))) == 62


def test_the_shown_prefix_gives_away_at_most_36_bits() -> None:
    assert len(prefix(new_secret())) == len("engine_live_") + 6


@given(st.integers(0, 60), st.sampled_from("0aZ-\0é"))
def test_one_changed_character_is_noticed(place: int, other: str) -> None:
    secret = new_secret()
    changed = secret[:place] + other + secret[place + 1 :]

    assert is_well_formed(changed) == (changed == secret)


@given(st.text())
def test_noise_is_not_well_formed(text: str) -> None:
    assert not is_well_formed(text)
    assert not is_well_formed(f"engine_live_{text}")
