"""New streams while the database is away, where DATABASE_AWAY=spool lets them in."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from api.core.usage import Certainty
from tests.contracts.helpers import eventually
from tests.support.gates import serving, settings_of
from tests.support.servers import PostgresServer, running
from tests.support.wire import WireClient, data_lines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    """One that the test may kill."""
    with running(PostgresServer()) as server:
        yield server


async def asked(url: str, key: str) -> tuple[int, list[bytes]]:
    """Status and data lines of a stream of ten tokens."""
    body: dict[str, Any] = {"prompt": "hi", "model": "scripted?tokens=10&pace_ms=0"}
    client = await WireClient.post(url, "/chat/stream", body, key=key)
    status = await client.head()
    lines = data_lines(await client.body())
    await client.close()
    return status, lines


async def test_whoever_was_known_is_served_and_billed(tmp_path: Path, postgres: PostgresServer) -> None:
    """Its booking is durable in the spool before its first byte; the database has its event when it is back.

    A key that was not known is a 503, and so is nobody's answer a 500; /readyz says `degraded`, and is a 200.
    """
    settings = settings_of(tmp_path, database_url=postgres.new_database(), database_away="spool")
    async with serving(settings) as app:
        assert (await asked(app.url, app.key))[0] == 200
        await asyncio.to_thread(postgres.kill)
        for _ in range(3):
            status, lines = await asked(app.url, app.key)
            assert (status, lines[-1]) == (200, b"[DONE]")
        assert next(iter(settings.spool_dir.glob("*.spool"))).stat().st_size > 0
        assert (await asked(app.url, "sg_" + "A" * 12 + "_" + app.key[-43:]))[0] in {401, 503}
        async with httpx2.AsyncClient(trust_env=False, base_url=app.url) as http:
            ready = await http.get("/readyz")
        assert (ready.status_code, ready.json()["ledger"]) == (200, "degraded")
        await asyncio.to_thread(postgres.start)

        async def all_there() -> bool:
            return not app.gate.ledger.away and len(await app.events()) == 4

        await eventually(all_there)
        assert [(e.usage.output_tokens, e.usage.certainty) for e in await app.events()] == [
            (10, Certainty.EXACT)
        ] * 4
        assert await app.gate.ledger.in_flight() == []
