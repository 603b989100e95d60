"""A worker that was taken for dead comes back: what it knows better is appended; the sums are the truth."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from api.adapters import ledger_writes_sql as writes
from api.adapters import reaper_sql
from api.adapters.database_sql import WRITES
from api.adapters.tables_sql import usage_events
from api.core.booking import Correction, Ended, Happening
from api.core.money import Prices, PriceVersion
from api.core.record import Checkpoint, Totals
from api.core.repricing import repriced
from api.core.usage import Certainty, Source, Usage
from api.tasks import Tasks
from tests.contracts.helpers import START, bounded, waiting_for_locks
from tests.contracts.houses import DEAD_SECONDS, LOOK_SECONDS, House, of, sums, truth
from tests.contracts.ledgers import put
from tests.contracts.spools import ledger_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from api.core.record import Booking, UsageEvent

DEARER = Prices([PriceVersion(9, "m", START - timedelta(days=9), 100_000_000, 0, 200_000_000, 200_000_000)])


@pytest.fixture
async def house(engine: AsyncEngine) -> House:
    """One whose leader leads."""
    made = House(engine)
    assert await made.lease.hold()
    return made


async def lost_one(house: House, counted: int = 10) -> Booking:
    """A booking whose worker was taken for dead."""
    one = of("stopped")
    await house.pulse("stopped").beat()
    counts = [Checkpoint(one.id, 8, counted, START + timedelta(seconds=4))] if counted else []
    await house.book(one, counts=counts)
    await house.look(DEAD_SECONDS + LOOK_SECONDS)
    [lost] = (await ledger_of(house.engine))[0]
    assert (lost.ended, lost.usage.output_tokens) == (Ended.LOST, counted)
    return one


# --- what it knows better ---------------------------------------------------------------------------


async def test_a_late_worker_appends_the_difference(house) -> None:
    """It says how the stream did end, and what it used beyond its last running count; nothing is changed."""
    one = await lost_one(house)
    [lost] = (await ledger_of(house.engine))[0]
    whole = truth(one)
    await house.settle(whole)
    events, still_open = await ledger_of(house.engine)
    difference = replace(
        whole,
        usage=Usage(0, 20, 3, 2, Source.PROVIDER, Certainty.EXACT),
        cause=Correction.LATE_WORKER,
        cost_nano_dollars=(whole.cost_nano_dollars or 0) - (lost.cost_nano_dollars or 0),
        number=1,
    )
    assert (events, still_open) == ([lost, difference], [])
    assert sums(events) == sums([whole])
    async with house.engine.connect() as connection:
        rows = await connection.execute(select(usage_events.c.id, usage_events.c.corrects))
        assert sorted(tuple(row) for row in rows) == [(one.id, None), (f"{one.id}-1", one.id)]


@pytest.mark.parametrize("counted", [0, 30, 50])
async def test_the_sums_are_the_truth_whatever_was_known(house, counted: int) -> None:
    """No checkpoint, one that knew all, one that had counted more than the provider: the sums are right."""
    one = await lost_one(house, counted)
    whole = truth(one, inputs=7, outputs=30)
    await house.settle(whole)
    events, _ = await ledger_of(house.engine)
    assert sums(events) == sums([whole])
    assert await house.ledger.totals("tn_a") == Totals(1, 7, 30), "it was one request"


async def test_settling_late_again_appends_nothing(house) -> None:
    """A retry, a replayed spool, and whatever else says the same again."""
    one = await lost_one(house)
    await house.settle(truth(one))
    before = await ledger_of(house.engine)
    for again in (truth(one), truth(one, outputs=31)):
        await house.settle(again, again)
        assert await ledger_of(house.engine) == before
    await house.look(3 * DEAD_SECONDS)
    assert await ledger_of(house.engine) == before


async def test_an_event_that_was_settled_in_time_is_not_corrected(house) -> None:
    """Only what the reaper has closed is; a second settlement that says something else is wrong."""
    one = of("a")
    await house.book(one)
    await house.settle(truth(one))
    await house.settle(truth(one, outputs=99))
    assert await ledger_of(house.engine) == ([truth(one)], [])


async def test_a_booking_that_never_was_is_not_corrected(house) -> None:
    """Its booking was refused; whoever takes it back leaves no trace."""
    await house.settle(truth(of("a")))
    assert await ledger_of(house.engine) == ([], [])


# --- together with new prices -----------------------------------------------------------------------


async def reprice(house: House, one: Booking, to: Prices = DEARER) -> None:
    """As `prices reprice` does."""
    standing = [event for event in (await ledger_of(house.engine))[0] if event.booking.id == one.id]
    price = to.of(one.model, one.tenant_id, one.started_at)
    assert price is not None
    correction = repriced(standing, price, house.clock.now())
    assert correction is not None
    await put(house.engine, correction)


async def test_a_late_worker_after_a_repricing(house) -> None:
    """The sums are what it says; who reprices once more gets all of it at the new price."""
    one = await lost_one(house)
    await reprice(house, one)
    whole = truth(one)
    await house.settle(whole)
    events, _ = await ledger_of(house.engine)
    assert [event.cause for event in events] == [
        Happening.WORKER_LOST,
        Correction.REPRICED,
        Correction.LATE_WORKER,
    ]
    assert [event.number for event in events] == [0, 1, 2]
    assert sums(events) == sums([whole])
    await house.settle(whole)
    assert len((await ledger_of(house.engine))[0]) == 3
    await reprice(house, one)
    assert sums((await ledger_of(house.engine))[0])[-1] == 8 * 100 - 3 * 100 + 30 * 200


async def test_a_repricing_after_a_late_worker(house) -> None:
    """The tokens stay what they were, and all of them cost the new price."""
    one = await lost_one(house)
    await house.settle(truth(one))
    await reprice(house, one)
    events, _ = await ledger_of(house.engine)
    assert sums(events) == (*sums([truth(one)])[:-1], 8 * 100 - 3 * 100 + 30 * 200)
    await house.settle(truth(one))
    assert (await ledger_of(house.engine))[0] == events


async def test_a_late_worker_for_whom_there_was_no_price(house) -> None:
    """Its tokens are right, and nobody makes a price up."""
    one = of("stopped", model="who knows")
    await house.pulse("stopped").beat()
    await house.book(one)
    await house.look(DEAD_SECONDS + LOOK_SECONDS)
    whole = truth(replace(one, model="m"), booking=one, cost_nano_dollars=None, price_version=None)
    await house.settle(whole)
    events, _ = await ledger_of(house.engine)
    assert [event.cost_nano_dollars for event in events] == [None, None]
    assert sums(events)[:2] == (8, 30)


# --- at the same moment -----------------------------------------------------------------------------


async def test_settlements_race_with_the_reaper(house, witness) -> None:
    """Each booking is settled, or lost and corrected, and never both or neither; its sum is the truth."""
    for _ in range(2):
        await house.pulse("stopped").beat()
        theirs = [of("stopped") for _ in range(12)]
        await house.book(*theirs, counts=[Checkpoint(one.id, 8, 10, START) for one in theirs])
        settling = [house.settle(truth(one)) for one in reversed(theirs)]
        await bounded(asyncio.gather(house.reaper.close("stopped", registered=True), *settling))
        events, still_open = await ledger_of(witness)
        for one in theirs:
            mine = [event for event in events if event.booking.id == one.id]
            assert [event.cause for event in mine] in (
                [Happening.TERMINAL],
                [Happening.WORKER_LOST, Correction.LATE_WORKER],
            )
            assert sums(mine) == sums([truth(one)])
        assert still_open == []


@pytest.mark.parametrize("ends", ["commit", "rollback"])
@pytest.mark.parametrize("kind", ["postgresql"])
async def test_what_is_being_settled_right_now_is_not_lost(house, witness, ends: str) -> None:
    """The reaper passes it over; if nothing comes of that settlement it is closed in the next round."""
    await house.pulse("stopped").beat()
    settled_now, other = of("stopped"), of("stopped")
    await house.book(settled_now, other)
    async with witness.connect() as connection:
        await connection.execution_options(**WRITES)
        await connection.begin()
        await writes.settle(connection, [truth(settled_now)], exports=False)
        await house.look(DEAD_SECONDS + LOOK_SECONDS)
        assert [one.booking for one in (await ledger_of(house.engine))[0]] == [other]
        await getattr(connection, ends)()
    await house.look(LOOK_SECONDS)
    events, still_open = await ledger_of(house.engine)
    causes = {one.booking.id: one.cause for one in events}
    first = Happening.TERMINAL if ends == "commit" else Happening.WORKER_LOST
    assert causes == {settled_now.id: first, other.id: Happening.WORKER_LOST}
    assert (still_open, await house.registered()) == ([], [])


async def test_a_settlement_that_comes_while_the_reaper_commits_is_a_correction(
    house, witness, monkeypatch
) -> None:
    """It waits for the reaper's transaction, and then knows of it."""
    one = of("stopped")
    await house.pulse("stopped").beat()
    await house.book(one, counts=[Checkpoint(one.id, 8, 10, START)])
    late, tasks = House(witness), Tasks()
    settle = writes.settle

    async def slow(connection: AsyncConnection, events: Sequence[UsageEvent], **options: Any) -> int:
        count = await settle(connection, events, **options)
        monkeypatch.setattr(writes, "settle", settle)
        settling = tasks.start(late.settle(truth(one)), name="settle")
        if connection.dialect.name == "sqlite":
            await asyncio.wait([settling], timeout=0.2)
        else:
            async with asyncio.timeout(10):
                while not await waiting_for_locks(witness):
                    await asyncio.sleep(0)
        assert not settling.done()
        return count

    monkeypatch.setattr(reaper_sql.writes, "settle", slow)
    await house.look(DEAD_SECONDS + LOOK_SECONDS)
    await bounded(tasks.join())
    events, _ = await ledger_of(house.engine)
    assert [event.cause for event in events] == [Happening.WORKER_LOST, Correction.LATE_WORKER]
    assert sums(events) == sums([truth(one)])


async def test_two_that_settle_late_at_once_append_one_correction(house, witness) -> None:
    """The worker that woke up, and whoever replays its spool."""
    one = await lost_one(house)
    other = House(witness)
    late = [of_engine.settle(truth(one)) for of_engine in (house, other) for _ in range(4)]
    await bounded(asyncio.gather(*late))
    events, _ = await ledger_of(witness)
    assert [event.cause for event in events] == [Happening.WORKER_LOST, Correction.LATE_WORKER]
    assert sums(events) == sums([truth(one)])


async def test_whoever_knows_better_second_waits_and_writes_nothing(house, witness) -> None:
    """Not even an error: a row that is refused would be a settlement that its worker takes for lost."""
    one, tasks = await lost_one(house), Tasks()

    async def settle(engine: AsyncEngine, before_commit: asyncio.Event | None = None) -> None:
        async with engine.connect() as connection:
            await connection.execution_options(**WRITES)
            async with connection.begin():
                await writes.settle(connection, [truth(one)], exports=False)
                if before_commit is not None:
                    second.append(tasks.start(settle(witness), name="second"))
                    await before_commit.wait()

    second: list[asyncio.Task[None]] = []
    overlap = asyncio.Event()
    first = tasks.start(settle(house.engine, overlap), name="first")
    async with asyncio.timeout(10):
        while not second or not (house.engine.name == "sqlite" or await waiting_for_locks(witness)):
            await asyncio.sleep(0)
    overlap.set()
    await bounded(asyncio.gather(first, *second))
    events, _ = await ledger_of(house.engine)
    assert [event.cause for event in events] == [Happening.WORKER_LOST, Correction.LATE_WORKER]
