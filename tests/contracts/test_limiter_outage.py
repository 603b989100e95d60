"""The limiter while its Redis stands still, is killed, is full, or has more callers than connections.

Answers in bounded time, never stops the event loop, blames no healthy Redis, and heals without a restart.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from api.adapters import redis_connect
from api.adapters.limiter_redis import RedisLimiter
from api.core.demand import Ask, Reply, Verdict
from api.ports import LimiterUnavailable, Permit, Renewal, Used
from tests.contracts.admission import ask, budget, cap, key_cap, lenient, more, take, used, verdict
from tests.contracts.helpers import BOUND_SECONDS, TERMS, LoopTurns, bounded, eventually, turns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

WIDE = (cap(10_000), key_cap(10_000))


@pytest.fixture
async def impatient(own_redis) -> AsyncIterator[RedisLimiter]:
    """A limiter as the product opens it, connected."""
    client = redis_connect.connect(own_redis.url)
    opened = RedisLimiter(client, TERMS)
    await take(opened, "warm", *WIDE)
    yield opened
    await client.aclose()


async def crowd(limiter: RedisLimiter, size: int, name: str) -> list[type]:
    """So many that ask at once, all within the cap: the kinds of what they got."""
    asked = (ask(limiter, f"{name}{n}", *WIDE) for n in range(size))
    return [type(answer) for answer in await bounded(asyncio.gather(*asked, return_exceptions=True))]


async def serves_a_crowd(limiter: RedisLimiter) -> bool:
    """Whether three times as many as the pool has connections are admitted at once."""
    return await crowd(limiter, 100, "after") == [Reply] * 100


def freeze(seconds: float) -> None:
    """Nobody else gets a turn of the event loop."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


async def test_a_redis_that_stands_still_is_an_error_and_not_a_standstill(own_redis, impatient) -> None:
    """Every call ends in LimiterUnavailable while the event loop goes on; when Redis goes on, so do they."""
    permit = await take(impatient, "before", *WIDE, budget(50), most=5)
    own_redis.pause()
    try:
        async with LoopTurns() as loop:
            assert await crowd(impatient, 100, "stopped") == [LimiterUnavailable] * 100
            for call in (
                impatient.renew([Renewal(permit, Used())], {}),
                more(impatient, permit, 1, 1),
                impatient.release(permit, used(1)),
                impatient.peek("tn_a", WIDE),
                impatient.live("tn_a"),
                impatient.enlist("w"),
                impatient.ping(),
            ):
                with pytest.raises(LimiterUnavailable):
                    await bounded(call)
        assert loop.count > 200
    finally:
        own_redis.resume()
    await eventually(lambda: serves_a_crowd(impatient))


async def test_the_answer_comes_within_the_bound(own_redis, impatient) -> None:
    """A quarter of a second, and what this machine is late; of a hundred that ask at once, of all of them."""
    own_redis.pause()
    began = time.perf_counter()
    try:
        await crowd(impatient, 100, "stopped")
        took = time.perf_counter() - began
    finally:
        own_redis.resume()
    assert 0.25 <= took < 2.0


async def test_an_event_loop_of_ours_that_was_busy_is_not_redis_silence(redis_url) -> None:
    """P2: 0.4 s of our own, again and again, while answers lie unread: nobody is refused for it."""
    client = redis_connect.connect(redis_url)
    limiter = RedisLimiter(client, TERMS)
    await eventually(lambda: serves_a_crowd(limiter))
    for n in (2, 5, 10):
        asked = asyncio.gather(*(ask(limiter, f"{n}-{i}", *WIDE) for i in range(100)))
        await turns(n)
        freeze(0.4)
        assert [reply.verdict for reply in await bounded(asked)] == [Verdict.GRANTED] * 100
    await client.aclose()


async def test_a_redis_that_was_killed_and_started_again_is_found_again(own_redis, impatient) -> None:
    """Connections of the pool that are dead are replaced: one restart of Redis, none of the gateway."""
    await eventually(lambda: serves_a_crowd(impatient))
    own_redis.kill()
    assert await crowd(impatient, 100, "away") == [LimiterUnavailable] * 100
    await asyncio.to_thread(own_redis.start)
    await eventually(lambda: serves_a_crowd(impatient))
    old = Permit("old", "tn_b", WIDE)
    assert await impatient.renew([Renewal(old, Used())], {}) == (set(), {"tn_b": 1})


async def test_a_redis_that_takes_no_writes_is_an_error(impatient) -> None:
    """In a failover no slot is granted that Redis did not write down."""
    client = impatient._client
    await client.replicaof("127.0.0.1", 1)  # nobody is there, so this one is a replica without a master
    with pytest.raises(LimiterUnavailable):
        await impatient.acquire("tn_a", Ask("p", WIDE))
    with pytest.raises(LimiterUnavailable):
        await impatient.renew([Renewal(Permit("p", "tn_a", WIDE), Used())], {})
    await client.replicaof("NO", "ONE")
    assert await verdict(impatient, "p", *WIDE) is Verdict.GRANTED


async def test_scripts_that_redis_forgot_are_sent_again(limiter, client) -> None:
    """A restart, a failover or SCRIPT FLUSH costs a round trip, not an error."""
    demands = (cap(2), budget(50))
    permit = await take(limiter, "p", *demands, most=5)
    other = Permit("p", "tn_b", demands, 5)
    for call in (
        lambda: ask(limiter, "q", *demands),
        lambda: more(limiter, permit, 1, 2),
        lambda: limiter.peek("tn_a", demands),
        lambda: limiter.enlist("w"),
        lambda: limiter.renew([Renewal(permit, Used()), Renewal(other, Used())], {"tn_c": ["w"]}),
        lambda: limiter.release(permit, used(2)),
    ):
        await client.script_flush()
        await call()
    assert await limiter.live("tn_a") == ["q"]
    assert await limiter.live("tn_b") == ["p"]


@pytest.mark.parametrize(("kind", "size"), [("memory", 100), ("redis", 500)])
async def test_more_callers_than_connections_all_get_an_answer(own_redis, kind, size) -> None:
    """A burst waits for its turn in the pool; nobody is refused for want of a connection."""
    url = "memory://" if kind == "memory" else own_redis.url
    client = redis_connect.connect(url, timeout_seconds=BOUND_SECONDS)
    answers = await crowd(lenient(client), size, "p")
    await client.aclose()
    assert answers == [Reply] * size


async def test_callers_that_are_cancelled_take_no_connection_with_them(impatient) -> None:
    """Clients that leave while they wait for admission do not wear the pool out."""
    for attempt in range(5):
        asked = asyncio.gather(*(ask(impatient, f"{attempt}-{n}", *WIDE) for n in range(100)))
        await turns(1 + attempt)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
    await eventually(lambda: serves_a_crowd(impatient))
