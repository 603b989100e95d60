"""Ledgers that random streams left, for `verify` to look at, and what it says of them."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert

from api.adapters import ledger_writes_sql as writes
from api.adapters.database_sql import WRITES
from api.adapters.lease_sql import Lease
from api.adapters.prices_sql import SqlPrices
from api.adapters.reprice_sql import SqlReprice
from api.adapters.rollups_sql import Rollups
from api.adapters.tables_sql import tenants
from api.adapters.verify_sql import Scope, Verify
from api.core.booking import Ended, Happening
from api.core.money import Price
from api.core.record import InFlight, lost_event
from api.core.repricing import Period
from api.core.usage import Certainty, Source, Usage
from tests.contracts.helpers import BY
from tests.contracts.helpers import event as event_of
from tests.contracts.ledgers import StillClock, came, lawless

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import pytest
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from api.core.invariants import Check
    from api.core.money import Prices
    from api.core.record import UsageEvent

DAY = datetime(2026, 3, 30, tzinfo=UTC)
DAYS = 3
NOW = DAY + timedelta(days=DAYS, hours=1)
SCOPE = Scope(DAY, DAY + timedelta(days=DAYS))


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
        rest = {"m2": Price(10**10, 10**9, 10**11, 0), "m*": Price(333, 222, 777, 555)}
        await self.book.import_prices(rest, DAY, by=BY)
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
            model=chance.choice(("m1", "m2", "m3", "unpriced")),
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


async def broken(engine: AsyncEngine, *statements: Any) -> dict[str, list[dict[str, Any]]]:
    """What is found after statements that nobody may run."""
    async with lawless(engine) as connection:
        for statement in statements:
            await connection.execute(statement)
    return faults(await checked(engine))
