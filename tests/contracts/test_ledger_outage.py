"""The ledger while its database is away: locked (SQLite), refusing or unreachable (PostgreSQL).

Bookings fail closed (P1), settlements and checkpoints wait (P2, P3), and nobody has to restart anything.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import create_async_engine

from api.adapters.database_sql import database_url, open_engine
from api.adapters.ledger_sql import SqlLedger
from api.adapters.tables_sql import in_flight, usage_events
from api.core.record import Checkpoint
from api.ports import LedgerUnavailable
from api.tasks import Tasks
from tests.contracts.helpers import (
    BOUND_SECONDS,
    START,
    at_once,
    booking,
    bounded,
    event,
    eventually,
    of_token,
    outcomes,
    writing,
)
from tests.contracts.outages import open_impatient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.contracts.outages import Outage


@pytest.fixture
async def engine(outage: Outage) -> AsyncIterator[AsyncEngine]:
    """The ledger's engine."""
    opened = open_impatient(outage)
    yield opened
    await opened.dispose()


async def took_a_booking(ledger: SqlLedger) -> bool:
    """Whether the ledger takes a booking now."""
    return await outcomes([ledger.book(booking())]) == [None]


async def test_bookings_fail_and_settlements_wait_for_the_database(outage, engine) -> None:
    """P1, P2: during an outage no booking succeeds and no settlement is lost; after it the event is there."""
    async with writing(engine) as (ledger, writer):
        one, twin = event(booking()), event(booking())
        await outcomes([ledger.book(one.booking), ledger.book(twin.booking)])
        await outage.begin()
        settled, refused = ledger.settle(one), ledger.book(booking())
        assert [type(end) for end in await outcomes([refused])] == [LedgerUnavailable]
        settled_later = ledger.settle(twin)
        assert [type(end) for end in await outcomes([ledger.book(booking())])] == [LedgerUnavailable]
        assert not settled.done()
        assert not settled_later.done()
        assert not writer.done()
        await outage.end()
        assert await outcomes([settled, settled_later]) == [None, None]
        assert await ledger.events("tn_a", after=None, limit=9) == [one, twin]
        assert await took_a_booking(ledger)


async def test_while_the_database_is_known_to_be_away_bookings_fail_at_once(outage, engine) -> None:
    """A caller gets its 503 now, not after the writer's next attempts: 50 in a row wait for nobody."""
    async with writing(engine) as (ledger, _):
        kept = event(booking())
        await outcomes([ledger.book(kept.booking)])
        await outage.begin()
        settled = ledger.settle(kept)
        assert not await took_a_booking(ledger)
        for _ in range(50):
            with pytest.raises(LedgerUnavailable):
                await at_once(lambda: ledger.book(booking()))
        await outage.end()
        assert await outcomes([settled]) == [None]


async def test_an_idle_ledger_notices_that_its_database_is_back(outage, engine) -> None:
    """Refusing at once is not for ever: with nothing left to settle, bookings work again by themselves."""
    async with writing(engine) as (ledger, _):
        await outage.begin()
        assert not await took_a_booking(ledger)
        await outage.end()
        await eventually(lambda: took_a_booking(ledger))


async def test_checkpoints_outlast_an_outage(outage, engine) -> None:
    """P3: the count that was to be written during the outage stands in the booking after it."""
    booked = booking()
    async with writing(engine) as (ledger, _):
        await outcomes([ledger.book(booked)])
        await outage.begin()
        ledger.checkpoint([Checkpoint(booked.id, 5, 7, START)])
        assert not await took_a_booking(ledger)
        await outage.end()
        await eventually(lambda: took_a_booking(ledger))

        async def there() -> bool:
            async with engine.connect() as connection:
                counts = select(in_flight.c.output_tokens).where(in_flight.c.id == booked.id)
                return bool((await connection.execute(counts)).scalar_one() == 7)

        await eventually(there)


async def test_closing_during_an_outage_is_bounded_and_says_what_is_lost(outage, engine) -> None:
    """P12: a shutdown does not hang on a database that is away; every waiter hears of it."""
    ledger, tasks = SqlLedger(engine), Tasks()
    writer = tasks.start(ledger.run(), name="ledger")
    ones = [event(booking()) for _ in range(3)]
    await outcomes([ledger.book(one.booking) for one in ones])
    await outage.begin()
    ends = [ledger.settle(one) for one in ones]
    ends[0].cancel()  # whoever waited for it is gone
    await ledger.close()
    await bounded(writer)
    assert [type(end) for end in await outcomes(ends[1:])] == [LedgerUnavailable] * 2
    await outage.end()


async def test_ping_tells_whether_the_database_answers(outage, engine) -> None:
    """/readyz: silent while the database answers, LedgerUnavailable while it does not, silent again after."""
    ledger = SqlLedger(engine)
    await bounded(ledger.ping())
    await outage.begin()
    if outage.makes_reads_fail:
        with pytest.raises(LedgerUnavailable):
            await bounded(ledger.ping())
    else:
        await bounded(ledger.ping())  # a lock that keeps writers out lets readers through
    await outage.end()
    await bounded(ledger.ping())


async def test_what_is_spent_is_known_or_unavailable_and_never_guessed(outage, engine) -> None:
    """No allowance is taken for unspent because the database is away: LedgerUnavailable, until it is back."""
    async with writing(engine) as (ledger, _):
        one = event(booking())
        await outcomes([ledger.book(one.booking), ledger.settle(one)])
        asked = ("tn_a", of_token(str(one.booking.token_id)))
        await outage.begin()
        if outage.makes_reads_fail:
            with pytest.raises(LedgerUnavailable) as refused:
                await bounded(ledger.spent(*asked))
            assert "127.0.0.1" not in str(refused.value)
        await outage.end()
        assert await bounded(ledger.spent(*asked)) == 24


# --- PostgreSQL only: what a network can do ---------------------------------------------------------


@pytest.mark.parametrize("settles", [True, False], ids=["settlement", "booking"])
async def test_a_commit_whose_answer_is_lost_is_not_made_twice(proxied, settles) -> None:
    """P2: when nobody knows whether COMMIT was done, the retry finds out, and there is one event."""
    url, detour, proxy = proxied
    engine, witness = open_engine(detour), open_engine(url)
    one = event(booking())
    async with writing(engine) as (ledger, _):
        other = event(booking())  # it opens the connection, and prepares both statements
        await outcomes([ledger.book(other.booking)])
        await outcomes([ledger.settle(other)])
        if settles:
            await outcomes([ledger.book(one.booking)])
        proxy.mute = True
        done = ledger.settle(one) if settles else ledger.book(one.booking)
        table = usage_events if settles else in_flight

        async def committed() -> bool:
            async with witness.connect() as connection:
                return one.booking.id in (await connection.execute(select(table.c.id))).scalars().all()

        await eventually(committed)
        assert not done.done()
        await proxy.cut()
        proxy.mute = False
        await proxy.mend()
        (end,) = await outcomes([done])
        if not settles:  # the caller was not told, so it takes back what may be there
            assert isinstance(end, LedgerUnavailable)
            (end,) = await outcomes([ledger.settle(one)])
        assert end is None
        events = await ledger.events("tn_a", after=None, limit=9)
        assert (len(events), one in events, other in events) == (2, True, True)
    await engine.dispose()
    await witness.dispose()


async def test_a_database_that_says_nothing_is_away(proxied) -> None:
    """A network that swallows everything ends in the same way as one that resets, only later."""
    _, detour, proxy = proxied
    engine = open_engine(detour)
    async with writing(engine) as (ledger, _):
        one = event(booking())
        await outcomes([ledger.book(one.booking)])
        proxy.mute = True
        settled = ledger.settle(one)
        async with asyncio.timeout(3 * BOUND_SECONDS):
            with pytest.raises(LedgerUnavailable):
                await ledger.book(booking())
        assert not settled.done()
        await proxy.cut()
        proxy.mute = False
        await proxy.mend()
        assert await outcomes([settled]) == [None]
        assert await ledger.events("tn_a", after=None, limit=9) == [one]
    await engine.dispose()


async def test_nobody_waits_for_a_database_that_says_nothing(proxied) -> None:
    """/readyz, and whoever asks for what is spent, get an answer though the network swallows everything."""
    _, detour, proxy = proxied
    engine = create_async_engine(database_url(detour))  # whose driver would wait for a minute
    ledger = SqlLedger(engine)
    await bounded(ledger.ping())
    proxy.mute = True
    with pytest.raises(LedgerUnavailable):
        await bounded(ledger.ping())
    with pytest.raises(LedgerUnavailable):
        await bounded(ledger.spent("tn_a", of_token("jti")))
    await proxy.cut()
    await engine.dispose()
