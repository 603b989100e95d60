"""The months of `usage_events`: on PostgreSQL a partition each, made ahead and dropped when it is old.

A partition for what no other takes is the safety net: no insert fails because a month is missing. What it has
caught of a month is moved when the month's partition is made. SQLite has no partitions; there what is old is
deleted, some rows at a time.

Locks that keep others out are waited for half a second at most, and asked for again a minute later.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import String, column, delete, func, insert, select, table, text, union_all
from sqlalchemy.exc import DBAPIError

from api.adapters.database_sql import WRITES
from api.adapters.migrating_sql import LOCK_TIMEOUT, is_refused
from api.adapters.periods_sql import first_booking
from api.adapters.tables_sql import UtcTime, outbox, retired_usage, rollup_queue
from api.core.months import month_of, months_on

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Select, Subquery, TableClause, TextClause
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from api.adapters.lease_sql import Lease
    from api.ports import Clock

log = logging.getLogger("sluicegate.partitions")

DEFAULT = "usage_events_default"

_AHEAD = 2
"""So many months after this one have a partition."""
_LOOK_SECONDS = 3600.0
_AGAIN_SECONDS = 60.0
_MOVED_AT_ONCE = 20_000
"""So many rows are moved while whoever writes to the default partition waits: less than a second."""
_DELETED_AT_ONCE = 1000
_REFUSES = "FOR EACH STATEMENT EXECUTE FUNCTION usage_events_append_only()"

_PARTITIONS = text(r"""
    SELECT name, (regexp_match(bound, $$FROM \('([^']+)'\)$$))[1]::timestamptz AS starts,
        (regexp_match(bound, $$TO \('([^']+)'\)$$))[1]::timestamptz AS ends
    FROM (
        SELECT child.relname AS name, pg_get_expr(child.relpartbound, child.oid) AS bound
        FROM pg_inherits
        JOIN pg_class child ON child.oid = inhrelid JOIN pg_class parent ON parent.oid = inhparent
        WHERE parent.oid = to_regclass('usage_events') AND parent.relkind = 'p'
    ) AS partitions ORDER BY ends
""")


class _Partition(NamedTuple):
    """`starts` None: from ever; `ends` None: the default one."""

    name: str
    starts: datetime | None
    ends: datetime | None

    def has(self, month: datetime) -> bool:
        """Whether it takes any of a month."""
        if self.ends is None:
            return False
        return (self.starts is None or self.starts < months_on(month, 1)) and self.ends > month


class Partitions:
    """What the leader does about months. `retention_months` 0 keeps everything."""

    def __init__(self, engine: AsyncEngine, lease: Lease, clock: Clock, retention_months: int) -> None:
        self._engine = engine
        self._lease = lease
        self._clock = clock
        self._retention_months = retention_months
        self._look_at = float("-inf")
        self._said: set[str] = set()

    async def round(self) -> bool:
        """Look, once an hour, which months are missing and which are too old. True: there are more."""
        if self._clock.monotonic() < self._look_at:
            return False
        self._look_at = self._clock.monotonic() + _AGAIN_SECONDS  # unless it goes well
        now = self._clock.now()
        try:
            if self._engine.name == "postgresql":
                await self._make(now)
            if self._retention_months and await self._retire(
                months_on(month_of(now), -self._retention_months)
            ):
                self._look_at = float("-inf")
                return True
        except DBAPIError as error:
            if not is_refused(error):
                raise
            self._say_once(
                "refused", "usage_events is in use: its partitions are looked at again in a minute"
            )
            return False
        self._look_at = self._clock.monotonic() + _LOOK_SECONDS
        return False

    def _say_once(self, what: str, message: str) -> None:
        if what not in self._said:
            self._said.add(what)
            log.warning(message)

    # --- months to come --------------------------------------------------------------------------

    async def _make(self, now: datetime) -> None:
        async with self._engine.connect() as connection:
            missing = await _missing(connection, now)
        for month in missing:
            async with self._engine.begin() as connection:
                await self._lease.fence(connection)
                if not await _add(connection, month):
                    most = f"{DEFAULT} has too many events of {month:%Y-%m} to be moved: they stay there"
                    self._say_once(f"{month:%Y-%m}", most)

    # --- months gone by --------------------------------------------------------------------------

    async def _retire(self, before: datetime) -> bool:
        """Do away with a partition, or some rows, that ended before that month. True: there may be more."""
        async with self._engine.connect() as connection:
            oldest = (await connection.execute(select(func.min(_pending().c.started_at)))).scalar_one()
            partitions = await _partitions(connection)
        if oldest is not None and oldest < before:
            self._say_once(
                f"pending {oldest:%Y-%m}",
                f"events of {oldest:%Y-%m} wait for their roll-up or their export: they are kept until then",
            )
            before = month_of(oldest)
        for partition in partitions:
            if partition.ends is not None and partition.ends <= before:
                return await self._drop(partition.name, partition.ends)
        return await self._delete(before, DEFAULT if partitions else None)

    async def _drop(self, name: str, ends: datetime) -> bool:
        async with self._engine.begin() as connection:
            await self._lease.fence(connection)
            await connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
            await connection.execute(text(f'ALTER TABLE usage_events DETACH PARTITION "{name}"'))
            # From here on nobody writes to it: what waits now is all that can.
            if (await connection.execute(_waits_before(ends))).first():
                await connection.rollback()
                return False
            await connection.execute(text(f'DROP TABLE "{name}"'))
            await _note(connection, ends, self._clock.now())
        log.info("retention: %s is dropped, with all events that began before %s", name, ends.isoformat())
        return True

    async def _delete(self, before: datetime, partition: str | None) -> bool:
        """Delete some rows that began before that; False where there are none."""
        old = _old(before, partition)
        async with self._engine.connect() as connection:
            if not (await connection.execute(old.limit(1))).first():
                return False
        async with self._engine.connect() as connection:
            await connection.execution_options(**WRITES)
            async with connection.begin():
                await self._lease.fence(connection)
                guard = await _lift_guard(connection, partition)
                count = 0
                if not (await connection.execute(_waits_before(before))).first():
                    await _note(connection, before, self._clock.now())
                    ids = list((await connection.execute(old.limit(_DELETED_AT_ONCE))).scalars())
                    events = _events(partition)
                    await connection.execute(delete(events).where(events.c.id.in_(ids)))
                    count = len(ids)
                await connection.execute(guard)
        if count:
            log.info("retention: %d events that began before %s are deleted", count, before.isoformat())
        return count > 0


async def ensure_partitions(connection: AsyncConnection) -> None:
    """Make what is missing, by the database's clock; a table in use is left to the leader."""
    now = (await connection.execute(select(func.now()))).scalar_one()
    missing = await _missing(connection, now)
    await connection.commit()
    for month in missing:
        try:
            async with connection.begin():
                await _add(connection, month)
        except DBAPIError as error:
            if not is_refused(error):
                raise
            log.warning("usage_events is in use: the leader makes its partition for %s", f"{month:%Y-%m}")


async def _partitions(connection: AsyncConnection) -> list[_Partition]:
    """None where the table has none; oldest first."""
    if connection.dialect.name != "postgresql":
        return []
    return [_Partition(*row) for row in await connection.execute(_PARTITIONS)]


async def _missing(connection: AsyncConnection, now: datetime) -> list[datetime]:
    """The months from this one on that have no partition, of a table that has partitions."""
    partitions = await _partitions(connection)
    months = [months_on(month_of(now), ahead) for ahead in range(_AHEAD + 1)] if partitions else []
    return [month for month in months if not any(partition.has(month) for partition in partitions)]


async def _add(connection: AsyncConnection, month: datetime) -> bool:
    """Make a month's partition, with what the default one has of it; False if that is too much to move.

    A table that is made apart and attached keeps nobody out but those who want the default partition.
    """
    name, starts, ends = f"usage_events_{month:%Y_%m}", month.isoformat(), months_on(month, 1).isoformat()
    caught = f"FROM {DEFAULT} WHERE started_at >= '{starts}' AND started_at < '{ends}'"
    if (await connection.execute(text(f"SELECT 1 {caught} OFFSET {_MOVED_AT_ONCE} LIMIT 1"))).first():
        return False
    for statement in (
        f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'",
        f"CREATE TABLE {name} (LIKE usage_events INCLUDING ALL)",
        f"CREATE TRIGGER usage_events_no_truncate BEFORE TRUNCATE ON {name} {_REFUSES}",  # is not inherited
        f"LOCK TABLE {DEFAULT} IN ACCESS EXCLUSIVE MODE",
    ):
        await connection.execute(text(statement))
    moved = await connection.execute(text(f"INSERT INTO {name} SELECT * {caught}"))
    if moved.rowcount:
        guard = await _lift_guard(connection, DEFAULT)
        await connection.execute(text(f"DELETE {caught}"))
        await connection.execute(guard)
        log.info("%d events of %s are moved out of %s", moved.rowcount, f"{month:%Y-%m}", DEFAULT)
    bounds = f"FROM ('{starts}') TO ('{ends}')"
    await connection.execute(text(f"ALTER TABLE usage_events ATTACH PARTITION {name} FOR VALUES {bounds}"))
    return True


async def _lift_guard(connection: AsyncConnection, partition: str | None) -> TextClause:
    """Let rows be deleted in this transaction, and by nobody else; returns what puts the guard back."""
    if partition is not None:
        trigger = "TRIGGER usage_events_append_only"
        await connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
        await connection.execute(text(f"ALTER TABLE {partition} DISABLE {trigger}"))
        return text(f"ALTER TABLE {partition} ENABLE {trigger}")
    made = text("SELECT sql FROM sqlite_master WHERE name = 'usage_events_no_delete'")
    again = (await connection.execute(made)).scalar_one()
    await connection.execute(text("DROP TRIGGER usage_events_no_delete"))
    return text(again)


def _events(partition: str | None) -> TableClause:
    return table(partition or "usage_events", column("id", String), column("started_at", UtcTime))


def _old(before: datetime, partition: str | None) -> Select[Any]:
    """The ids of events that began before that; in one big table by their ids, which sort by it."""
    events = _events(partition)
    old = select(events.c.id).where(events.c.started_at < before)
    if partition is None:
        old = old.where(events.c.id < first_booking(before)).order_by(events.c.id)
    return old


def _pending() -> Subquery:
    """Events that the roll-ups or the export still want."""
    due = select(outbox.c.started_at).where(outbox.c.delivered_at.is_(None), outbox.c.dead_at.is_(None))
    dead = select(outbox.c.started_at).where(outbox.c.dead_at.is_not(None))
    return union_all(select(rollup_queue.c.started_at), due, dead).subquery()  # each of the two has an index


def _waits_before(moment: datetime) -> Select[Any]:
    pending = _pending()
    return select(pending.c.started_at).where(pending.c.started_at < moment).limit(1)


async def _note(connection: AsyncConnection, before: datetime, now: datetime) -> None:
    """Write down that events that began before that are gone."""
    known = (await connection.execute(select(func.max(retired_usage.c.before)))).scalar_one()
    if known is None or known < before:
        await connection.execute(insert(retired_usage).values(before=before, retired_at=now))
