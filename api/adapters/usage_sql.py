"""What was used, as SQL answers it: a page of sums, and the sums of everything, of one moment."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError, SQLAlchemyError

from api.adapters.cubes_sql import Bounds, grouped, last_user, sums_of, total
from api.adapters.ledger_reads_sql import SqlReads
from api.core.usage_query import Place, UsagePage, UsageRow
from api.ports import LedgerUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from api.core.record import UsageEvent
    from api.core.usage_query import Span, UsageQuery

_MAX_SPANS = 1000
_MAX_MONTHS = 24
"""So many intervals are looked at for one page, however few of them have rows; a month has three parts."""


class SqlUsage:
    """Reads on an engine of its own: whoever asks for much holds up no other work.

    A tenant's questions are answered one after the other, so that they hold up no other tenant's.
    """

    def __init__(self, engine: AsyncEngine, *, seconds: float = 30) -> None:
        self._engine = engine
        self._seconds = seconds
        self._reads = SqlReads(engine)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def page(
        self, query: UsageQuery, *, after: Place | None = None, limit: int, totals: bool = True
    ) -> UsagePage:
        """At most `limit` rows from a place on. Raises LedgerUnavailable.

        They may be fewer, or none, though there are more: the last page is the one without an `after`.
        """
        async with self._bounded(query.tenant_id), self._snapshot() as connection:
            whole = None
            if totals or query.is_one_row:
                whole = sums_of((await connection.execute(total(query))).one())
            if query.is_one_row and whole is not None:
                return UsagePage((UsageRow(query.whole, {}, whole),), None, whole)
            rows, place = await _rows(connection, query, after, limit)
            return UsagePage(tuple(rows), place, whole)

    async def events(
        self,
        tenant_id: str,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        after: str | None = None,
        limit: int,
    ) -> list[UsageEvent]:
        """A tenant's events of a time, by id. Raises LedgerUnavailable."""
        async with self._bounded(tenant_id):
            return await self._reads.events(tenant_id, since=since, until=until, after=after, limit=limit)

    @asynccontextmanager
    async def _snapshot(self) -> AsyncIterator[AsyncConnection]:
        """A connection for which the database stands still."""
        if self._engine.dialect.name == "sqlite":  # every transaction of SQLite is such a one
            async with self._engine.connect() as connection:
                yield connection
            return
        still = self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        async with still.connect() as connection:
            # Prepared statements get a plan for any tenant and any time, which is a bad one.
            await connection.execute(text("SET LOCAL plan_cache_mode = force_custom_plan"))
            yield connection

    @asynccontextmanager
    async def _bounded(self, tenant_id: str | None) -> AsyncIterator[None]:
        turn = self._turns.setdefault(tenant_id or "", asyncio.Lock())
        try:
            async with asyncio.timeout(self._seconds), turn:
                yield
        except ProgrammingError:  # that is nobody's fault but ours
            raise
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            raise LedgerUnavailable(type(error).__name__) from error


async def _rows(
    connection: AsyncConnection, query: UsageQuery, after: Place | None, limit: int
) -> tuple[list[UsageRow], Place | None]:
    """A page, and where the next one begins.

    With end users there are many rows to an interval: it begins with one, and takes twice as many at a time.
    """
    most = _MAX_MONTHS if query.interval == "month" else _MAX_SPANS
    spans = list(islice(query.spans(after and after.starts_at), most + 1))
    beyond = spans.pop() if len(spans) > most else None
    behind = None if after is None else after.groups
    bounds = Bounds(behind, await _last_user(connection, query, behind, limit))
    found: list[UsageRow] = []
    begin, many = 0, 1 if "end_user" in query.group_by else most
    while begin < len(spans):
        some = spans[begin : begin + many]
        statement = grouped(query, some, bounds, limit + 1 - len(found), connection.dialect.name)
        found += [_row(query, some, row) for row in await connection.execute(statement)]
        if len(found) > limit:
            return found[:limit], _place(query, found[limit - 1])
        begin, many, bounds = begin + many, 2 * many, Bounds()
    return found, beyond and Place(beyond.starts_at, None)


async def _last_user(
    connection: AsyncConnection, query: UsageQuery, behind: tuple[str, ...] | None, limit: int
) -> str | None:
    """Nobody behind this end user can be on the page; None where that is not known."""
    if query.tenant_id is None or query.interval is not None or "end_user" not in query.group_by:
        return None
    last: str | None = (await connection.execute(last_user(query, behind, limit + 1))).scalar()
    return last


def _row(query: UsageQuery, spans: list[Span], row: Any) -> UsageRow:
    number, *groups = row[: 1 + len(query.order)]
    return UsageRow(spans[number], dict(zip(query.order, groups, strict=True)), sums_of(row))


def _place(query: UsageQuery, last: UsageRow) -> Place | None:
    if query.group_by:
        return Place(last.span.starts_at, tuple(last.groups.values()))
    return Place(last.span.ends_at, None)
