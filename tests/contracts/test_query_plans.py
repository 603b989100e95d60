"""How PostgreSQL plans what the ledger asks: by an index, and only in the months that are asked for."""

from __future__ import annotations

import asyncio
import re
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event as events_of
from sqlalchemy import text

from api.adapters import ledger_writes_sql as writes
from api.adapters import rollups_sql
from api.adapters.database_sql import migrate, open_engine
from api.adapters.ledger_sql import SqlLedger
from api.adapters.reaper_sql import Reaper
from api.core.ids import first_id
from api.core.money import Prices
from api.core.record import Spending
from tests.contracts.ledgers import came, ended
from tests.contracts.months import MAY, Months

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from tests.support.servers import PostgresServer

EVENTS, OPEN = 40_000, 5_000
FIRST = datetime(2031, 2, 1, tzinfo=UTC)
STEP = timedelta(days=119) / EVENTS
"""So many events from February to May, of fifty tenants; one in four was bought, a few are corrections."""

EXPLAIN = "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF, BUFFERS OFF)"

_COLUMNS = "request_id, tenant_id, key_id, end_user, dialect, model, upstream, worker, started_at, token_id"
_ROWS = """
    SELECT n, 'req' AS request_id, 'bk_' || lpad(to_hex(ms::bigint), 12, '0') || lpad(n::text, 20, '0') AS id,
        'tn_' || n % 50 AS tenant_id, 'k' || n % 500 AS key_id, 'u' || n % 90 AS end_user,
        'openai_chat' AS dialect, 'gpt' AS model, 'openai' AS upstream, 'host:' || n % 500 AS worker,
        at AS started_at, CASE WHEN n % 4 = 0 THEN 'jti ' || n % 999 END AS token_id
    FROM (SELECT n, {at} AS at FROM generate_series(1, {count}) AS n) AS times
    CROSS JOIN LATERAL (SELECT extract(epoch FROM at) * 1000 AS ms) AS since_1970
"""
_LATER = f"timestamptz '{FIRST.isoformat()}' + n * interval '{STEP.total_seconds()} seconds'"
_EVENTS = f"""
    INSERT INTO usage_events (
        id, corrects, {_COLUMNS}, answered_model,
        input_tokens, output_tokens, cached_tokens, reasoning_tokens,
        source, certainty, ended, cause, duration_ms, ended_at
    )
    SELECT CASE WHEN n % 300 = 7 THEN id || '-1' ELSE id END, CASE WHEN n % 300 = 7 THEN id END, {_COLUMNS},
        'gpt', 1, 2, 0, 0, 'provider', 'exact', 'finished', 'terminal', 5, started_at
    FROM ({_ROWS.format(at=_LATER, count=EVENTS)}) AS numbered
"""
_BEFORE = f"timestamptz '{MAY.isoformat()}' - n * interval '1 second'"
_OPEN = f"""
    INSERT INTO in_flight (id, {_COLUMNS}, input_tokens, output_tokens)
    SELECT id, {_COLUMNS}, 1, 1 FROM ({_ROWS.format(at=_BEFORE, count=OPEN)}) AS numbered
"""
_QUEUE = """
    INSERT INTO rollup_queue SELECT id, tenant_id, started_at FROM usage_events
    WHERE started_at >= '2031-05-30' ORDER BY id LIMIT 500
"""


@pytest.fixture(scope="module")
def filled(postgres_server: PostgresServer) -> str:
    """A database with four months of events, made once: the tests read it, and plan."""
    url = postgres_server.new_database()
    migrate(url)
    asyncio.run(_fill(url))
    return url


async def _fill(url: str) -> None:
    engine = open_engine(url, migrating=True)
    await Months(engine, at=FIRST).look()
    await Months(engine).look()
    async with engine.begin() as connection:
        await connection.execute(text("SET LOCAL session_replication_role = replica"))
        await connection.execute(text(_EVENTS))
        await connection.execute(text(_OPEN))
        await connection.execute(text(_QUEUE))
        await connection.execute(text("ANALYZE"))
    await engine.dispose()


@pytest.fixture
def database(filled: str) -> str:
    """That database."""
    return filled


@contextmanager
def recorded(engine: AsyncEngine) -> Iterator[list[tuple[str, Any]]]:
    """The statements that are executed meanwhile, with their parameters."""
    statements: list[tuple[str, Any]] = []

    def note(_connection, _cursor, statement, parameters, _context, many) -> None:
        statements.append((statement, parameters[0] if many else parameters))

    events_of.listen(engine.sync_engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        events_of.remove(engine.sync_engine, "before_cursor_execute", note)


async def plans_of(engine: AsyncEngine, ask: Callable[[AsyncEngine, AsyncConnection], Any]) -> list[str]:
    """How each statement is done that asks for events or open bookings. What it changes is taken back."""
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
        with recorded(engine) as statements:
            await ask(engine, connection)
        await connection.rollback()
        found = []
        for statement, parameters in statements:
            if re.search("(FROM|UPDATE) (usage_events|in_flight)", statement):
                plan = await connection.exec_driver_sql(f"{EXPLAIN} {statement}", parameters)
                found.append("\n".join(line for line in plan.scalars() if "(never executed)" not in line))
                await connection.rollback()
    return found


def scanned(plan: str) -> list[str]:
    """Tables with rows that are read from end to end."""
    return re.findall(r"Seq Scan on (usage_events_2031_0[2345]|in_flight)\b", plan)


def months_in(plan: str) -> set[str]:
    """The months that are looked into."""
    return set(re.findall(r" on usage_events_2031_0([2345])\b", plan))


TENANT, KEY, USER = "tn_7", "k7", "u7"
ALL, APRIL = {"2", "3", "4", "5"}, datetime(2031, 4, 1, tzinfo=UTC)
LATE = datetime(2031, 5, 30, tzinfo=UTC)
EVENT, AFTER = ended(MAY), first_id("bk_", int(LATE.timestamp() * 1000))


def _spent(of: str, name: str, since: datetime | None = None, *, money: bool = False) -> Any:
    return lambda engine, _: SqlLedger(engine).spent(TENANT, Spending(of, name, money=money, since=since))


def _page(**span: Any) -> Any:
    return lambda engine, _: SqlLedger(engine).events(TENANT, limit=100, **{"after": None} | span)


async def _close(engine: AsyncEngine, connection: AsyncConnection) -> None:
    months = Months(engine)
    reaper = Reaper(
        engine, months.lease, months.clock, lambda: Prices((), ()), dead_seconds=1, orphan_seconds=1
    )
    await reaper._close(connection, "host:7", registered=True)


READS = {
    "a page of events": (_page(), ALL),
    "the next page": (_page(after=AFTER), ALL),
    "a page of a week": (_page(since=LATE - timedelta(days=7), until=LATE), {"5"}),
    "all that a token spent": (_spent("token", "jti 8"), ALL),
    "what a token spent in a month": (_spent("token", "jti 8", APRIL, money=True), {"4", "5"}),
    "what a tenant spent in a month": (_spent("tenant", TENANT, APRIL), {"5"}),
    "what a key spent today": (_spent("key", KEY, LATE), {"5"}),
    "what an end user spent today": (_spent("user", USER, LATE, money=True), {"5"}),
    "totals": (lambda engine, _: SqlLedger(engine).totals(TENANT), {"5"}),
    "what runs": (lambda engine, _: SqlLedger(engine).running(TENANT, MAY - timedelta(minutes=10)), set()),
    "a tenant's streams": (lambda engine, _: SqlLedger(engine).in_flight(TENANT), set()),
    "a stream": (lambda engine, _: SqlLedger(engine).in_flight(booking_id="bk_1"), set()),
}


async def _settle_some(_: AsyncEngine, connection: AsyncConnection) -> None:
    ids = (
        (await connection.execute(text("SELECT id FROM in_flight ORDER BY worker LIMIT 25"))).scalars().all()
    )
    await writes.settle(connection, [ended(MAY, of={"id": one}) for one in ids], exports=True)


WRITES = {
    "settling a batch": (_settle_some, {"5"}),
    "settling": (lambda _, connection: writes.settle(connection, [EVENT], exports=True), {"5"}),
    "a booking again": (lambda _, connection: writes.unknown(connection, [came(MAY)]), {"5"}),
    "a dead worker's bookings": (_close, {"5"}),
    "adding up": (lambda _, connection: rollups_sql._add_some(connection), {"5"}),
}


@pytest.mark.parametrize("name", [*READS, *WRITES])
async def test_it_is_found_by_an_index_in_the_months_it_is_of(engine, name) -> None:
    """However many events there are: no month is read from end to end, and none that is not asked for."""
    ask, months = (READS | WRITES)[name]
    plans = await plans_of(engine, ask)
    assert plans
    for plan in plans:
        assert scanned(plan) == [], plan
        assert months_in(plan) <= months, plan


async def test_the_eye_of_this_file_sees_what_it_looks_for(engine) -> None:
    """A question that no index answers is planned as reading everything."""

    async def ask(_engine: AsyncEngine, connection: AsyncConnection) -> None:
        await connection.execute(text("SELECT count(*) FROM usage_events WHERE upstream = 'x'"))
        await connection.execute(text("SELECT count(*) FROM in_flight WHERE upstream = 'x'"))

    events, open_ones = await plans_of(engine, ask)
    assert (len(scanned(events)), months_in(events), scanned(open_ones)) == (4, ALL, ["in_flight"])
