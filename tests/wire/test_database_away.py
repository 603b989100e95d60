"""While the database is away: new streams where DATABASE_AWAY=spool lets them in, and workers that start."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from api import runtime
from api.adapters.database_sql import migrate
from api.core.usage import Certainty
from api.tasks import Tasks
from tests.contracts.helpers import bounded, eventually
from tests.support.gates import environment_of, serving, settings_of
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


async def test_a_worker_that_starts_waits_for_the_database(
    tmp_path: Path, postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    """It replaces one that died in the outage: were it to fail, the supervisor would stop all the others."""
    settings = settings_of(tmp_path, database_url=postgres.new_database())
    await asyncio.to_thread(migrate, settings.ledger_url)
    await asyncio.to_thread(postgres.kill)
    goes, tasks = asyncio.Event(), Tasks()

    async def serve() -> int:
        async with runtime.open_ports(settings) as state:
            await goes.wait()
            return len(await state["gate"].ledger.in_flight())

    with caplog.at_level(logging.WARNING, "sluicegate.runtime"):
        serving_it = tasks.start(serve(), name="serve")

        async def waits() -> bool:
            assert not serving_it.done(), serving_it
            return "this worker waits for the database" in caplog.text

        await eventually(waits)
    await asyncio.to_thread(postgres.start)
    goes.set()
    assert await bounded(serving_it) == 0


def test_a_worker_that_waits_for_the_database_can_be_stopped(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    """P12: SIGTERM ends it in a moment, though it has not begun."""
    postgres.new_database()
    postgres.kill()
    environment = environment_of(tmp_path, {"DATABASE_URL": str(postgres.server.get_uri())})
    command = [sys.executable, "-m", "uvicorn", "api.main:app", "--port", "0"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if "this worker waits for the database" in line:
                    break
            process.terminate()
            assert process.wait(10) != 0
        finally:
            process.kill()
