"""Kept streams, on fakeredis and a real Redis: one owner, in order, for as long as it is said."""

from __future__ import annotations

import asyncio

import pytest

from api.adapters.replays_redis import RedisReplays
from api.ports import LimiterUnavailable
from tests.contracts.helpers import bounded, eventually

HEAD, OTHER = b"fingerprint owner1", b"fingerprint owner2"


@pytest.fixture
def replays(client) -> RedisReplays:
    """The adapter under test."""
    return RedisReplays(client, timeout_seconds=5)


async def test_the_first_who_claims_owns_it(replays) -> None:
    """Of fifty at once one; all others are told whose it is; other names and tenants are others' own."""
    heads = [b"f %d" % number for number in range(50)]
    found = await asyncio.gather(*(replays.claim("tn_1", "a", head, 60) for head in heads))
    assert found.count(None) == 1
    owner = heads[found.index(None)]
    assert {one for one in found if one is not None} == {owner}
    assert await replays.claim("tn_1", "b", HEAD, 60) is None
    assert await replays.claim("tn_2", "a", HEAD, 60) is None


async def test_what_is_added_is_read_in_order_from_any_place(replays) -> None:
    """Any bytes, many at once, and each once however often it is said; the head comes first."""
    parts = [bytes([number % 256]) * (number % 7 + 1) for number in range(1200)]
    await replays.claim("tn_1", "a", HEAD, 60)
    assert await replays.append("tn_1", "a", HEAD, parts[:700], after=1, keep_seconds=60)
    for _ in range(2):  # the answer was lost, and it is said again
        assert await replays.append("tn_1", "a", HEAD, parts[700:], after=701, keep_seconds=60)
    assert await replays.append("tn_1", "a", HEAD, [], after=1201, keep_seconds=60)
    found, place = [], 0
    while more := await replays.read("tn_1", "a", place):
        found += more
        place += len(more)
    assert found == [HEAD, *parts]
    assert await replays.read("tn_1", "a", place) == []
    assert await replays.read("tn_1", "none", 0) is None


async def test_nobody_else_can_add_to_it(replays) -> None:
    """An owner whose lease has run out writes into nobody else's, nor brings back what is gone."""
    await replays.claim("tn_1", "a", HEAD, 60)
    assert not await replays.append("tn_1", "a", OTHER, [b"x"], after=1, keep_seconds=60)
    await replays.replace("tn_1", "a", OTHER, b"x", 60)
    await replays.drop("tn_1", "a", OTHER)
    assert await replays.read("tn_1", "a", 0) == [HEAD]
    await replays.drop("tn_1", "a", HEAD)
    assert not await replays.append("tn_1", "a", HEAD, [b"x"], after=1, keep_seconds=60)
    assert await replays.read("tn_1", "a", 0) is None


async def test_it_can_be_replaced(replays) -> None:
    """By one element, in the place of all that was there."""
    await replays.claim("tn_1", "a", HEAD, 60)
    await replays.append("tn_1", "a", HEAD, [b"x"] * 10, after=1, keep_seconds=60)
    await replays.replace("tn_1", "a", HEAD, b"large", 60)
    assert await replays.read("tn_1", "a", 0) == [HEAD, b"large"]


async def test_it_is_gone_when_its_time_is_up(replays) -> None:
    """And can be claimed anew; each addition keeps it for longer."""
    await replays.claim("tn_1", "a", HEAD, 0.05)

    async def gone() -> bool:
        return await replays.read("tn_1", "a", 0) is None

    await eventually(gone)
    assert await replays.claim("tn_1", "a", OTHER, 0.05) is None
    assert await replays.append("tn_1", "a", OTHER, [], after=1, keep_seconds=60)
    assert await replays.read("tn_1", "a", 0) == [OTHER]


async def test_without_redis_nobody_knows() -> None:
    """A named error, in bounded time."""
    from redis.asyncio import Redis

    from tests.support.servers import free_port

    client = Redis(port=free_port())
    replays = RedisReplays(client, timeout_seconds=0.2)
    for call in (replays.claim("tn_1", "a", HEAD, 60), replays.read("tn_1", "a", 0)):
        with pytest.raises(LimiterUnavailable):
            await bounded(call)
    await client.aclose()
