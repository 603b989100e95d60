"""Repricing of a period: corrections for what its bookings cost by the price list as it is now.

In pages, a transaction each: what was begun and not ended is begun again, and what is right already is left
alone. Nothing is locked, so streams that settle wait for nobody: the number of a correction can be taken
once, and whoever finds it taken looks again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import func, or_, select
from sqlalchemy.exc import DBAPIError, IntegrityError

from api.adapters import rows_sql
from api.adapters.accounts_sql import Book
from api.adapters.database_sql import WRITES
from api.adapters.ledger_writes_sql import append
from api.adapters.periods_sql import within
from api.adapters.tables_sql import markups, prices, usage_events
from api.core.repricing import Repriced, repriced

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import ColumnElement
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from api.accounts import Actor
    from api.adapters.prices_sql import SqlPrices
    from api.core.money import Prices
    from api.core.record import UsageEvent
    from api.core.repricing import Period
    from api.ports import Clock

_PAGE = 500
_TRIES = 20
_DEADLOCK = "40P01"


class _Known(NamedTuple):
    """The price list, and the newest versions in it."""

    newest: tuple[int | None, int | None]
    prices: Prices


class SqlReprice:
    """Appends corrections, in the name of `by`. `exports`: they are queued for the export too."""

    def __init__(
        self, engine: AsyncEngine, clock: Clock, price_book: SqlPrices, *, exports: bool, by: Actor
    ) -> None:
        self._engine = engine
        self._book = Book(engine, clock)
        self._price_book = price_book
        self._exports = exports
        self._by = by
        self._known: _Known | None = None

    async def run(
        self, period: Period, *, dry_run: bool = False, progress: Callable[[Repriced], None] = lambda _: None
    ) -> Repriced:
        """Reprice all of a period, or only say what that would do; `progress` is told after each page."""
        done, after = Repriced(), ""
        while True:
            async with self._engine.connect() as connection:
                ids = await _page(connection, period, after)
                page = await self._look(connection, period, ids)
            if page.corrections and not dry_run:
                wrong = [one.booking.id for one in page.corrections]
                page = page._replace(corrections=await self._write(period, wrong, first=not done.corrected))
            done = done.plus(page.corrections, bookings=len(ids), unpriced=page.unpriced)
            if len(ids) < _PAGE:
                return done
            progress(done)
            after = ids[-1]

    async def _look(self, connection: AsyncConnection, period: Period, ids: Sequence[str]) -> _Page:
        """What the bookings need.

        The price list is read behind the events: it is never older than the corrections that are there.
        """
        bookings = await _standing(connection, period, ids)
        known, now = await self._prices(connection), self._book.clock.now()
        corrections, unpriced = [], 0
        for standing in bookings:
            booking = standing[0].booking
            price = known.of(booking.model, booking.tenant_id, booking.started_at)
            if price is None:
                unpriced += 1
            elif (correction := repriced(standing, price, now)) is not None:
                corrections.append(correction)
        return _Page(corrections, unpriced)

    async def _prices(self, connection: AsyncConnection) -> Prices:
        """The price list, read anew where there is more in it."""
        newest = await connection.execute(
            select(
                select(func.max(prices.c.version)).scalar_subquery(),
                select(func.max(markups.c.version)).scalar_subquery(),
            )
        )
        [versions] = [(row[0], row[1]) for row in newest]
        if self._known is None or self._known.newest != versions:
            self._known = _Known(versions, await self._price_book.load())
        return self._known.prices

    async def _write(self, period: Period, ids: Sequence[str], *, first: bool) -> list[UsageEvent]:
        """Append what the bookings need; again where somebody else was writing corrections of them."""
        for _ in range(_TRIES - 1):
            try:
                return await self._append(period, ids, first=first)
            except IntegrityError:
                continue
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) != _DEADLOCK:
                    raise
        return await self._append(period, ids, first=first)

    async def _append(self, period: Period, ids: Sequence[str], *, first: bool) -> list[UsageEvent]:
        async with self._engine.connect() as connection:
            await connection.execution_options(**WRITES)
            async with connection.begin():
                corrections = (await self._look(connection, period, ids)).corrections
                await append(connection, corrections, exports=self._exports)
                if first and corrections:
                    await self._note(connection, period)
        return corrections

    async def _note(self, connection: AsyncConnection, period: Period) -> None:
        """An entry in the audit log for all pages, with the first of them that changes something."""
        since, until = period.since.isoformat(), period.until.isoformat()
        details = {"from": since, "to": until, "model": period.model}
        target = period.tenant_id or "all tenants"
        await self._book.note(
            connection, "price.reprice", target, by=self._by, tenant_id=period.tenant_id, **details
        )


class _Page(NamedTuple):
    """What some bookings need, and how many of them have no price."""

    corrections: list[UsageEvent]
    unpriced: int


def _during(period: Period) -> tuple[ColumnElement[bool], ...]:
    rows = usage_events.c
    return within(rows.id, rows.started_at, period.since, period.until)


async def _page(connection: AsyncConnection, period: Period, after: str) -> list[str]:
    """The next bookings of the period by id, whose events are there."""
    rows = usage_events.c
    query = select(rows.id).where(rows.corrects.is_(None), rows.id > after, *_during(period))
    if period.tenant_id is not None:
        query = query.where(rows.tenant_id == period.tenant_id)
    if period.model is not None and period.model.endswith("*"):
        start = period.model[:-1]
        query = query.where(func.substr(rows.model, 1, len(start)) == start)
    elif period.model is not None:
        query = query.where(rows.model == period.model)
    return list((await connection.execute(query.order_by(rows.id).limit(_PAGE))).scalars())


async def _standing(
    connection: AsyncConnection, period: Period, ids: Sequence[str]
) -> list[list[UsageEvent]]:
    """All events of each booking, in order."""
    rows = usage_events.c
    theirs = or_(rows.id.in_(ids), rows.corrects.in_(ids))
    found = await connection.execute(select(usage_events).where(theirs, *_during(period)))
    standing: dict[str, list[UsageEvent]] = {booking_id: [] for booking_id in ids}
    for row in found.mappings():
        event = rows_sql.usage_event(row)
        standing[event.booking.id].append(event)
    ordered = [sorted(events, key=lambda event: event.number) for events in standing.values()]
    return [events for events in ordered if events and events[0].number == 0]
