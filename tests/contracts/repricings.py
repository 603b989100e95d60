"""Requests of a day as the ledger has them, and what each of them costs, for tests of repricing."""

from __future__ import annotations

import itertools
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from api.adapters import ledger_writes_sql as writes
from api.adapters import rows_sql
from api.adapters.database_sql import WRITES
from api.adapters.tables_sql import usage_events
from api.core.ids import sortable_id
from api.core.money import Price
from api.core.repricing import Period
from api.core.usage import Certainty, Source, Usage
from tests.contracts.helpers import START, booking, event

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncEngine

    from api.core.record import UsageEvent

HOUR, MICROSECOND = timedelta(hours=1), timedelta(microseconds=1)
LIST = START - timedelta(days=30)
PERIOD = Period(START, START + 24 * HOUR)
USAGE = Usage(100, 10, 40, 5, Source.PROVIDER, Certainty.EXACT)
_numbers = itertools.count()

PRICE = Price(10**6, 10**6, 10**6, 10**6)
"""A nano-dollar for each token."""


def request(at: datetime = START, cost: int | None = 7, **changes: Any) -> UsageEvent:
    """What a request used that came in then, and what was charged for it."""
    made = sortable_id("bk_", int(at.timestamp() * 1000), next(_numbers).to_bytes(10))
    labels = {"model": "m", "tenant_id": "tn_a"} | changes
    of = booking(id=made, started_at=at, **labels)
    version = None if cost is None else "old"
    return event(of, usage=USAGE, cost_nano_dollars=cost, price_version=version)


async def write(engine: AsyncEngine, events: Sequence[UsageEvent]) -> None:
    """Put them on the ledger."""
    async with engine.connect() as connection:
        await connection.execution_options(**WRITES)
        async with connection.begin():
            await writes.append(connection, events, exports=False)


async def ledger(engine: AsyncEngine) -> dict[str, list[UsageEvent]]:
    """All events by booking, in order."""
    async with engine.connect() as connection:
        rows = (await connection.execute(select(usage_events))).mappings()
        events = [rows_sql.usage_event(row) for row in rows]
    events.sort(key=lambda one: (one.booking.id, one.number))
    return {key: list(group) for key, group in itertools.groupby(events, key=lambda one: one.booking.id)}


async def costs(engine: AsyncEngine) -> list[int]:
    """What each booking costs, all its events together; in the order in which they came."""
    found = (await ledger(engine)).values()
    return [sum(one.cost_nano_dollars or 0 for one in standing) for standing in found]
