"""The limiter while its Redis stands still, is killed, is full, or has more callers than connections.

Fails closed and in bounded time, never stops the event loop, and heals without a restart.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import pytest

from api.adapters import limiter_redis
from api.adapters.limiter_redis import RedisLimiter
from api.ports import LimiterUnavailable, Permit
from auth.principal import Limit
from tests.contracts.helpers import BOUND_SECONDS, LoopTurns, bounded, eventually
from tests.support.servers import RedisServer, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


def wide(tenant: str = "tn_a") -> tuple[Limit, ...]:
    """A cap that nobody here reaches, and a key's own."""
    return (Limit("tenant", tenant, 10_000), Limit("key", "k", 10_000))


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A Redis of this test's own, which it may stop and kill."""
    with running(RedisServer()) as started:
        started.start()
        yield started


@pytest.fixture
async def limiter(server: RedisServer) -> AsyncIterator[RedisLimiter]:
    """A limiter as the product opens it, connected."""
    client = limiter_redis.connect(server.url)
    opened = RedisLimiter(client, lease_seconds=60)
    await opened.ping()
    yield opened
    await client.aclose()


async def crowd(limiter: RedisLimiter, size: int, name: str) -> list[type]:
    """So many that ask at once, all within the cap: the kinds of what they got."""
    asked = (limiter.acquire("tn_a", f"{name}{n}", wide()) for n in range(size))
    return [type(answer) for answer in await bounded(asyncio.gather(*asked, return_exceptions=True))]


async def serves_a_crowd(limiter: RedisLimiter) -> bool:
    """Whether three times as many as the pool has connections are admitted at once."""
    return await crowd(limiter, 100, "after") == [Permit] * 100


async def works(limiter: RedisLimiter) -> bool:
    """Whether admission works now."""
    try:
        await limiter.release(await limiter.acquire("tn_probe", "p", wide("tn_probe")))
    except LimiterUnavailable:
        return False
    return True


async def test_a_redis_that_stands_still_is_an_error_and_not_a_standstill(server, limiter) -> None:
    """Every call ends in LimiterUnavailable while the event loop goes on; when Redis goes on, so do they."""
    permit = await limiter.acquire("tn_a", "before", wide())
    assert server.process is not None
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        async with LoopTurns() as turns:
            answers = await crowd(limiter, 100, "stopped")
            with pytest.raises(LimiterUnavailable):
                await bounded(limiter.renew({permit.id: permit}))
            with pytest.raises(LimiterUnavailable):
                await bounded(limiter.live("tn_a"))
            with pytest.raises(LimiterUnavailable):
                await bounded(limiter.ping())
            await bounded(limiter.release(permit))  # never raises
        assert answers == [LimiterUnavailable] * 100
        assert turns.count > 200
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    await eventually(lambda: serves_a_crowd(limiter))


async def test_a_redis_that_was_killed_and_started_again_is_found_again(server, limiter) -> None:
    """Connections of the pool that are dead are replaced: one restart of Redis, none of the gateway."""
    await eventually(lambda: serves_a_crowd(limiter))
    server.stop()
    assert await crowd(limiter, 100, "away") == [LimiterUnavailable] * 100
    await asyncio.to_thread(server.start)
    await eventually(lambda: serves_a_crowd(limiter))
    assert await limiter.renew({"old": Permit("old", "tn_b", wide("tn_b"))}) == set()
    assert await limiter.live("tn_b") == 1


async def test_a_redis_that_takes_no_writes_is_an_error(limiter) -> None:
    """Fails closed in a failover: no slot is granted that Redis did not write down."""
    client = limiter._client
    await client.replicaof("127.0.0.1", 1)  # nobody is there, so this one is a replica without a master
    with pytest.raises(LimiterUnavailable):
        await limiter.acquire("tn_a", "p", wide())
    await client.replicaof("NO", "ONE")
    assert await works(limiter)


@pytest.mark.parametrize("kind", ["memory", "redis"])
async def test_more_callers_than_connections_all_get_an_answer(server, kind) -> None:
    """A burst of 500 waits for its turn in the pool; nobody is refused for want of a connection."""
    url = "memory://" if kind == "memory" else server.url
    client = limiter_redis.connect(url, timeout_seconds=BOUND_SECONDS)
    limiter = RedisLimiter(client, lease_seconds=60, timeout_seconds=BOUND_SECONDS)
    answers = await crowd(limiter, 500, "p")
    await client.aclose()
    assert answers == [Permit] * 500


async def test_callers_that_are_cancelled_take_no_connection_with_them(limiter) -> None:
    """Clients that leave while they wait for admission do not wear the pool out."""
    for attempt in range(5):
        asked = asyncio.gather(*(limiter.acquire("tn_a", f"{attempt}-{n}", wide()) for n in range(100)))
        await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
    await eventually(lambda: serves_a_crowd(limiter))
