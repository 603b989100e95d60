"""What is written to the ledger, each in the transaction of whoever writes: bookings, checkpoints, events.

A settlement deletes its booking and inserts the event in one transaction: whoever deletes the booking owns
its event. A worker whose booking the reaper has closed appends what it knows better as a correction.
Every event that is inserted is queued for the roll-ups, and for export, in the same transaction.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, delete, insert, or_, select, update

from api.adapters import rows_sql
from api.adapters.tables_sql import in_flight, outbox, rollup_queue, usage_events
from api.core.booking import Correction, Happening

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement, Select
    from sqlalchemy.ext.asyncio import AsyncConnection

    from api.core.record import Booking, Checkpoint, UsageEvent

_UPDATE_CHECKPOINT = (
    update(in_flight)
    .where(in_flight.c.id == bindparam("booking_id"))
    .values(
        input_tokens=bindparam("inputs"), output_tokens=bindparam("outputs"), checkpoint_at=bindparam("at")
    )
)


async def book(connection: AsyncConnection, bookings: Iterable[Booking]) -> None:
    """Write new bookings."""
    rows = [rows_sql.booking_row(booking) for booking in bookings]
    if rows:
        await connection.execute(insert(in_flight), rows)


async def unknown(connection: AsyncConnection, bookings: Sequence[Booking]) -> list[Booking]:
    """Those of the bookings, of which there are some, that are on no ledger yet, neither open nor settled."""
    ids = [booking.id for booking in bookings]
    known: set[str] = set()
    for table in (in_flight, usage_events):
        found = select(table.c.id).where(table.c.id.in_(ids), _came(table.c.started_at, bookings))
        known |= set((await connection.execute(found)).scalars())
    return [booking for booking in bookings if booking.id not in known]


async def hold(connection: AsyncConnection, booking_ids: Iterable[str]) -> None:
    """Lock open bookings before anything of them is written in several statements.

    In the order of their ids: two writers of the same bookings wait for each other, not in a ring.
    """
    if connection.dialect.name == "postgresql":
        await connection.execute(_locked(booking_ids))


def _locked(booking_ids: Iterable[str]) -> Select[Any]:
    ours = in_flight.c.id.in_(list(booking_ids))
    return select(in_flight.c.id).where(ours).order_by(in_flight.c.id).with_for_update()


async def checkpoint(connection: AsyncConnection, checkpoints: Iterable[Checkpoint]) -> None:
    """Rewrite running counts; of bookings that are closed already nothing is written."""
    rows = [rows_sql.checkpoint_row(one) for one in sorted(checkpoints, key=lambda one: one.booking_id)]
    if rows:
        await connection.execute(_UPDATE_CHECKPOINT, rows)


async def settle(connection: AsyncConnection, events: Iterable[UsageEvent], *, exports: bool) -> int:
    """Turn bookings into their events; returns how many it owned. Again is the same."""
    by_id = {event.booking.id: event for event in events}
    if not by_id:
        return 0
    # Both conditions say the same: by the first rows are found, by the other locked in the order of ids.
    taken = delete(in_flight).where(in_flight.c.id.in_(by_id), in_flight.c.id.in_(_locked(by_id)))
    owned = set((await connection.execute(taken.returning(in_flight.c.id))).scalars())
    mine = [event for booking_id, event in by_id.items() if booking_id in owned]
    others = [event for booking_id, event in by_id.items() if booking_id not in owned]
    await append(connection, [*mine, *await _corrections(connection, others)], exports=exports)
    return len(mine)


async def append(connection: AsyncConnection, events: Sequence[UsageEvent], *, exports: bool) -> None:
    """Insert events, and queue them for the roll-ups and, where there is one, for the export."""
    if not events:
        return
    rows = [event.flat() for event in events]
    await connection.execute(insert(usage_events), rows)
    queued = [
        {"event_id": row["id"], "tenant_id": row["tenant_id"], "started_at": row["started_at"]}
        for row in rows
    ]
    await connection.execute(insert(rollup_queue), queued)
    if exports:
        await connection.execute(insert(outbox), [_outgoing(event, event.ended_at) for event in events])


def _came(started_at: ColumnElement[Any], bookings: Sequence[Booking]) -> ColumnElement[bool]:
    """When the bookings came in: by that partitions are found."""
    times = [booking.started_at for booking in bookings]
    return started_at.between(min(times), max(times))


def _outgoing(event: UsageEvent, at: datetime) -> dict[str, Any]:
    return {"event_id": event.id, "started_at": event.booking.started_at, "created_at": at, "next_at": at}


async def _corrections(connection: AsyncConnection, events: list[UsageEvent]) -> list[UsageEvent]:
    """Of events whose bookings were closed without them, what they know better. A mere repeat is nothing."""
    if not events:
        return []
    ids = [event.booking.id for event in events]
    of_then = _came(usage_events.c.started_at, [event.booking for event in events])
    if connection.dialect.name == "postgresql":  # whoever else knows better has written it before we look
        standing_ones = select(usage_events.c.id).where(usage_events.c.id.in_(ids), of_then)
        await connection.execute(standing_ones.order_by(usage_events.c.id).with_for_update())
    rows = await connection.execute(
        select(usage_events).where(or_(usage_events.c.id.in_(ids), usage_events.c.corrects.in_(ids)), of_then)
    )
    standing: dict[str, list[UsageEvent]] = {}
    for row in rows.mappings():
        event = rows_sql.usage_event(row)
        standing.setdefault(event.booking.id, []).append(event)
    found = (_correction(event, standing.get(event.booking.id, [])) for event in events)
    return [correction for correction in found if correction is not None]


def _correction(truth: UsageEvent, standing: list[UsageEvent]) -> UsageEvent | None:
    causes = {event.cause for event in standing}
    if Happening.WORKER_LOST not in causes or Correction.LATE_WORKER in causes | {truth.cause}:
        return None
    if truth.cause is Happening.WORKER_LOST:
        return None
    said = next(event.usage for event in standing if event.number == 0)
    cost = sum(event.cost_nano_dollars or 0 for event in standing)
    return replace(
        truth,
        usage=replace(
            truth.usage,
            input_tokens=truth.usage.input_tokens - said.input_tokens,
            output_tokens=truth.usage.output_tokens - said.output_tokens,
            cached_tokens=truth.usage.cached_tokens - said.cached_tokens,
            reasoning_tokens=truth.usage.reasoning_tokens - said.reasoning_tokens,
        ),
        cause=Correction.LATE_WORKER,
        cost_nano_dollars=None if truth.cost_nano_dollars is None else truth.cost_nano_dollars - cost,
        number=1 + max(event.number for event in standing),
    )
