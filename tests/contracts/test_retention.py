"""Retention, and that nothing else changes or deletes an event, on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.exc import DBAPIError

from api.adapters.database_sql import migrate, open_engine
from api.adapters.lease_sql import Lease, LostLease
from api.adapters.rollups_sql import NotKept, Rollups
from api.adapters.tables_sql import outbox, retired_usage, rollup_queue, usage_events, usage_rollups
from tests.contracts.ledgers import ended, put
from tests.contracts.months import MAY, Months, partitions

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from api.core.record import UsageEvent

MICROSECOND = timedelta(microseconds=1)
FEBRUARY, MARCH, APRIL = (datetime(2031, month, 1, tzinfo=UTC) for month in (2, 3, 4))


@pytest.fixture
async def database(kind: str, new_database: Callable[[str], str]) -> str:
    """A database of the test's own, without the months of today: these tests make and drop tables."""
    url = new_database(kind)
    await asyncio.to_thread(migrate, url)
    opened = open_engine(url)
    async with opened.begin() as connection:
        for name in await partitions(opened):
            if name != "default":
                await connection.execute(text(f"DROP TABLE usage_events_{name}"))
    await opened.dispose()
    return url


async def keep(engine: AsyncEngine, *events: UsageEvent, exports: bool = False) -> list[str]:
    """Append events in months that have a partition, and let the leader add them up; returns their ids."""
    for at in sorted({event.booking.started_at for event in events}):
        await Months(engine, at=at).look()
    await put(engine, *events, exports=exports)
    rollups = Rollups(engine, (await _led(engine)).lease)
    while await rollups.round():
        pass
    return [event.id for event in events]


async def _led(engine: AsyncEngine) -> Months:
    months = Months(engine)
    assert await months.lease.hold()
    return months


async def kept(engine: AsyncEngine) -> list[str]:
    """The ids of all events."""
    async with engine.connect() as connection:
        query = select(usage_events.c.id).order_by(usage_events.c.started_at)
        return list((await connection.execute(query)).scalars())


async def retired(engine: AsyncEngine) -> list[datetime]:
    """Before which moments events may be gone."""
    async with engine.connect() as connection:
        query = select(retired_usage.c.before).order_by(retired_usage.c.before)
        return list((await connection.execute(query)).scalars())


async def test_whole_months_older_than_the_setting_go(engine, caplog) -> None:
    """By months of UTC, to the microsecond; the month that runs and two before it are kept. It is logged."""
    caplog.set_level(logging.INFO)
    ids = await keep(
        engine,
        ended(FEBRUARY - timedelta(days=700)),
        ended(FEBRUARY),
        ended(MARCH - MICROSECOND),
        ended(MARCH),
        ended(APRIL),
        ended(MAY),
    )
    assert await Months(engine, keeps=2).look() > 0
    assert await kept(engine) == ids[3:]
    assert (await retired(engine))[-1] == MARCH
    assert "retention: " in caplog.text
    if engine.name == "postgresql":
        assert {"2031_03", "2031_04", "2031_05"} <= set(await partitions(engine))
        assert not {"2031_01", "2031_02"} & set(await partitions(engine))


async def test_roll_ups_stay_and_are_not_made_anew_of_nothing(engine) -> None:
    """What was used is still known; a repair that has no events left to go by is refused."""
    await keep(engine, ended(FEBRUARY), ended(MAY))
    sums = select(func.count(), func.sum(usage_rollups.c.input_tokens))
    async with engine.connect() as connection:
        before = (await connection.execute(sums)).one()
    months = Months(engine, keeps=1)
    await months.look()
    async with engine.connect() as connection:
        assert (await connection.execute(sums)).one() == before
    for late in ((), (ended(FEBRUARY),)):  # a worker that comes back from long ago makes it no better
        await put(engine, *late)
        with pytest.raises(NotKept):
            await Rollups(engine, months.lease).rebuild(FEBRUARY.date(), FEBRUARY.date())


async def test_without_a_setting_everything_is_kept(engine) -> None:
    """Which is the default."""
    ids = await keep(engine, ended(FEBRUARY - timedelta(days=9000)), ended(MAY))
    assert await Months(engine).look() == 0
    assert (await kept(engine), await retired(engine)) == (ids, [])


async def test_months_go_as_the_clock_turns(engine) -> None:
    """The last moment of a month changes nothing, the first of the next does."""
    first, second = await keep(engine, ended(MARCH), ended(MAY))
    may = datetime(2031, 5, 1, tzinfo=UTC)
    for at in (MAY - timedelta(days=31), may - MICROSECOND):
        await Months(engine, keeps=1, at=at).look()
        assert await kept(engine) == [first, second]
    await Months(engine, keeps=1, at=may).look()
    assert await kept(engine) == [second]


WAITING = {
    "for its roll-up": lambda event: insert(rollup_queue).values(
        event_id=event.id, tenant_id="tn_a", started_at=event.booking.started_at
    ),
    "for its export": lambda event: insert(outbox).values(**_outgoing(event)),
    "as a dead letter": lambda event: insert(outbox).values(**_outgoing(event), dead_at=MAY),
}


def _outgoing(event: UsageEvent) -> dict[str, object]:
    at = event.booking.started_at
    return {"event_id": event.id, "started_at": at, "created_at": at, "next_at": at}


@pytest.mark.parametrize("waits", WAITING)
async def test_a_month_stays_as_long_as_somebody_wants_an_event_of_it(engine, caplog, waits) -> None:
    """What is older goes, what waits and all after it stays, and it is told once; when it is done it goes."""
    late = ended(MARCH + timedelta(days=3))
    ids = await keep(engine, ended(FEBRUARY), ended(MARCH), late, ended(APRIL), ended(MAY))
    async with engine.begin() as connection:
        await connection.execute(WAITING[waits](late))
    months = Months(engine, keeps=1, at=MAY + timedelta(days=31))
    await months.look()
    await months.hour()
    assert await kept(engine) == ids[1:]
    assert [one.message for one in caplog.records if "wait for" in one.message] == [
        "events of 2031-03 wait for their roll-up or their export: they are kept until then"
    ]
    async with engine.begin() as connection:
        await connection.execute(delete(rollup_queue))
        await connection.execute(update(outbox).values(delivered_at=MAY, dead_at=None))
    await months.hour()
    assert await kept(engine) == ids[4:]


class Interfering(Lease):
    """Somebody settles a stream of long ago right before the leader's transaction."""

    def __init__(self, of: Months, *events: UsageEvent) -> None:
        super().__init__(of.engine, of.clock, "w", seconds=10**9)
        self.of = of
        self.events = list(events)

    async def fence(self, connection: AsyncConnection) -> None:
        if self.events and connection.dialect.name == "postgresql":  # SQLite has one writer at a time
            await put(self.of.engine, self.events.pop())
        await super().fence(connection)


async def test_an_event_that_comes_at_the_last_moment_keeps_its_month(engine) -> None:
    """It is looked again once nobody can write there: nothing is dropped that was never added up."""
    late = ended(FEBRUARY + timedelta(days=1))
    ids = await keep(engine, ended(FEBRUARY), ended(MAY))
    months = Months(engine, keeps=1)
    months.job._lease = Interfering(months, late)
    assert await months.look() == (0 if engine.name == "postgresql" else 1)
    assert await kept(engine) == ([ids[0], late.id, ids[1]] if engine.name == "postgresql" else ids[1:])


async def test_who_no_longer_leads_deletes_nothing(engine) -> None:
    """Not even in the middle of its work."""
    ids = await keep(engine, ended(FEBRUARY), ended(MAY))
    months = Months(engine, keeps=1)
    await months.look()
    other = Lease(engine, months.clock, "other", seconds=10**9)
    await months.lease.give_up()
    assert await other.hold()
    months.clock.at = MAY + timedelta(days=90)
    with pytest.raises(LostLease):
        await months.job.round()
    assert await kept(engine) == ids[1:]


async def test_what_has_no_partition_goes_some_rows_at_a_time(engine, monkeypatch) -> None:
    """On SQLite everything, on PostgreSQL what the net has caught: nobody waits for long."""
    monkeypatch.setattr("api.adapters.partitions_sql._DELETED_AT_ONCE", 2)
    old = [ended(FEBRUARY - timedelta(days=400, seconds=n)) for n in range(5)]
    young = ended(APRIL)
    await put(engine, *old, young)
    await keep(engine)
    assert await Months(engine, keeps=1).look() == 3
    assert (await kept(engine), await retired(engine)) == ([young.id], [APRIL])


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_long_transaction_is_not_waited_for(kind, engine, witness) -> None:
    """A month is dropped when nobody reads; settlements behind the leader wait for half a second at most."""
    ids = await keep(engine, ended(FEBRUARY), ended(MAY))
    months = Months(engine, keeps=1)
    async with witness.connect() as reading:
        await reading.execute(select(usage_events.c.id))
        assert await months.look() == 0
        assert await kept(engine) == ids
    months.clock.pass_seconds(61)
    assert await months.look() == 2  # February, and March
    assert await kept(engine) == ids[1:]


# --- insert-only --------------------------------------------------------------------------------------

CHANGES = {
    "update": "UPDATE {table} SET output_tokens = 0",
    "update to the same": "UPDATE {table} SET model = model",
    "delete": "DELETE FROM {table}",
}


async def refused(engine: AsyncEngine, statement: str) -> bool:
    """Whether a trigger refuses it."""
    try:
        async with engine.begin() as connection:
            await connection.execute(text(statement))
    except DBAPIError as error:
        return "append-only" in str(error)
    return False


@pytest.mark.parametrize("when", ["at first", "after retention"])
async def test_events_are_never_changed(engine, when) -> None:
    """Neither by an update nor by a delete, through whichever partition; retention alone may."""
    await put(engine, ended(MAY + timedelta(days=900)), ended(FEBRUARY))
    await keep(engine, ended(MAY))
    if when == "after retention":
        assert await Months(engine, keeps=1).look() > 0
    before = await kept(engine)
    tables = [
        "usage_events",
        *(f"usage_events_{one}" for one, rows in (await partitions(engine)).items() if rows),
    ]
    assert len(tables) == (1 if engine.name == "sqlite" else 3)
    for table in tables:
        for statement in CHANGES.values():
            assert await refused(engine, statement.format(table=table)), (table, statement)
    assert await kept(engine) == before


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_no_partition_is_emptied(kind, engine) -> None:
    """TRUNCATE is refused on the whole and on each part, those that were there and those made since."""
    await keep(engine, ended(MAY))
    for name in ("", *(f"_{one}" for one in await partitions(engine))):
        assert await refused(engine, f"TRUNCATE usage_events{name}"), name


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_an_event_is_not_replaced(kind, engine) -> None:
    """INSERT OR REPLACE deletes without a trigger of its own: it is refused, and so is an upsert."""
    await put(engine, ended(MAY))
    again = "INTO usage_events SELECT * FROM usage_events WHERE true"
    assert await refused(engine, f"INSERT OR REPLACE {again}")
    assert await refused(engine, f"REPLACE {again}")
    assert await refused(engine, f"INSERT {again} ON CONFLICT DO UPDATE SET output_tokens = 0")


async def test_a_retention_that_breaks_leaves_the_guard(engine, monkeypatch) -> None:
    """What it lifts it lifts for its own transaction."""
    await put(engine, ended(FEBRUARY))
    await keep(engine)
    monkeypatch.setattr("api.adapters.partitions_sql._note", None)
    with suppress(TypeError):
        await Months(engine, keeps=1).look()
    assert len(await kept(engine)) == 1
    assert await refused(engine, "DELETE FROM usage_events")
