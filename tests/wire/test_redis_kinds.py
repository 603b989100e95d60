"""The whole gate on a Redis Cluster and behind sentinels: limits hold, and a failover heals by itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from api.accounts import KeyFields, TenantFields
from auth.principal import TENANT_SCOPES
from tests.contracts.helpers import eventually
from tests.support.gates import BY, InProcess, serving, settings_of
from tests.support.redis_servers import RedisSentinel
from tests.support.servers import running
from tests.support.wire import WireClient, data_lines

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.redis_servers import RedisCluster
    from tests.support.servers import ScriptedProcess

TENANTS = 6  # so many that three masters have some each
HELD = "scripted?pace_ms=5&tokens=1000000"


async def tenant(app: InProcess, **fields: object) -> tuple[str, str]:
    """A new tenant, and a key of it."""
    made = await app.gate.accounts.create_tenant(TenantFields("t", 2, **fields), by=BY)  # type: ignore[arg-type]
    _, key = await app.gate.accounts.keys(None).issue(made.id, KeyFields("k", tuple(TENANT_SCOPES)), by=BY)
    return made.id, key


async def ask(app: InProcess, key: str, model: str) -> WireClient:
    """A plain stream."""
    return await WireClient.post(app.url, "/chat/stream", {"prompt": "hi", "model": model}, key=key)


async def short(app: InProcess, key: str) -> int:
    """How a short one ends."""
    client = await ask(app, key, "scripted?pace_ms=0&tokens=5")
    await client.body()
    await client.close()
    return client.status


async def leave(app: InProcess, clients: list[WireClient]) -> None:
    """All go away, and all is settled."""
    for client in clients:
        client.leave()
        await client.close()
    await app.settled()


async def test_limits_hold_on_a_cluster(
    tmp_path: Path, redis_cluster: RedisCluster, scripted: ScriptedProcess
) -> None:
    """Caps and budgets of tenants in all masters; renewals of all of them in one go; all free at last."""
    settings = settings_of(tmp_path, redis_url=redis_cluster.url, openai_base_url=f"{scripted.url}/v1")
    async with serving(settings) as app:
        made = [await tenant(app, limits={"tokens_per_day": 1000}) for _ in range(TENANTS)]
        assert len({redis_cluster.owner(f"sg:{{{name}}}:streams").port for name, _ in made}) > 1
        greedy = [
            await ask(app, key, "scripted?pace_ms=0&tokens=100000") for _, key in made for _ in range(2)
        ]
        for body in await asyncio.gather(*(client.body() for client in greedy)):
            last = data_lines(body)[-1] if body.startswith(b"data:") else body
            assert b"insufficient_quota" in last or last == b"[DONE]"
        await leave(app, greedy)
        for name, key in made:
            used = await app.gate.ledger.totals(name)
            assert 950 < used.input_tokens + used.output_tokens <= 1000
            assert await app.gate.limiter.live(name) == []
            assert await short(app, key) == 429
        assert not app.gate.limiter.degraded


@pytest.mark.parametrize("pause", [False, True], ids=["killed", "paused"])
async def test_a_failover_gives_no_slot_twice(tmp_path: Path, scripted: ScriptedProcess, pause: bool) -> None:
    """The master goes, a replica is promoted: streams go on, the cap holds all the time, and it heals."""
    with running(RedisSentinel()) as redis:
        redis.start()
        settings = settings_of(
            tmp_path,
            redis_url=redis.url,
            openai_base_url=f"{scripted.url}/v1",
            redis_timeout_seconds=0.25,
            tick_seconds=0.2,
        )
        async with serving(settings) as app:
            name, key = await tenant(app)
            streams = [await ask(app, key, HELD) for _ in range(2)]
            for stream in streams:
                assert len(await stream.events(3)) == 3
            failover = asyncio.create_task(asyncio.to_thread(redis.failover, pause=pause))
            while not failover.done():
                assert await short(app, key) == 429

            async def registered() -> bool:
                healed = not app.gate.limiter.degraded
                return healed and sorted(await app.gate.limiter.live(name)) == sorted(app.gate.live)

            await eventually(registered)
            assert await short(app, key) == 429
            for stream in streams:
                assert len(await stream.events(50)) == 50
            await leave(app, streams)
            assert await short(app, key) == 200
