"""Redis is paused, killed, restarted or emptied: what admission says meanwhile, and that all heals by itself.

One worker, in this process, on a Redis of its own. `share` and the others are REDIS_AWAY.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.contracts.helpers import eventually
from tests.support.gates import InProcess, serving, settings_of
from tests.support.wire import WireClient, data_lines
from tests.wire.people import HELD, SHORT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.support.servers import RedisServer, ScriptedProcess

CAP = 2
ENDLESS = "scripted?pace_ms=5&tokens=1000000"


class Scene:
    """A gate whose Redis can be taken away."""

    def __init__(self, app: InProcess, redis: RedisServer) -> None:
        self.app = app
        self.redis = redis
        self.clients: list[WireClient] = []

    async def ask(self, model: str) -> WireClient:
        """Ask for a stream."""
        body = {"prompt": "hi", "model": model}
        client = await WireClient.post(self.app.url, "/chat/stream", body, key=self.app.key)
        self.clients.append(client)
        return client

    async def held(self, model: str = HELD) -> WireClient:
        """A stream that runs."""
        client = await self.ask(model)
        assert len(await client.events(5)) == 5, client.raw
        return client

    async def status(self, model: str = SHORT) -> int:
        """How a short request ends."""
        client = await self.ask(model)
        await client.body()
        return client.status

    async def admits(self) -> bool:
        """Whether a short request gets in."""
        return await self.status() == 200

    async def live(self) -> list[str]:
        """The permits that Redis knows."""
        return await self.app.gate.limiter.live(self.app.tenant)

    async def healed(self) -> None:
        """Wait until this worker asks Redis again."""

        async def asks() -> bool:
            return not self.app.gate.limiter.degraded

        await eventually(asks)

    async def leave(self) -> None:
        """All clients go away."""
        for client in self.clients:
            client.leave()
            await client.close()
        await self.app.settled()


@asynccontextmanager
async def scene(
    tmp_path: Path, redis: RedisServer, scripted: ScriptedProcess, cap: int = CAP, **more: Any
) -> AsyncIterator[Scene]:
    """A gate with one tenant of that cap, its memory of Redis warm."""
    settings = settings_of(
        tmp_path,
        redis_url=redis.url,
        openai_base_url=f"{scripted.url}/v1",
        redis_timeout_seconds=0.25,
        **more,
    )
    async with serving(settings, max_streams=cap) as app:
        it = Scene(app, redis)
        assert await it.status() == 200
        yield it
        await it.leave()


def _pause(redis: RedisServer) -> None:
    redis.pause()


def _kill(redis: RedisServer) -> None:
    redis.kill()


def _back(redis: RedisServer) -> None:
    if redis.is_running:
        redis.resume()
    else:
        redis.start()


GONE = pytest.mark.parametrize("gone", [_pause, _kill], ids=["paused", "killed"])


@GONE
async def test_each_worker_enforces_its_share(
    tmp_path: Path, own_redis: RedisServer, scripted: ScriptedProcess, gone: Callable[[RedisServer], None]
) -> None:
    """REDIS_AWAY=share, and there is one worker: the whole cap is its own, and not one stream more."""
    async with scene(tmp_path, own_redis, scripted) as it:
        running = await it.held()
        gone(own_redis)
        second = await it.held(ENDLESS)
        assert second.headers["x-sluicegate-mode"] == "degraded"
        third = await it.ask(SHORT)
        await third.body()
        assert (third.status, third.headers["x-sluicegate-mode"]) == (429, "degraded")
        assert int(third.headers["retry-after"]) >= 1
        assert len(it.app.gate.live) == CAP
        _back(own_redis)
        await it.healed()
        assert await it.status() == 429
        assert sorted(await it.live()) == sorted(it.app.gate.live)
        assert not running.complete


@GONE
async def test_closed_lets_nobody_new_in(
    tmp_path: Path, own_redis: RedisServer, scripted: ScriptedProcess, gone: Callable[[RedisServer], None]
) -> None:
    """503 with Retry-After, and /readyz says so; the stream that runs goes on, and then all is as before."""
    async with scene(tmp_path, own_redis, scripted, redis_away="closed") as it:
        running = await it.held(ENDLESS)
        gone(own_redis)
        refused = await it.ask(SHORT)
        await refused.body()
        assert (refused.status, b"limiter_unavailable" in refused.raw) == (503, True)
        assert int(refused.headers["retry-after"]) >= 1
        assert len(await running.events(50)) == 50
        _back(own_redis)
        await it.healed()
        await eventually(it.admits)
        assert len(await running.events(50)) == 50


@GONE
async def test_open_lets_everybody_in(
    tmp_path: Path, own_redis: RedisServer, scripted: ScriptedProcess, gone: Callable[[RedisServer], None]
) -> None:
    """Whoever would rather be over a cap than turn somebody away; afterwards the cap holds again."""
    async with scene(tmp_path, own_redis, scripted, redis_away="open") as it:
        gone(own_redis)
        for _ in range(CAP + 1):
            assert (await it.held(ENDLESS)).headers["x-sluicegate-mode"] == "degraded"
        _back(own_redis)
        await it.healed()
        assert await it.status() == 429


@pytest.mark.parametrize("how", ["flushed", "restarted"])
async def test_an_emptied_redis_gives_no_slot_twice(
    tmp_path: Path, own_redis: RedisServer, scripted: ScriptedProcess, how: str
) -> None:
    """Whoever asks first after it finds the cap full all the same: the ledger knows what runs."""
    async with scene(tmp_path, own_redis, scripted, cap=1) as it:
        running = await it.held(ENDLESS)
        if how == "flushed":
            with own_redis.client() as client:
                client.flushall()
        else:
            own_redis.kill()
            own_redis.start()
        assert await it.status() == 429
        assert len(await running.events(50)) == 50
        await it.healed()

        async def registered() -> bool:
            return await it.live() == list(it.app.gate.live)

        await eventually(registered)
        assert await it.status() == 429
        running.leave()
        await eventually(it.admits)


async def test_two_workers_find_an_emptied_redis(
    tmp_path: Path, own_redis: RedisServer, scripted: ScriptedProcess, new_database: Callable[[str], str]
) -> None:
    """The stream runs on the one, and the other is asked first: it is told by the ledger, and refuses."""
    database = new_database("postgresql")
    async with AsyncExitStack() as stack:
        one, other = [
            await stack.enter_async_context(
                scene(tmp_path / name, own_redis, scripted, cap=1, database_url=database)
            )
            for name in ("one", "other")
        ]
        other.app.gate.policy = type(other.app.gate.policy)(worker="other")
        running = await one.held(ENDLESS)
        other.app.key, other.app.tenant = one.app.key, one.app.tenant
        with own_redis.client() as client:
            client.flushall()
        assert await other.status() == 429
        assert len(await running.events(50)) == 50


@GONE
async def test_what_ended_meanwhile_is_told_afterwards(
    tmp_path: Path, own_redis: RedisServer, scripted: ScriptedProcess, gone: Callable[[RedisServer], None]
) -> None:
    """A stream that ends while Redis is away is on the ledger, and its slot is free when Redis is back."""
    async with scene(tmp_path, own_redis, scripted) as it:
        running = await it.held("scripted?pace_ms=0&tokens=20&silence_at=10&silence_ms=1000")
        gone(own_redis)
        assert data_lines(await running.body())[-1] == b"[DONE]"
        assert len(await it.app.events()) == 2
        _back(own_redis)
        await it.healed()

        async def told() -> bool:
            return await it.live() == []

        await eventually(told)


async def test_a_blip_is_one_line_in_the_log(
    tmp_path: Path, own_redis: RedisServer, scripted: ScriptedProcess, caplog: pytest.LogCaptureFixture
) -> None:
    """However many requests meet it, in each second of it."""
    async with scene(tmp_path, own_redis, scripted, cap=100) as it:
        caplog.clear()
        own_redis.pause()
        with caplog.at_level(logging.WARNING, "sluicegate"):
            statuses = await asyncio.gather(*(it.status() for _ in range(20)))
        lost = [record for record in caplog.records if "does not answer" in record.getMessage()]
        own_redis.resume()
        assert set(statuses) == {200}
        assert len({int(record.created) for record in lost}) >= len(lost) - 1
        await it.healed()


async def test_the_event_loop_does_not_wait_for_redis(
    tmp_path: Path, own_redis: RedisServer, scripted: ScriptedProcess
) -> None:
    """While an admission waits for a Redis that is paused, a running stream gets its tokens."""
    async with scene(tmp_path, own_redis, scripted) as it:
        running = await it.held(ENDLESS)
        own_redis.pause()
        it.app.gate.limiter._redis._timeout_seconds = 30  # type: ignore[attr-defined]
        waiting = asyncio.create_task(it.status())
        await running.events(100)
        assert not waiting.done()
        own_redis.resume()
        assert await waiting == 200
