"""A house with a leader and its workers, whose time passes when the test says so."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from api.adapters.lease_sql import Lease
from api.adapters.ledger_sql import SqlLedger
from api.adapters.reaper_sql import Pulse, Reaper
from api.adapters.tables_sql import workers
from api.core.booking import Ended, Happening
from api.core.money import Prices, PriceVersion
from api.core.record import UsageEvent
from api.core.spool import Records
from api.core.usage import Certainty, Source, Usage
from tests.contracts.helpers import START, booking
from tests.contracts.ledgers import StillClock

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.ext.asyncio import AsyncEngine

    from api.core.record import Booking, Checkpoint

DEAD_SECONDS, ORPHAN_SECONDS, LOOK_SECONDS = 12.0, 660.0, 4.0
DAY = timedelta(days=1)
PRICES = Prices(
    [
        PriceVersion(1, "m", START - 2 * DAY, 1_000_000, 0, 3_000_000, 3_000_000),
        PriceVersion(2, "m", START, 5_000_000, 0, 7_000_000, 7_000_000),
        PriceVersion(3, "m", START + timedelta(seconds=1), 11_000_000, 0, 13_000_000, 13_000_000),
    ]
)
"""In nano-dollars per million tokens: a token costs 1 and 3, then 5 and 7, then 11 and 13."""


class House:
    """A leader, the workers it looks at, and their time."""

    def __init__(self, engine: AsyncEngine, **options: Any) -> None:
        self.engine = engine
        self.clock = StillClock(START + timedelta(seconds=100))
        self.lease = Lease(engine, self.clock, "leader", seconds=3600)
        seconds = {"dead_seconds": DEAD_SECONDS, "orphan_seconds": ORPHAN_SECONDS}
        self.reaper = Reaper(engine, self.lease, self.clock, lambda: PRICES, **seconds, **options)
        self.ledger = SqlLedger(engine)

    def pulse(self, worker: str) -> Pulse:
        """A worker's."""
        return Pulse(self.engine, self.clock, worker)

    async def look(self, seconds: float, *living: Pulse) -> None:
        """Let so many seconds go by, in which these workers show that they live and the leader looks."""
        for _ in range(round(seconds / LOOK_SECONDS)):
            self.clock.pass_seconds(LOOK_SECONDS)
            for pulse in living:
                await pulse.beat()
            await self.reaper.round()

    async def book(self, *bookings: Booking, counts: Iterable[Checkpoint] = ()) -> None:
        """They are open."""
        await self.ledger.commit_again(Records(list(bookings), {one.booking_id: one for one in counts}, []))

    async def settle(self, *events: UsageEvent) -> None:
        """Their workers say how they ended."""
        await self.ledger.commit_again(Records([], {}, list(events)))

    async def registered(self) -> list[str]:
        """The workers that are known."""
        async with self.engine.connect() as connection:
            return list((await connection.execute(select(workers.c.id).order_by(workers.c.id))).scalars())


def of(worker: str, **changes: Any) -> Booking:
    """A booking of that worker."""
    return booking(**{"worker": worker, "model": "m", "started_at": START} | changes)


def truth(one: Booking, inputs: int = 8, outputs: int = 30, **changes: Any) -> UsageEvent:
    """What its worker knows of it."""
    price = PRICES.of(one.model, one.tenant_id, one.started_at)
    assert price is not None
    usage = Usage(inputs, outputs, 3, 2, Source.PROVIDER, Certainty.EXACT)
    values: dict[str, Any] = {
        "booking": one,
        "answered_model": "answered",
        "usage": usage,
        "ended": Ended.FINISHED,
        "cause": Happening.TERMINAL,
        "first_token_ms": 17,
        "duration_ms": 1900,
        "ended_at": START + timedelta(seconds=300),
        "cost_nano_dollars": price.of(usage),
        "price_version": price.version,
    }
    return UsageEvent(**values | changes)


def sums(events: Iterable[UsageEvent]) -> tuple[int, ...]:
    """Tokens and cost together."""
    of_each = [
        (
            one.usage.input_tokens,
            one.usage.output_tokens,
            one.usage.cached_tokens,
            one.usage.reasoning_tokens,
            one.cost_nano_dollars or 0,
        )
        for one in events
    ]
    return tuple(map(sum, zip(*of_each, strict=True)))
