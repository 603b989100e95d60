"""What a worker remembers: no I/O while the feed is fresh, and nothing that a change has overtaken."""

from __future__ import annotations

import asyncio

import pytest

from auth.memory import LATEST, REVOKED_SECONDS, token_name
from auth.principal import NotAuthenticated, StoredUser
from tests.auth.accounts import (
    MISSES,
    PLACES,
    Away,
    Bench,
    at,
    bench_of_places,
    find,
    put_key,
    start,
    until_all_wait,
)


@pytest.fixture
def bench() -> Bench:
    return bench_of_places()


# --- warm calls ---------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [*PLACES, *MISSES])
async def test_a_warm_call_does_no_io(bench, place):
    """Asked once, then known for half a minute, although the feed is read in the background all the time."""
    first = await find(bench, place)
    assert (first is None) == (place in MISSES)
    for _ in range(49):
        await bench.later(0.6)
        before = list(bench.store.calls)
        for _ in range(5):
            bench.clock.seconds += 0.001
            assert await find(bench, place) == first
        assert bench.store.calls == before
    assert bench.store.count(place[0]) == 1


@pytest.mark.parametrize("place", [*PLACES, *MISSES])
async def test_what_is_older_than_half_a_minute_is_read_again(bench, place):
    """Also where the feed has nothing to say: the last resort if an entry of it was lost."""
    await find(bench, place)
    await bench.later(29.9)
    await find(bench, place)
    assert bench.store.count(place[0]) == 1
    await bench.later(0.1)
    await find(bench, place)
    assert bench.store.count(place[0]) == 2


async def test_kinds_do_not_mix(bench):
    """A tenant, a user and a key of the same name are three things."""
    bench.store.add_tenant("same")
    put_key(bench, "same")
    bench.store.add_user("same")
    found = [await find(bench, (kind, "same")) for kind in ("tenant", "key", "user")]
    expected = [bench.store.tenants["same"], bench.store.keys["same"], bench.store.users["same"]]
    assert found == expected
    assert [await find(bench, (kind, "same")) for kind in ("tenant", "key", "user")] == expected


# --- how long the feed is believed ----------------------------------------------------------------


async def test_the_feed_is_read_by_the_request_when_nobody_else_did(bench):
    """Less than a second after the last reading it is not; from the full second on it is, and it counts."""
    await bench.memory.key("k")
    bench.clock.seconds = 0.99
    await bench.memory.key("k")
    assert bench.store.count("feed") == 1
    bench.clock.seconds = 1.0
    bench.store.users["ann@gate"] = StoredUser("ann@gate", "new")
    bench.store.note("user", "ann@gate")
    assert (await bench.memory.user("ann@gate")).password_hash == "new"
    assert bench.store.count("feed") == 2


@pytest.mark.parametrize("place", [*PLACES, *MISSES])
async def test_the_second_counts_from_the_start_of_the_reading(bench, place):
    """A feed that takes its time to answer does not prolong what it answered."""
    await find(bench, place)
    answer = bench.store.hold("feed")
    reading = asyncio.get_running_loop().create_task(bench.memory.refresh())
    await bench.store.asked("feed", 2)
    bench.clock.seconds += 0.8
    answer.set()
    await reading
    bench.clock.seconds = 0.99
    await find(bench, place)
    assert bench.store.count("feed") == 2
    bench.clock.seconds = 1.0
    await find(bench, place)
    assert bench.store.count("feed") == 3


async def test_who_comes_while_the_feed_is_slow_does_not_get_in_by_what_it_was(bench):
    """A key revoked since that reading began is refused, although the reading answers only now."""
    key = bench.store.add_key()
    await bench.ask(key)
    bench.clock.seconds = 1.0
    answer = bench.store.hold("feed")
    (early,) = start(bench, ("key", key.id))
    await bench.store.asked("feed", 2)
    bench.store.change_key(key, revoked_at=at(1))
    bench.clock.seconds = 2.1
    late = asyncio.get_running_loop().create_task(bench.ask(key))
    await until_all_wait([late])
    answer.set()
    await asyncio.wait([early, late])
    assert isinstance(late.exception(), NotAuthenticated)


async def test_a_late_answer_of_an_earlier_reading_turns_nothing_back(bench):
    """Two readings at one time: the one that began last says until when the feed is believed, and how far."""
    await bench.memory.current()
    answer = bench.store.hold("feed")
    early = asyncio.get_running_loop().create_task(bench.memory.refresh())
    await bench.store.asked("feed", 2)
    bench.store.note("key", "k", 90)
    await bench.later(0.7)
    answer.set()
    await early
    bench.clock.seconds = 1.69
    await bench.memory.current()
    assert bench.store.count("feed") == 3
    bench.clock.seconds = 1.7
    await bench.memory.current()
    assert bench.store.calls[-1] == ("feed", 90)


async def test_many_requests_read_the_feed_once(bench):
    """All wait for the one reading; none goes on before it is there."""
    await bench.memory.key("k")
    bench.clock.seconds = 1.0
    answer = bench.store.hold("feed")
    tasks = start(bench, ("key", "k"), 50)
    await until_all_wait(tasks)
    assert not any(task.done() for task in tasks)
    answer.set()
    assert len(set(await asyncio.gather(*tasks))) == 1
    assert (bench.store.count("feed"), bench.store.count("key")) == (2, 1)


@pytest.mark.parametrize("place", [*PLACES, *MISSES])
async def test_where_the_feed_fails_nobody_gets_in(bench, place):
    """What is remembered is not given out, to none of those who wait; with the feed it is there again."""
    await find(bench, place)
    bench.clock.seconds = 1.0
    bench.store.failing = {"feed"}
    answer = bench.store.hold("feed")
    tasks = start(bench, place, 5)
    await until_all_wait(tasks)
    answer.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Away] * 5
    with pytest.raises(Away):
        await find(bench, place)
    bench.store.failing = set()
    await find(bench, place)
    assert bench.store.count(place[0]) == 1


async def test_a_background_reading_that_fails_costs_no_trust_yet(bench):
    """The last good reading holds its second, and not longer."""
    await bench.memory.key("k")
    bench.store.failing = {"feed"}
    bench.clock.seconds = 0.9
    with pytest.raises(Away):
        await bench.memory.refresh()
    assert await bench.memory.key("k")
    bench.clock.seconds = 1.0
    with pytest.raises(Away):
        await bench.memory.key("k")


# --- changes ----------------------------------------------------------------------------------------

WARM = [*PLACES, ("key", "k2"), ("key", "far"), ("tenant", "tn_2"), ("user", "bob@gate"), *MISSES]
OF_TENANT = {("key", "k"), ("key", "k2"), ("tenant", "tn_1"), ("tenant", "acme")}


@pytest.mark.parametrize(
    ("change", "forgotten"),
    [
        (("key", "k"), {("key", "k")}),
        (("key", "no"), {("key", "no")}),
        (("tenant", "tn_1"), {*OF_TENANT, *MISSES}),
        (("tenant", "tn_2"), {("key", "far"), ("tenant", "tn_2"), *MISSES}),
        (("tenant", "tn_new"), set(MISSES)),
        (("user", "ann@gate"), {("user", "ann@gate")}),
        (("user", "no"), {("user", "no")}),
        (("token", "tn_1/k"), set()),
        (("login", "ann@gate"), None),
        (("audit", "k"), None),
    ],
)
async def test_a_change_forgets_what_it_concerns_and_nothing_else(bench, change, forgotten):
    """A tenant's goes for its keys and all its names; entries of kinds that nobody remembers move nothing."""
    bench.store.add_tenant("tn_2")
    put_key(bench, "k2")
    put_key(bench, "far", "tn_2")
    bench.store.add_user("bob@gate")
    for place in WARM:
        await find(bench, place)
    bench.store.note(*change)
    await bench.later(0.1)
    bench.store.calls.clear()
    for place in WARM:
        await find(bench, place)
    assert set(bench.store.calls) == (forgotten or set())
    assert bench.memory.version == (0 if forgotten is None else 1)
    assert bench.memory.take_news() == (set() if forgotten is None else {change})
    assert bench.memory.take_news() == set()


async def test_a_revoked_token_is_known_as_soon_as_the_feed_says_so(bench):
    """Told apart by tenant, as those that were loaded."""
    await bench.memory.current()
    bench.store.revoke_token(token_name("tn_1", "j1"))
    assert not bench.memory.revoked("tn_1", "j1")
    await bench.memory.refresh()
    assert bench.memory.revoked("tn_1", "j1")
    assert not bench.memory.revoked("tn_2", "j1")
    assert not bench.memory.revoked(None, "j1")


@pytest.mark.parametrize(("kind", "name"), [("key", "no"), ("user", "no"), ("tenant", "no")])
async def test_what_is_made_after_it_was_missed_is_found_once_the_feed_says_so(bench, kind, name):
    """Before, the miss is remembered. A tenant's new external id stands in the feed under its id."""
    assert await find(bench, (kind, name)) is None
    put_key(bench, "no")
    bench.store.add_user("no")
    bench.store.external["no"] = "tn_1"
    assert await find(bench, (kind, name)) is None
    bench.store.note(kind, "tn_1" if kind == "tenant" else name)
    bench.clock.seconds += 1
    assert await find(bench, (kind, name)) is not None


@pytest.mark.parametrize("place", [*PLACES, *MISSES])
async def test_an_answer_that_a_change_has_overtaken_is_not_kept(bench, place):
    """Read before the change, here after it was noticed: good for who asked before, for nobody else."""
    await bench.memory.current()
    answer = bench.store.hold(place[0])
    (early,) = start(bench, place)
    await bench.store.asked(place[0])
    put_key(bench, "no")
    bench.store.add_user("no")
    bench.store.add_tenant("no")
    bench.store.add_user("ann@gate", "another")
    bench.store.add_tenant("tn_1", max_streams=1)
    bench.store.note(place[0], "tn_1" if place == ("tenant", "acme") else place[1])
    await bench.later(0.1)
    (late,) = start(bench, place)
    await until_all_wait([late])
    assert late.done()  # it does not wait for what began before the change
    answer.set()
    assert await early != await late
    assert await find(bench, place) == await late
    assert bench.store.count(place[0]) == 2


async def test_of_all_that_wait_only_who_came_before_the_change_gets_the_old_answer(bench):
    """Those who came later share a look-up of their own."""
    await bench.memory.current()
    old, new = bench.store.hold("user"), bench.store.hold("user")
    before = start(bench, ("user", "ann@gate"), 3)
    await bench.store.asked("user")
    bench.store.add_user(password_hash="another")
    bench.store.note("user", "ann@gate")
    await bench.later(0.1)
    behind = start(bench, ("user", "ann@gate"), 3)
    await until_all_wait([*before, *behind])
    new.set()
    old.set()
    assert {user.password_hash for user in await asyncio.gather(*before)} == {"hash"}
    assert {user.password_hash for user in await asyncio.gather(*behind)} == {"another"}
    assert bench.store.count("user") == 2


@pytest.mark.parametrize("late", [2, 50, 75, 99])
async def test_an_entry_that_is_committed_late_is_noticed_once(bench, late):
    """Numbers are drawn before they are committed: a lower one may come after a higher one was read."""
    await bench.memory.key("k")
    for seq in range(1, 101):
        if seq != late:
            bench.store.note("login", "ann@gate", seq)
    await bench.later(0.1)
    bench.store.note("key", "k", late)
    for _ in range(3):
        await bench.later(0.1)
        assert bench.memory.version == 1
    await bench.memory.key("k")
    assert bench.store.count("key") == 2


@pytest.mark.parametrize("step", [1, 7, LATEST, 3 * LATEST])
async def test_each_entry_is_handled_once(bench, step):
    """However many come at one time, and although the last of them are read again and again."""
    await bench.memory.current()
    for start_of in range(0, 300, step):
        for seq in range(start_of, min(start_of + step, 300)):
            bench.store.note("key", f"k{seq}", seq + 1)
        await bench.later(0.1)
        assert bench.memory.take_news() == {
            ("key", f"k{seq}") for seq in range(start_of, min(start_of + step, 300))
        }
    await bench.later(0.1)
    assert bench.memory.version == 300


async def test_a_worker_that_starts_late_reads_the_end_of_a_long_feed(bench):
    """It remembers nothing that an older entry could concern."""
    for seq in range(1, 1001):
        bench.store.note("key", "k", seq)
    await bench.memory.current()
    assert bench.store.calls == [("feed", None), ("revoked", None)]
    assert bench.memory.version == LATEST
    bench.store.note("key", "k")
    await bench.later(0.1)
    assert bench.store.calls[2:] == [("feed", 1000)]
    assert bench.memory.version == LATEST + 1


# --- revoked tokens ---------------------------------------------------------------------------------


async def test_tokens_that_were_revoked_earlier_are_known_from_the_start(bench):
    """A worker that was just started knows them, and tells them apart by tenant."""
    bench.store.revoked = [token_name("tn_1", "j1"), token_name(None, "j2")]
    await bench.memory.current()
    asked = [(tenant, jti) for tenant in ("tn_1", "tn_2", None) for jti in ("j1", "j2")]
    assert [pair for pair in asked if bench.memory.revoked(*pair)] == [("tn_1", "j1"), (None, "j2")]
    await bench.later(1)
    assert bench.store.count("revoked") == 1


async def test_one_that_is_revoked_while_they_are_loaded_is_not_missed(bench):
    """The list is read behind the feed: what is too late for the one is in the other."""
    answer = bench.store.hold("feed")
    (task,) = start(bench, ("key", "k"))
    await bench.store.asked("feed")
    bench.store.revoke_token("tn_1/j1")
    answer.set()
    await task
    assert bench.memory.revoked("tn_1", "j1")


async def test_as_long_as_they_cannot_be_loaded_nobody_gets_in(bench):
    """The first reading is whole or none."""
    bench.store.revoked, bench.store.failing = ["tn_1/j1"], {"revoked"}
    for _ in range(2):
        with pytest.raises(Away):
            await bench.memory.key("k")
    bench.store.failing = set()
    await bench.memory.key("k")
    assert bench.memory.revoked("tn_1", "j1")


async def test_a_revocation_is_remembered_for_longer_than_any_token_lives(bench):
    """26 hours at least; behind that it makes room."""
    bench.store.revoked = ["tn_1/start"]
    bench.store.note("token", "tn_1/feed")
    await bench.memory.current()
    for seconds, kept in ((REVOKED_SECONDS - 1, True), (1, False)):
        bench.store.note("token", f"tn_1/{kept}")
        await bench.later(seconds)
        assert [bench.memory.revoked("tn_1", jti) for jti in ("start", "feed")] == [kept, kept]
