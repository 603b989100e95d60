"""The outbox on SQL. Rows get there in the transaction that writes their events (ledger_writes_sql)."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, bindparam, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from api.adapters import rows_sql
from api.adapters.accounts_sql import Book
from api.adapters.periods_sql import first_booking, within
from api.adapters.tables_sql import outbox, tenants, usage_events
from api.exports import DeadLetter, ExportStatus, Outgoing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement, Select
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from api.accounts import Actor
    from api.exports import Refusal
    from api.ports import Clock

KEPT = timedelta(days=30)
"""How long a row is kept after its event was delivered."""

_DAY = timedelta(days=1)
_BACKFILLED_AT_ONCE = 1000
_MAX_ERROR = 200

_PENDING = (outbox.c.delivered_at.is_(None), outbox.c.dead_at.is_(None))
_DEAD = outbox.c.dead_at.is_not(None)

_REFUSED = (
    update(outbox)
    .where(outbox.c.event_id == bindparam("refused"), *_PENDING)
    .values(
        attempts=bindparam("attempt"),
        error=bindparam("said"),
        next_at=func.coalesce(bindparam("again_at", type_=outbox.c.next_at.type), outbox.c.next_at),
        dead_at=bindparam("died_at", type_=outbox.c.dead_at.type),
    )
)


class SqlOutbox:
    """Raises AccountsUnavailable where the database is away."""

    def __init__(self, engine: AsyncEngine, clock: Clock) -> None:
        self._book = Book(engine, clock)
        self._clock = clock

    # --- what the export does ---------------------------------------------------------------------

    async def due(self, limit: int) -> list[Outgoing]:
        """The next rows that are due, those that wait longest first."""
        waiting = (
            select(outbox.c.event_id, outbox.c.started_at, outbox.c.attempts, outbox.c.next_at)
            .where(*_PENDING, outbox.c.next_at <= self._clock.now())
            .order_by(outbox.c.next_at, outbox.c.event_id)
            .limit(limit)
            .subquery("waiting")
        )
        query = (
            select(waiting.c.event_id, waiting.c.attempts, tenants.c.external_id, *usage_events.c)
            .select_from(waiting)
            .outerjoin(usage_events, _is_event_of(waiting.c))
            .outerjoin(tenants, tenants.c.id == usage_events.c.tenant_id)
            .order_by(waiting.c.next_at, waiting.c.event_id)
        )
        async with self._book.reading() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [
            Outgoing(
                row["event_id"],
                None if row["id"] is None else rows_sql.usage_event(row),
                row["external_id"],
                row["attempts"],
            )
            for row in rows
        ]

    async def delivered(self, event_ids: Sequence[str]) -> None:
        """The receiver has taken them. The first time stands."""
        taken = update(outbox).where(outbox.c.event_id.in_(event_ids), outbox.c.delivered_at.is_(None))
        async with self._book.writing() as connection:
            await connection.execute(taken.values(delivered_at=self._clock.now(), dead_at=None, error=None))

    async def refused(self, refusals: Sequence[Refusal]) -> None:
        """The receiver refused them, each by itself."""
        now = self._clock.now()
        rows = [
            {
                "refused": one.event_id,
                "attempt": one.attempts,
                "said": one.error[:_MAX_ERROR],
                "again_at": one.next_at,
                "died_at": now if one.next_at is None else None,
            }
            for one in refusals
        ]
        async with self._book.writing() as connection:
            await connection.execute(_REFUSED, rows)

    async def failed(self, event_ids: Sequence[str], error: str) -> None:
        """The receiver was away: they stay due, and say why."""
        waiting = update(outbox).where(outbox.c.event_id.in_(event_ids), *_PENDING)
        async with self._book.writing() as connection:
            await connection.execute(waiting.values(error=error[:_MAX_ERROR]))

    async def prune(self, limit: int) -> int:
        """Forget rows that were delivered thirty days ago; returns how many."""
        before = self._clock.now() - KEPT
        old = (
            select(outbox.c.event_id)
            # What was delivered by then had begun by then: the ids are indexed, the times are not.
            .where(outbox.c.event_id < first_booking(before), outbox.c.delivered_at < before)
            .order_by(outbox.c.event_id)
            .limit(limit)
        )
        async with self._book.writing() as connection:
            done = await connection.execute(delete(outbox).where(outbox.c.event_id.in_(old)))
        return done.rowcount

    # --- what people do ---------------------------------------------------------------------------

    async def status(self) -> ExportStatus:
        """How the export stands."""
        a_day_ago = first_booking(self._clock.now() - _DAY)
        pending = select(func.count(), func.min(outbox.c.created_at)).where(*_PENDING)
        taken = select(func.count(), func.max(outbox.c.delivered_at)).where(
            outbox.c.event_id >= a_day_ago, outbox.c.delivered_at.is_not(None)
        )
        dead = select(func.count()).select_from(outbox).where(_DEAD)
        said = outbox.c.error.is_not(None)
        why_pending = select(outbox.c.error).where(*_PENDING, said).order_by(outbox.c.next_at).limit(1)
        why_dead = select(outbox.c.error).where(_DEAD, said).order_by(outbox.c.dead_at.desc()).limit(1)
        async with self._book.reading() as connection:
            waits, oldest = (await connection.execute(pending)).one()
            delivered, last = (await connection.execute(taken)).one()
            error = await connection.scalar(why_pending) or await connection.scalar(why_dead)
            return ExportStatus(
                pending=waits,
                oldest_pending_at=oldest,
                delivered_last_day=delivered,
                last_delivered_at=last,
                dead=int(await connection.scalar(dead) or 0),
                last_error=error,
            )

    async def dead(self, *, after: str | None, limit: int) -> list[DeadLetter]:
        """Dead letters by event id, the next `limit` after the id `after`."""
        shown = ("event_id", "started_at", "attempts", "dead_at", "error")
        query = (
            select(*(outbox.c[name] for name in shown), usage_events.c.tenant_id)
            .select_from(outbox)
            .outerjoin(usage_events, _is_event_of(outbox.c))
            .where(_DEAD, outbox.c.event_id > (after or ""))
            .order_by(outbox.c.event_id)
            .limit(limit)
        )
        async with self._book.reading() as connection:
            return [DeadLetter(**row) for row in (await connection.execute(query)).mappings()]

    async def retry(self, event_ids: Sequence[str] | None, *, by: Actor) -> list[str]:
        """Have dead letters sent again, None is all of them; returns which those were."""
        mine = () if event_ids is None else (outbox.c.event_id.in_(event_ids),)
        again = update(outbox).where(_DEAD, *mine).returning(outbox.c.event_id)
        values = {"dead_at": None, "attempts": 0, "error": None, "next_at": self._clock.now()}
        async with self._book.writing() as connection:
            found = sorted((await connection.execute(again.values(values))).scalars())
            if found:
                target = "all" if event_ids is None else found[0]
                await self._book.note(connection, "export.retry", target, by=by, events=len(found))
        return found

    async def backfill(self, start: datetime, end: datetime, *, tenant_id: str | None, by: Actor) -> int:
        """A row for each event of a period that has none; returns how many those were."""
        count, after = 0, ""
        while True:
            async with self._book.writing() as connection:
                page = await _without_row(connection, start, end, tenant_id, after)
                count += await self._put(connection, page)
                if len(page) < _BACKFILLED_AT_ONCE:
                    if count:
                        period = {"from": start.isoformat(), "to": end.isoformat(), "events": count}
                        target = tenant_id or "all"
                        await self._book.note(
                            connection, "export.backfill", target, by=by, tenant_id=tenant_id, **period
                        )
                    return count
            after = page[-1][0]

    async def _put(self, connection: AsyncConnection, page: Sequence[Any]) -> int:
        if not page:
            return 0
        now = self._clock.now()
        dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
        rows = [
            {"event_id": row.id, "started_at": row.started_at, "created_at": now, "next_at": now}
            for row in page
        ]
        done = await connection.execute(dialect.insert(outbox).values(rows).on_conflict_do_nothing())
        return done.rowcount


def _is_event_of(row: Any) -> ColumnElement[bool]:
    """The times are the same: with them a partition is found."""
    return and_(usage_events.c.id == row.event_id, usage_events.c.started_at == row.started_at)


async def _without_row(
    connection: AsyncConnection, start: datetime, end: datetime, tenant_id: str | None, after: str
) -> Sequence[Any]:
    events = usage_events.c
    query: Select[Any] = (
        select(events.id, events.started_at)
        .where(*within(events.id, events.started_at, start, end), events.id > after)
        .where(~select(outbox.c.event_id).where(outbox.c.event_id == events.id).exists())
        .order_by(events.id)
        .limit(_BACKFILLED_AT_ONCE)
    )
    if tenant_id is not None:
        query = query.where(events.tenant_id == tenant_id)
    rows: Sequence[Any] = (await connection.execute(query)).all()
    return rows
