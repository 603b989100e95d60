"""What the ledger on SQL can be asked."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from api.adapters import rows_sql
from api.adapters.cubes_sql import sums_of, total
from api.adapters.periods_sql import within
from api.adapters.tables_sql import in_flight, usage_events
from api.core.ids import first_id
from api.core.record import Totals
from api.core.usage_query import FIRST, LAST, UsageQuery
from api.ports import LedgerUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import Select
    from sqlalchemy.ext.asyncio import AsyncEngine

    from api.core.record import InFlight, Spending, UsageEvent

_FILTERS = {"key": "key", "user": "end_user"}


class SqlReads:
    """The half of the ledger that changes nothing."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def totals(self, tenant_id: str) -> Totals:
        """Sums over a tenant's events."""
        async with self._engine.connect() as connection:
            sums = sums_of((await connection.execute(total(UsageQuery(tenant_id)))).one())
        return Totals(sums.events, sums.input_tokens, sums.output_tokens)

    async def spent(self, tenant_id: str, spending: Spending) -> int:
        """How many tokens, in and out, or nano-dollars a tenant's events say were used."""
        if spending.of == "token":
            return await self._spent_with(tenant_id, spending)
        owner = {} if spending.of == "tenant" else {_FILTERS[spending.of]: spending.id}
        [row] = await self._rows(total(UsageQuery(tenant_id, spending.since, filters=owner)))
        sums = sums_of(row)
        return sums.cost_nano_dollars if spending.money else sums.input_tokens + sums.output_tokens

    async def _spent_with(self, tenant_id: str, spending: Spending) -> int:
        """The same of a bought token, of which there are too many for roll-ups."""
        rows = usage_events.c
        used = rows.cost_nano_dollars if spending.money else rows.input_tokens + rows.output_tokens
        query = select(func.coalesce(func.sum(used), 0)).where(
            rows.tenant_id == tenant_id, rows.token_id == spending.id
        )
        if spending.since is not None:
            query = query.where(rows.started_at >= spending.since)
        [(amount,)] = await self._rows(query)
        return int(amount)

    async def running(self, tenant_id: str, since: datetime) -> dict[str, int]:
        """How many of a tenant's bookings are open that began since then, by worker."""
        first = first_id("bk_", int(since.timestamp() * 1000))
        query = select(in_flight.c.worker, func.count()).group_by(in_flight.c.worker)
        query = query.where(in_flight.c.tenant_id == tenant_id, in_flight.c.id >= first)
        return {worker: int(count) for worker, count in await self._rows(query)}

    async def _rows(self, query: Select[Any]) -> Sequence[Any]:
        """What admission has to know. Raises LedgerUnavailable within two seconds."""
        try:
            async with asyncio.timeout(2), self._engine.connect() as connection:
                return list(await connection.execute(query))
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            raise LedgerUnavailable(type(error).__name__) from error

    async def events(
        self,
        tenant_id: str,
        *,
        after: str | None,
        limit: int,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[UsageEvent]:
        """A tenant's events by id, which is by the time their requests began: all, or those of a time."""
        rows = usage_events.c
        query = select(usage_events).where(rows.tenant_id == tenant_id, rows.id > (after or ""))
        if since is not None or until is not None:
            query = query.where(*within(rows.id, rows.started_at, since or FIRST, until or LAST))
        async with self._engine.connect() as connection:
            found = await connection.execute(query.order_by(rows.id).limit(limit))
            return [rows_sql.usage_event(row) for row in found.mappings()]

    async def in_flight(self, tenant_id: str | None = None, booking_id: str | None = None) -> list[InFlight]:
        """Open bookings, oldest first: all, a tenant's, or the one with that id."""
        query = select(in_flight).order_by(in_flight.c.id)
        if tenant_id is not None:
            query = query.where(in_flight.c.tenant_id == tenant_id)
        if booking_id is not None:
            query = query.where(in_flight.c.id == booking_id)
        return [rows_sql.open_booking(row._mapping) for row in await self._rows(query)]  # noqa: SLF001 - public

    async def in_flight_count(self) -> int:
        """How many bookings are open, over all workers."""
        async with self._engine.connect() as connection:
            return int((await connection.execute(select(func.count()).select_from(in_flight))).scalar_one())
