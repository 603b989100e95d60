"""The ledger in groups, on SQLite and PostgreSQL: what goes together, and what is out of the ordinary."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from unittest import mock

import pytest
from sqlalchemy import func, select

from api.adapters.tables_sql import in_flight, usage_events
from api.core.booking import Correction
from tests.contracts.helpers import booking, bounded, event, outcomes, writing
from tests.contracts.houses import DEAD_SECONDS, LOOK_SECONDS, House, of, truth
from tests.contracts.spools import ledger_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy import Table
    from sqlalchemy.ext.asyncio import AsyncEngine

    from api.adapters.ledger_sql import SqlLedger


@pytest.fixture
async def ledger(engine: AsyncEngine) -> AsyncIterator[SqlLedger]:
    """A ledger whose writer runs."""
    async with writing(engine) as (opened, _):
        yield opened


async def rows(engine: AsyncEngine, table: Table) -> int:
    """How many are committed."""
    async with engine.connect() as connection:
        return int((await connection.execute(select(func.count()).select_from(table))).scalar_one())


async def test_many_streams_at_once_all_land_in_few_transactions(ledger, witness, monkeypatch) -> None:
    """P2 and P8: 200 concurrent streams leave 200 events, in far fewer commits than writes."""
    commit = mock.AsyncMock(wraps=ledger._commit)
    monkeypatch.setattr(ledger, "_commit", commit)

    async def stream() -> None:
        one = event(booking())
        await ledger.book(one.booking)
        await ledger.settle(one)

    await bounded(asyncio.gather(*(stream() for _ in range(200))))
    assert await rows(witness, usage_events) == 200
    assert await rows(witness, in_flight) == 0
    assert 2 <= commit.await_count <= 40


async def test_a_crowd_larger_than_a_group_lands(ledger, witness) -> None:
    """More writes than fit in one group are written in several, and none is forgotten."""
    ends = [ledger.book(booking()) for _ in range(1201)]
    assert await outcomes(ends) == [None] * 1201
    assert await rows(witness, in_flight) == 1201


@pytest.mark.parametrize("company", ["alone", "settlements", "settlements and bookings"])
async def test_a_late_settlement_is_a_correction_in_any_group(engine, company) -> None:
    """What the reaper has closed is corrected, once; whoever shares its group is written as ever."""
    house = House(engine)
    assert await house.lease.hold()
    living, late, others = house.pulse("living"), of("stopped"), [of("living") for _ in range(3)]
    await house.pulse("stopped").beat()
    await living.beat()
    await house.book(late, *others)
    await house.look(DEAD_SECONDS + LOOK_SECONDS, living)
    new = [booking() for _ in range(2 * ("bookings" in company))]
    ending = [late, *(others if company != "alone" else [])]
    async with writing(engine) as (ledger, _):
        ends = [ledger.settle(truth(one)) for one in ending] + [ledger.book(one) for one in new]
        assert set(await outcomes(ends)) == {None}
        await outcomes([ledger.settle(truth(late))])  # again is the same
    events, still_open = await ledger_of(engine)
    assert sorted(one.booking.id for one in events) == sorted([late.id, *(one.id for one in ending)])
    assert [one.booking.id for one in events if one.cause is Correction.LATE_WORKER] == [late.id]
    left = new if company != "alone" else others
    assert sorted(one.booking.id for one in still_open) == sorted(one.id for one in left)
