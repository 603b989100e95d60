"""Events on a ledger, with ids that tell their time, as the product's do."""

from __future__ import annotations

import itertools
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import select, text

from api.adapters import ledger_writes_sql as writes
from api.adapters.database_sql import WRITES
from api.core.ids import sortable_id
from tests.contracts.helpers import START, booking, event

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

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


@asynccontextmanager
async def lawless(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A transaction in which no trigger keeps anybody from changing what must not be changed."""
    async with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            await connection.execute(text("SET LOCAL session_replication_role = replica"))
        else:
            triggers = select(text("name FROM sqlite_master WHERE type = 'trigger'"))
            for name in (await connection.execute(triggers)).scalars().all():
                await connection.execute(text(f"DROP TRIGGER {name}"))
        yield connection


async def put(engine: AsyncEngine, *events: UsageEvent, exports: bool = False) -> None:
    """Append events, as settlements do."""
    async with engine.connect() as connection:
        await connection.execution_options(**WRITES)
        async with connection.begin():
            await writes.append(connection, events, exports=exports)
