"""64 writers settle the same bookings at once on PostgreSQL, the reaper and the roll-ups beside them."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import func, select, text

from api.adapters.database_sql import migrate, open_engine
from api.adapters.lease_sql import Lease
from api.adapters.reaper_sql import Reaper
from api.adapters.rollups_sql import Rollups
from api.adapters.tables_sql import in_flight, rollup_queue, usage_events, usage_rollups
from api.core.booking import Happening
from api.core.money import Prices
from api.core.record import Checkpoint
from api.tasks import Tasks
from tests.contracts.helpers import BOUND_SECONDS, START, outcomes, turns, writing
from tests.contracts.ledgers import StillClock, came, event

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

    from api.adapters.ledger_sql import SqlLedger
    from api.core.record import Booking

WRITERS, EACH = 64, 6
DEAD = "host:dead"


@pytest.fixture(params=["postgresql"])
def kind(request: pytest.FixtureRequest) -> str:
    """SQLite has one writer at a time."""
    return str(request.param)


@pytest.fixture
async def database(kind: str, new_database: Callable[[str], str]) -> str:
    """A database of the test's own, which counts its own deadlocks."""
    url = new_database(kind)
    await asyncio.to_thread(migrate, url)
    return url


@pytest.fixture
async def ledgers(database: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[SqlLedger]]:
    """So many workers' ledgers, each with a connection of its own that is open before it starts.

    They have as much time as this machine needs for them all.
    """
    monkeypatch.setattr("api.adapters.ledger_sql._COMMIT_SECONDS", BOUND_SECONDS * 3)
    async with AsyncExitStack() as stack:
        opened = []
        for _ in range(WRITERS):
            engine = open_engine(database, connections=2, seconds=BOUND_SECONDS * 3)
            stack.push_async_callback(engine.dispose)
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
            ledger, _ = await stack.enter_async_context(writing(engine))
            opened.append(ledger)
        yield opened


async def storm(ledgers: list[SqlLedger], chance: random.Random, *, counts: tuple[int, ...]) -> list[Booking]:
    """All book, all write checkpoints and settle what others booked too, in any order, all at once.

    The last checkpoints come together with the settlements, those before them by themselves.
    """
    bookings = [
        [
            came(START, worker=DEAD if n % 4 == 0 else f"host:{number}", tenant_id=f"tn_{n % 3}")
            for n in range(EACH)
        ]
        for number in range(len(ledgers))
    ]
    booked = [ledger.book(one) for ledger, mine in zip(ledgers, bookings, strict=True) for one in mine]
    assert set(await outcomes(booked)) == {None}
    shared = [[*mine, *bookings[n - 1], *chance.choice(bookings)] for n, mine in enumerate(bookings)]
    for counted in counts:
        await turns()  # those before are on their way
        for ledger, some in zip(ledgers, shared, strict=True):
            chance.shuffle(some)
            ledger.checkpoint([Checkpoint(one.id, counted, 7, START) for one in some])
    settled = []
    for ledger, some, mine in zip(ledgers, shared, bookings, strict=True):
        chance.shuffle(some)
        settled += [ledger.settle(event(one)) for one in some[len(some) // 4 :] + mine]
    assert set(await outcomes(settled)) == {None}
    return [one for mine in bookings for one in mine]


async def for_ever(work: Callable[[], object]) -> None:
    """Again and again, until cancelled."""
    while True:
        await work()
        await asyncio.sleep(0)


async def test_no_deadlock_and_no_lost_row(database, engine, ledgers, caplog) -> None:
    """Each booking ends as one event, whoever of three writes it, and nobody waits in a ring."""
    caplog.set_level(logging.ERROR, "sluicegate.reaper")  # it says each time that it found a dead worker
    clock, tasks, chance = StillClock(), Tasks(), random.Random(5)
    lease = Lease(engine, clock, "leader", seconds=10**6)
    assert await lease.hold()
    reaper = Reaper(engine, lease, clock, lambda: Prices((), ()), dead_seconds=1, orphan_seconds=1)
    rollups = Rollups(engine, lease)
    beside = [
        tasks.start(for_ever(lambda: reaper.close(DEAD, registered=True)), name="reaper"),
        tasks.start(for_ever(rollups.round), name="rollups"),
    ]
    bookings = [one for counts in ((), (5, 6)) for one in await storm(ledgers, chance, counts=counts)]
    assert [task.done() for task in beside] == [False, False]
    await tasks.cancel()
    while await rollups.round():
        pass
    assert "did not take" not in caplog.text
    assert await events_of(engine, bookings) == Counter(one.id for one in bookings)
    async with engine.connect() as connection:
        deadlocks = text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        assert (await connection.execute(deadlocks)).scalar_one() == 0


async def events_of(engine: AsyncEngine, bookings: list[Booking]) -> Counter[str]:
    """How many events each booking has; what else the ledger holds agrees with them."""
    async with engine.connect() as connection:
        events = (await connection.execute(select(usage_events))).all()
        for table in (in_flight, rollup_queue):
            assert (await connection.execute(select(func.count()).select_from(table))).scalar_one() == 0
        of_day = select(func.sum(usage_rollups.c.events), func.sum(usage_rollups.c.output_tokens))
        sums = (await connection.execute(of_day.where(usage_rollups.c.cube == "day"))).one()
    lost = {one.id for one in events if one.cause == Happening.WORKER_LOST}
    corrections = Counter(one.corrects for one in events if one.corrects is not None)
    assert set(corrections) <= lost
    assert set(corrections.values()) <= {1}
    assert tuple(map(int, sums)) == (len(bookings), sum(one.output_tokens for one in events))
    return Counter(one.id for one in events if one.corrects is None)
