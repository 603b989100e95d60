"""The ledger while its database is away, with a spool: settlements are durable at once, and there after."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from api.adapters import ledger_sql
from api.adapters.database_sql import open_engine
from api.core import spool as records
from api.core.record import Checkpoint, InFlight
from api.ports import LedgerUnavailable
from tests.contracts.helpers import START, booking, bounded, event, eventually, outcomes
from tests.contracts.outages import open_impatient
from tests.contracts.spools import ledger_of, refused_ones, take_over, working

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from api.adapters.ledger_sql import SqlLedger
    from tests.contracts.outages import Outage

MOMENT_SECONDS = 3.0
"""So long a settlement may take: a second until it is known that the database is away, on two busy cores."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The database is looked after twenty times a second."""
    monkeypatch.setattr(ledger_sql, "_RETRY_SECONDS", (0.05,))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where spools lie."""
    return tmp_path / "spool"


@pytest.fixture
async def away(outage: Outage) -> AsyncIterator[AsyncEngine]:
    """The ledger's engine, on a database that can be taken away."""
    opened = open_impatient(outage)
    yield opened
    await opened.dispose()


async def in_a_moment(*writes: asyncio.Future[None]) -> None:
    """Each of them is done, and soon."""
    since = time.monotonic()
    assert await outcomes(writes) == [None] * len(writes)
    assert time.monotonic() - since < MOMENT_SECONDS


async def nothing_spooled(ledger: SqlLedger) -> None:
    """Wait until the database is back, and has all."""

    async def replayed() -> bool:
        return not ledger.away and not ledger.spooled_bytes

    await eventually(replayed)


# --- an outage --------------------------------------------------------------------------------------


async def test_settlements_are_durable_though_the_database_is_away(outage, away, directory) -> None:
    """P2: each is on the disk in a moment, in order, also if nobody waits; and on the ledger after, once."""
    async with working(away, directory) as worker:
        ones = [event(booking()) for _ in range(9)]
        await outcomes([worker.ledger.book(one.booking) for one in ones])
        await outage.begin()
        await in_a_moment(worker.ledger.settle(ones[0]))
        await in_a_moment(*[worker.ledger.settle(one) for one in ones[1:4]])
        worker.ledger.settle(ones[4]).cancel()  # whoever waited for it is gone
        await in_a_moment(*[worker.ledger.settle(one) for one in ones[5:8]])
        assert worker.spooled.events == ones[:8]
        assert isinstance((await outcomes([worker.ledger.book(booking())]))[0], LedgerUnavailable)
        await outage.end()
        await nothing_spooled(worker.ledger)
        await in_a_moment(worker.ledger.settle(ones[8]))
        assert await ledger_of(away) == (ones, [])
    assert list(directory.iterdir()) == []


async def test_checkpoints_are_durable_though_the_database_is_away(outage, away, directory) -> None:
    """P3: were the worker to die now, its last running counts would be known; and they are rows after."""
    async with working(away, directory) as worker:
        booked = [booking() for _ in range(2)]
        await outcomes([worker.ledger.book(one) for one in booked])
        await outage.begin()
        for tokens in (7, 8):
            last = {one.id: Checkpoint(one.id, 5, tokens, START) for one in booked}
            worker.ledger.checkpoint(list(last.values()))

            async def spooled(wanted: dict[str, Checkpoint] = last) -> bool:
                return worker.spooled.checkpoints == wanted

            await eventually(spooled)
        await outage.end()
        await nothing_spooled(worker.ledger)
        assert await ledger_of(away) == ([], [InFlight(one, 5, 8, START) for one in booked])


async def test_what_a_killed_worker_spooled_is_on_the_ledger_after(outage, away, directory) -> None:
    """P2: it dies during the outage. Whoever looks next puts it there, as soon as that is possible."""
    async with working(away, directory) as worker:
        one, counted = event(booking()), booking()
        await outcomes([worker.ledger.book(one.booking), worker.ledger.book(counted)])
        await outage.begin()
        await in_a_moment(worker.ledger.settle(one))
        worker.ledger.checkpoint([Checkpoint(counted.id, 5, 7, START)])

        async def spooled() -> bool:
            return bool(worker.spooled.checkpoints)

        await eventually(spooled)
        assert await take_over(away, directory) == 0, "its worker lives"
        await worker.kill()
        with pytest.raises((SQLAlchemyError, OSError)):  # each database has its own
            await take_over(away, directory)
        assert worker.spooled.events == [one]
        await outage.end()
        assert await take_over(away, directory) == 1
        assert await ledger_of(away) == ([one], [InFlight(counted, 5, 7, START)])
        assert list(directory.iterdir()) == []


async def test_closing_during_an_outage_leaves_the_spool_to_the_next_worker(outage, away, directory) -> None:
    """P12: a shutdown hangs on nothing, says of no settlement that it is lost, and none is."""
    ones = [event(booking()) for _ in range(3)]
    async with working(away, directory) as worker:
        await outcomes([worker.ledger.book(one.booking) for one in ones])
        await outage.begin()
        await in_a_moment(worker.ledger.settle(ones[0]))
        ends = [worker.ledger.settle(one) for one in ones[1:]]
        await worker.close()
        assert await outcomes(ends) == [None, None]
    await outage.end()
    assert await take_over(away, directory) == 1
    assert await ledger_of(away) == (ones, [])


async def test_bookings_go_to_the_spool_where_they_may(outage, away, directory) -> None:
    """`DATABASE_AWAY=spool`: new streams are booked on the disk, and all is as if nothing had been."""
    async with working(away, directory, spools_bookings=True) as worker:
        before, within, open_one = event(booking()), event(booking()), booking()
        await in_a_moment(worker.ledger.book(before.booking))
        await outage.begin()
        await in_a_moment(worker.ledger.book(within.booking))
        await in_a_moment(worker.ledger.settle(within), worker.ledger.book(open_one))
        await in_a_moment(worker.ledger.settle(before))
        worker.ledger.checkpoint([Checkpoint(open_one.id, 5, 7, START)])
        await bounded(worker.ledger.ping())  # it can admit
        assert worker.spooled.bookings == [within.booking, open_one]
        await outage.end()
        await nothing_spooled(worker.ledger)

        async def counted() -> bool:
            return await ledger_of(away) == ([before, within], [InFlight(open_one, 5, 7, START)])

        await eventually(counted)
        last = event(open_one)
        await in_a_moment(worker.ledger.settle(last))
        assert await ledger_of(away) == ([before, within, last], [])


# --- a spool that is full ---------------------------------------------------------------------------


@pytest.mark.parametrize("spools_bookings", [False, True])
async def test_what_the_spool_does_not_take_waits_in_memory(
    outage, away, directory, caplog, monkeypatch, spools_bookings
) -> None:
    """It says so once, refuses bookings, takes no running counts any more; and loses no settlement."""
    caplog.set_level(logging.ERROR)
    ones = [event(booking()) for _ in range(12)]
    most = 4 * len(records.of_event(ones[0]))
    async with working(away, directory, max_bytes=most, spools_bookings=spools_bookings) as worker:
        await outcomes([worker.ledger.book(one.booking) for one in ones])
        await outage.begin()
        waiting = []
        for one in ones:
            done = worker.ledger.settle(one)
            if len(worker.spooled.events) < 3:
                await in_a_moment(done)
            waiting.append(done)

        async def full() -> bool:
            return bool(caplog.records)

        await eventually(full)
        for _ in range(3):
            assert isinstance((await outcomes([worker.ledger.book(booking())]))[0], LedgerUnavailable)
        counted, put = [], worker.spool.put_checkpoints

        async def put_and_tell(counts: list[Checkpoint]) -> bool:
            counted.append(await put(counts))
            return bool(counted[-1])

        async def told() -> bool:
            return bool(counted)

        monkeypatch.setattr(worker.spool, "put_checkpoints", put_and_tell)
        worker.ledger.checkpoint([Checkpoint(ones[11].booking.id, 1, 2, START)])
        await eventually(told)
        assert not any(counted)
        with pytest.raises(LedgerUnavailable):
            await bounded(worker.ledger.ping())
        assert not waiting[-1].done()
        assert worker.path.stat().st_size <= most
        assert worker.spooled.checkpoints == {}
        await outage.end()
        assert await outcomes(waiting) == [None] * 12
        await nothing_spooled(worker.ledger)
        assert await ledger_of(away) == (ones, [])
        assert await outcomes([worker.ledger.book(booking())]) == [None]
    [said] = caplog.records
    assert (said.levelname, "SPOOL_MAX_BYTES" in said.getMessage()) == ("ERROR", True)


# --- a database that is slow ------------------------------------------------------------------------


async def hold_back(rival: AsyncConnection) -> None:
    """Nobody can write as long as this transaction lasts."""
    await rival.execution_options(sluicegate_writes=True)
    await rival.begin()
    sqlite = rival.dialect.name == "sqlite"
    await rival.execute(text("DELETE FROM users" if sqlite else "LOCK TABLE in_flight"))


async def test_a_commit_that_takes_long_holds_up_no_settlement(engine, witness, directory) -> None:
    """After a second it is in the spool as well. That the same commit succeeds later does no harm."""
    async with working(engine, directory) as worker:
        ones = [event(booking()) for _ in range(3)]
        await outcomes([worker.ledger.book(one.booking) for one in ones])
        async with witness.connect() as rival:
            await hold_back(rival)
            await in_a_moment(worker.ledger.settle(ones[0]))
            await in_a_moment(worker.ledger.settle(ones[1]), worker.ledger.settle(ones[2]))
            late = worker.ledger.book(booking())
            assert worker.spooled.events == ones
            assert not worker.ledger.away
            await rival.rollback()
        assert await outcomes([late]) == [None], "slow is not away: no booking is refused"
        await nothing_spooled(worker.ledger)
        events, [still_open] = await ledger_of(engine)
        assert (events, still_open.output_tokens) == (ones, 0)


async def test_no_settlement_overtakes_its_booking(engine, witness, directory) -> None:
    """P2: whoever comes and goes while a commit, or a replay, takes long is booked, and then settled."""
    async with working(engine, directory) as worker:
        ones = [event(booking()) for _ in range(3)]
        await outcomes([worker.ledger.book(ones[0].booking)])
        async with witness.connect() as rival:
            await hold_back(rival)
            await in_a_moment(worker.ledger.settle(ones[0]))
            for one in ones[1:]:
                late = worker.ledger.book(one.booking)
                await in_a_moment(worker.ledger.settle(one), late)
            assert not worker.ledger.away
            await rival.rollback()
        await nothing_spooled(worker.ledger)
        await bounded(worker.ledger.book(booking()))
        events, [_] = await ledger_of(engine)
        assert events == ones


async def test_a_database_that_says_nothing_holds_up_no_settlement(proxied, directory, monkeypatch) -> None:
    """However often it is tried again: while a commit hangs, and a replay, what comes goes to the disk."""
    monkeypatch.setattr(ledger_sql, "_COMMIT_SECONDS", 2.0)
    _, detour, proxy = proxied
    engine = open_engine(detour)
    async with working(engine, directory) as worker:
        ones = [event(booking()) for _ in range(6)]
        await outcomes([worker.ledger.book(one.booking) for one in ones])
        proxy.mute = True
        await in_a_moment(worker.ledger.settle(ones[0]))

        async def given_up() -> bool:
            return worker.ledger.away

        await eventually(given_up)
        tried = proxy.accepted

        async def tries_again() -> bool:
            return proxy.accepted > tried

        await eventually(tries_again)
        for one in ones[1:]:
            since = time.monotonic()
            await in_a_moment(worker.ledger.settle(one))
            assert time.monotonic() - since < 1, "nobody waits for a database that is known to be away"
        await proxy.cut()
        proxy.mute = False
        await proxy.mend()
        await nothing_spooled(worker.ledger)
        assert await ledger_of(engine) == (ones, [])
    await engine.dispose()


@pytest.mark.parametrize("outage", ["sqlite locked", "postgresql refusing"], indirect=True)
async def test_a_row_that_nothing_takes_breaks_no_writer(outage, away, directory) -> None:
    """The spool takes what the database will refuse; whatever comes behind it is settled all the same."""
    good, bad = event(booking()), refused_ones()
    async with working(away, directory) as worker:
        await outcomes([worker.ledger.book(one.booking) for one in (good, *bad)])
        await outage.begin()
        await in_a_moment(*[worker.ledger.settle(one) for one in (*bad, good)])
        await outage.end()
        await nothing_spooled(worker.ledger)
        assert (await ledger_of(away))[0] == [good]
