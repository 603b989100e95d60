"""Repricing while others write: late workers, imports, and somebody else who reprices."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from api.adapters import ledger_writes_sql as writes
from api.adapters import reprice_sql
from api.adapters.prices_sql import SqlPrices
from api.adapters.reprice_sql import SqlReprice
from api.core.booking import Correction, Ended, Happening
from api.core.money import Price
from api.tasks import Tasks
from tests.contracts.helpers import (
    BY,
    bounded,
    eventually,
    outcomes,
    waiting_for_locks,
    writing,
)
from tests.contracts.repricings import LIST, PERIOD, PRICE, USAGE, costs, ledger, request, write

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from api.core.record import UsageEvent
    from tests.contracts.helpers import Clock


@pytest.fixture
def book(engine: AsyncEngine, clock: Clock) -> SqlPrices:
    """A price book."""
    return SqlPrices(engine, clock)


@pytest.fixture
def job(engine: AsyncEngine, clock: Clock, book: SqlPrices) -> SqlReprice:
    """Repricing of a gateway that exports nothing."""
    return SqlReprice(engine, clock, book, exports=False, by=BY)


async def test_of_two_at_one_time_each_correction_is_written_once(
    book: SqlPrices, engine: AsyncEngine, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four people start it at once: all end well, and together they corrected what there was to correct."""
    monkeypatch.setattr(reprice_sql, "_PAGE", 5)
    await write(engine, [request() for _ in range(23)])
    await book.import_prices({"m": PRICE}, LIST, by=BY)
    jobs = [SqlReprice(engine, clock, book, exports=False, by=BY) for _ in range(4)]
    done = await bounded(asyncio.gather(*(job.run(PERIOD) for job in jobs)))
    assert [one.bookings for one in done] == [23] * 4
    assert sum(one.corrected for one in done) == 23
    assert await costs(engine) == [110] * 23


def late(of: UsageEvent) -> tuple[UsageEvent, UsageEvent]:
    """A booking that was closed without its worker, and what that worker says when it is back."""
    said = replace(of, ended=Ended.LOST, cause=Happening.WORKER_LOST, usage=replace(USAGE, input_tokens=90))
    return said, of


async def until_somebody_waits(witness: AsyncEngine) -> None:
    """For a lock."""

    async def waits() -> bool:
        return await waiting_for_locks(witness) > 0

    await eventually(waits)


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_late_workers_correction_comes_first(
    job: SqlReprice, book: SqlPrices, engine: AsyncEngine, witness: AsyncEngine
) -> None:
    """Its transaction is under way: repricing waits for it, takes the next number, and counts its tokens."""
    said, truth = late(request())
    await write(engine, [said])
    await book.import_prices({"m": PRICE}, LIST, by=BY)
    tasks = Tasks()
    async with witness.connect() as worker:
        await worker.begin()
        await writes.settle(worker, [truth], exports=False)
        repricing = tasks.start(job.run(PERIOD), name="reprice")
        await until_somebody_waits(witness)
        await worker.commit()
    assert (await bounded(repricing)).corrected == 1
    [standing] = (await ledger(engine)).values()
    assert [one.cause for one in standing[1:]] == [Correction.LATE_WORKER, Correction.REPRICED]
    assert await costs(engine) == [110]


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_late_worker_comes_while_its_booking_is_repriced(
    book: SqlPrices, engine: AsyncEngine, witness: AsyncEngine, clock: Clock
) -> None:
    """It waits, and its correction is written too; the next run charges its tokens."""
    said, truth = late(request())
    await write(engine, [said])
    await book.import_prices({"m": PRICE}, LIST, by=BY)
    job, tasks = SqlReprice(witness, clock, book, exports=False, by=BY), Tasks()
    held, go_on = asyncio.Event(), asyncio.Event()

    async def note(*_: object) -> None:
        held.set()
        await go_on.wait()

    job._note = note  # type: ignore[method-assign] - inside the transaction, at its end
    repricing = tasks.start(job.run(PERIOD), name="reprice")
    async with writing(engine) as (worker, _):
        await bounded(held.wait())
        settled = worker.settle(truth)
        await until_somebody_waits(witness)
        go_on.set()
        await bounded(repricing)
        assert await outcomes([settled]) == [None]
    [standing] = (await ledger(engine)).values()
    assert [one.cause for one in standing[1:]] == [Correction.REPRICED, Correction.LATE_WORKER]
    await job.run(PERIOD)
    assert await costs(engine) == [110]


async def test_a_price_that_comes_meanwhile_counts(
    job: SqlReprice, book: SqlPrices, engine: AsyncEngine
) -> None:
    """Who reprices never goes by a list that is older than the corrections it writes."""
    await write(engine, [request()])
    await book.import_prices({"m": PRICE}, LIST, by=BY)
    load = book.load

    async def loads_and_then_another_price_comes() -> Any:
        known = await load()
        book.load = load  # type: ignore[method-assign]
        await book.import_prices({"m": Price(0, 0, 3 * 10**6, 3 * 10**6)}, LIST, by=BY)
        return known

    book.load = loads_and_then_another_price_comes  # type: ignore[method-assign]
    await job.run(PERIOD)
    assert await costs(engine) == [30]


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_price_that_comes_while_a_correction_is_written_is_not_undone(
    job: SqlReprice, book: SqlPrices, engine: AsyncEngine, witness: AsyncEngine, clock: Clock
) -> None:
    """Somebody imports and reprices between two statements of the slower run: what that says stays."""
    await write(engine, [request()])
    await book.import_prices({"m": PRICE}, LIST, by=BY)
    rival_book = SqlPrices(witness, clock)
    rival = SqlReprice(witness, clock, rival_book, exports=False, by=BY)
    prices, looks = job._prices, []

    async def rival_is_quicker(connection: Any) -> Any:
        known = await prices(connection)
        looks.append(known)
        if len(looks) == 2:  # the first was without a transaction
            await rival_book.import_prices({"m": Price(0, 0, 3 * 10**6, 3 * 10**6)}, LIST, by=BY)
            await rival.run(PERIOD)
        return known

    job._prices = rival_is_quicker  # type: ignore[method-assign]
    await bounded(job.run(PERIOD))
    assert len(looks) == 3
    assert await costs(engine) == [30]
