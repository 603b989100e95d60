"""Partitions of a database, and a leader that looks after them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import text

from api.adapters.lease_sql import Lease
from api.adapters.partitions_sql import Partitions
from tests.contracts.ledgers import StillClock

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

MAY = datetime(2031, 5, 20, 12, tzinfo=UTC)
"""Far from the months that the migration has made."""


class Months:
    """The leader's job on a clock that stands."""

    def __init__(self, engine: AsyncEngine, *, keeps: int = 0, at: datetime = MAY) -> None:
        self.engine = engine
        self.clock = StillClock(at)
        self.lease = Lease(engine, self.clock, "w", seconds=10**9)
        self.job = Partitions(engine, self.lease, self.clock, keeps)

    async def look(self) -> int:
        """Lead, and do rounds as long as there is more to do; returns how many had more."""
        assert await self.lease.hold()
        more = 0
        while await self.job.round():
            more += 1
        return more

    async def hour(self) -> int:
        """The same when it is looked the next time."""
        self.clock.pass_seconds(3601)
        return await self.look()


async def partitions(engine: AsyncEngine) -> dict[str, int]:
    """Those of `usage_events`, without the prefix, and how many rows each has. No partitions: none."""
    if engine.name == "sqlite":
        return {}
    children = text(
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'usage_events'::regclass"
    )
    async with engine.connect() as connection:
        names = sorted((await connection.execute(children)).scalars())
        return {name.removeprefix("usage_events_"): await count(connection, name) for name in names}


async def count(connection: AsyncConnection, table: str) -> int:
    """How many rows a table has."""
    return int((await connection.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one())
