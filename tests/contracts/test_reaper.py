"""Dead workers' bookings become events from their last checkpoints; those of live ones never do."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from api.adapters import rows_sql
from api.adapters.database_sql import WRITES, open_engine
from api.adapters.lease_sql import LostLease
from api.adapters.tables_sql import in_flight, leases, outbox
from api.core.booking import Ended, Happening
from api.core.record import Checkpoint, UsageEvent
from api.core.usage import Certainty, Source, Usage
from tests.contracts.helpers import START
from tests.contracts.houses import DEAD_SECONDS, LOOK_SECONDS, ORPHAN_SECONDS, House, of
from tests.contracts.spools import ledger_of

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine


DAY = timedelta(days=1)


@pytest.fixture
async def house(engine: AsyncEngine) -> House:
    """One whose leader leads."""
    made = House(engine)
    assert await made.lease.hold()
    return made


# --- who is dead ------------------------------------------------------------------------------------


async def test_a_dead_workers_bookings_are_lost_with_their_last_counts(house) -> None:
    """`lost`, `worker_lost`, `checkpoint`, `at_least`; the price is that of its start; its row is gone."""
    await house.pulse("dead").beat()
    one, uncounted = of("dead"), of("dead", started_at=START - DAY)
    await house.book(one, uncounted, counts=[Checkpoint(one.id, 8, 10, START + timedelta(seconds=4))])
    await house.look(DEAD_SECONDS)
    assert (await ledger_of(house.engine))[0] == []
    await house.look(LOOK_SECONDS)
    nothing = Usage(0, 0, 0, 0, Source.CHECKPOINT, Certainty.AT_LEAST)
    lost = UsageEvent(
        booking=one,
        answered_model="m",
        usage=replace(nothing, input_tokens=8, output_tokens=10),
        ended=Ended.LOST,
        cause=Happening.WORKER_LOST,
        first_token_ms=None,
        duration_ms=4000,
        ended_at=house.clock.now(),
        cost_nano_dollars=8 * 5 + 10 * 7,
        price_version="2",
    )
    without = replace(
        lost, booking=uncounted, usage=nothing, duration_ms=0, cost_nano_dollars=0, price_version="1"
    )
    assert await ledger_of(house.engine) == ([lost, without], [])
    assert await house.registered() == []
    assert house.reaper.closed == 2


async def test_a_model_without_a_price_is_lost_without_a_cost(house) -> None:
    """Nobody makes a price up."""
    await house.pulse("dead").beat()
    await house.book(of("dead", model="who knows"))
    await house.look(DEAD_SECONDS + LOOK_SECONDS)
    [lost] = (await ledger_of(house.engine))[0]
    assert (lost.cost_nano_dollars, lost.price_version) == (None, None)


async def test_a_live_workers_bookings_are_left_alone(house) -> None:
    """Also those of one that is slow: as long as its beat moves it lives."""
    quick, slow, dead = house.pulse("quick"), house.pulse("slow"), house.pulse("dead")
    for pulse in (slow, dead):
        await pulse.beat()
    theirs = [of("quick"), of("slow")]
    await house.book(*theirs, of("dead"))
    for _ in range(4):
        await house.look(DEAD_SECONDS - LOOK_SECONDS, quick)
        await house.look(LOOK_SECONDS, quick, slow)
    events, still_open = await ledger_of(house.engine)
    assert [one.booking.worker for one in events] == ["dead"]
    assert [one.booking for one in still_open] == theirs
    assert await house.registered() == ["quick", "slow"]


@pytest.mark.parametrize("why", ["the leader was stopped", "the database was away"])
async def test_after_a_gap_nobody_is_dead_at_once(house, tmp_path: Path, why: str) -> None:
    """What stood still while nobody could look, or beat, says nothing: whoever goes on beating lives."""
    pulse = house.pulse("a")
    await house.book(of("a"), of("b"))
    await house.pulse("b").beat()
    await house.look(LOOK_SECONDS, pulse)
    if why == "the leader was stopped":
        house.clock.pass_seconds(300)
    else:
        house.reaper._engine = open_engine(f"sqlite+aiosqlite:///{tmp_path}")  # a directory is no database
        for _ in range(10):
            house.clock.pass_seconds(LOOK_SECONDS)
            with pytest.raises(SQLAlchemyError):
                await house.reaper.round()
        house.reaper._engine = house.engine
    await house.reaper.round()
    await house.look(DEAD_SECONDS - LOOK_SECONDS)  # it takes them some time until they can beat again
    assert (await ledger_of(house.engine))[0] == []
    await house.look(DEAD_SECONDS, pulse)
    events, still_open = await ledger_of(house.engine)
    assert [one.booking.worker for one in events] == ["b"]
    assert [one.booking.worker for one in still_open] == ["a"]


async def test_a_short_outage_does_not_keep_the_dead(house) -> None:
    """What was looked at before counts, but nobody dies within six seconds of the end of an outage."""
    await house.pulse("a").beat()
    await house.book(of("a"))
    await house.look(DEAD_SECONDS - LOOK_SECONDS)
    house.clock.pass_seconds(DEAD_SECONDS)
    await house.reaper.round()
    await house.look(DEAD_SECONDS / 2 - LOOK_SECONDS)
    assert (await ledger_of(house.engine))[0] == []
    await house.look(2 * LOOK_SECONDS)
    assert len((await ledger_of(house.engine))[0]) == 1


async def test_a_new_leader_looks_for_itself(house) -> None:
    """It knows of no beat how long it has stood: nobody is dead because the leader has died."""
    await house.pulse("a").beat()
    await house.book(of("a"))
    await house.look(DEAD_SECONDS)
    later = House(house.engine)
    later.clock.at = house.clock.at
    await house.lease.give_up()
    assert await later.lease.hold()
    await later.look(DEAD_SECONDS)
    assert (await ledger_of(house.engine))[0] == []
    await later.look(LOOK_SECONDS)
    assert len((await ledger_of(house.engine))[0]) == 1


async def test_who_has_looked_on_need_not_begin_anew(house) -> None:
    """The leader dies as well: whoever is next knows for how long each beat has stood."""
    await house.pulse("a").beat()
    await house.book(of("a"))
    later = House(house.engine)
    for _ in range(round(DEAD_SECONDS / LOOK_SECONDS) + 1):
        later.clock.pass_seconds(LOOK_SECONDS)
        await later.reaper.look()
    assert (await ledger_of(house.engine))[0] == [], "only the leader closes anything"
    await house.lease.give_up()
    assert await later.lease.hold()
    await later.reaper.round()
    assert len((await ledger_of(house.engine))[0]) == 1


async def test_who_leads_no_more_closes_nothing(house) -> None:
    """The lease is lost between the look and the deed: the next leader decides anew."""
    await house.pulse("dead").beat()
    await house.book(of("dead"))
    await house.look(DEAD_SECONDS)
    async with house.engine.connect() as connection:
        await connection.execution_options(**WRITES)
        async with connection.begin():
            await connection.execute(update(leases).values(holder="somebody else"))
    with pytest.raises(LostLease):
        await house.look(LOOK_SECONDS)
    assert (await ledger_of(house.engine))[0] == []
    assert await house.registered() == ["dead"]


async def test_bookings_of_unknown_workers_are_closed_when_they_are_old(house) -> None:
    """Their worker has no row: it left, or it was closed before. Younger ones may still be streams."""
    old, young = of("unknown"), of("unknown", started_at=START + timedelta(seconds=600))
    await house.book(old, young)
    house.clock.at = START + timedelta(seconds=ORPHAN_SECONDS - LOOK_SECONDS)
    await house.look(LOOK_SECONDS)
    assert (await ledger_of(house.engine))[0] == []
    await house.look(LOOK_SECONDS)
    events, still_open = await ledger_of(house.engine)
    assert [one.booking for one in events] == [old]
    assert [one.booking for one in still_open] == [young]


@pytest.mark.parametrize("count", [500, 1001])
async def test_a_dead_worker_can_leave_any_number(house, count: int) -> None:
    """All of them are closed in one round, each of them once."""
    await house.pulse("dead").beat()
    left = [of("dead") for _ in range(count)]
    async with house.engine.connect() as connection:
        await connection.execution_options(**WRITES)
        async with connection.begin():
            await connection.execute(insert(in_flight), [rows_sql.booking_row(one) for one in left])
    await house.look(DEAD_SECONDS + LOOK_SECONDS)
    async with house.engine.connect() as connection:
        assert (await connection.execute(select(func.count()).select_from(in_flight))).scalar_one() == 0
    assert house.reaper.closed == count
    assert (await house.ledger.totals("tn_a")).events == count
    assert await house.registered() == []


async def test_what_is_lost_is_exported_too(engine) -> None:
    """A lost event is an event: whoever bills elsewhere gets it."""
    house = House(engine, exports=True)
    assert await house.lease.hold()
    await house.pulse("dead").beat()
    one = of("dead")
    await house.book(one)
    await house.look(DEAD_SECONDS + LOOK_SECONDS)
    async with engine.connect() as connection:
        assert list((await connection.execute(select(outbox.c.event_id))).scalars()) == [one.id]


# --- workers come and go ----------------------------------------------------------------------------


async def test_a_worker_that_leaves_is_forgotten(house) -> None:
    """Nothing of it is open: nobody has to find out that it does not beat any more."""
    pulse = house.pulse("a")
    await pulse.beat()
    assert await house.registered() == ["a"]
    await pulse.stop()
    assert await house.registered() == []


async def test_a_worker_that_leaves_something_open_is_looked_after(house) -> None:
    """It left while the database was away, say: its bookings do not wait until they are old."""
    pulse = house.pulse("a")
    await pulse.beat()
    await house.book(of("a"))
    await pulse.stop()
    await house.look(DEAD_SECONDS + LOOK_SECONDS)
    assert [one.ended for one in (await ledger_of(house.engine))[0]] == [Ended.LOST]
    assert await house.registered() == []


async def test_a_worker_that_was_taken_for_dead_is_known_again_when_it_beats(house) -> None:
    """It was only stopped: what it books from now on is not closed for its former death."""
    pulse = house.pulse("a")
    await pulse.beat()
    await house.look(DEAD_SECONDS + LOOK_SECONDS)
    assert await house.registered() == []
    await pulse.beat()
    await house.book(of("a"))
    await house.look(3 * DEAD_SECONDS, pulse)
    assert (await ledger_of(house.engine))[0] == []
