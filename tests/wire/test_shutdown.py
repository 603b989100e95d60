"""P12: SIGTERM loses nothing. The real command in a process of its own, real signals."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.gates import GateProcess, gate_process
from tests.support.wire import WireClient, data_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.servers import ScriptedProcess

FOREVER = 60_000


@pytest.fixture(params=["sqlite-fakeredis", "sqlite-redis", "postgresql-fakeredis", "postgresql-redis"])
def gate(
    tmp_path: Path,
    new_database: Callable[[str], str],
    scripted: ScriptedProcess,
    request: pytest.FixtureRequest,
) -> Iterator[GateProcess]:
    """A gate with a short grace, on each pair."""
    database, redis = request.param.split("-")
    redis_url = "memory://" if redis == "fakeredis" else request.getfixturevalue("redis_url")
    with gate_process(
        tmp_path,
        DATABASE_URL=new_database(database),
        REDIS_URL=redis_url,
        OPENAI_BASE_URL=f"{scripted.url}/v1",
        REDIS_TIMEOUT_SECONDS="5",
        DRAIN_SECONDS="0.3",
        SEND_SECONDS="1",
    ) as running:
        yield running


async def ask(gate: GateProcess, key: str, script: str, **options: int) -> WireClient:
    """Ask for a plain stream."""
    body = {"prompt": "hi", "model": f"scripted?pace_ms=0&{script}"}
    return await WireClient.post(gate.url, "/chat/stream", body, key=key, **options)


async def stop(gate: GateProcess) -> int:
    """SIGTERM; the exit status."""
    return await asyncio.to_thread(gate.stop, signal.SIGTERM)


async def test_a_running_stream_is_cut_with_an_error_event_and_settled(
    gate: GateProcess, scripted: ScriptedProcess, tmp_path: Path
) -> None:
    """After the grace a stream ends in an error event; its event is on the ledger, the upstream is closed."""
    tenant, key = await asyncio.to_thread(gate.tenant)
    label = tmp_path.name
    client = await ask(gate, key, f"label={label}&tokens=20&silence_at=10&silence_ms={FOREVER}")
    await client.events(10)
    stopping = asyncio.create_task(stop(gate))
    last = json.loads(data_lines(await client.body())[-1])
    assert last["code"] == "drain"
    assert await stopping in {0, -signal.SIGTERM}
    assert client.complete
    await client.close()
    [event] = gate.cli("usage", "--tenant", tenant, "--events")
    assert (event["ended"], event["cause"], event["output_tokens"]) == ("cut", "drain", 10)
    assert scripted.stats(label, live=0)["tokens_sent"] == 10


async def test_a_stream_that_ends_within_the_grace_ends_as_if_nothing_were(
    gate: GateProcess, scripted: ScriptedProcess, tmp_path: Path
) -> None:
    """A stream that finishes within the grace is not cut."""
    tenant, key = await asyncio.to_thread(gate.tenant)
    client = await ask(gate, key, f"label={tmp_path.name}&tokens=20&silence_at=10&silence_ms=150")
    await client.events(10)
    stopping = asyncio.create_task(stop(gate))
    assert data_lines(await client.body())[-1] == b"[DONE]"
    await stopping
    await client.close()
    [event] = gate.cli("usage", "--tenant", tenant, "--events")
    assert (event["ended"], event["output_tokens"]) == ("finished", 20)


async def test_a_client_that_does_not_read_cannot_hold_the_shutdown(
    gate: GateProcess, scripted: ScriptedProcess, tmp_path: Path
) -> None:
    """A slow reader's stream is settled, and its connection broken, before the pools close."""
    tenant, key = await asyncio.to_thread(gate.tenant)
    label = tmp_path.name
    client = await ask(gate, key, f"label={label}&tokens=4000000&per_chunk=2000", receive_buffer=4096)
    await asyncio.to_thread(scripted.stats, label, opened=1)
    await client.head()
    assert await stop(gate) in {0, -signal.SIGTERM}
    client.leave()
    await client.close()
    [event] = gate.cli("usage", "--tenant", tenant, "--events")
    assert event["ended"] == "cut"
    assert event["output_tokens"] > 0
    scripted.stats(label, live=0)
