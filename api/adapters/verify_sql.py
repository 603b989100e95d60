"""The invariants of the ledger, looked at in SQL over a period. Reads alone, in bounded memory.

Each statement is of one moment, so that a ledger that is being written to is not taken for a broken one. The
buckets of the roll-ups are computed here once more, in another way than their writer does.
"""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import BigInteger, Integer, cast, extract, func, literal, or_, select, true, tuple_, union_all

from api.adapters.outbox_sql import KEPT
from api.adapters.periods_sql import within
from api.adapters.tables_sql import (
    in_flight,
    markups,
    outbox,
    prices,
    retired_usage,
    rollup_queue,
    usage_events,
    usage_rollups,
    workers,
)
from api.core.invariants import (
    EVENT_FIELDS,
    SHOWN,
    Check,
    PriceList,
    booking_of,
    by_booking,
    correction_faults,
    cost_faults,
    single_faults,
)
from api.core.money import Markup, PriceVersion

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

    from sqlalchemy import ColumnElement, Select, Table
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from api.ports import Clock

_PAGE = 2000
_DAY = timedelta(days=1)
_QUARTER_SECONDS = 900
_DAY_SECONDS = 86_400
_LOOKS = 6
_CUBES = {"quarter": _QUARTER_SECONDS, "day": _DAY_SECONDS, "user": _QUARTER_SECONDS}
_SUMS = (
    "events",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "reasoning_tokens",
    "cost_nano_dollars",
)
_DIMENSIONS = ("tenant_id", "key_id", "end_user", "model", "upstream")


class Scope(NamedTuple):
    """What is looked at: requests that came in from `start` on and before `end`, of all tenants or one."""

    start: datetime
    end: datetime
    tenant_id: str | None = None

    def of(self, table: Table) -> list[ColumnElement[bool]]:
        """Conditions for bookings or events."""
        conditions = within(table.c.id, table.c.started_at, self.start, self.end)
        return [*conditions, *self.mine(table)]

    def mine(self, table: Table) -> list[ColumnElement[bool]]:
        """Conditions for the tenant's rows."""
        return [] if self.tenant_id is None else [table.c.tenant_id == self.tenant_id]


class Verify:
    """`says` is told what goes on; `pause` waits for so many seconds."""

    def __init__(
        self,
        engine: AsyncEngine,
        clock: Clock,
        scope: Scope,
        *,
        says: Callable[[str], None],
        pause: Callable[[float], Awaitable[None]],
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._scope = scope
        self._says = says
        self._pause = pause

    # --- bookings and their events ----------------------------------------------------------------

    async def events(self) -> list[Check]:
        """One event of each booking, corrections in order, and costs as prices have it."""
        single = Check("one_event", "each booking ends as exactly one event")
        corrections = Check("corrections", "corrections have their booking's event, and are numbered")
        costs = Check("costs", "costs are what the named prices make of the tokens")
        await self._both_open_and_ended(single)
        known = await self._price_list()
        count = unpriced = 0
        async for rows in self._pages(await self._kept(single, corrections, costs)):
            for group in by_booking(rows):
                for check, faults in (
                    (single, single_faults(group)),
                    (corrections, correction_faults(group)),
                    (costs, cost_faults(group, known)),
                ):
                    for event_id, fault in faults:
                        check.found(fault, id=event_id)
            count += len(rows)
            unpriced += sum(row["price_version"] is None for row in rows)
            self._says(f"events: {count}")
        if unpriced:
            costs.add(f"{unpriced} of {count} events name no price.")
        return [single, corrections, costs]

    async def _both_open_and_ended(self, check: Check) -> None:
        both = (
            select(in_flight.c.id, func.count().over().label("times"))
            .join(usage_events, usage_events.c.id == in_flight.c.id)
            .where(*self._scope.of(in_flight))
            .order_by(in_flight.c.id)
            .limit(SHOWN)
        )
        _tell(check, await self._rows(both), "open, and ended")

    async def _kept(self, *checks: Check) -> Scope:
        """The part of the period of which events are kept: retention takes whole days of UTC."""
        [gone] = await self._rows(select(func.max(retired_usage.c.before).label("before")))
        if gone["before"] is None or gone["before"] <= self._scope.start:
            return self._scope
        for check in checks:
            check.add(f"Looked at from {gone['before']:%Y-%m-%d} on: retention has taken what was before.")
        return self._scope._replace(start=gone["before"])

    async def _pages(self, scope: Scope) -> AsyncIterator[Sequence[Any]]:
        """All events by id, in pages; no booking's are in two."""
        events = usage_events.c
        query = (
            select(*(events[name] for name in EVENT_FIELDS))
            .where(*scope.of(usage_events))
            .order_by(events.id, events.started_at)
            .limit(_PAGE)
        )
        kept: list[Any] = []
        behind: ColumnElement[bool] = true()
        while True:
            page = await self._rows(query.where(behind))
            kept += page
            if len(page) < _PAGE:
                yield kept
                return
            last = booking_of(page[-1])
            ready = [row for row in kept if booking_of(row) != last]
            yield ready
            kept = kept[len(ready) :]
            place = literal(page[-1]["id"]), literal(page[-1]["started_at"], events.started_at.type)
            behind = tuple_(events.id, events.started_at) > tuple_(*place)

    async def _price_list(self) -> PriceList:
        listed = await self._rows(select(*(prices.c[name] for name in PriceVersion.__dataclass_fields__)))
        added = await self._rows(select(*(markups.c[name] for name in Markup.__dataclass_fields__)))
        return PriceList(
            {row["version"]: PriceVersion(**row) for row in listed},
            {row["version"]: Markup(**row) for row in added},
        )

    async def dead_bookings(self, *, lease_seconds: float, tick_seconds: float) -> Check:
        """Open bookings of workers that show no life while we look, for three of their beats."""
        check = Check("dead_bookings", "no booking is open whose worker is dead")
        old = in_flight.c.started_at < self._clock.now() - timedelta(seconds=lease_seconds)
        left = [old, *self._scope.of(in_flight)]
        wanted = {
            row["worker"] for row in await self._rows(select(in_flight.c.worker).where(*left).distinct())
        }
        before = await self._beats()
        dead = wanted
        for _ in range(_LOOKS):
            if not dead:
                return check
            self._says(f"bookings: waiting for signs of life of {len(dead)} workers")
            await self._pause(tick_seconds)
            beats = await self._beats()
            dead = {worker for worker in dead if worker not in beats or beats[worker] == before.get(worker)}
        of_dead = (
            select(in_flight.c.id, in_flight.c.worker, func.count().over().label("times"))
            .where(*left, in_flight.c.worker.in_(dead))
            .order_by(in_flight.c.id)
            .limit(SHOWN)
        )
        _tell(check, await self._rows(of_dead), "open, and its worker shows no life")
        if check.broken:
            check.add("A running worker closes them within 30 seconds, and so does `sluicegate reconcile`.")
        return check

    async def _beats(self) -> dict[str, int]:
        return {row["id"]: row["beat"] for row in await self._rows(select(workers.c.id, workers.c.beat))}

    # --- what is made of the events ---------------------------------------------------------------

    async def rollups(self) -> Check:
        """Roll-ups, and what waits to be added to them, are the sums of the events: of each day of UTC."""
        check = Check("rollups", "roll-ups and what waits for them are the sums of the events")
        scope = await self._kept(check)
        end = min(scope.end, self._clock.now() + _DAY)
        async with self._engine.connect() as connection:
            for day in _days(_day_of(scope.start), end):
                self._says(f"roll-ups: {day:%Y-%m-%d}")
                for cube in _CUBES:
                    await self._differences(connection, check, cube, day)
        await self._lost_in_the_queue(check)
        return check

    async def _differences(self, connection: AsyncConnection, check: Check, cube: str, day: datetime) -> None:
        parts = self._parts(connection.dialect.name, cube, day).subquery("parts")
        names = ("bucket", *_DIMENSIONS)
        sums = [func.sum(parts.c[name]).label(name) for name in _SUMS]
        query = (
            select(*(parts.c[name] for name in names), *sums, func.count().over().label("times"))
            .group_by(*(parts.c[name] for name in names))
            .having(or_(*(one != 0 for one in sums)))
            .order_by(*(parts.c[name] for name in names))
            .limit(SHOWN)
        )
        rows = (await connection.execute(query)).mappings().all()
        await connection.rollback()
        for number, row in enumerate(rows):
            shown = {name: row[name] for name in _DIMENSIONS}
            starts_at = datetime.fromtimestamp(int(row["bucket"]), UTC)
            wrong = {name: int(row[name]) for name in _SUMS if row[name]}
            times = row["times"] - len(rows) + 1 if number == 0 else 1
            check.found(
                "differs from its events", times=times, cube=cube, starts_at=starts_at, **shown, more=wrong
            )

    def _parts(self, dialect: str, cube: str, day: datetime) -> Any:
        """Roll-ups, plus what waits, minus the events."""
        of_user = cube == "user"
        of_day = Scope(day, day + _DAY, self._scope.tenant_id)
        starts = usage_rollups.c.starts_at
        rolled = select(
            _epoch(starts, dialect).label("bucket"),
            *(usage_rollups.c[name] for name in _DIMENSIONS),
            *(usage_rollups.c[name] for name in _SUMS),
        ).where(
            usage_rollups.c.cube == cube,
            starts >= day,
            starts < day + _DAY,
            *of_day.mine(usage_rollups),
        )
        bucket = _bucket(usage_events.c.started_at, dialect, _CUBES[cube])
        waits = _of_events(bucket, 1, of_user=of_user).where(
            rollup_queue.c.started_at >= day,
            rollup_queue.c.started_at < day + _DAY,
            usage_events.c.id == rollup_queue.c.event_id,
            usage_events.c.started_at == rollup_queue.c.started_at,
            *of_day.mine(usage_events),
        )
        happened = _of_events(bucket, -1, of_user=of_user).where(*of_day.of(usage_events))
        return union_all(rolled, waits, happened)

    async def _lost_in_the_queue(self, check: Check) -> None:
        """What waits for ever, because there is no such event."""
        events = usage_events.c
        there = select(events.id).where(
            events.id == rollup_queue.c.event_id, events.started_at == rollup_queue.c.started_at
        )
        lost = (
            select(rollup_queue.c.event_id.label("id"), func.count().over().label("times"))
            .where(
                rollup_queue.c.started_at >= self._scope.start,
                rollup_queue.c.started_at < self._scope.end,
                *self._scope.mine(rollup_queue),
                ~there.exists(),
            )
            .order_by(rollup_queue.c.event_id)
            .limit(SHOWN)
        )
        _tell(check, await self._rows(lost), "waits to be added up, and is not on the ledger")

    async def outbox(self, *, exports: bool) -> Check:
        """Every event has its row, from the first row on, as long as rows are kept."""
        check = Check("outbox", "every event since the export began has its row in the outbox")
        [first] = await self._rows(select(func.min(outbox.c.created_at).label("at")))
        if first["at"] is None:
            check.add("Nothing was ever exported." if not exports else "No event was exported so far.")
            return check
        since = max(first["at"], self._clock.now() - KEPT)
        self._says("outbox")
        events = usage_events.c
        row_of = select(outbox.c.event_id).where(outbox.c.event_id == events.id)
        missing = (
            select(events.id, func.count().over().label("times"))
            .where(*self._scope.of(usage_events), events.ended_at >= since, ~row_of.exists())
            .order_by(events.id)
            .limit(SHOWN)
        )
        _tell(check, await self._rows(missing), "has no row in the outbox")
        if check.broken:
            check.add("`sluicegate export backfill` adds them.")
        check.add(f"Looked at events that ended since {since:%Y-%m-%d %H:%M:%S} UTC.")
        [dead] = await self._rows(
            select(func.count().label("count")).select_from(outbox).where(outbox.c.dead_at.is_not(None))
        )
        if dead["count"]:
            check.add(f"{dead['count']} dead letters wait for somebody: `sluicegate export dead`.")
        return check

    async def _rows(self, query: Select[Any]) -> Sequence[Any]:
        async with self._engine.connect() as connection:
            rows: Sequence[Any] = (await connection.execute(query)).mappings().all()
            return rows


def _tell(check: Check, rows: Sequence[Any], fault: str) -> None:
    """The first of them, of which each knows how many there are."""
    for number, row in enumerate(rows):
        shown = {name: value for name, value in row.items() if name != "times"}
        check.found(fault, times=row["times"] - len(rows) + 1 if number == 0 else 1, **shown)


def _of_events(bucket: ColumnElement[Any], sign: int, *, of_user: bool) -> Select[Any]:
    events = usage_events.c
    amounts = (cast(events.corrects.is_(None), Integer), *(events[name] for name in _SUMS[1:-1]))
    cost = func.coalesce(events.cost_nano_dollars, 0)
    return select(
        bucket.label("bucket"),
        events.tenant_id,
        func.coalesce(events.key_id, ""),
        func.coalesce(events.end_user, "") if of_user else literal(""),
        events.model,
        events.upstream,
        *(amount * sign for amount in (*amounts, cost)),
    )


def _epoch(moment: ColumnElement[Any], dialect: str) -> ColumnElement[Any]:
    """Seconds since 1970, without a fraction."""
    if dialect == "sqlite":
        return cast(func.strftime("%s", func.substr(moment, 1, 19)), Integer)
    return cast(func.floor(extract("epoch", moment)), BigInteger)


def _bucket(moment: ColumnElement[Any], dialect: str, seconds: int) -> ColumnElement[Any]:
    epoch = _epoch(moment, dialect)
    return epoch - epoch % seconds


def _day_of(moment: datetime) -> datetime:
    return datetime.combine(moment.astimezone(UTC).date(), time(), UTC)


def _days(start: datetime, end: datetime) -> Iterator[datetime]:
    while start < end:
        yield start
        start += _DAY
