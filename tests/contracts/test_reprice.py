"""Repricing, on SQLite and PostgreSQL: bookings come to cost what the list says, by corrections alone."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from api.adapters import reprice_sql
from api.adapters.prices_sql import SqlPrices
from api.adapters.reprice_sql import SqlReprice
from api.adapters.tables_sql import outbox, rollup_queue
from api.core.booking import Correction
from api.core.money import Price
from api.core.repricing import Period, Repriced
from tests.contracts.helpers import (
    BY,
    START,
    snapshot,
    tenant,
)
from tests.contracts.repricings import (
    HOUR,
    LIST,
    MICROSECOND,
    PERIOD,
    PRICE,
    USAGE,
    costs,
    ledger,
    request,
    write,
)

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from api.adapters.accounts_sql import SqlAccounts
    from tests.contracts.helpers import Clock


@pytest.fixture
def book(engine: AsyncEngine, clock: Clock) -> SqlPrices:
    """A price book."""
    return SqlPrices(engine, clock)


@pytest.fixture
def job(engine: AsyncEngine, clock: Clock, book: SqlPrices) -> SqlReprice:
    """Repricing of a gateway that exports nothing."""
    return SqlReprice(engine, clock, book, exports=False, by=BY)


# --- what it does -----------------------------------------------------------------------------------


async def test_a_booking_comes_to_cost_what_the_list_says(
    job: SqlReprice, book: SqlPrices, engine: AsyncEngine
) -> None:
    """One correction, with no tokens and the difference; the event itself stays as it was written."""
    one = request()
    await write(engine, [one])
    done = await book.import_prices({"m": PRICE}, LIST, by=BY)
    assert await job.run(PERIOD) == Repriced(1, 1, 0, 110 - 7)
    [[first, correction]] = (await ledger(engine)).values()
    assert first == one
    assert correction.booking == one.booking
    assert (correction.number, correction.cause) == (1, Correction.REPRICED)
    assert (correction.cost_nano_dollars, correction.price_version) == (103, f"{done.changes[0].version}")
    assert (correction.usage.input_tokens, correction.usage.output_tokens) == (0, 0)
    assert correction.ended_at > one.ended_at


async def test_a_second_run_changes_nothing(
    job: SqlReprice, book: SqlPrices, engine: AsyncEngine, witness: AsyncEngine
) -> None:
    """Not a row, in any table; and a third, after a new price, corrects what the first had corrected."""
    await write(engine, [request() for _ in range(3)])
    await book.import_prices({"m": PRICE}, LIST, by=BY)
    await job.run(PERIOD)
    before = await snapshot(witness)
    assert await job.run(PERIOD) == Repriced(3, 0, 0, 0)
    assert await snapshot(witness) == before
    await book.import_prices({"m": Price(0, 0, 0, 0)}, LIST, by=BY)
    assert await job.run(PERIOD) == Repriced(3, 3, 0, -330)
    assert await costs(engine) == [0, 0, 0]


async def test_a_dry_run_says_the_same_and_changes_nothing(
    job: SqlReprice, book: SqlPrices, engine: AsyncEngine, witness: AsyncEngine
) -> None:
    """How many, how much, how many without a price."""
    models = ("m", "m", "nobody's")
    await write(engine, [request(model=model) for model in models])
    await book.import_prices({"m": PRICE}, LIST, by=BY)
    before = await snapshot(witness)
    tried = await job.run(PERIOD, dry_run=True)
    assert await snapshot(witness) == before
    assert tried == await job.run(PERIOD) == Repriced(3, 2, 1, 206)


async def test_what_had_no_price_gets_one_and_what_lost_its_price_keeps_it(
    job: SqlReprice, book: SqlPrices, engine: AsyncEngine
) -> None:
    """A price that begins later, or a model that is not on the list, changes nothing that was charged."""
    later = request(START + 2 * HOUR, cost=None)
    await write(engine, [request(cost=None), later, request(START + 3 * HOUR, model="gone")])
    await book.import_prices({"m": PRICE}, START + HOUR, by=BY)
    assert await job.run(PERIOD) == Repriced(3, 1, 2, 110)
    found = [[one.cost_nano_dollars for one in standing] for standing in (await ledger(engine)).values()]
    assert found == [[None], [None, 110], [7]]
    assert await job.run(PERIOD) == Repriced(3, 0, 2, 0)


async def test_each_booking_is_charged_by_what_held_when_it_came(
    job: SqlReprice, book: SqlPrices, engine: AsyncEngine, accounts: SqlAccounts
) -> None:
    """By its moment, the model that was asked for, and its tenant's markup, of which the version tells."""
    one = await tenant(accounts)
    await book.import_prices({"m*": PRICE}, LIST, by=BY)
    await book.import_prices({"m*": Price(2 * 10**6, 0, 0, 0)}, START + HOUR, by=BY)
    await book.set_markup(one.id, 5000, START + HOUR, by=BY)
    times = (START + HOUR - MICROSECOND, START + HOUR)
    tenants = ("tn_a", one.id)
    await write(engine, [request(at, tenant_id=t) for at in times for t in tenants])
    await job.run(PERIOD)
    assert await costs(engine) == [110, 110, 120, 180]
    last = [standing[-1].price_version or "" for standing in (await ledger(engine)).values()]
    assert [version.count("+") for version in last] == [0, 0, 0, 1]


async def test_only_what_was_asked_for_is_repriced(
    job: SqlReprice, book: SqlPrices, engine: AsyncEngine
) -> None:
    """From `since` on, before `until`, to the microsecond; one tenant; one model, or names that begin so."""
    times = (START - MICROSECOND, START, START + HOUR - MICROSECOND, START + HOUR)
    await write(engine, [request(at) for at in times])
    odd = ("m_1", "mx1", "M_1", "m_", "m%", "n")
    await write(engine, [request(START, model=name, tenant_id="tn_b") for name in odd])
    await book.import_prices({"*": PRICE}, LIST, by=BY)
    hour = Period(START, START + HOUR)

    async def count(**only: str) -> int:
        return (await job.run(hour._replace(**only), dry_run=True)).corrected

    assert await count() == 2 + len(odd)
    assert await count(tenant_id="tn_a") == 2
    assert await count(tenant_id="tn_A") == 0
    assert [await count(model=name) for name in ("m", "m_1", "m_*", "m%*", "*", "M*")] == [2, 1, 2, 1, 8, 1]
    await job.run(hour._replace(tenant_id="tn_a"))
    assert [number for number in await costs(engine) if number == 110] == [110, 110]
    by_time = {standing[0].booking.started_at: len(standing) for standing in (await ledger(engine)).values()}
    assert [by_time[at] for at in (times[0], times[2], times[3])] == [1, 2, 1]


@pytest.mark.parametrize("seed", range(2))
async def test_random_ledgers_add_up(
    job: SqlReprice, book: SqlPrices, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """In pages, with corrections of tokens and earlier prices: every sum is the price of what was used."""
    monkeypatch.setattr(reprice_sql, "_PAGE", 7)
    chance = random.Random(seed)
    events = []
    for number in range(40):
        one = request(START + number * HOUR / 2, cost=chance.choice([None, 5]), model=chance.choice("ab"))
        events.append(one)
        if number % 3 == 0:
            usage = replace(
                USAGE, input_tokens=chance.randrange(-50, 50), output_tokens=3, reasoning_tokens=0
            )
            events.append(replace(one, usage=usage, number=1, cause=Correction.LATE_WORKER))
    await write(engine, events)
    told: list[Repriced] = []
    for _ in range(3):
        for name in "ab":
            price = Price(*(chance.randrange(10**8) for _ in range(4)))
            await book.import_prices({name: price}, START + chance.randrange(20) * HOUR, by=BY)
        done = await job.run(PERIOD, progress=told.append)
        known = await book.load()
        for standing in (await ledger(engine)).values():
            first = standing[0]
            price_then = known.of(first.booking.model, "tn_a", first.booking.started_at)
            if price_then is None:
                continue
            tokens = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens")
            used = {name: sum(getattr(one.usage, name) for one in standing) for name in tokens}
            cost = sum(one.cost_nano_dollars or 0 for one in standing)
            assert cost == price_then.of(replace(USAGE, **used))
            assert [one.number for one in standing] == list(range(len(standing)))
        assert done.bookings == 40
    assert [one.bookings for one in told] == [7, 14, 21, 28, 35] * 3


# --- what follows -----------------------------------------------------------------------------------


@pytest.mark.parametrize("exports", [True, False])
async def test_corrections_are_queued_as_other_events_are(
    book: SqlPrices, engine: AsyncEngine, clock: Clock, exports: bool
) -> None:
    """For the roll-ups always, for the export where there is one."""
    one = request()
    await write(engine, [one])
    await book.import_prices({"m": PRICE}, LIST, by=BY)
    await SqlReprice(engine, clock, book, exports=exports, by=BY).run(PERIOD)
    async with engine.connect() as connection:
        queued = (await connection.execute(select(rollup_queue.c.event_id))).scalars().all()
        outgoing = (await connection.execute(select(outbox.c.event_id))).scalars().all()
    assert sorted(queued) == [one.id, f"{one.id}-1"]
    assert outgoing == ([f"{one.id}-1"] if exports else [])


async def test_a_run_is_one_entry_in_the_audit_log(
    job: SqlReprice,
    book: SqlPrices,
    engine: AsyncEngine,
    accounts: SqlAccounts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many pages it has; who, which period, whose. One that changes nothing leaves none."""
    monkeypatch.setattr(reprice_sql, "_PAGE", 2)
    await write(engine, [request(cost=110 if n < 3 else 7) for n in range(9)])
    await book.import_prices({"m": PRICE}, LIST, by=BY)
    only = PERIOD._replace(tenant_id="tn_a", model="m")
    assert (await job.run(only)).corrected == 6
    await job.run(only)
    [entry] = await accounts.audit(action="price.reprice")
    assert (entry.actor, entry.target, entry.tenant_id) == (BY.name, "tn_a", "tn_a")
    assert entry.details == {"from": START.isoformat(), "to": PERIOD.until.isoformat(), "model": "m"}
    await book.import_prices({"m": Price(0, 0, 0, 0)}, LIST, by=BY)
    await job.run(PERIOD)
    assert (await accounts.audit(action="price.reprice"))[0].target == "all tenants"
