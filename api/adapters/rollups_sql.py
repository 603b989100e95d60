"""The roll-ups' one writer: takes events out of the queue and adds them up, in one fenced transaction.

Nobody else writes to the roll-ups or takes from the queue, and settlements only add to the queue: no two of
them wait for each other. Whoever reads finds an event in the queue or in the sums, never in both.
"""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import ARRAY, String, any_, delete, func, literal, literal_column, select, union_all
from sqlalchemy.dialects import postgresql, sqlite

from api.adapters.cubes_sql import EVENTS, OF_EVENTS, SUMS
from api.adapters.database_sql import WRITES
from api.adapters.periods_sql import within
from api.adapters.tables_sql import retired_usage, rollup_queue, usage_events, usage_rollups
from api.core.usage_query import GROUPS

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Select
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from api.adapters.lease_sql import Lease

_BATCH = 1000
_SECONDS = 10.0
_DAY = timedelta(days=1)
_HOUR = timedelta(hours=1)
_KEY = tuple(column.name for column in usage_rollups.primary_key)
_STARTS = {
    "postgresql": {
        "quarter": "date_bin('15 minutes', usage_events.started_at, TIMESTAMPTZ '2000-01-01 00:00:00+00')",
        "day": "date_bin('1 day', usage_events.started_at, TIMESTAMPTZ '2000-01-01 00:00:00+00')",
    },
    "sqlite": {
        "quarter": "substr(usage_events.started_at, 1, 14)"
        " || printf('%02d:00.000000', CAST(substr(usage_events.started_at, 15, 2) AS INTEGER) / 15 * 15)",
        "day": "substr(usage_events.started_at, 1, 10) || ' 00:00:00.000000'",
    },
}
"""When an event's quarter of an hour begins, and its day of UTC."""


class NotKept(ValueError):  # noqa: N818 - reads as what happened
    """Roll-ups of a time whose events are gone cannot be made anew."""

    def __init__(self, first: date | None) -> None:
        kept = "none" if first is None else f"none from before {first}"
        super().__init__(f"Roll-ups are made of events, and {kept} are kept.")


class Rollups:
    """The leader's job."""

    def __init__(self, engine: AsyncEngine, lease: Lease) -> None:
        self._engine = engine
        self._lease = lease

    async def round(self) -> bool:
        """Add some of what waits. True: there is more. Raises LostLease, and then nothing was written."""
        async with asyncio.timeout(_SECONDS), self._engine.connect() as connection:
            if (await connection.execute(select(rollup_queue.c.event_id).limit(1))).first() is None:
                return False
        async with asyncio.timeout(_SECONDS), self._engine.connect() as connection:
            await connection.execution_options(**WRITES)
            async with connection.begin():
                await self._lease.fence(connection)
                return await _add_some(connection) == _BATCH

    async def rebuild(self, first: date, last: date) -> list[date]:
        """Make the roll-ups of these days of UTC anew from their events; returns the days whose sums changed.

        Events that wait for the writer go on waiting. Raises NotKept.
        """
        async with self._engine.connect() as connection:
            oldest = select(usage_events.c.started_at).order_by(usage_events.c.id).limit(1)
            kept_from = (await connection.execute(oldest)).scalar()
        if kept_from is None or first < kept_from.date():
            raise NotKept(kept_from and kept_from.date())
        days = [first + number * _DAY for number in range((last - first).days + 1)]
        return [day for day in days if await self._rebuild(day)]

    async def _rebuild(self, day: date) -> bool:
        start = datetime.combine(day, time(), UTC)
        of_day = (usage_rollups.c.starts_at >= start, usage_rollups.c.starts_at < start + _DAY)
        waits = select(rollup_queue.c.event_id).where(rollup_queue.c.event_id == usage_events.c.id).exists()
        async with self._engine.connect() as connection:
            await connection.execution_options(**WRITES)
            async with connection.begin():
                await self._lease.bar(connection)
                gone = (await connection.execute(select(func.max(retired_usage.c.before)))).scalar()
                if gone is not None and gone > start:
                    raise NotKept(gone.date())
                before = await _sums(connection, of_day)
                await connection.execute(delete(usage_rollups).where(*of_day))
                # An hour at a time. Each statement sees an event and its place in the queue, or neither.
                for begin in (start + number * _HOUR for number in range(24)):
                    hour = within(usage_events.c.id, usage_events.c.started_at, begin, begin + _HOUR)
                    await _add(connection, *hour, ~waits)
                return before != await _sums(connection, of_day)


async def _add_some(connection: AsyncConnection) -> int:
    """Take what was queued of the oldest requests, and add it; returns how many events that was."""
    some = select(rollup_queue.c.event_id).order_by(rollup_queue.c.event_id).limit(_BATCH)
    taken = await connection.execute(
        delete(rollup_queue)
        .where(rollup_queue.c.event_id.in_(some))
        .returning(rollup_queue.c.event_id, rollup_queue.c.started_at)
    )
    rows = taken.all()
    if rows:
        started = [row.started_at for row in rows]
        # By the times partitions are found.
        of_time = usage_events.c.started_at.between(min(started), max(started))
        ids = [row.event_id for row in rows]
        await _add(connection, _is_one_of(ids, connection.dialect.name), of_time)
    return len(rows)


def _is_one_of(ids: list[str], dialect: str) -> ColumnElement[bool]:
    """With one parameter, however many there are."""
    if dialect == "sqlite":
        each = func.json_each(json.dumps(ids)).table_valued("value")
        return usage_events.c.id.in_(select(each.c.value))
    return usage_events.c.id == any_(literal(ids, ARRAY(String())))


async def _add(connection: AsyncConnection, *which: ColumnElement[bool]) -> None:
    """Add events to all cubes."""
    dialect = connection.dialect.name
    upsert = (sqlite if dialect == "sqlite" else postgresql).insert(usage_rollups)
    upsert = upsert.from_select([*_KEY, *SUMS], _cubes(dialect, which))
    together = {name: usage_rollups.c[name] + upsert.excluded[name] for name in SUMS}
    await connection.execute(upsert.on_conflict_do_update(index_elements=_KEY, set_=together))


def _cubes(dialect: str, which: tuple[ColumnElement[bool], ...]) -> Any:
    starts: list[Any] = [literal_column(text).label(name) for name, text in _STARTS[dialect].items()]
    groups = [EVENTS[name].label(name) for name in GROUPS]
    amounts = [amount.label(name) for name, amount in zip(SUMS, OF_EVENTS, strict=True)]
    events = select(*starts, *groups, *amounts).where(*which).cte("events")

    def cube(name: str, starts_at: str, *, of_users: bool) -> Select[Any]:
        key: list[Any] = [events.c[name] for name in ("tenant", starts_at, "key", "model", "upstream")]
        user: Any = literal_column("''")
        if of_users:
            key.append(user := events.c.end_user)
        tenant, at, key_id, model, upstream = key[:5]
        sums = (func.sum(events.c[amount]) for amount in SUMS)
        return select(tenant, literal_column(f"'{name}'"), at, key_id, user, model, upstream, *sums).group_by(
            *key
        )

    return union_all(
        cube("quarter", "quarter", of_users=False),
        cube("day", "day", of_users=False),
        cube("user", "quarter", of_users=True),
    )


async def _sums(connection: AsyncConnection, which: tuple[ColumnElement[bool], ...]) -> list[Any]:
    sums = (func.sum(usage_rollups.c[name]) for name in SUMS)
    cubes = select(usage_rollups.c.cube, *sums).where(*which).group_by(usage_rollups.c.cube)
    return list(await connection.execute(cubes.order_by(usage_rollups.c.cube)))
