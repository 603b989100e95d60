"""The doorbell on a real Redis: everybody hears it, a gap counts as a ring, and nobody depends on it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from api.adapters.doorbell_redis import CHANNEL, RedisDoorbell
from api.adapters.redis_connect import connect
from api.tasks import Tasks
from tests.contracts.helpers import BOUND_SECONDS, LoopTurns, bounded, eventually, turns
from tests.contracts.wires import Proxy
from tests.support.servers import RedisServer, free_port, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from redis.asyncio import Redis


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A Redis of this test's own, which it may stop and kill."""
    with running(RedisServer()) as started:
        started.start()
        yield started


class Listener:
    """A worker that listens, with the client that the product opens."""

    def __init__(self, url: str) -> None:
        self.heard = 0
        self.client: Redis = connect(url)
        self.bell = RedisDoorbell(self.client, timeout_seconds=BOUND_SECONDS)

    def hear(self) -> None:
        self.heard += 1

    async def heard_more_than(self, count: int) -> None:
        async def more() -> bool:
            return self.heard > count

        await eventually(more)


@asynccontextmanager
async def listening(url: str, count: int) -> AsyncIterator[list[Listener]]:
    """So many workers, each of which has begun to listen."""
    listeners, tasks = [Listener(url) for _ in range(count)], Tasks()
    try:
        for one in listeners:
            tasks.start(one.bell.listen(one.hear), name="listen")
        for one in listeners:
            await one.heard_more_than(0)
        yield listeners
    finally:
        await tasks.cancel()
        for one in listeners:
            await one.client.aclose()


async def test_a_ring_is_heard_by_everybody(redis_url) -> None:
    """P9: each of several workers hears each ring, whoever rings, the one who rings too."""
    async with listening(redis_url, 3) as listeners:
        for ringer in listeners:
            before = [one.heard for one in listeners]
            await ringer.bell.ring()
            for one, count in zip(listeners, before, strict=True):
                await one.heard_more_than(count)
        await listeners[0].client.publish("another channel", b"")
        await listeners[0].bell.ring()
        for one in listeners:
            await one.heard_more_than(4)
        assert [one.heard for one in listeners] == [5] * 3  # the start, and four rings


async def test_silence_is_no_gap(redis_url, monkeypatch) -> None:
    """Whoever hears nothing listens on, for longer than any time-out of the client, and looks at nothing."""
    async with listening(redis_url, 1) as (one,):
        heard, gets = one.heard, 0
        monkeypatch.setattr("api.adapters.doorbell_redis._QUIET_SECONDS", 0.4)
        original = type(one.client.pubsub()).get_message

        async def counted(*args, **kwargs) -> object:
            nonlocal gets
            gets += 1
            return await original(*args, **kwargs)

        monkeypatch.setattr(type(one.client.pubsub()), "get_message", counted)
        await one.bell.ring()  # so that the next time it asks is counted

        async def three_times() -> bool:
            return gets > 3

        await eventually(three_times)
        assert one.heard == heard + 1
        ((_, subscribers),) = await one.client.pubsub_numsub(CHANNEL)
        assert subscribers == 1


async def test_after_a_restart_of_redis_listening_goes_on(server, caplog) -> None:
    """What was rung in the gap nobody heard, so its end counts as a ring; then all is as before."""
    async with listening(server.url, 2) as listeners:
        for _ in range(2):
            heard = [one.heard for one in listeners]
            server.stop()
            for one in listeners:
                await one.bell.ring()
            assert [one.heard for one in listeners] == heard
            await asyncio.to_thread(server.start)
            for one, count in zip(listeners, heard, strict=True):
                await one.heard_more_than(count)
            heard = [one.heard for one in listeners]
            await listeners[0].bell.ring()
            for one, count in zip(listeners, heard, strict=True):
                await one.heard_more_than(count)
    assert len([line for line in caplog.messages if "not heard" in line]) <= 4  # one for each gap


async def test_who_listens_before_redis_is_there_hears_when_it_is(caplog, monkeypatch) -> None:
    """A gateway may start before its Redis; it says so once, however often it tries."""
    monkeypatch.setattr("api.adapters.doorbell_redis._AGAIN_SECONDS", 0)
    late, tasks = RedisServer(), Tasks()
    async with Proxy(lambda: asyncio.open_connection("127.0.0.1", late.port)) as proxy:
        one = Listener(f"redis://127.0.0.1:{proxy.port}/0")
        waiting = tasks.start(one.bell.listen(one.hear), name="listen")

        async def tried_often() -> bool:
            return proxy.accepted > 20

        await eventually(tried_often)
        assert not waiting.done()
        assert one.heard == 0
        with running(late):
            await asyncio.to_thread(late.start)
            await one.heard_more_than(0)
            await one.bell.ring()
            await one.heard_more_than(1)
            await tasks.cancel()
        await one.client.aclose()
    assert len([line for line in caplog.messages if "not heard" in line]) == 1


async def test_a_ring_that_nobody_can_hear_is_a_line_in_the_log(caplog) -> None:
    """The change is made and in the feed: that Redis is away costs one line, no error, and no waiting."""
    client = connect(f"redis://:hush-hush@127.0.0.1:{free_port()}/0")
    await bounded(RedisDoorbell(client).ring())
    await client.aclose()
    (line,) = caplog.records
    assert (line.name, line.levelno) == ("sluicegate.doorbell", logging.WARNING)
    assert "did not ring" in line.message
    assert "hush" not in line.message
    assert line.exc_info is None


async def test_a_redis_that_stands_still_keeps_nobody(server, caplog) -> None:
    """Neither whoever rings nor the event loop; when Redis goes on, the bell rings again."""
    async with listening(server.url, 1) as (one,):
        slow = connect(server.url, timeout_seconds=10 * BOUND_SECONDS)
        impatient = RedisDoorbell(slow)
        await impatient.ring()
        await one.heard_more_than(1)
        assert server.process is not None
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            async with LoopTurns() as counted:
                await bounded(impatient.ring())
            assert counted.count > 20
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        assert [line for line in caplog.messages if "did not ring" in line] != []
        heard = one.heard
        await one.bell.ring()
        await one.heard_more_than(heard)
        await slow.aclose()


async def test_listening_ends_when_it_is_cancelled(redis_url) -> None:
    """At shutdown nothing is left: neither a task, nor a subscription, nor a connection in use."""
    one, tasks = Listener(redis_url), Tasks()
    tasks.start(one.bell.listen(one.hear), name="listen")
    await one.heard_more_than(0)
    await bounded(tasks.cancel())
    assert len(tasks) == 0

    async def nobody_listens() -> bool:
        return await one.client.pubsub_numsub(CHANNEL) == [(CHANNEL.encode(), 0)]

    await eventually(nobody_listens)
    await one.bell.ring()
    await turns()
    assert one.heard == 1
    await one.client.aclose()
