"""Redis has closed connections that were idle: after a restart, a failover, or by its own `timeout`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import redis as sync_redis

from tests.support.gates import gate_process
from tests.support.servers import RedisServer, running
from tests.wire import people

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.servers import ScriptedProcess


async def test_a_connection_that_redis_closed_costs_nobody_a_refusal(
    tmp_path: Path, scripted: ScriptedProcess
) -> None:
    """Redis is there, but the pool's connections are not: all are admitted, on new ones."""
    with running(RedisServer()) as redis:
        redis.start()
        upstream, patience = f"{scripted.url}/v1", "5"
        with gate_process(
            tmp_path, REDIS_URL=redis.url, OPENAI_BASE_URL=upstream, REDIS_TIMEOUT_SECONDS=patience
        ) as gate:
            _, key = await asyncio.to_thread(gate.tenant, 50)

            async def eight() -> set[int]:
                calls = (asyncio.to_thread(people.chat, gate, key) for _ in range(8))
                return {answer.status_code for answer in await asyncio.gather(*calls)}

            assert await eight() == {200}
            with sync_redis.Redis(port=redis.port) as client:
                client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            assert await eight() == {200}
