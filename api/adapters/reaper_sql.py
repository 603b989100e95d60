"""Who of the workers lives, and what becomes of the bookings of those that do not.

Every worker counts up a `beat` of its own, and looks at those of the others. The leader takes a worker for
dead whose beat has not moved for `dead_seconds` of the leader's own looking, before it led included: no two
clocks are compared, and while the database is away nobody dies of it. A dead worker's bookings become events
from their last checkpoints: lost, at least.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import delete, insert, select, update

from api.adapters import ledger_writes_sql as writes
from api.adapters import rows_sql
from api.adapters.database_sql import WRITES
from api.adapters.tables_sql import in_flight, workers
from api.core.record import lost_event

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from api.adapters.lease_sql import Lease
    from api.core.money import Prices
    from api.ports import Clock

log = logging.getLogger("sluicegate.reaper")

_AT_ONCE = 500


class Pulse:
    """This worker's own row."""

    def __init__(self, engine: AsyncEngine, clock: Clock, worker: str) -> None:
        self._engine = engine
        self._clock = clock
        self._worker = worker

    async def beat(self) -> None:
        """Show that it lives; the first time, that it is there."""
        async with self._engine.connect() as connection:
            await connection.execution_options(**WRITES)
            async with connection.begin():
                mine = workers.c.id == self._worker
                beaten = await connection.execute(update(workers).where(mine).values(beat=workers.c.beat + 1))
                if not beaten.rowcount:
                    row = {"id": self._worker, "beat": 1, "started_at": self._clock.now()}
                    await connection.execute(insert(workers).values(row))

    async def stop(self) -> None:
        """It leaves. Where something of it is open its row stays: then the leader closes that soon."""
        async with self._engine.connect() as connection:
            await connection.execution_options(**WRITES)
            async with connection.begin():
                await _forget(connection, self._worker)


class Reaper:
    """What the leader does about the dead. Whoever may lead one day looks on, and then need not begin anew.

    `orphan_seconds`: a booking of a worker that has no row is closed when it is so old.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        lease: Lease,
        clock: Clock,
        prices: Callable[[], Prices],
        *,
        dead_seconds: float,
        orphan_seconds: float,
        exports: bool = False,
    ) -> None:
        self._engine = engine
        self._lease = lease
        self._clock = clock
        self._prices = prices
        self._dead_seconds = dead_seconds
        self._orphan_age = timedelta(seconds=orphan_seconds)
        self._exports = exports
        self._seen: dict[str, tuple[int, float]] = {}
        self._looked_at = float("-inf")
        self._dead: list[str] = []
        self.closed = 0

    async def look(self) -> None:
        """Take note of all workers' beats."""
        now = self._clock.monotonic()
        async with self._engine.connect() as connection:
            rows = await connection.execute(select(workers.c.id, workers.c.beat))
            beats = {row.id: row.beat for row in rows}
        gap, half = now - self._looked_at, self._dead_seconds / 2
        if gap > half:
            # What stood still while nobody looked says nothing, and everybody has time to beat again.
            self._seen = {
                worker: (beat, max(since + gap, now - half)) for worker, (beat, since) in self._seen.items()
            }
        self._looked_at = self._clock.monotonic()
        self._seen = {
            worker: self._seen[worker] if self._seen.get(worker, (None,))[0] == beat else (beat, now)
            for worker, beat in beats.items()
        }
        self._dead = [
            worker for worker, (_, since) in self._seen.items() if now - since >= self._dead_seconds
        ]

    async def round(self) -> bool:
        """Look, and close what the dead have left open."""
        await self.look()
        for worker in self._dead:
            await self.close(worker, registered=True)
        for worker in await self._strangers():
            await self.close(worker, registered=False)
        return False

    async def _strangers(self) -> list[str]:
        """Whose bookings are open, and old, though nobody knows them."""
        query = (
            select(in_flight.c.worker)
            .distinct()
            .where(
                in_flight.c.worker.not_in(select(workers.c.id)),
                in_flight.c.started_at < self._clock.now() - self._orphan_age,
            )
        )
        async with self._engine.connect() as connection:
            return list((await connection.execute(query)).scalars())

    async def close(self, worker: str, *, registered: bool) -> None:
        """Turn all that a dead worker left open into events, and forget the worker."""
        count = closed = 0
        while count == 0 or closed == _AT_ONCE:
            async with self._engine.connect() as connection:
                await connection.execution_options(**WRITES)
                async with connection.begin():
                    await self._lease.fence(connection)
                    closed = await self._close(connection, worker, registered=registered)
            count += closed
            if closed == 0:
                break
        self.closed += count
        log.warning("worker %s is dead; %d bookings were closed from their checkpoints", worker, count)

    async def _close(self, connection: AsyncConnection, worker: str, *, registered: bool) -> int:
        left = select(in_flight).where(in_flight.c.worker == worker)
        if not registered:
            left = left.where(in_flight.c.started_at < self._clock.now() - self._orphan_age)
        # Whatever somebody settles at this moment is not lost.
        left = left.order_by(in_flight.c.id).limit(_AT_ONCE).with_for_update(skip_locked=True)
        opened = [rows_sql.open_booking(row) for row in (await connection.execute(left)).mappings()]
        now, prices = self._clock.now(), self._prices()
        events = [
            lost_event(one, prices.of(one.booking.model, one.booking.tenant_id, one.booking.started_at), now)
            for one in opened
        ]
        await writes.settle(connection, events, exports=self._exports)
        await _forget(connection, worker)
        return len(opened)


async def _forget(connection: AsyncConnection, worker: str) -> None:
    """Unless something of it is open, be it that somebody is about to settle that."""
    open_ones = select(in_flight.c.id).where(in_flight.c.worker == worker)
    await connection.execute(delete(workers).where(workers.c.id == worker, ~open_ones.exists()))
