"""Passwords: argon2id, and no way to tell an unknown account from a wrong password."""

from __future__ import annotations

import re

import pytest

from auth import passwords
from auth.passwords import hash_password, verify_password

COST = re.compile(r"\$argon2id\$v=19\$m=(\d+),t=(\d+),p=(\d+)\$([A-Za-z0-9+/]+)\$([A-Za-z0-9+/]+)")


@pytest.fixture(scope="module")
def stored() -> str:
    return hash_password("correct horse")


def test_the_right_password_holds_and_no_other(stored):
    """Case, spaces and length matter."""
    assert verify_password("correct horse", stored)
    for wrong in ("", "Correct horse", "correct horse ", "correct horse\x00", "correct"):
        assert not verify_password(wrong, stored)


def test_what_is_stored_is_argon2id_with_a_salt_of_its_own(stored):
    """With at least the memory and time that OWASP asks for (19 MiB, two passes); two hashes never agree."""
    cost = COST.fullmatch(stored)
    assert cost is not None
    assert int(cost[1]) >= 19 * 1024
    assert int(cost[2]) >= 2
    assert hash_password("correct horse") != stored


@pytest.mark.parametrize("password", ["", "guess", "x" * 1024, "a\x00b"])
def test_an_unknown_account_has_no_password(password):
    """Whatever is tried, it is False."""
    assert verify_password(password, None) is False


def test_an_unknown_account_costs_what_a_wrong_password_costs(stored):
    """Same kind, same parameters, same lengths: the time of an answer does not tell who has an account."""
    known, nobody = COST.fullmatch(stored), COST.fullmatch(passwords._NOBODY)
    assert known is not None
    assert nobody is not None
    assert known.groups()[:3] == nobody.groups()[:3]
    assert [len(part) for part in known.groups()] == [len(part) for part in nobody.groups()]


def test_an_unknown_account_is_really_checked(monkeypatch):
    """The work is done, not skipped: against a hash whose password is known, it still says no."""
    monkeypatch.setattr(passwords, "_NOBODY", "no hash at all")
    with pytest.raises(ValueError, match="argon2"):
        verify_password("guess", None)
    monkeypatch.setattr(passwords, "_NOBODY", hash_password("guess"))
    assert verify_password("guess", None) is False


def test_passwords_are_unicode():
    """Not only ASCII, and not shortened."""
    stored = hash_password("пароль-密碼-🔑" * 20)
    assert verify_password("пароль-密碼-🔑" * 20, stored)
    assert not verify_password("пароль-密碼-🔑" * 19, stored)
