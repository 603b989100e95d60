"""Partitions by month on PostgreSQL: made ahead of time, with a net below, and in nobody's way."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from api.adapters.database_sql import migrate
from api.adapters.lease_sql import LostLease
from api.core.months import month_of, months_on
from tests.contracts.helpers import bounded, snapshot
from tests.contracts.ledgers import ended, put
from tests.contracts.months import MAY, Months, partitions

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

MICROSECOND = timedelta(microseconds=1)


@pytest.fixture(params=["postgresql"])
def kind(request: pytest.FixtureRequest) -> str:
    """SQLite has no partitions."""
    return str(request.param)


@pytest.fixture
async def database(kind: str, new_database: Callable[[str], str]) -> str:
    """A database of the test's own: these tests make tables."""
    url = new_database(kind)
    await asyncio.to_thread(migrate, url)
    return url


async def test_a_new_database_has_this_month_and_the_next_two(engine: AsyncEngine) -> None:
    """Before anything is served; and a partition for whatever else may come."""
    async with engine.connect() as connection:
        now = (await connection.execute(text("SELECT now()"))).scalar_one()
    months = [f"{months_on(month_of(now), ahead):%Y_%m}" for ahead in range(3)]
    assert await partitions(engine) == {**dict.fromkeys(months, 0), "default": 0}


@pytest.mark.parametrize(
    ("at", "names"),
    [
        (datetime(2031, 11, 30, 23, 59, 59, 999999, tzinfo=UTC), {"2031_11", "2031_12", "2032_01"}),
        (datetime(2031, 12, 1, tzinfo=UTC), {"2031_12", "2032_01", "2032_02"}),
        (datetime(2032, 1, 31, 12, tzinfo=UTC), {"2032_01", "2032_02", "2032_03"}),
    ],
)
async def test_months_are_made_ahead_as_the_clock_turns(engine, at, names) -> None:
    """To the microsecond of UTC, over the end of a year."""
    before = set(await partitions(engine))
    months = Months(engine, at=at)
    await months.look()
    assert set(await partitions(engine)) - before == names
    months.clock.at = months_on(month_of(at), 1)
    await months.hour()
    assert set(await partitions(engine)) - before == {*names, f"{months_on(month_of(at), 3):%Y_%m}"}


async def test_an_event_is_in_the_month_in_which_its_request_came(engine) -> None:
    """The first microsecond of a month is its own, the last before it the other's; also in another zone."""
    async with engine.begin() as connection:
        name = (await connection.execute(text("SELECT current_database()"))).scalar_one()
        await connection.execute(text(f"ALTER DATABASE {name} SET timezone = 'America/New_York'"))
    await engine.dispose()
    await Months(engine).look()
    june = datetime(2031, 6, 1, tzinfo=UTC)
    await put(engine, ended(june - MICROSECOND), ended(june), ended(june + timedelta(days=20)))
    found = await partitions(engine)
    assert (found["2031_05"], found["2031_06"], found["2031_07"], found["default"]) == (1, 2, 0, 0)


async def test_it_is_looked_once_an_hour(engine, witness) -> None:
    """The leader has a round every two seconds, and the database other things to do."""
    months = Months(engine)
    await months.look()
    async with witness.begin() as connection:
        await connection.execute(text("DROP TABLE usage_events_2031_07"))
    for _ in range(3):
        months.clock.pass_seconds(1199)
        await months.look()
        assert "2031_07" not in await partitions(witness)
    months.clock.pass_seconds(4)
    await months.look()
    assert "2031_07" in await partitions(witness)


async def test_a_month_without_a_partition_is_caught_and_moved_later(engine, witness) -> None:
    """No insert fails for want of a partition; what was caught is moved, unchanged, and is there once."""
    events = [ended(MAY + timedelta(hours=n)) for n in range(5)]
    other = [ended(MAY - timedelta(days=400)), ended(MAY + timedelta(days=4000))]
    await put(engine, *events, *other)
    assert (await partitions(witness))["default"] == 7
    before = await snapshot(witness)
    await Months(engine).look()
    found = await partitions(witness)
    assert (found["2031_05"], found["default"]) == (5, 2)
    after = await snapshot(witness)
    assert [after.pop("leases") != before.pop("leases"), after] == [True, before]
    await put(engine, ended(MAY))
    assert (await partitions(witness))["2031_05"] == 6
    with pytest.raises(DBAPIError, match="append-only"):
        async with engine.begin() as connection:
            await connection.execute(text("DELETE FROM usage_events_default"))


async def test_what_is_too_much_to_move_stays_and_is_told_once(engine, monkeypatch, caplog) -> None:
    """Nobody waits for a move that takes long: the month stays where it is, and takes more."""
    monkeypatch.setattr("api.adapters.partitions_sql._MOVED_AT_ONCE", 3)
    await put(engine, *(ended(MAY + timedelta(hours=n)) for n in range(4)))
    months = Months(engine)
    await months.look()
    await months.hour()
    found = await partitions(engine)
    assert ("2031_05" in found, found["default"], "2031_06" in found) == (False, 4, True)
    await put(engine, ended(MAY))
    assert [one.message for one in caplog.records if "too many" in one.message] == [
        "usage_events_default has too many events of 2031-05 to be moved: they stay there"
    ]
    monkeypatch.setattr("api.adapters.partitions_sql._MOVED_AT_ONCE", 5)
    await months.hour()
    found = await partitions(engine)
    assert (found["2031_05"], found["default"]) == (5, 0)


async def test_a_long_report_holds_up_nobody(engine, witness, caplog) -> None:
    """While somebody reads all partitions the leader gives way, settlements go on, and it asks again soon."""
    months = Months(engine)
    async with witness.connect() as reading:
        await reading.execute(text("SELECT count(*) FROM usage_events"))
        assert await months.look() == 0
        await bounded(put(engine, ended(MAY), ended(datetime.now(UTC))))
    assert "2031_05" not in await partitions(witness)
    assert "usage_events is in use" in caplog.text
    await months.look()
    assert "2031_05" not in await partitions(witness)
    months.clock.pass_seconds(61)
    await months.look()
    assert (await partitions(witness))["2031_05"] == 1


async def test_who_no_longer_leads_makes_nothing(engine) -> None:
    """Two leaders would be in each other's way."""
    months = Months(engine)
    with pytest.raises(LostLease):
        await months.job.round()
    assert "2031_05" not in await partitions(engine)


async def test_migrating_again_makes_what_is_missing(database, engine) -> None:
    """A gateway that was down for months has its partitions before it serves; what was caught is moved."""
    async with engine.begin() as connection:
        now = (await connection.execute(text("SELECT now()"))).scalar_one()
        await connection.execute(text(f"DROP TABLE usage_events_{now:%Y_%m}"))
    await put(engine, ended(now))
    assert (await partitions(engine))["default"] == 1
    await asyncio.to_thread(migrate, database)
    found = await partitions(engine)
    assert (found[f"{now:%Y_%m}"], found["default"]) == (1, 0)


async def test_a_table_in_use_does_not_stop_a_start(database, engine, witness, caplog) -> None:
    """Migrating leaves to the leader what it cannot have at once."""
    caplog.set_level(logging.WARNING)
    async with engine.begin() as connection:
        now = (await connection.execute(text("SELECT now()"))).scalar_one()
        await connection.execute(text(f"DROP TABLE usage_events_{now:%Y_%m}"))
    async with witness.connect() as reading:
        await reading.execute(text("SELECT count(*) FROM usage_events"))
        await bounded(asyncio.to_thread(migrate, database))
    assert f"{now:%Y_%m}" not in await partitions(engine)
    assert "the leader makes its partition" in caplog.text
