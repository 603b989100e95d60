"""One leader among all workers: whoever holds a row that expires unless it is renewed.

Work that only the leader may do is fenced: its transaction begins by renewing the lease, and so holds the
row's lock until it commits. A leader that was stopped and wakes up too late finds that out before it writes.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import func, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from api.adapters.database_sql import WRITES
from api.adapters.tables_sql import leases

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from api.ports import Clock

_PATIENCE = ("SET LOCAL lock_timeout = '2s'", "SET LOCAL idle_in_transaction_session_timeout = '5s'")
"""Nobody waits for a leader that is stopped in the middle of its work; and the database ends that work."""


class LostLease(Exception):  # noqa: N818 - reads as what happened
    """Somebody else leads now."""


class Lease:
    """A name that one `holder` at a time has, for `seconds` from its last renewal on."""

    def __init__(
        self, engine: AsyncEngine, clock: Clock, holder: str, *, seconds: float, name: str = "leader"
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._holder = holder
        self._lasts = timedelta(seconds=seconds)
        self._name = name

    async def hold(self) -> bool:
        """Renew it, or take it where it is free. False where somebody else has it, or is at it right now."""
        try:
            async with self._engine.connect() as connection:
                await connection.execution_options(**WRITES)
                async with connection.begin():
                    return await self._take(connection)
        except IntegrityError:  # somebody else took it for the first time
            return False
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) == "55P03":  # lock_not_available
                return False
            raise

    async def _take(self, connection: AsyncConnection) -> bool:
        now = await self._now(connection)
        mine = (leases.c.holder == self._holder) | (leases.c.expires_at < now)
        values = {"holder": self._holder, "expires_at": now + self._lasts}
        taken = await connection.execute(
            update(leases).where(leases.c.name == self._name, mine).values(values)
        )
        if taken.rowcount:
            return True
        if (await connection.execute(select(leases.c.name).where(leases.c.name == self._name))).first():
            return False
        await connection.execute(insert(leases).values(name=self._name, **values))
        return True

    async def fence(self, connection: AsyncConnection) -> None:
        """Begin a transaction's work with this: nobody else leads until it ends. Raises LostLease."""
        now = await self._now(connection)
        mine = (
            (leases.c.name == self._name) & (leases.c.holder == self._holder) & (leases.c.expires_at >= now)
        )
        renewed = await connection.execute(update(leases).where(mine).values(expires_at=now + self._lasts))
        if not renewed.rowcount:
            raise LostLease

    async def bar(self, connection: AsyncConnection) -> None:
        """The same for whoever does not lead, such as a repair: no fenced work goes on until it ends."""
        now = await self._now(connection)
        mine = leases.c.name == self._name
        if not (await connection.execute(update(leases).where(mine).values(name=self._name))).rowcount:
            values = {"name": self._name, "holder": "", "expires_at": now - self._lasts}
            await connection.execute(insert(leases).values(**values))

    async def give_up(self) -> None:
        """Let the next one have it at once."""
        async with self._engine.connect() as connection:
            await connection.execution_options(**WRITES)
            async with connection.begin():
                mine = (leases.c.name == self._name) & (leases.c.holder == self._holder)
                now = await self._now(connection)
                await connection.execute(update(leases).where(mine).values(expires_at=now - self._lasts))

    async def _now(self, connection: AsyncConnection) -> datetime:
        """The database's time where it is another machine's; the clock's for a file on this one."""
        if connection.dialect.name == "sqlite":
            return self._clock.now()
        for setting in _PATIENCE:
            await connection.execute(text(setting))
        now: datetime = (await connection.execute(select(func.clock_timestamp()))).scalar_one()
        return now
