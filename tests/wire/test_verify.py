"""`sluicegate verify` beside a gate that runs, and what it says to a person and to a program."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import redis
from sqlalchemy import insert, update

from api.adapters.database_sql import open_engine
from api.adapters.tables_sql import outbox, usage_rollups
from tests.contracts.helpers import eventually
from tests.contracts.ledgers import ended, put
from tests.wire.commands import fine, sluicegate, told
from tests.wire.people import chat, held

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.gates import GateProcess

NAMES = ["one_event", "corrections", "costs", "rollups", "outbox", "dead_bookings", "streams"]


def period() -> tuple[str, ...]:
    """Today, and some days around it."""
    now = datetime.now(UTC)
    return ("--from", f"{now - timedelta(days=2):%Y-%m-%d}", "--to", f"{now + timedelta(days=2):%Y-%m-%d}")


def verified(gate: GateProcess, *options: str) -> tuple[int, dict[str, Any], str]:
    """Its exit status, what it says to a program, and what it said meanwhile."""
    done = subprocess.run(
        [sys.executable, "-m", "api.cli", "verify", *period(), *options, "--json"],
        env=gate.environment,
        cwd=gate.directory,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, json.loads(done.stdout), done.stderr


async def test_a_gate_that_runs_is_green_and_a_leak_is_found(gate: GateProcess) -> None:
    """With streams that ended and one that runs; then a sum is wrong, a slot has leaked: both are named."""
    tenant, key = await asyncio.to_thread(gate.tenant)
    for _ in range(3):
        await asyncio.to_thread(chat, gate, key)
    stream = await held(gate, key)
    status, said, progress = await asyncio.to_thread(verified, gate)
    assert (status, said["held"]) == (0, True), said
    assert [check["name"] for check in said["checks"]] == NAMES
    assert all(check["rows"] == [] and check["broken"] == 0 for check in said["checks"])
    assert "verify: events: 3\n" in progress
    [streams] = [check for check in said["checks"] if check["name"] == "streams"]
    assert streams["note"] == ""

    engine = open_engine(gate.environment["DATABASE_URL"])

    async def added_up() -> int:
        async with engine.begin() as connection:
            mine = update(usage_rollups).where(usage_rollups.c.tenant_id == tenant)
            wrong = mine.where(usage_rollups.c.cube == "day").values(events=usage_rollups.c.events + 1)
            return (await connection.execute(wrong)).rowcount

    assert await eventually(added_up) == 1
    await engine.dispose()
    with redis.Redis.from_url(gate.environment["REDIS_URL"]) as client:
        client.zadd(f"sg:{{{tenant}}}:streams", {"bk_leaked": (time.time() + 600) * 1e6})
    status, said, _ = await asyncio.to_thread(verified, gate, "--tenant", tenant)
    assert (status, said["held"]) == (1, False)
    wrong = {check["name"]: check["rows"] for check in said["checks"] if not check["held"]}
    assert set(wrong) == {"rollups", "streams"}
    fault = "holds a slot, and has no booking"
    assert wrong["streams"] == [{"id": "bk_leaked", "tenant_id": tenant, "fault": fault}]
    [row] = wrong["rollups"]
    assert (row["tenant_id"], row["cube"], row["more"]) == (tenant, "day", {"events": 1})
    await stream.close()


def test_it_speaks_to_people(office: Path) -> None:
    """A line for each invariant, the rows under it, and exit status 1 where one is broken."""
    told("migrate")
    march = ("--from", "2026-03-01", "--to", "2026-04-01")
    done = sluicegate("verify", *march)
    assert done.status == 0
    lines = done.out.splitlines()
    assert [line.partition(":")[0] for line in lines if not line.startswith(" ")] == NAMES
    assert all(": held  (" in line for line in lines if not line.startswith(" "))
    assert "Not looked at: with REDIS_URL=memory://" in done.out
    came = datetime(2026, 3, 4, 5, tzinfo=UTC)

    async def write() -> None:
        engine = open_engine(f"sqlite+aiosqlite:///{office / 'sluicegate.db'}")
        await put(engine, ended(came, price_version="9\x1b"))
        row = {"event_id": "bk_x", "started_at": came, "created_at": came, "next_at": came}
        async with engine.begin() as connection:
            await connection.execute(insert(outbox).values(row))
        await engine.dispose()

    asyncio.run(write())
    done = sluicegate("verify", *march)
    assert done.status == 1
    assert "costs: BROKEN, 1 rows" in done.out
    assert "there is no price 9\\x1b" in done.out
    assert sluicegate("verify", "--from", "2026-03-05", "--to", "2026-04-01").status == 0
    nobody = sluicegate("verify", *march, "--tenant", "tn_nobody")
    assert (nobody.status, "No tenant has the id `tn_nobody`" in nobody.err) == (1, True)
    tenant = told("tenant", "create", "Acme")["id"]
    assert sluicegate("verify", *march, "--tenant", tenant).status == 0
    assert fine("tenant", "list")
