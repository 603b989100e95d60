"""How long answers about usage take on PostgreSQL, with a month of events on the ledger.

A fifth of the events are one tenant's, with many end users and twenty keys; others have four keys each, and
each key two models. The questions are asked by the gate's own code, of that tenant and of its month, while
some events wait for the roll-ups. The yardstick is the same month's sum over the events themselves. `--zone`
is where days begin: but for UTC they are made up of quarters of an hour.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import uvloop
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from api.adapters.clock_system import SystemClock
from api.adapters.database_sql import database_url, migrate, open_engine
from api.adapters.lease_sql import Lease
from api.adapters.ledger_reads_sql import SqlReads
from api.adapters.rollups_sql import Rollups
from api.adapters.usage_sql import SqlUsage
from api.core.record import Spending
from api.core.usage_query import UsageQuery, read_query
from scripts.stage import stop_on_sigterm
from tests.support.servers import PostgresServer, running

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

_BIG = "tn_0"
_MONTH = ("2026-10-01", "2026-11-01")
_DAYS = 31
_SECONDS = 3600.0
_CHUNK = 500_000
_WAITING = 2000
_NOW = datetime(2026, 11, 1, tzinfo=UTC)

_FILL = text("""
INSERT INTO usage_events (
    id, request_id, tenant_id, key_id, end_user, dialect, model, upstream, worker, started_at, ended_at,
    answered_model, input_tokens, output_tokens, cached_tokens, reasoning_tokens, source, certainty, ended,
    cause, duration_ms, cost_nano_dollars, price_version
)
SELECT 'bk_' || lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || lpad(to_hex(n), 20, '0'),
    'req_' || n, 'tn_' || tenant, 'k' || tenant || 'x' || key,
    'user ' || n / 5 * 7919 % CAST(:users AS bigint), 'openai_chat', 'model-' || (key + n / 101 % 2) % 8,
    'upstream-' || key % 2, 'host:1:00000000', at, at + interval '3 seconds',
    'model-' || (key + n / 101 % 2) % 8, n % 2000, n % 700, n % 500, n % 90, 'provider', 'exact',
    'finished', 'finished', n % 9000, n % 100000, '1'
FROM (
    SELECT n, tenant, n / 7 % CASE WHEN tenant = 0 THEN 20 ELSE 4 END AS key,
        date_trunc('milliseconds', CAST(:start AS timestamptz) + n * CAST(:step AS interval)) AS at
    FROM (
        SELECT n, CASE WHEN n % 5 = 0 THEN 0 ELSE n * 31 % CAST(:tenants AS bigint) END AS tenant
        FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS n
    ) AS of_tenants
) AS requests
""")
_QUEUE = text("""
INSERT INTO rollup_queue (event_id, tenant_id, started_at)
SELECT id, tenant_id, started_at FROM usage_events ORDER BY id DESC LIMIT :waiting
""")
_NAIVE = text("""
SELECT count(*), sum(input_tokens), sum(cached_tokens), sum(output_tokens), sum(reasoning_tokens),
    sum(cost_nano_dollars)
FROM usage_events WHERE tenant_id = :tenant AND started_at >= :start AND started_at < :end
""")


async def fill(
    engine: AsyncEngine, events: int, users: int, tenants: int, days: int = _DAYS
) -> dict[str, float]:
    """A month of events and their roll-ups; how long both took."""
    start = datetime.fromisoformat(f"{_MONTH[0]}T00:00:00+00:00")
    same = {"users": users, "tenants": tenants, "start": start, "step": days * timedelta(1) / events}
    begun = time.perf_counter()
    for first in range(0, events, _CHUNK):
        async with engine.begin() as connection:
            await connection.execute(text("SET LOCAL session_replication_role = replica"))  # no triggers
            await connection.execute(_FILL, same | {"first": first, "last": min(first + _CHUNK, events) - 1})
    filled = time.perf_counter()
    lease = Lease(engine, SystemClock(), "bench", seconds=_SECONDS)
    if not await lease.hold():
        raise RuntimeError("somebody else leads")
    rollups = Rollups(engine, lease)
    await rollups.rebuild(start.date(), start.date() + (days - 1) * timedelta(1))
    rebuilt = time.perf_counter()
    writer = await _writer(engine, rollups)
    async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        await connection.execute(text("VACUUM ANALYZE"))
        counted = await connection.execute(text("SELECT cube, count(*) FROM usage_rollups GROUP BY cube"))
        rows = {f"rows of {cube}": float(count) for cube, count in counted}
    return {
        "fill seconds": filled - begun,
        "rebuild seconds": rebuilt - filled,
        "writer events/s": writer,
    } | rows


async def _writer(engine: AsyncEngine, rollups: Rollups) -> float:
    """How many events the writer takes in a second; at the end some wait, whose sums are in twice."""
    async with engine.begin() as connection:
        await connection.execute(_QUEUE, {"waiting": 10 * _WAITING})
        queued = (await connection.execute(text("SELECT count(*) FROM rollup_queue"))).scalar_one()
    begun = time.perf_counter()
    while await rollups.round():
        pass
    rate = float(queued) / (time.perf_counter() - begun)
    async with engine.begin() as connection:
        await connection.execute(_QUEUE, {"waiting": _WAITING})
    return rate


def questions(zone: str) -> dict[str, UsageQuery]:
    """What is asked."""

    def ask(tenant: str | None = _BIG, **more: Any) -> UsageQuery:
        return read_query(tenant, now=_NOW, since=_MONTH[0], until=_MONTH[1], time_zone=zone, **more)

    return {
        "summary of the month": ask(),
        "by model": ask(group_by="model"),
        "by day": ask(interval="day"),
        "by key and day": ask(interval="day", group_by="key"),
        "by hour": ask(interval="hour"),
        "by end user, first page": ask(group_by="end_user"),
        "by end user and day, first page": ask(interval="day", group_by="end_user"),
        "of one end user": ask(filters={"end_user": "user 7"}),
        "all tenants": ask(None, group_by="tenant"),
    }


def _budgets() -> dict[str, Spending]:
    """What admission asks, where Redis does not know it."""
    since = questions("UTC")["by model"].since
    owners = {"tenant": _BIG, "key": "k0x3", "user": "user 7"}
    return {
        f"budget of a {of}, of the month": Spending(of, owner, money=True, since=since)
        for of, owner in owners.items()
    }


async def _measured(work: Callable[[], Awaitable[object]], rounds: int) -> dict[str, float]:
    times = []
    for turn in range(rounds + 1):
        begun = time.perf_counter()
        await work()
        if turn:  # the first round warms up
            times.append(1000 * (time.perf_counter() - begun))
    return {"median_ms": statistics.median(times), "least_ms": min(times), "most_ms": max(times)}


async def measure(
    events: int, rounds: int, *, users: int = 50_000, tenants: int = 40, zone: str = "UTC", days: int = _DAYS
) -> dict[str, Any]:
    """Rows by question, and what the filling took."""
    with running(PostgresServer()) as server:
        url = server.new_database()
        await asyncio.to_thread(migrate, url)
        patient, engine = (
            create_async_engine(database_url(url)),
            open_engine(url, seconds=60),
        )
        try:
            made = await fill(patient, events, users, tenants, days)
            usage = SqlUsage(engine)
            rows = {}
            for name, query in questions(zone).items():

                async def page(query: UsageQuery = query) -> None:
                    await usage.page(query, limit=1000)

                rows[name] = await _measured(page, rounds)
            for name, spending in _budgets().items():

                async def spent(spending: Spending = spending) -> None:
                    await SqlReads(engine).spent(_BIG, spending)

                rows[name] = await _measured(spent, rounds)
            start, end = questions("UTC")["by model"].whole

            async def naive() -> None:
                async with patient.connect() as connection:
                    await connection.execute(_NAIVE, {"tenant": _BIG, "start": start, "end": end})

            rows["the events summed up, the yardstick"] = await _measured(naive, min(rounds, 3))
        finally:
            await engine.dispose()
            await patient.dispose()
    return {"made": made, "rows": rows}


def _print(found: dict[str, Any]) -> None:
    for name, value in found["made"].items():
        print(f"{name:40}{value:12.0f}")
    columns = ("median_ms", "least_ms", "most_ms")
    print(f"\n{'':40}" + "".join(f"{title:>12}" for title in ("median ms", "least", "most")))
    for name, row in found["rows"].items():
        print(f"{name:40}" + "".join(f"{row[column]:12.1f}" for column in columns))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="scripts/bench usage", description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--users", type=int, default=50_000, help="of the big tenant")
    parser.add_argument("--tenants", type=int, default=40)
    parser.add_argument("--zone", default="UTC")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    stop_on_sigterm()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(
            measure(asked.events, asked.rounds, users=asked.users, tenants=asked.tenants, zone=asked.zone)
        )
    if asked.json:
        print(json.dumps(found))
    else:
        _print(found)


if __name__ == "__main__":
    main()
