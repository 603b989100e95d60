"""A flood of credentials: few look-ups, bounded memory, and a limit on failures by address."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from auth import authenticator, keys
from auth.door import Door
from auth.principal import NotAuthenticated, TooManyFailures
from tests.auth.accounts import (
    FOREIGN,
    HOME,
    MISSES,
    PLACES,
    Away,
    Bench,
    at,
    bench_of_places,
    put_key,
    start,
    until_all_wait,
)
from tests.auth.support import HandClock

LIMIT = 100
OTHER = "2001:db8::1"


@pytest.fixture
def bench() -> Bench:
    return bench_of_places()


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


# --- the door ---------------------------------------------------------------------------------------


def closed(door: Door, address: str = HOME) -> bool:
    try:
        door.open_for(address)
    except TooManyFailures:
        return True
    return False


@pytest.mark.parametrize("limit", [1, 3, LIMIT])
def test_an_address_has_so_many_failures_and_no_more(clock, limit):
    """With the last of them the door is closed, for that address and no other."""
    door = Door(clock, limit=limit)
    for _ in range(limit):
        assert not closed(door)
        door.failed(HOME)
    assert closed(door)
    assert not any(closed(door, other) for other in ("192.0.2.8", "192.0.2", OTHER, ""))


def test_the_window_is_a_minute_from_the_first_failure(clock):
    """Failures after the door was closed do not keep it closed; then all of them count from zero."""
    door = Door(clock, limit=2)
    for seconds in (0, 30, 59.5):
        clock.seconds = seconds
        door.failed(HOME)
    assert closed(door)
    clock.seconds = 60
    assert not closed(door)
    door.failed(HOME)
    assert not closed(door)
    door.failed(HOME)
    assert closed(door)
    clock.seconds = 119.9
    assert closed(door)
    clock.seconds = 120
    assert not closed(door)


@pytest.mark.parametrize(("seconds", "left"), [(0.5, 60), (29.75, 31), (58.5, 2), (59.5, 1), (59.99, 1)])
def test_the_refusal_says_when_to_come_back(clock, seconds, left):
    """Whole seconds, rounded up: who waits so long finds the door open."""
    door = Door(clock, limit=1)
    door.failed(HOME)
    clock.seconds = seconds
    with pytest.raises(TooManyFailures) as refusal:
        door.open_for(HOME)
    assert refusal.value.retry_after_seconds == left
    clock.seconds += left
    assert not closed(door)


def test_the_door_is_bounded(clock):
    """Ten thousand addresses are counted; the one that failed least lately is let go first."""
    door = Door(clock, limit=2)
    for address in ("first", "second", "first"):
        door.failed(address)
    for number in range(9_998):
        door.failed(f"a{number}")
    door.failed("one more")
    assert closed(door, "first")
    door.failed("second")
    assert not closed(door, "second")  # its first failure was forgotten
    for number in range(10_000):
        door.failed(f"b{number}")
    assert not closed(door, "first")
    assert len(door._failures) == 10_000


# --- the door before the look-up --------------------------------------------------------------------


async def shut(bench: Bench, address: str = HOME) -> None:
    """Fail until the door is closed for the address."""
    for _ in range(LIMIT):
        with pytest.raises(NotAuthenticated):
            await bench.ask(keys.mint(), address)
    bench.store.calls.clear()


async def test_from_a_closed_address_an_unknown_key_reaches_no_store(bench):
    """Neither one that exists nor one that does not; a minute later both are looked up again."""
    good, invented = bench.store.add_key(), keys.mint()
    await shut(bench)
    for key in (good, invented):
        with pytest.raises(TooManyFailures):
            await bench.ask(key)
    assert bench.store.count("key") == 0
    bench.clock.seconds += 60
    assert (await bench.ask(good)).key_id == good.id
    with pytest.raises(NotAuthenticated):
        await bench.ask(invented)
    assert bench.store.count("key") == 2


async def test_a_closed_door_is_closed_for_its_address_alone(bench):
    """Who invents keys takes nothing from others."""
    key = bench.store.add_key()
    await shut(bench)
    assert (await bench.ask(key, OTHER)).key_id == key.id


async def test_a_remembered_key_works_from_a_closed_address(bench):
    """Whoever calls from behind the same address as an attacker; with a wrong secret it does not."""
    key = bench.store.add_key()
    await bench.ask(key, OTHER)
    await shut(bench)
    assert (await bench.ask(key)).key_id == key.id
    with pytest.raises(NotAuthenticated):
        await bench.ask(keys.mint(key.id))
    bench.store.change_key(key)
    await bench.later(0.1)
    with pytest.raises(TooManyFailures):
        await bench.ask(key)


async def test_a_token_that_was_signed_works_from_a_closed_address(bench):
    """Nobody can invent one."""
    key = bench.store.add_key()
    await shut(bench)
    assert (await bench.ask(bench.token(key_id=key.id))).key_id == key.id


@pytest.mark.parametrize(
    ("what", "counts"),
    [
        ("unknown key", True),
        ("wrong secret", False),
        ("typing error", False),
        ("junk", False),
        ("expired token", False),
        ("revoked key", False),
    ],
)
async def test_only_keys_that_there_are_not_close_the_door(bench, what, counts):
    """They alone cost a look-up each; whoever polls with a revoked key takes nothing from its neighbours."""
    known, revoked = bench.store.add_key(), bench.store.add_key(revoked_at=at(-1))
    token = bench.token(ttl_seconds=1, key_id=known.id)
    bench.clock.seconds += 1
    credential = {
        "wrong secret": keys.mint(known.id).text,
        "typing error": known.text[:-1],
        "junk": "junk",
        "expired token": token,
        "revoked key": revoked.text,
    }
    for _ in range(LIMIT):
        assert not closed(bench.door)
        with pytest.raises(NotAuthenticated):
            await bench.ask(credential.get(what) or keys.mint().text)
    assert closed(bench.door) == counts


async def test_a_key_in_use_is_never_asked_for_at_the_door(bench):
    """What was known before is not invented: it is read again every 30 s, also while the door is closed."""
    key = bench.store.add_key()
    await bench.ask(key)
    for _ in range(40):
        for _ in range(LIMIT):
            bench.door.failed(HOME)
        await bench.later(1)
        assert (await bench.ask(key)).key_id == key.id


async def test_what_the_caller_cannot_help_is_no_failure(bench):
    """A key that holds, a store that is away, and being refused at the door."""
    key = bench.store.add_key()
    bench.store.failing = {"key"}
    for _ in range(LIMIT):
        with pytest.raises(Away):
            await bench.ask(key)
    bench.store.failing = set()
    for _ in range(LIMIT):
        await bench.ask(key)
    assert not closed(bench.door)
    await shut(bench)
    bench.clock.seconds += 59.5
    for _ in range(LIMIT):
        with pytest.raises(TooManyFailures):
            await bench.ask(keys.mint())
    bench.clock.seconds += 0.5
    assert not closed(bench.door)


# --- look-ups under way ---------------------------------------------------------------------------


@pytest.mark.parametrize("place", [*PLACES, *MISSES])
async def test_many_callers_are_one_lookup(bench, place):
    """A cold key that all clients use at once is read once."""
    answer = bench.store.hold(place[0])
    tasks = start(bench, place, 50)
    await bench.store.asked(place[0])
    await until_all_wait(tasks)
    answer.set()
    assert len(set(await asyncio.gather(*tasks))) == 1
    assert bench.store.count(place[0]) == 1


async def test_a_lookup_that_fails_is_not_remembered(bench):
    """All who waited for it hear so, and the next one asks again."""
    bench.store.failing = {"key"}
    answer = bench.store.hold("key")
    tasks = start(bench, ("key", "k"), 5)
    await until_all_wait(tasks)
    answer.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Away] * 5
    assert bench.store.count("key") == 1
    bench.store.failing = set()
    assert await bench.memory.key("k")


@pytest.mark.parametrize("kind", ["key", "feed"])
async def test_a_cancelled_leader_does_not_take_its_followers_with_it(bench, kind):
    """One of them asks in its place; only who was cancelled is."""
    await bench.memory.current()
    bench.clock.seconds = 1.0 if kind == "feed" else 0.5
    before = bench.store.count(kind)
    bench.store.hold(kind)  # for ever
    leader, *followers = start(bench, ("key", "k"), 4)
    await bench.store.asked(kind, before + 1)
    await until_all_wait(followers)
    leader.cancel()
    assert None not in await asyncio.gather(*followers)
    assert leader.cancelled()
    assert bench.store.count(kind) == before + 2


async def test_a_cancelled_follower_leaves_the_lookup_alone(bench):
    """The others have their answer of the one look-up."""
    answer = bench.store.hold("key")
    leader, follower, other = start(bench, ("key", "k"), 3)
    await bench.store.asked("key")
    await until_all_wait([follower, other])
    follower.cancel()
    await until_all_wait([follower])
    answer.set()
    assert None not in await asyncio.gather(leader, other)
    assert follower.cancelled()
    assert bench.store.count("key") == 1


@pytest.mark.parametrize(("given", "loads"), [({}, 4), ({"loads": 1}, 1), ({"loads": 7}, 7)])
async def test_so_many_lookups_at_one_time_and_no_more(given, loads):
    """A flood of invented ids does not take all connections; each of them is answered in its turn."""
    bench = bench_of_places(**given)
    await bench.memory.current()
    answer = bench.store.hold("key", 20)
    tasks = [task for number in range(20) for task in start(bench, ("key", f"x{number}"))]
    await bench.store.asked("key", loads)
    await until_all_wait(tasks)
    assert bench.store.count("key") == loads
    answer.set()
    assert await asyncio.gather(*tasks) == [None] * 20
    assert (bench.store.count("key"), bench.store.most_at_one_time) == (20, loads)


async def test_a_lookup_that_fails_or_is_given_up_frees_its_place():
    """Else the worker would look nothing up any more."""
    bench = bench_of_places(loads=1)
    bench.store.failing = {"key"}
    with pytest.raises(Away):
        await bench.memory.key("no")
    bench.store.failing = set()
    bench.store.hold("key")
    (given_up,) = start(bench, ("key", "no"))
    await bench.store.asked("key", 2)
    given_up.cancel()
    await asyncio.wait([given_up])
    assert await bench.memory.key("k")


# --- bounds -----------------------------------------------------------------------------------------


async def asked_again(bench: Bench, *key_ids: str) -> list[str]:
    """Which of the keys are read from the store, asked for in this order."""
    before = len(bench.store.calls)
    for key_id in key_ids:
        await bench.memory.key(key_id)
    return [name for kind, name in bench.store.calls[before:] if kind == "key"]


async def test_who_was_not_asked_for_the_longest_is_forgotten_first():
    """Memory is bounded: the last `entries` that were used are known, others are read again."""
    bench = bench_of_places(entries=3)
    for name in "abcd":
        put_key(bench, name)
    await asked_again(bench, "a", "b", "c", "a", "d")
    assert await asked_again(bench, "a", "c", "d") == []
    assert await asked_again(bench, "b", "d", "a") == ["b", "a"]
    for number in range(50):
        put_key(bench, f"more{number}")
        await bench.memory.key(f"more{number}")
    assert len(bench.memory._known) == 3


async def test_what_was_read_again_is_young_again():
    """It does not keep the place in the queue that it had when it was read first."""
    bench = bench_of_places(entries=2)
    put_key(bench, "a")
    put_key(bench, "b")
    await asked_again(bench, "a", "b")
    bench.clock.seconds += 30
    await asked_again(bench, "a", "k")
    assert await asked_again(bench, "a") == []


async def test_misses_are_bounded_and_push_nothing_out():
    """A flood of invented ids costs bounded memory, and no known entry its place."""
    bench = bench_of_places(entries=3)
    put_key(bench, "b")
    await asked_again(bench, "k", "b")
    invented = [f"x{number}" for number in range(50)]
    assert await asked_again(bench, *invented) == invented
    assert await asked_again(bench, "k", "b", "x49", "x48", "x47") == []
    assert await asked_again(bench, "x46") == ["x46"]
    assert len(bench.memory._unknown) == 3


async def test_remembered_signatures_are_bounded(bench, monkeypatch):
    """The least lately used is checked again, the others are not."""
    monkeypatch.setattr(authenticator, "_VERIFIED_ENTRIES", 3)
    bench.store.add_tenant("tn_2", "acme")
    tokens = [bench.issuers.issue(replace(FOREIGN, token_id=f"f{number}")) for number in range(4)]
    for number, reads in ((0, 1), (1, 2), (2, 3), (0, 3), (3, 4), (0, 4), (2, 4), (1, 5)):
        await bench.ask(tokens[number])
        assert bench.issuers.reads == reads
