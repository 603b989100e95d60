"""Waiting, limits in shadow, what is left, and the fleet: on fakeredis and on a real Redis."""

from __future__ import annotations

import asyncio

import pytest

from api.core.demand import NEVER_US, Terms, Verdict
from api.ports import Fleet, Permit, Used
from tests.contracts.admission import (
    SECOND,
    Dial,
    ask,
    budget,
    cap,
    key_cap,
    left,
    lenient,
    requests,
    take,
    tokens,
    verdict,
)
from tests.contracts.helpers import TERMS, bounded, eventually
from tests.contracts.inventories import in_redis

GRANTED, REFUSED, WAITING = Verdict.GRANTED, Verdict.REFUSED, Verdict.WAITING
_BRIEF = Terms(lease_us=200_000, waiter_us=SECOND, settle_us=0)


@pytest.fixture
async def dial(client) -> Dial:
    """A Redis whose time the test turns."""
    dialled = Dial(client, TERMS._replace(waiter_us=2 * SECOND))
    await dialled.turn()
    return dialled


async def waiting(dial: Dial) -> list[str]:
    """Who waits, in order."""
    return [permit_id for permit_id, *_ in (await in_redis(dial.client))["waiting"]]


# --- the queue --------------------------------------------------------------------------------------


async def test_who_came_first_gets_in_first(dial) -> None:
    """However often those behind ask; and whoever is not in the queue comes after all of them."""
    permits = [await take(dial.limiter, f"p{n}", cap(2)) for n in range(2)]
    for name in "zma":
        assert await verdict(dial.limiter, name, cap(2), waiters=3) is WAITING
    await dial.limiter.release(permits[0], Used())
    for name, got in (("a", WAITING), ("m", WAITING), ("new", REFUSED), ("z", GRANTED), ("m", WAITING)):
        assert await verdict(dial.limiter, name, cap(2), waiters=3) is got
    assert await waiting(dial) == ["m", "a"]
    await dial.limiter.release(permits[1], Used())
    assert await verdict(dial.limiter, "a", cap(2), waiters=3) is WAITING
    assert await verdict(dial.limiter, "m", cap(2), waiters=3) is GRANTED


async def test_a_limit_that_went_into_shadow_holds_nobody_up(dial) -> None:
    """Though somebody still waits for it, from before."""
    await take(dial.limiter, "p", cap(9), key_cap(1))
    assert await verdict(dial.limiter, "a", cap(9), key_cap(1), waiters=3) is WAITING
    shadow = key_cap(1)._replace(shadow=True)
    assert await verdict(dial.limiter, "b", cap(9), shadow, waiters=3) is GRANTED


async def test_a_queue_is_as_long_as_was_agreed(limiter) -> None:
    """Of 30 that ask at once for one slot one gets it, 5 wait, and the others are refused."""
    asked = [verdict(limiter, f"p{n}", cap(1), waiters=5) for n in range(30)]
    verdicts = await bounded(asyncio.gather(*asked))
    assert [verdicts.count(one) for one in (GRANTED, WAITING, REFUSED)] == [1, 5, 24]
    assert await verdict(limiter, "x", cap(1)) is REFUSED


async def test_who_waits_for_one_limit_holds_nobody_up_who_does_not_need_it(dial) -> None:
    """A key at its cap queues for its own slots; another key's request walks past."""
    await take(dial.limiter, "p", cap(9), key_cap(1))
    assert await verdict(dial.limiter, "a", cap(9), key_cap(1), waiters=3) is WAITING
    assert await verdict(dial.limiter, "b", cap(9), key_cap(1, "other"), waiters=3) is GRANTED
    assert await verdict(dial.limiter, "c", cap(9), key_cap(1), waiters=3) is WAITING


async def test_a_small_request_does_not_overtake_a_large_one(dial) -> None:
    """Of those that wait for the same rate, though there would be room for the second."""
    await take(dial.limiter, "p", cap(), tokens(60, 60))
    large = await ask(dial.limiter, "large", cap(), tokens(60, 30), waiters=3)
    assert (large.verdict, large.at, large.wait_us) == (WAITING, 1, 30 * SECOND)
    await dial.turn(SECOND)
    assert await verdict(dial.limiter, "small", cap(), tokens(60, 1), waiters=3) is WAITING
    assert await verdict(dial.limiter, "other", cap(), waiters=3) is GRANTED


async def test_nobody_waits_for_what_does_not_pass(dial) -> None:
    """A budget that is spent, a request larger than its rate: refused, and a place in the queue is lost."""
    await take(dial.limiter, "p", cap(1))
    assert await verdict(dial.limiter, "a", cap(1), waiters=3) is WAITING
    for demands in ((cap(1), budget(5, 6)), (cap(9), tokens(60, 61))):
        reply = await ask(dial.limiter, "a", *demands, waiters=3)
        assert (reply.verdict, reply.at, reply.wait_us) == (REFUSED, 1, NEVER_US)
    assert await waiting(dial) == []


async def test_a_place_is_kept_as_long_as_it_is_renewed(dial) -> None:
    """A dead worker's waiters hold nobody up for longer than their leases; a live one's keep their order."""
    permit = await take(dial.limiter, "p", cap(1))
    for name in ("dead", "alive"):
        await ask(dial.limiter, name, cap(1), waiters=3)
    await dial.turn(SECOND)
    await dial.limiter.renew([], {"tn_a": ["alive", "nobody"]})
    await dial.turn(SECOND)
    assert await verdict(dial.limiter, "last", cap(1), waiters=3) is WAITING
    assert await waiting(dial) == ["alive", "last"]
    await dial.limiter.release(permit, Used())
    assert await verdict(dial.limiter, "last", cap(1), waiters=3) is WAITING
    assert await verdict(dial.limiter, "alive", cap(1), waiters=3) is GRANTED


async def test_who_gives_up_leaves_its_place(dial) -> None:
    """A release of what was never granted frees a place in the queue and nothing else."""
    await take(dial.limiter, "p", cap(1), budget(50), most=20)
    for name in "ab":
        await ask(dial.limiter, name, cap(1), budget(50), waiters=3)
    await dial.limiter.release(Permit("a", "tn_a", (cap(1), budget(50))), Used())
    assert await waiting(dial) == ["b"]
    assert await left(dial.limiter, cap(1), budget(50)) == [0, 30]


async def test_the_wait_for_a_slot_is_how_often_slots_come_free(dial) -> None:
    """A second where nobody knows yet; then a mean of the gaps between endings, of half a minute at most."""
    permits = [await take(dial.limiter, f"p{n}", cap(9)) for n in range(9)]
    assert (await ask(dial.limiter, "x", cap(9))).wait_us == SECOND
    for permit, gap in zip(permits[:3], (4 * SECOND, 4 * SECOND, 12 * SECOND), strict=True):
        await dial.turn(gap)
        await dial.limiter.release(permit, Used())
    assert (await ask(dial.limiter, "x", cap(6))).wait_us == 5 * SECOND
    await dial.turn(59 * SECOND)
    for permit in permits[3:8]:
        await dial.limiter.release(permit, Used())
    assert (await ask(dial.limiter, "x", cap(0))).wait_us == 5 * SECOND + 25 * SECOND // 8


# --- shadow -----------------------------------------------------------------------------------------


async def test_a_limit_in_shadow_refuses_nothing_and_counts_what_it_would_have(dial) -> None:
    """Of each of them by itself; a request that a real limit refuses is not counted."""
    shadows = (
        cap(1, "streams:key:k", of="key", shadow=True),
        requests(2, shadow=True),
        budget(10, 6, shadow=True),
    )
    for n in range(3):
        await take(dial.limiter, f"p{n}", cap(3), *shadows)
    assert await verdict(dial.limiter, "x", cap(3), *shadows, waiters=1) is WAITING
    peek = await dial.limiter.peek("tn_a", shadows)
    assert peek.would_refuse == {
        "key:max_streams": 2,
        "tenant:requests_per_minute": 1,
        "tenant:tokens_per_day": 2,
    }
    assert [state.remaining for state in peek.states] == [0, 0, 0]


async def test_a_rate_in_shadow_is_not_run_into_debt(dial) -> None:
    """What it would have refused it is not charged for: it counts what it would count if it were real."""
    for n in range(4):
        await take(dial.limiter, f"p{n}", cap(), requests(2, shadow=True))
    await dial.turn(30 * SECOND)
    assert await left(dial.limiter, requests(2)) == [1]


# --- peek -------------------------------------------------------------------------------------------


async def test_looking_changes_nothing(dial) -> None:
    """And a budget of which nothing is known counts as untouched."""
    demands = (cap(3), requests(60), budget(100))
    assert await left(dial.limiter, *demands) == [3, 60, 100]
    assert await dial.client.keys("sg:*") == []
    await take(dial.limiter, "p", *demands, most=30)
    before = await in_redis(dial.client)
    assert await left(dial.limiter, *demands) == [2, 59, 70]
    assert await in_redis(dial.client) == before


# --- the fleet --------------------------------------------------------------------------------------


async def test_workers_know_how_many_they_are_and_which(limiter, client) -> None:
    """Each has a number of its own, from none to all but one, so shares add up."""
    for name in ("b", "c", "a"):
        await limiter.enlist(name)
    for name, before in (("a", 0), ("b", 1), ("c", 2)):
        assert await limiter.enlist(name) == Fleet(3, before)


async def test_a_worker_that_is_gone_is_not_counted_for_long(client) -> None:
    """Its lease runs out."""
    brief, long = lenient(client, _BRIEF), lenient(client)
    await brief.enlist("a")
    assert await long.enlist("b") == Fleet(2, 1)

    async def alone() -> bool:
        return await long.enlist("b") == Fleet(1, 0)

    assert await eventually(alone)
