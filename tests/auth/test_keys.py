"""API keys: what is one, what is stored of it, and that a changed one is none."""

from __future__ import annotations

import hashlib
import re
import secrets
import zlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from auth import keys

KEY = keys.mint()
BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
characters = st.sampled_from(BASE62 + "_-.~ \n\x00") | st.characters()


def issued_as(key_id: str, body: str) -> str:
    """The key with that id and those random bits: the last six are the CRC-32 of the rest, in base 62."""
    number, digits = zlib.crc32(f"{key_id}_{body}".encode()), ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits = BASE62[digit] + digits
    return f"sg_{key_id}_{body}{digits}"


ids = st.text(BASE62, min_size=12, max_size=12)
bodies = st.text(BASE62, min_size=43, max_size=43)
issued = st.builds(issued_as, ids, bodies)


def test_a_minted_key_parses_to_itself():
    """Id and secret come back as they were, and compare equal to what is stored."""
    for _ in range(200):
        key = keys.mint()
        parsed = keys.parse(key.text)
        assert parsed == key
        assert keys.same(parsed.sha256, key.sha256)


def test_keys_differ():
    """No two keys share an id or a secret; one key does not open another's door."""
    minted = [keys.mint() for _ in range(200)]
    assert len({key.id for key in minted}) == len({key.secret for key in minted}) == 200
    assert not keys.same(minted[0].sha256, minted[1].sha256)


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
    assert issued_as(KEY.id, KEY.secret[:-6]) == KEY.text


@given(issued)
def test_whatever_could_be_issued_is_a_key(text):
    """Any id, any secret, with the checksum of the two."""
    key = keys.parse(text)
    assert key is not None
    assert (key.text, key.sha256) == (text, hashlib.sha256(text[16:].encode()).digest())


def test_a_new_secret_for_a_key_keeps_its_id():
    """Rotated, it is the same key: found under its id, with another secret each time."""
    old = keys.mint()
    minted = [keys.mint(old.id) for _ in range(50)]
    assert {key.id for key in minted} == {old.id}
    assert len({key.secret for key in [old, *minted]}) == 51
    for key in minted:
        assert keys.parse(key.text) == key
        assert not keys.same(key.sha256, old.sha256)


def test_a_secret_has_all_its_256_bits(monkeypatch):
    """The largest and the smallest number fit, and differ; they come from the system's source of secrets."""
    asked = []
    for number in (0, 2**256 - 1):
        monkeypatch.setattr(secrets, "randbits", lambda bits, number=number: asked.append(bits) or number)
        digits = keys.mint().secret[:43]
        value = 0
        for digit in digits:
            value = value * 62 + BASE62.index(digit)
        assert value == number
    assert asked == [256, 256]


def test_a_key_that_was_issued_once_parses_for_ever():
    """The format is frozen: this key is as old as the gate."""
    assert keys.parse("sg_000000000000_" + "0" * 43 + "1cSBZ5") is not None


@given(issued, st.integers(0, len(KEY.text) - 1), characters)
def test_a_changed_character_is_no_key(text, position, character):
    """Any one character, anywhere, to any other: CRC-32 finds every such error."""
    changed = text[:position] + character + text[position + 1 :]
    assert (keys.parse(changed) is None) == (changed != text)


def test_no_typing_error_of_one_character_is_missed():
    """Every place of a key, every other character that may stand there."""
    for position, right in enumerate(KEY.text):
        for wrong in set(BASE62 + "_") - {right}:
            assert keys.parse(KEY.text[:position] + wrong + KEY.text[position + 1 :]) is None


@given(issued, st.integers(0, len(KEY.text) - 2))
def test_two_neighbours_swapped_are_no_key(text, position):
    """The other usual typing error."""
    one, other = text[position : position + 2]
    swapped = text[:position] + other + one + text[position + 2 :]
    assert (keys.parse(swapped) is None) == (one != other)


@given(issued, ids)
def test_a_secret_belongs_to_its_id(text, key_id):
    """Behind another id it is no key: nothing is looked up."""
    assert (keys.parse(f"sg_{key_id}_{text[16:]}") is None) == (key_id != text[3:15])


@given(st.integers(0, len(KEY.text)), characters)
@example(len(KEY.text), "\n")
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


@pytest.mark.parametrize("digits", ["\u0660" * 12, "\uff10" * 12, "é" * 12, "_" * 12])
def test_digits_of_other_scripts_are_none(digits):
    """An id is ASCII: it stands in logs, in URLs and in SQL. A checksum that fits makes it none either."""
    assert keys.parse(issued_as(digits, KEY.secret[:-6])) is None
