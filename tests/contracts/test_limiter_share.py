"""Admission without Redis: each worker decides alone, together they keep the limits, and Redis is told."""

from __future__ import annotations

import asyncio
import logging

import pytest

from api.adapters import limiter_share, redis_connect
from api.adapters.limiter_redis import RedisLimiter
from api.adapters.limiter_share import ShareLimiter
from api.core.demand import STREAMS, Verdict
from api.ports import LimiterUnavailable, Permit, Renewal, Used
from tests.contracts.admission import (
    DAY,
    SECOND,
    ask,
    budget,
    cap,
    key_cap,
    left,
    requests,
    take,
    tokens,
    used,
)
from tests.contracts.fleets import Fleet, HandClock
from tests.contracts.helpers import TERMS, bounded, eventually
from tests.contracts.inventories import in_redis
from tests.contracts.wires import Proxy

GRANTED, REFUSED = Verdict.GRANTED, Verdict.REFUSED


@pytest.fixture
async def fleet_of(client):
    """Makes a fleet whose workers have met."""

    async def make(count: int = 1, mode: str = "share") -> Fleet:
        fleet = Fleet(client, count, mode)  # type: ignore[arg-type]
        await fleet.meet()
        return fleet

    return make


def leaks(fleet: Fleet) -> list[object]:
    """What the workers still have in mind of an outage."""
    kept = ("_owed", "_given_back", "_books", "_spent", "_strangers")
    return [kind for one in fleet.workers for name in kept if (kind := getattr(one.limiter, name))]


# --- alone ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("amount", [1, 4, 7, 12])
async def test_shares_sum_to_the_limit_exactly(fleet_of, count, amount) -> None:
    """P4: whatever does not divide is given to the first ones; a key's cap, a rate and a budget alike."""
    fleet = await fleet_of(count)
    fleet.cut()
    for demands in (
        (cap(amount),),
        (cap(99), key_cap(amount)),
        (cap(99), requests(amount)),
    ):
        got = [await one.fill(f"{one.limiter._worker}:{demands}", *demands) for one in fleet.workers]
        assert sum(got) == amount
        assert max(got) - min(got) <= 1
        for worker in fleet.workers:
            for permit_id in list(worker.streams):
                await worker.end(permit_id)
    tokens_of = [
        (await one.start("p", cap(99), budget(amount * count), most=999)).tokens for one in fleet.workers
    ]
    assert tokens_of == [amount] * count


async def test_a_share_leaves_room_for_what_runs_elsewhere(fleet_of) -> None:
    """P4: the ledger says how many streams the others have, and they may all still run."""
    fleet = await fleet_of(2)
    one, other = fleet.workers
    for n in range(6):
        await one.start(f"a{n}", cap(10))
    await other.start("b", cap(10))
    await fleet.tick()
    fleet.cut()
    assert (await one.fill("x", cap(10)), await other.fill("y", cap(10))) == (0, 3)


async def test_closed_lets_nobody_in_and_open_everybody(fleet_of) -> None:
    """What `share` does, the other modes do not; a probe for readiness is told of the closed one alone."""
    for mode, ready in (("closed", False), ("open", True), ("share", True)):
        fleet = await fleet_of(1, mode)
        (worker,) = fleet.workers
        fleet.cut()
        if mode == "closed":
            with pytest.raises(LimiterUnavailable):
                await worker.start("p", cap(1))
        else:
            replies = [await worker.start(f"p{n}", cap(1), budget(10), most=20) for n in range(2)]
            assert all(reply.degraded for reply in replies)
            expected = [(GRANTED, 20), (GRANTED, 20)] if mode == "open" else [(GRANTED, 10), (REFUSED, 0)]
            assert [(reply.verdict, reply.tokens) for reply in replies] == expected
        if ready:
            await worker.limiter.ping()
        else:
            with pytest.raises(LimiterUnavailable):
                await worker.limiter.ping()


@pytest.mark.parametrize("mode", ["share", "closed", "open"])
async def test_what_runs_goes_on_in_every_mode(fleet_of, mode) -> None:
    """P3: a stream that Redis admitted gets more credit without it, and is not said to be lost."""
    fleet = await fleet_of(2, mode)
    (worker, _) = fleet.workers
    await worker.start("p", cap(2), tokens(1000), budget(100), most=20)
    await worker.start("q", cap(2), tokens(1000), most=20)
    fleet.cut()
    assert (await worker.extend("p", 1, 5)).tokens == 5
    assert (await worker.extend("q", 1, 5)).tokens == 5
    for _ in range(3):
        await fleet.later(10)
        assert (await worker.tick()).lost == set()
        assert (await worker.extend("p", 1, 5)).tokens == 5
    if mode != "open":  # half of 100, of which 40 are granted
        assert (await worker.extend("p", 1, 99)).tokens == 10
        assert (await worker.extend("p", 1, 99)).verdict is REFUSED
    await worker.end("p", 33)
    await fleet.heal()
    assert await left(fleet.dial.limiter, cap(2), budget(100)) == [1, 67]
    assert (await worker.extend("q", 1, 5)).tokens == 5


async def test_what_the_ledger_knows_is_not_shared_out_again(fleet_of) -> None:
    """Of a budget each worker has its part of what is left, not of all of it."""
    fleet = await fleet_of(3)
    fleet.cut()
    for worker in fleet.workers:
        reply = await worker.start("p", cap(9), budget(100), least=1, most=99, spent=40)
        assert (reply.verdict, reply.tokens) == (GRANTED, 20)
        assert (await worker.start("q", cap(9), budget(100), least=1)).verdict is REFUSED


async def test_a_share_that_is_too_small_is_no_limit_that_is(fleet_of) -> None:
    """A request that is larger than this worker's part of a rate may come again in a moment."""
    fleet = await fleet_of(3)
    fleet.cut()
    reply = await fleet.workers[0].start("p", cap(9), tokens(90, 31))
    assert (reply.verdict, reply.at, reply.wait_us) == (REFUSED, 1, 2 * SECOND)


async def test_while_redis_learns_what_runs_workers_decide_alone(fleet_of) -> None:
    """SETTLING keeps nobody out; a budget is asked of the ledger, and what runs here is counted."""
    fleet = await fleet_of(1)
    (worker,) = fleet.workers
    await worker.start("p", cap(2), budget(100), most=30)
    await fleet.dial.flush()
    await worker.tick()
    reply = await worker.start("q", cap(2), budget(100), least=1, most=99, spent=10)
    assert (reply.verdict, reply.tokens, reply.degraded) == (GRANTED, 60, True)
    assert (await worker.start("r", cap(2))).verdict is REFUSED
    for _ in range(2):
        await worker.tick()
    assert leaks(fleet) == []
    assert await left(fleet.dial.limiter, cap(2)) == [0]


# --- Redis is told ----------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", ["away", "deaf", "emptied", "emptied at the end", "lapsed"])
async def test_what_ended_meanwhile_is_told_exactly_once(fleet_of, trouble) -> None:
    """P5: whether Redis heard it or not, forgot it or gave it up: charged is what was used, and no more."""
    fleet = await fleet_of(1)
    (worker,) = fleet.workers
    asked = (cap(5), tokens(1000), budget(100))
    for name in "abc":
        await worker.start(name, *asked, most=20)
    worker.line.deaf = trouble == "deaf"
    worker.line.away = trouble != "deaf"
    await worker.end("a", 7)
    if trouble == "emptied":
        await fleet.dial.flush()
    if trouble == "lapsed":
        await fleet.later(61)
        await take(fleet.dial.limiter, "other", cap(5))
    assert (await worker.start("new", *asked, most=9)).degraded
    await worker.end("new", 5)
    await worker.tick()
    if trouble == "emptied at the end":
        await fleet.dial.flush()
    worker.line.away = worker.line.deaf = False
    for _ in range(3):
        assert (await worker.tick()).lost == set()
        await fleet.later(1)
    if trouble.startswith("emptied"):
        await fleet.later(60)
        await worker.tick()
        await ask(fleet.dial.limiter, "x", *asked, spent=12, least=999)
    counted = await in_redis(fleet.dial.client)
    assert counted["budgets"] == {DAY: (12, 40, None)}
    assert set(counted["slots"][STREAMS]) - {"other"} == {"b", "c"}
    assert leaks(fleet) == []


async def test_who_was_refused_meanwhile_owes_nothing(fleet_of) -> None:
    """A flood of refusals in an outage is no flood of work when Redis is back."""
    for mode in ("share", "closed"):
        fleet = await fleet_of(1, mode)
        (worker,) = fleet.workers
        fleet.cut()
        await worker.tick()
        for n in range(50):
            try:
                assert (await worker.start(f"x{n}", cap(0))).verdict is REFUSED
            except LimiterUnavailable:
                assert mode == "closed"
        assert worker.limiter._owed == {}
        assert worker.limiter._strangers == set()


async def test_what_used_nothing_is_not_registered_again(fleet_of) -> None:
    """It would stand for a moment where somebody else could."""
    fleet = await fleet_of(1)
    (worker,) = fleet.workers
    for name in "ab":
        await worker.start(name, cap(2), budget(100), most=20)
    fleet.cut()
    await worker.end("a", 3)
    await worker.end("b", 0)
    fleet.cut(away=False)
    worker.line.renewed.clear()
    await worker.tick()
    assert worker.line.renewed == ["a"]
    assert await left(fleet.dial.limiter, cap(2), budget(100)) == [2, 97]


async def test_a_flood_of_endings_does_not_hold_up_the_leases(fleet_of, monkeypatch) -> None:
    """So many are told in one tick, the others in the next; all of them in the end."""
    monkeypatch.setattr(limiter_share, "_PAID_AT_ONCE", 3)
    fleet = await fleet_of(1)
    (worker,) = fleet.workers
    for n in range(8):
        await worker.start(f"p{n}", cap(9), budget(100), most=10)
    fleet.cut()
    for n in range(8):
        await worker.end(f"p{n}", n + 1)
    fleet.cut(away=False)
    for owed in (5, 2, 0):
        await worker.tick()
        assert len(worker.limiter._owed) == owed
    assert await left(fleet.dial.limiter, cap(9), budget(100)) == [9, 100 - 36]


async def test_a_stream_that_ended_is_lost_to_nobody(fleet_of) -> None:
    """Its slot is taken when Redis is back; the flow is not told of a stream that it has no longer."""
    fleet = await fleet_of(2)
    one, other = fleet.workers
    await one.start("a", cap(2), budget(100), most=20)
    await one.start("b", cap(2), budget(100), most=20)
    one.line.away = True
    await one.end("a", 7)
    await fleet.later(61)
    for name in "xy":
        await other.start(name, cap(2))
    one.line.away = False
    assert (await one.tick()).lost == {"b"}
    assert (await in_redis(fleet.dial.client))["budgets"] == {DAY: (7, 0, None)}


# --- losing and finding it --------------------------------------------------------------------------


async def test_after_a_long_outage_a_worker_stays_alone_for_two_ticks(fleet_of) -> None:
    """All the others must have told Redis what runs before its word is taken; then nothing is kept."""
    fleet = await fleet_of(2)
    (worker, _) = fleet.workers
    fleet.cut()
    await worker.start("p", cap(4))
    await fleet.later(5)
    fleet.cut(away=False)
    await fleet.tick()
    for degraded in (True, True, False):
        assert worker.limiter.degraded is degraded
        worker.line.calls.clear()
        reply = await worker.start(f"p{fleet.clock.at}", cap(4))
        assert reply.degraded is degraded
        assert ("acquire" in worker.line.calls) is not degraded
        await fleet.later(1)
    await fleet.tick()
    assert leaks(fleet) == []
    assert await left(fleet.dial.limiter, cap(4)) == [
        0
    ]  # all four: in sight of Redis its room decides, not the share


async def test_a_short_blip_heals_two_ticks_after_the_next_renewal(fleet_of) -> None:
    """One answer that is late costs three ticks in which the book must agree, and no more."""
    fleet = await fleet_of(1)
    (worker,) = fleet.workers
    assert not (await worker.start("before", cap(5))).degraded
    fleet.cut()
    assert (await worker.start("p", cap(5), budget(50), most=5)).degraded
    fleet.cut(away=False)
    assert (await worker.start("q", cap(5))).degraded
    assert worker.line.calls[-1] == "acquire"
    await fleet.later(0.9)
    await worker.tick()
    await fleet.later(2)
    await worker.tick()
    assert not worker.limiter.degraded
    assert leaks(fleet) == []
    assert not (await worker.start("r", cap(5))).degraded
    assert await left(fleet.dial.limiter, cap(5), budget(50)) == [1, 45]


async def test_a_second_outage_begins_with_what_runs_then(fleet_of) -> None:
    """What a worker knew of the first one is not taken for the second."""
    fleet = await fleet_of(1)
    (worker,) = fleet.workers
    fleet.cut()
    await worker.start("p", cap(3))
    await fleet.later(5)
    fleet.cut(away=False)
    await worker.tick()
    await fleet.later(2)
    assert not (await worker.start("q", cap(3))).degraded
    fleet.cut()
    assert await worker.fill("x", cap(3)) == 1


async def test_an_outage_is_logged_once_a_second_at_most(fleet_of, caplog) -> None:
    """However many calls fail; and that it is over is logged once."""
    fleet = await fleet_of(1)
    (worker,) = fleet.workers
    caplog.set_level(logging.WARNING, "sluicegate.limiter")
    fleet.cut()
    for second in range(3):
        for n in range(20):
            await worker.start(f"p{second}-{n}", cap(5))
            await worker.tick()
        assert len(caplog.records) == second + 1
        await fleet.later(1)
    fleet.cut(away=False)
    for _ in range(3):
        await worker.tick()
    assert [record.message for record in caplog.records[3:]] == ["Redis answers again, after 3.0 s"]


async def test_a_real_redis_that_falls_silent_and_speaks_again(redis_server, redis_url) -> None:
    """The whole way, over a wire: answers are swallowed, later they come, and each token is charged once."""
    async with Proxy(lambda: asyncio.open_connection("127.0.0.1", redis_server.port)) as proxy:
        client = redis_connect.connect(f"redis://127.0.0.1:{proxy.port}/0")
        redis = RedisLimiter(client, TERMS)
        time, clock = HandClock(), budget(100)
        limiter = ShareLimiter(redis, time, TERMS, worker="w")
        permits = [await take(limiter, f"p{n}", cap(9), clock, most=20) for n in range(3)]
        proxy.mute = True
        await asyncio.gather(*(bounded(limiter.release(permit, used(6))) for permit in permits))
        alone = await bounded(ask(limiter, "q", cap(9), clock, most=20))
        assert alone.degraded
        proxy.mute = False
        running = Permit("q", "tn_a", (cap(9), clock), alone.tokens, degraded=True)

        async def back() -> bool:
            time.at += 1
            await limiter.renew([Renewal(running, Used())], {})
            return not limiter.degraded

        await eventually(back)
        assert await left(limiter._redis, cap(9), clock) == [8, 100 - 18 - 20]
        await client.aclose()
