"""Events on a ledger, with ids that tell their time, as the product's do."""

from __future__ import annotations

import itertools
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from api.adapters import ledger_writes_sql as writes
from api.adapters.database_sql import WRITES
from api.core.ids import sortable_id
from tests.contracts.helpers import START, booking, event

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncEngine

    from api.core.record import Booking, UsageEvent

_numbers = itertools.count(1)


class StillClock:
    """A clock that stands until it is turned."""

    def __init__(self, at: datetime = START) -> None:
        self.at = at

    def pass_seconds(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)

    def now(self) -> datetime:
        return self.at

    def unix(self) -> float:
        return self.at.timestamp()

    def monotonic(self) -> float:
        return self.at.timestamp()


def came(at: datetime = START, **changes: Any) -> Booking:
    """A booking whose request came in then."""
    entropy = next(_numbers).to_bytes(10, "big")
    made = sortable_id("bk_", int(at.timestamp() * 1000), entropy)
    return booking(**{"id": made, "started_at": at} | changes)


def ended(at: datetime = START, *, of: dict[str, Any] | None = None, **changes: Any) -> UsageEvent:
    """The event of such a booking; a second later it was over."""
    return event(came(at, **of or {}), **{"ended_at": at + timedelta(seconds=1)} | changes)


async def put(engine: AsyncEngine, *events: UsageEvent, exports: bool = False) -> None:
    """Append events, as settlements do."""
    async with engine.connect() as connection:
        await connection.execution_options(**WRITES)
        async with connection.begin():
            await writes.append(connection, events, exports=exports)
