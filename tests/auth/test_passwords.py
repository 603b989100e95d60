"""Passwords: argon2id beside the loop, and no way to tell an unknown account from a wrong password."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from auth import passwords
from auth.passwords import Hasher, hash_password, verify_password

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    """Not only ASCII, not shortened, and as they were typed."""
    password = " Пароль-密碼-🔑" * 20
    stored = hash_password(password)
    assert verify_password(password, stored)
    for wrong in (password[:-1], password.strip(), password.lower()):
        assert not verify_password(wrong, stored)


def test_one_comparison_whoever_asks(stored, monkeypatch):
    """Right, wrong or unknown: argon2 runs once, with what was typed."""
    compared = []
    real = passwords._argon2id

    def verify(password: str, against: str) -> bool:
        compared.append((password, against))
        return bool(real.verify(password, against))

    monkeypatch.setattr(passwords, "_argon2id", SimpleNamespace(verify=verify))
    assert [verify_password(*each) for each in (("correct horse", stored), ("no", stored), ("no", None))] == [
        True,
        False,
        False,
    ]
    assert compared == [("correct horse", stored), ("no", stored), ("no", passwords._NOBODY)]


# --- beside the loop --------------------------------------------------------------------------------


class Slow:
    """Stands in for `verify_password`: each comparison ends when the test lets it."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.running = self.most_running = 0
        self.threads: set[int] = set()
        self.go_on = threading.Semaphore(0)

    def __call__(self, password: str, stored: str | None) -> bool:
        self.threads.add(threading.get_ident())
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.started.append(password)
        assert self.go_on.acquire(timeout=10)
        self.running -= 1
        return password == stored

    async def begun(self, times: int) -> None:
        """Let others run until so many comparisons have begun."""
        while len(self.started) < times:
            await asyncio.sleep(0)


@pytest.fixture
def slow(monkeypatch) -> Iterator[Slow]:
    made = Slow()
    monkeypatch.setattr(passwords, "verify_password", made)
    yield made
    made.go_on.release(100)


@pytest.fixture
def hasher() -> Iterator[Hasher]:
    made = Hasher()
    yield made
    made.close()


def start(hasher: Hasher, *passwords_: str) -> list[asyncio.Task[Any]]:
    loop = asyncio.get_running_loop()
    return [loop.create_task(hasher.verify(each, "right")) for each in passwords_]


async def test_the_hasher_says_what_the_comparison_says(hasher, stored):
    """The right password and no other; nobody where there is no account."""
    assert await hasher.verify("correct horse", stored) is True
    assert await hasher.verify("wrong", stored) is False
    assert await hasher.verify("correct horse", None) is False


async def test_passwords_are_compared_one_at_a_time_and_not_on_the_loop(hasher, slow):
    """While one is compared the loop runs, and the others wait for their turn, first come, first served."""
    tasks = start(hasher, "a", "right", "c", "d")
    for turn in range(1, 5):
        await slow.begun(turn)  # the loop is running: so it is not the loop that is comparing
        assert slow.running == 1
        slow.go_on.release()
    assert await asyncio.gather(*tasks) == [False, True, False, False]
    assert slow.started == ["a", "right", "c", "d"]
    assert slow.most_running == 1
    assert threading.get_ident() not in slow.threads


async def test_who_gives_up_before_their_turn_costs_no_work(hasher, slow):
    """A client that left does not hold up those who wait behind."""
    first, gone, last = start(hasher, "a", "gone", "right")
    await slow.begun(1)
    gone.cancel()
    await asyncio.wait([gone])
    slow.go_on.release(2)
    assert [await first, await last] == [False, True]
    assert slow.started == ["a", "right"]


async def test_a_comparison_that_breaks_is_told_and_the_next_one_is_done(hasher, stored):
    """A hash in the store that is none."""
    with pytest.raises(ValueError, match="argon2"):
        await hasher.verify("guess", "no hash at all")
    assert await hasher.verify("correct horse", stored)


async def test_close_refuses_those_who_wait_and_does_not_wait_itself(hasher, slow):
    """What is compared at that moment comes to its end; nothing begins any more."""
    running, *waiting = start(hasher, "right", "b", "c")
    await slow.begun(1)
    hasher.close()
    await asyncio.wait(waiting)
    assert all(task.cancelled() for task in waiting)
    assert not running.done()
    slow.go_on.release()
    assert await running is True
    assert slow.started == ["right"]
    with pytest.raises(RuntimeError):
        await hasher.verify("right", "right")


async def test_the_thread_stands_back_behind_the_loop(hasher, monkeypatch):
    """Where the system has priorities of threads: comparing takes no time from streams that run."""

    def priority(_password: str = "", _stored: str | None = None) -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = priority()
    monkeypatch.setattr(passwords, "verify_password", priority)
    assert await hasher.verify("", None) == (max(before, 10) if sys.platform == "linux" else before)
    assert priority() == before


@pytest.mark.parametrize("error", [OSError("not permitted"), AttributeError("setpriority")])
async def test_without_priorities_passwords_are_compared_all_the_same(monkeypatch, hasher, stored, error):
    """Another system, or a container that forbids it."""

    def refuse(*_: int) -> None:
        raise error

    monkeypatch.setattr(os, "setpriority", refuse)
    assert await hasher.verify("correct horse", stored)
