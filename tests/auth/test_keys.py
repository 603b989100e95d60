"""API keys: what is one, what is stored of it, and that a changed one is none."""

from __future__ import annotations

import hashlib
import re
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth import keys

KEY = keys.mint()
BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
characters = st.sampled_from(BASE62 + "_-.~ \n\x00") | st.characters()


def refused(text: str) -> bool:
    parsed = keys.parse(text)
    return parsed is None or not keys.same(parsed, KEY.sha256)


def test_a_minted_key_parses_to_itself():
    """Id and secret come back as they were, and compare equal to what is stored."""
    for _ in range(200):
        key = keys.mint()
        parsed = keys.parse(key.text)
        assert parsed == key
        assert keys.same(parsed, key.sha256)


def test_keys_differ():
    """No two keys share an id or a secret; one key does not open another's door."""
    minted = [keys.mint() for _ in range(200)]
    assert len({key.id for key in minted}) == len({key.secret for key in minted}) == 200
    assert not keys.same(minted[0], minted[1].sha256)


def test_a_key_is_made_of_letters_digits_and_underscores():
    """A double click selects it, a shell leaves it alone, a secret scanner finds it."""
    for _ in range(50):
        assert re.fullmatch(r"sg_[0-9A-Za-z]{12}_[0-9A-Za-z]{49}", keys.mint().text, re.ASCII)


def test_what_is_stored_is_the_sha256_of_the_secret():
    """And nothing else: the secret cannot be had from it."""
    assert hashlib.sha256(KEY.text.split("_")[2].encode()).digest() == KEY.sha256
    assert len(KEY.sha256) == 32


def test_a_scanner_can_check_a_key_offline():
    """The last six characters are the CRC-32 of what stands before them, in base 62: a promise to others."""
    number = zlib.crc32(KEY.text[3:-6].encode())
    digits = ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits = BASE62[digit] + digits
    assert KEY.text.endswith(digits)


def test_a_key_that_was_issued_once_parses_for_ever():
    """The format is frozen: this key is as old as the gate."""
    assert keys.parse("sg_000000000000_" + "0" * 43 + "1cSBZ5") is not None


@given(st.integers(0, len(KEY.text) - 1), characters)
def test_a_changed_character_is_no_key(position, character):
    """Any one character, anywhere, to any other: it does not parse, or it does not compare equal."""
    changed = KEY.text[:position] + character + KEY.text[position + 1 :]
    assert refused(changed) == (changed != KEY.text)


@given(st.integers(0, len(KEY.text)), characters)
def test_a_character_more_is_no_key(position, character):
    """Also a line end behind it, which `$` in a pattern would let through."""
    assert keys.parse(KEY.text[:position] + character + KEY.text[position:]) is None


@given(st.integers(0, len(KEY.text) - 1))
def test_a_character_less_is_no_key(position):
    """Keys have one length."""
    assert keys.parse(KEY.text[:position] + KEY.text[position + 1 :]) is None


@given(st.text())
def test_a_strangers_text_is_no_key(text):
    """Whatever it is, it is refused and raises nothing."""
    assert keys.parse(text) is None
    assert keys.parse("sg_" + text) is None


@pytest.mark.parametrize("digits", ["\u0660" * 12, "\uff10" * 12, "é" * 12])
def test_digits_of_other_scripts_are_none(digits):
    """An id is ASCII: it stands in logs, in URLs and in SQL."""
    assert keys.parse(f"sg_{digits}_{KEY.secret}") is None
