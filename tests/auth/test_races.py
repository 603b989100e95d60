"""What happens at the same time: changes while something is looked up, floods, and readings that overlap."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from auth import keys
from auth.door import Door
from auth.principal import NotAuthenticated, TooManyFailures
from tests.auth.accounts import ADMIN, FOREIGN, HOME, Bench, at, bench_of_places, until_all_wait
from tests.auth.support import HandClock

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


def task(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.get_running_loop().create_task(work)


async def test_a_revocation_during_the_first_reading_is_kept() -> None:
    """A request waits for the list of revoked tokens while the watch reads the feed: nothing is lost."""
    bench = Bench()
    answer = bench.store.hold("revoked")
    first = task(bench.memory.refresh())
    await bench.store.asked("revoked")
    await bench.memory.refresh()
    bench.store.revoke_token("tn_1/j1")
    await bench.memory.refresh()
    answer.set()
    await first
    assert bench.memory.revoked("tn_1", "j1")


async def slow_reading(bench: Bench, change: Callable[[], None], ask: Callable[[], Any]) -> Any:
    """`ask` at 2.8 s, while a reading of the feed is under way since 1.0 s; `change` happens at 1.1 s."""
    await ask()
    bench.clock.seconds = 1.0
    slow = bench.store.hold("feed")
    first = task(bench.memory.current())
    await bench.store.asked("feed", 2)
    bench.clock.seconds = 1.1
    change()
    bench.clock.seconds = 2.8
    late = task(ask())
    await until_all_wait([late])
    slow.set()
    await asyncio.wait([first, late])
    return late


async def test_whoever_joins_an_old_reading_reads_again() -> None:
    """P9: a reading that began more than a second before the request does not tell what happened since."""
    bench = bench_of_places()

    def change() -> None:
        bench.store.add_user(password_hash="another")
        bench.store.note("user", "ann@gate")

    late = await slow_reading(bench, change, lambda: bench.memory.user("ann@gate"))
    assert late.result().password_hash == "another"


async def test_a_foreign_admins_token_is_refused_behind_a_slow_reading() -> None:
    """The same where nothing has to be looked up: the token alone was revoked."""
    bench = Bench()
    token = bench.issuers.issue(replace(FOREIGN, tenant=None, scopes=ADMIN))
    late = await slow_reading(bench, lambda: bench.store.revoke_token("/f1"), lambda: bench.ask(token))
    assert isinstance(late.exception(), NotAuthenticated)


async def test_behind_a_slow_key_set_the_feed_is_looked_at_again() -> None:
    """An identity provider that takes five seconds to tell its keys does not stretch the second."""
    bench = Bench()
    token = bench.issuers.issue(replace(FOREIGN, tenant=None, scopes=ADMIN))
    read = bench.issuers.read

    async def slow(text: str, peeked: Any) -> Any:
        bench.clock.seconds += 5
        bench.store.revoke_token("/f1")
        return await read(text, peeked)

    bench.issuers.read = slow  # type: ignore[method-assign]
    with pytest.raises(NotAuthenticated):
        await bench.ask(token)


async def test_readings_that_overlap_handle_each_entry_once() -> None:
    """The older one comes in last, with entries that the newer one has brought already."""
    bench = Bench()
    await bench.memory.current()
    for seq in range(1, 11):
        bench.store.note("key", f"k{seq}", seq)
    old = bench.store.hold("feed")
    early = task(bench.memory.refresh())
    await bench.store.asked("feed", 2)
    for seq in range(11, 101):
        bench.store.note("key", f"k{seq}", seq)
    await bench.memory.refresh()
    assert bench.memory.version == 100
    old.set()
    await early
    assert bench.memory.version == 100


async def test_an_entry_that_is_committed_very_late_is_noticed() -> None:
    """Two hundred others came first; a number that is missing is asked for again for a minute."""
    bench = Bench()
    await bench.memory.current()
    for seq in range(1, 202):
        if seq != 2:
            bench.store.note("login", "x", seq)
    await bench.later(0.1)
    bench.store.note("token", "tn_1/j", 2)
    await bench.later(59)
    assert bench.memory.revoked("tn_1", "j")


async def test_a_number_that_never_comes_is_forgotten() -> None:
    """A transaction that was rolled back leaves a gap for ever; it is not asked for for ever."""
    bench = Bench()
    bench.store.note("login", "x", 1)
    await bench.memory.current()
    bench.store.note("login", "x", 3)
    await bench.later(0.1)
    await bench.later(61)
    bench.store.note("key", "k", 2)
    await bench.later(0.1)
    assert bench.memory.version == 0


async def test_a_flood_at_one_time_stops_at_the_door_too() -> None:
    """Five hundred invented keys in parallel: look-ups end when the limit is reached, not before."""
    bench = Bench()
    await asyncio.wait([task(bench.ask(keys.mint())) for _ in range(500)])
    assert bench.store.count("key") <= 100 + 4


async def test_a_flood_does_not_refuse_another_who_asks_for_the_same_key() -> None:
    """The door is closed to one address; a call from another one at the same moment is looked up."""
    bench = Bench()
    key = bench.store.add_key()
    for _ in range(100):
        with pytest.raises(NotAuthenticated):
            await bench.ask(keys.mint(), "192.0.2.66")
    both = await asyncio.gather(
        bench.ask(key, "192.0.2.66"), bench.ask(key, "192.0.2.7"), return_exceptions=True
    )
    assert isinstance(both[0], TooManyFailures)
    assert both[1].key_id == key.id


async def test_a_network_of_ipv6_is_one_caller_to_the_door() -> None:
    """Who has one IPv6 address has a /64 of them; its neighbour has another."""
    bench = Bench()
    for number in range(300):
        with pytest.raises((NotAuthenticated, TooManyFailures)):
            await bench.ask(keys.mint(), f"2001:db8::{number:x}")
    assert bench.store.count("key") == 100
    with pytest.raises(NotAuthenticated):
        await bench.ask(keys.mint(), "2001:db8:0:1::1")


def test_the_door_says_when_it_opens() -> None:
    """Whole seconds until the minute is over, and not one more."""
    clock = HandClock()
    door = Door(clock, limit=1)
    door.failed(HOME)
    with pytest.raises(TooManyFailures) as refusal:
        door.open_for(HOME)
    assert refusal.value.retry_after_seconds == 60


@pytest.mark.parametrize(("grace", "seconds", "holds"), [(5, 4, True), (5, 6, False), (0, 1, False)])
async def test_the_end_of_a_grace_ends_what_began_before_the_rotation(grace, seconds, holds) -> None:
    """A stream that was opened with the old secret ends with it, also if there was no new one then."""
    bench = Bench()
    key = bench.store.add_key()
    caller = await bench.ask(key)
    new = keys.mint(key.id)
    bench.store.change_key(
        key, secret_sha256=new.sha256, previous_sha256=key.sha256, previous_until=at(grace)
    )
    await bench.later(0.5)
    if grace > 0:
        assert (await bench.authenticator.again(caller)).expires_at == at(grace).timestamp()
    await bench.later(seconds - 0.5)
    if holds:
        await bench.authenticator.again(caller)
    else:
        with pytest.raises(NotAuthenticated):
            await bench.authenticator.again(caller)


@pytest.mark.parametrize(("grace", "seconds", "holds"), [(None, 0, False), (5, 4, True), (5, 6, False)])
async def test_a_bought_token_ends_with_the_secret_that_bought_it(grace, seconds, holds) -> None:
    """A secret that leaked takes with it what was bought with it, when its grace is over."""
    bench = Bench()
    key = bench.store.add_key()
    bought = bench.token(key_id=key.id, proof=(await bench.ask(key)).proof)
    caller = await bench.ask(bought)
    previous = {} if grace is None else {"previous_sha256": key.sha256, "previous_until": at(grace)}
    bench.store.change_key(key, secret_sha256=keys.mint(key.id).sha256, **previous)
    await bench.later(seconds)
    if holds:
        assert (await bench.ask(bought)).expires_at == at(grace).timestamp()
        await bench.authenticator.again(caller)
    else:
        with pytest.raises(NotAuthenticated):
            await bench.ask(bought)
        with pytest.raises(NotAuthenticated):
            await bench.authenticator.again(caller)


async def test_a_secret_that_is_newer_than_what_is_remembered_is_looked_at_again() -> None:
    """Rotated on another worker a moment ago: the new secret is not refused until the next reading."""
    bench = Bench()
    key = bench.store.add_key()
    await bench.ask(key)
    new = keys.mint(key.id)
    bench.store.change_key(key, secret_sha256=new.sha256)
    bench.clock.seconds += 0.1
    assert (await bench.ask(new)).key_id == key.id
    with pytest.raises(NotAuthenticated):
        await bench.ask(key)


async def test_wrong_secrets_do_not_read_the_feed_without_end() -> None:
    """Twenty times a second at most, however many are tried for a key that there is."""
    bench = Bench()
    key = bench.store.add_key()
    await bench.ask(key)
    before = bench.store.count("feed")
    for number in range(100):
        bench.clock.seconds = number / 100
        with pytest.raises(NotAuthenticated):
            await bench.ask(keys.mint(key.id))
    assert bench.store.count("feed") - before <= 20
    assert bench.store.count("key") == 1
