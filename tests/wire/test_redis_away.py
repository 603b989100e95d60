"""Redis is pulled: running streams go on, admission fails closed and in words, and all heals by itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.support.gates import gate_process
from tests.support.servers import RedisServer, running
from tests.support.wire import WireClient, data_lines

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.servers import ScriptedProcess


async def test_a_running_stream_outlives_redis(tmp_path: Path, scripted: ScriptedProcess) -> None:
    """Killed in mid-stream: the stream finishes and is settled; a new one gets 503 until Redis is back."""
    label = tmp_path.name
    with running(RedisServer()) as redis:
        redis.start()
        with gate_process(tmp_path, REDIS_URL=redis.url, OPENAI_BASE_URL=f"{scripted.url}/v1") as gate:
            _, key = await asyncio.to_thread(gate.tenant)
            body = {
                "prompt": "hi",
                "model": f"scripted?label={label}&pace_ms=0&silence_at=10&silence_ms=3000",
            }
            client = await WireClient.post(gate.url, "/chat/stream", body, key=key)
            await client.events(10)
            redis.stop()
            short = {"prompt": "hi", "model": "scripted?tokens=3&pace_ms=0"}
            refused = await asyncio.to_thread(gate.http, "POST", "/chat/stream", key, json=short)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "limiter_unavailable"
            assert int(refused.headers["retry-after"]) >= 1
            ready = await asyncio.to_thread(gate.http, "GET", "/readyz")
            assert (ready.status_code, ready.json()["limiter"]) == (503, "unavailable")
            assert data_lines(await client.body())[-1] == b"[DONE]"
            await client.close()
            [event] = gate.http("GET", "/v1/usage/events", key).json()["data"]
            assert (event["ended"], event["output_tokens"]) == ("finished", 48)
            redis.start()
            healed = await asyncio.to_thread(gate.http, "POST", "/chat/stream", key, json=short)
            assert healed.status_code == 200
