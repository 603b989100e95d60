"""What a worker remembers and goes by while the store is away: where that is allowed, and for a while."""

from __future__ import annotations

import pytest

from tests.auth.accounts import PLACES, Away, bench_of_places, find


@pytest.mark.parametrize("place", [*PLACES])
async def test_where_it_is_allowed_what_was_known_goes_on_to_hold_for_a_while(place):
    """DATABASE_AWAY=spool: also what would have been read again by now; and then no longer."""
    bench = bench_of_places(away_seconds=900.0)
    known = await find(bench, place)
    bench.store.failing = {"feed", place[0]}
    for seconds in (1.0, 40.0, 899.0):
        bench.clock.seconds = seconds
        assert await find(bench, place) == known
    assert bench.store.count("feed") == 2, "only the first one has to find out"
    bench.clock.seconds = 901.0
    with pytest.raises(Away):
        await find(bench, place)


async def test_who_is_not_known_does_not_get_in_without_the_store():
    """A key that nobody asked for before cannot be told from one that was revoked."""
    bench = bench_of_places(away_seconds=900.0)
    await bench.memory.key("k")
    bench.store.failing = {"feed", "tenant"}
    bench.clock.seconds = 1.0
    with pytest.raises(Away):
        await bench.memory.tenant("t")


async def test_with_the_store_back_a_revocation_holds_again_within_a_second():
    """The background's next reading ends it."""
    bench = bench_of_places(away_seconds=900.0)
    assert await bench.memory.key("k")
    bench.store.failing = {"feed"}
    bench.clock.seconds = 5.0
    assert await bench.memory.key("k")
    bench.store.failing = set()
    del bench.store.keys["k"]
    bench.store.note("key", "k")
    await bench.memory.refresh()
    assert await bench.memory.key("k") is None
