"""`verify` on both databases: a ledger that random streams left is green, and each broken row is found and named."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import delete, insert, select, text, update

from api.adapters import ledger_writes_sql as writes
from api.adapters.database_sql import WRITES
from api.adapters.lease_sql import Lease
from api.adapters.outbox_sql import KEPT
from api.adapters.prices_sql import SqlPrices
from api.adapters.reprice_sql import SqlReprice
from api.adapters.rollups_sql import Rollups
from api.adapters.rows_sql import booking_row
from api.adapters.tables_sql import (
    in_flight,
    outbox,
    rollup_queue,
    tenants,
    usage_events,
    usage_rollups,
    workers,
)
from api.adapters.verify_sql import Scope, Verify
from api.core.booking import Ended, Happening
from api.core.money import Price
from api.core.record import Checkpoint, InFlight, lost_event
from api.core.repricing import Period
from api.core.usage import Certainty, Source, Usage
from tests.contracts.helpers import BY
from tests.contracts.ledgers import StillClock, came, lawless
from tests.contracts.helpers import event as event_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from api.core.invariants import Check
    from api.core.money import Prices
    from api.core.record import UsageEvent

DAY = datetime(2026, 3, 30, tzinfo=UTC)
DAYS = 3
NOW = DAY + timedelta(days=DAYS, hours=1)
SCOPE = Scope(DAY, DAY + timedelta(days=DAYS))
NAMES = {"one_event", "corrections", "costs", "rollups", "outbox", "dead_bookings"}


async def checked(engine: AsyncEngine, scope: Scope = SCOPE, now: datetime = NOW) -> dict[str, Check]:
    """What all checks say, by name. Nobody's heart beats meanwhile."""
    return await checked_while(engine, _nothing, scope, now)


async def checked_while(
    engine: AsyncEngine, pause: Callable[[float], Awaitable[None]], scope: Scope = SCOPE, now: datetime = NOW
) -> dict[str, Check]:
    looking = Verify(engine, StillClock(now), scope, says=lambda _: None, pause=pause)
    found = [
        *await looking.events(),
        await looking.rollups(),
        await looking.outbox(exports=True),
        await looking.dead_bookings(lease_seconds=15, tick_seconds=1),
    ]
    return {check.name: check for check in found}


async def _nothing(_seconds: float) -> None:
    """No time passes."""


def faults(found: dict[str, Check]) -> dict[str, list[dict[str, Any]]]:
    """What is broken, and the rows."""
    return {name: check.rows for name, check in found.items() if not check.held}


# --- a healthy ledger -----------------------------------------------------------------------------------


class Ledger:
    """Random streams, as they end: settled, left by dead workers, corrected late, and repriced."""

    def __init__(self, engine: AsyncEngine, seed: int) -> None:
        self.engine = engine
        self.chance = random.Random(seed)
        self.clock = StillClock(DAY)
        self.book = SqlPrices(engine, self.clock)

    async def fill(self, count: int = 60) -> list[UsageEvent]:
        """So many bookings; all but a few are settled."""
        prices = await self._prices()
        events = [self._event(prices) for _ in range(count)]
        async with self.engine.connect() as connection:
            await connection.execution_options(**WRITES)
            async with connection.begin():
                await writes.book(connection, [event.booking for event in events])
        for start in range(0, count, 20):
            async with self.engine.connect() as connection:
                await connection.execution_options(**WRITES)
                async with connection.begin():
                    await self._settle(connection, events[start : start + 20], prices)
        await self.book.import_prices({"m1": Price(7, 3, 11, 13)}, DAY, by=BY)
        period = Period(DAY, DAY + timedelta(days=1))
        await SqlReprice(self.engine, StillClock(NOW), self.book, exports=True, by=BY).run(period)
        return events

    async def _prices(self) -> Prices:
        async with self.engine.begin() as connection:
            known = {"max_streams": 1, "active": True, "created_at": DAY, "name": "t"}
            await connection.execute(insert(tenants), [{"id": one, **known} for one in ("tn_a", "tn_b")])
        await self.book.import_prices({"m1": Price(10**9, 10**8, 3 * 10**9, 4 * 10**9)}, DAY, by=BY)
        await self.book.import_prices({"m*": Price(333, 222, 777, 555)}, DAY, by=BY)
        await self.book.set_markup("tn_b", 1234, DAY + timedelta(days=1), by=BY)
        return await self.book.load()

    def _event(self, prices: Prices) -> UsageEvent:
        chance = self.chance
        at = DAY + timedelta(microseconds=chance.randrange(DAYS * 86_400_000_000))
        if chance.random() < 0.3:  # at the edge of a quarter of an hour
            quarters = (at - DAY) // timedelta(minutes=15)
            at = DAY + (quarters + 1) * timedelta(minutes=15) - timedelta(microseconds=chance.randrange(2))
        booking = came(
            min(at, DAY + timedelta(days=DAYS) - timedelta(microseconds=1)),
            tenant_id=chance.choice(("tn_a", "tn_b")),
            key_id=chance.choice((None, "k1", "k2")),
            end_user=chance.choice((None, "ann", "bob")),
            model=chance.choice(("m1", "m2", "unpriced")),
            upstream=chance.choice(("one", "two")),
        )
        tokens = [chance.randrange(10**6) for _ in range(4)]
        usage = Usage(*tokens, Source.PROVIDER, Certainty.EXACT)
        price = prices.of(booking.model, booking.tenant_id, booking.started_at)
        return event_of(
            booking,
            usage=usage,
            ended=Ended.FINISHED,
            cause=Happening.TERMINAL,
            cost_nano_dollars=None if price is None else price.of(usage),
            price_version=None if price is None else price.version,
        )

    async def _settle(self, connection: AsyncConnection, events: list[UsageEvent], prices: Prices) -> None:
        """A third is first closed by the reaper, from a checkpoint; then comes the worker with the truth."""
        lost = []
        for event in events:
            if self.chance.random() < 0.33:
                booking = event.booking
                one = InFlight(booking, *(self.chance.randrange(10**6) for _ in "io"), None)
                price = prices.of(booking.model, booking.tenant_id, booking.started_at)
                lost.append(lost_event(one, price, event.ended_at))
        await writes.checkpoint(connection, [Checkpoint(one.booking.id, 1, 2, DAY) for one in events])
        await writes.settle(connection, lost, exports=True)
        gone = {one.booking.id for one in lost[::3]}
        await writes.settle(
            connection, [event for event in events if event.booking.id not in gone], exports=True
        )


async def rolled(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, *, batch: int, rounds: int) -> None:
    """Let the writer of the roll-ups do some of its work."""
    monkeypatch.setattr("api.adapters.rollups_sql._BATCH", batch)
    lease = Lease(engine, StillClock(NOW), "w", seconds=60)
    assert await lease.hold()
    rollups = Rollups(engine, lease)
    for _ in range(rounds):
        if not await rollups.round():
            return


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_ledger_that_streams_left_is_green(engine, witness, monkeypatch, seed) -> None:
    """With late workers, repricing, tenants' markups, roll-ups half done; for all tenants and for one.

    And in small pages as in large ones.
    """
    await Ledger(engine, seed).fill()
    assert faults(await checked(witness)) == {}
    for rounds in (3, 100):
        await rolled(engine, monkeypatch, batch=9, rounds=rounds)
        found = await checked(witness)
        assert set(found) == NAMES
        assert faults(found) == {}
    assert faults(await checked(witness, SCOPE._replace(tenant_id="tn_b"))) == {}
    half = Scope(DAY + timedelta(hours=7), DAY + timedelta(days=2, hours=3))
    assert faults(await checked(witness, half)) == {}
    monkeypatch.setattr("api.adapters.verify_sql._PAGE", 4)
    found = await checked(witness)
    assert faults(found) == {}
    async with witness.connect() as connection:
        rows = (await connection.execute(select(usage_events))).all()
        causes = {row.cause for row in rows}
        assert causes >= {"worker_lost", "late_worker", "repriced", "terminal"}
        unpriced = sum(row.price_version is None for row in rows)
        assert found["costs"].note == f"{unpriced} of {len(rows)} events name no price."


async def test_nothing_is_green_too(engine) -> None:
    """A new gateway's ledger."""
    found = await checked(engine)
    assert faults(found) == {}
    assert "No events are kept" in found["rollups"].note
    assert "No event was exported so far" in found["outbox"].note


# --- what breaks it -------------------------------------------------------------------------------------


@pytest.fixture
async def filled(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A healthy ledger, its roll-ups half done; its rows by id."""
    await Ledger(engine, 7).fill(40)
    await rolled(engine, monkeypatch, batch=10, rounds=2)
    async with engine.connect() as connection:
        return list(await connection.execute(select(usage_events).order_by(usage_events.c.id)))


async def broken(engine: AsyncEngine, *statements: Any) -> dict[str, list[dict[str, Any]]]:
    """What is found after statements that nobody may run."""
    async with lawless(engine) as connection:
        for statement in statements:
            await connection.execute(statement)
    return faults(await checked(engine))


def own(rows: list[Any], *, corrected: bool = False, priced: bool = True) -> Any:
    """An event of number 0: with corrections or without, with a price."""
    has = {row.corrects for row in rows}
    return next(
        row
        for row in rows
        if row.corrects is None and (row.id in has) == corrected and (row.price_version is not None) == priced
    )


async def test_a_booking_that_is_open_and_ended(engine, filled) -> None:
    """Whoever deletes the booking writes the event: both at once cannot be."""
    row = own(filled)
    booked = booking_row(came(row.started_at, id=row.id, worker="w")) | {"tenant_id": row.tenant_id}
    live = {"id": "w", "beat": 1, "started_at": DAY}
    found = await broken(engine, insert(in_flight).values(booked), insert(workers).values(live))
    assert found.pop("dead_bookings")
    assert found == {"one_event": [{"id": row.id, "fault": "open, and ended"}]}


async def test_a_correction_without_its_event(engine, filled) -> None:
    """The sums are wrong then too."""
    row = own(filled, corrected=True)
    found = await broken(engine, delete(usage_events).where(usage_events.c.id == row.id))
    orphans = [one.id for one in filled if one.corrects == row.id]
    assert [one["id"] for one in found["corrections"]] == orphans
    assert {one["fault"] for one in found["corrections"]} == {"corrects a booking that has no event"}


async def test_corrections_with_a_gap_between_them(engine, filled) -> None:
    """A correction that was lost is missed by its number."""
    row = next(row for row in filled if row.id.endswith("-1"))
    lost = f"{row.corrects}-3"
    found = await broken(engine, update(usage_events).where(usage_events.c.id == row.id).values(id=lost))
    assert {"id": lost, "fault": "number 3 where 1 comes next"} in found["corrections"]


@pytest.mark.parametrize("values", [{"tenant_id": "tn_x"}, {"end_user": "eve"}, {"model": "m9"}], ids=str)
async def test_a_correction_of_somebody_else(engine, filled, values) -> None:
    """It would move usage from one to the other."""
    row = next(row for row in filled if row.corrects is not None)
    found = await broken(engine, update(usage_events).where(usage_events.c.id == row.id).values(values))
    [name] = values
    assert {"id": row.id, "fault": f"other labels than its event: {name}"} in found["corrections"]


@pytest.mark.parametrize("corrected", [False, True])
async def test_a_cost_that_is_not_what_the_price_makes_it(engine, filled, corrected) -> None:
    """By one nano-dollar; of an event with corrections all that come after it are wrong too."""
    row = own(filled, corrected=corrected)
    wrong = update(usage_events).where(usage_events.c.id == row.id)
    found = await broken(engine, wrong.values(cost_nano_dollars=row.cost_nano_dollars + 1))
    assert set(found) == {"costs", "rollups"}
    first = found["costs"][0]
    assert first["id"] == row.id
    assert f"costs {row.cost_nano_dollars + 1} nano-dollars; by price {row.price_version}" in first["fault"]
    assert (len(found["costs"]) > 1) == corrected


@pytest.mark.parametrize(
    ("version", "fault"),
    [
        ("99", "there is no price 99"),
        ("1+99", "there is no markup 99"),
        ("1+1", "markup 1 is tenant tn_b's"),
        ("nonsense", "there is no price nonsense"),
        ("2", "by price 2 it is"),
    ],
)
async def test_a_price_that_is_not_there_or_not_theirs(engine, filled, version, fault) -> None:
    """The name of a price is all that an invoice can be explained by."""
    offset = await _first_versions(engine)
    for number, first in offset.items():
        version = version.replace(number, str(first)) if number in version.split("+") else version
    row = next(
        row for row in filled if row.model == "m1" and row.tenant_id == "tn_a" and row.corrects is None
    )
    wrong = update(usage_events).where(usage_events.c.id == row.id).values(price_version=version)
    [found, *_] = (await broken(engine, wrong))["costs"]
    assert found["id"] == row.id
    assert fault.split()[-1] in found["fault"]


async def _first_versions(engine: AsyncEngine) -> dict[str, int]:
    """PostgreSQL goes on counting where another test's rows were taken away."""
    return {}


@pytest.mark.parametrize("cube", ["quarter", "day", "user"])
@pytest.mark.parametrize("change", ["more", "less", "gone", "moved"])
async def test_a_roll_up_that_is_not_the_sum_of_its_events(engine, filled, cube, change) -> None:
    """Of each cube: too much, too little, missing, or of another time."""
    of_cube = select(usage_rollups).where(usage_rollups.c.cube == cube)
    async with engine.connect() as connection:
        row = (await connection.execute(of_cube.limit(1))).one()
    key = [usage_rollups.c[column.name] == getattr(row, column.name) for column in usage_rollups.primary_key]
    statement: Any = update(usage_rollups).where(*key)
    if change == "gone":
        statement = delete(usage_rollups).where(*key)
    elif change == "moved":
        statement = statement.values(starts_at=row.starts_at + timedelta(seconds=1))
    else:
        statement = statement.values(output_tokens=row.output_tokens + (1 if change == "more" else -1))
    found = await broken(engine, statement)
    assert set(found) == {"rollups"}
    names = ("tenant_id", "key_id", "end_user", "model", "upstream", "starts_at")
    wanted = {name: getattr(row, name) for name in names} | {"cube": cube, "fault": "differs from its events"}
    first = found["rollups"][0]
    assert wanted.items() <= first.items()
    assert len(found["rollups"]) == (2 if change == "moved" else 1)
    if change in {"more", "less"}:
        assert first["more"] == {"output_tokens": 1 if change == "more" else -1}


@pytest.mark.parametrize("change", ["forgotten", "twice", "nobody's"])
async def test_an_event_that_is_added_up_never_or_twice(engine, filled, change) -> None:
    """It is in the queue or in the roll-ups; in one of the two."""
    async with engine.connect() as connection:
        queued = {row.event_id for row in await connection.execute(select(rollup_queue))}
    assert queued
    assert len(queued) < len(filled)
    if change == "forgotten":
        row = next(row for row in filled if row.id in queued and row.corrects is None)
        found = await broken(engine, delete(rollup_queue).where(rollup_queue.c.event_id == row.id))
    else:
        row = next(row for row in filled if row.id not in queued and row.corrects is None)
        event_id = row.id if change == "twice" else "bk_nobody"
        values = {"event_id": event_id, "tenant_id": row.tenant_id, "started_at": row.started_at}
        found = await broken(engine, insert(rollup_queue).values(values))
    assert set(found) == {"rollups"}
    if change == "nobody's":
        assert found["rollups"] == [
            {"id": "bk_nobody", "fault": "waits to be added up, and is not on the ledger"}
        ]
        return
    assert {one["cube"] for one in found["rollups"]} == {"quarter", "day", "user"}
    assert {one["more"]["events"] for one in found["rollups"]} == {1 if change == "twice" else -1}
    assert {one["tenant_id"] for one in found["rollups"]} == {row.tenant_id}


async def test_an_event_that_was_never_to_be_exported(engine, filled) -> None:
    """From the first exported event on; what ended before, and what was delivered a month ago, is not asked."""
    first, *_, last = sorted(filled, key=lambda row: row.ended_at)
    found = await broken(engine, delete(outbox).where(outbox.c.event_id == last.id))
    assert found == {"outbox": [{"id": last.id, "fault": "has no row in the outbox"}]}
    check = (await checked(engine))["outbox"]
    assert "sluicegate export backfill" in check.note
    found = await broken(
        engine,
        insert(outbox).values(event_id=last.id, started_at=DAY, created_at=last.ended_at, next_at=DAY),
        delete(outbox).where(outbox.c.event_id == first.id),
    )
    assert found == {}
    async with lawless(engine) as connection:
        await connection.execute(delete(outbox).where(outbox.c.event_id != first.id))
    late = await checked(engine, now=last.ended_at + KEPT + timedelta(seconds=1))
    assert late["outbox"].held


async def test_dead_letters_are_told_and_break_nothing(engine, filled) -> None:
    """They are visible, and wait for somebody."""
    dead = update(outbox).where(outbox.c.event_id == filled[0].id).values(dead_at=NOW, attempts=5)
    assert await broken(engine, dead) == {}
    assert "1 dead letters" in (await checked(engine))["outbox"].note


async def test_an_open_booking_of_a_dead_worker(engine) -> None:
    """One that is on no list, or whose heart stands still while we look; not one that lives, or began just now."""
    lives, silent, unknown = (
        came(NOW - timedelta(seconds=60), worker=name) for name in ("lives", "silent", "unknown")
    )
    young = came(NOW - timedelta(seconds=10), worker="unknown")
    async with engine.begin() as connection:
        await writes.book(connection, [lives, silent, unknown, young])
        for name in ("lives", "silent"):
            await connection.execute(insert(workers).values(id=name, beat=5, started_at=DAY))
    waited = []

    async def pause(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            async with engine.begin() as connection:
                await connection.execute(update(workers).where(workers.c.id == "lives").values(beat=6))

    scope = Scope(DAY, NOW)
    check = (await checked_while(engine, pause, scope))["dead_bookings"]
    assert check.rows == [
        {"id": silent.id, "worker": "silent", "fault": "open, and its worker shows no life"},
        {"id": unknown.id, "worker": "unknown", "fault": "open, and its worker shows no life"},
    ]
    assert sum(waited) == 6
    assert "sluicegate reconcile" in check.note
    assert (await checked(engine, Scope(DAY, NOW, "tn_b")))["dead_bookings"].held


async def test_many_broken_rows_are_counted_and_some_of_them_shown(engine, filled) -> None:
    """An answer has an end, whatever went wrong."""
    found = await broken(
        engine,
        delete(rollup_queue),
        delete(usage_rollups),
        update(usage_events).values(cost_nano_dollars=1, price_version=None),
    )
    assert set(found) == {"rollups"}
    check = (await checked(engine))["rollups"]
    assert len(check.rows) == 20 < check.broken
    async with engine.connect() as connection:
        wanted = 0
        for column in ("substr(id, 4, 0)", "end_user"):
            query = (
                f"SELECT DISTINCT tenant_id, key_id, model, upstream, {column}, started_at FROM usage_events"
            )
            rows = (await connection.execute(text(query))).all()
            wanted += len(rows)
    assert check.broken > 40
    assert check.broken <= 2 * wanted + wanted


async def test_old_events_that_are_no_longer_kept_are_not_missed(engine, filled) -> None:
    """Their roll-ups stay: they are compared from the first day on of which events are kept."""
    before = DAY + timedelta(days=1)
    found = await broken(
        engine,
        delete(usage_events).where(usage_events.c.started_at < before),
        delete(rollup_queue).where(rollup_queue.c.started_at < before),
    )
    assert found == {}
    check = (await checked(engine))["rollups"]
    assert check.note == "Compared from 2026-03-31 on: no older events are kept."
