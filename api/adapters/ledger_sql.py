"""The ledger on SQL: bookings, checkpoints and settlements, committed in groups.

One writer task for each worker takes all that waits, in the order it came, and commits it as one
transaction; while a commit is under way the next group gathers. So a lone request waits for nobody, and
the cost of a stream falls as load grows. A settlement deletes its booking and inserts the event in the
same transaction: whoever deletes the booking owns the event, so a repeat writes nothing.

If a group fails because of one of its rows, its members are committed one by one, and only the culprit
fails. If the database is away, bookings fail (nothing was delivered yet: P1) and settlements wait and are
tried again, in memory, until it is back; a worker that is killed meanwhile leaves its bookings behind.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import bindparam, delete, func, insert, select, update
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError, StatementError

from api.adapters import rows_sql
from api.adapters.database_sql import WRITES
from api.adapters.tables_sql import in_flight, usage_events
from api.core.ids import first_id
from api.core.record import Totals
from api.ports import LedgerUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import Select
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from api.core.record import Booking, Checkpoint, InFlight, Spending, UsageEvent

log = logging.getLogger("sluicegate.ledger")

_OWNERS = {"key": "key_id", "user": "end_user", "token": "token_id"}
_MAX_GROUP = 500
_COMMIT_SECONDS = 10.0
_RETRY_SECONDS = (0.05, 0.2, 0.5, 1.0)

_UPDATE_CHECKPOINT = (
    update(in_flight)
    .where(in_flight.c.id == bindparam("booking_id"))
    .values(
        input_tokens=bindparam("inputs"), output_tokens=bindparam("outputs"), checkpoint_at=bindparam("at")
    )
)


class _Op(NamedTuple):
    """One thing to write, and who waits for it."""

    item: Booking | UsageEvent
    settles: bool
    done: asyncio.Future[None]


class SqlLedger:
    """Start `run` as a task; `close` ends it once all is written."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._waiting: list[_Op] = []
        self._checkpoints: dict[str, Checkpoint] = {}
        self._wake = asyncio.Event()
        self._closing = False
        self._down = False

    # --- what the flow calls: none of these waits -----------------------------------------------

    def book(self, booking: Booking) -> asyncio.Future[None]:
        """Write a booking; done once it is durable, LedgerUnavailable if it could not be.

        Fails at once while the database is known to be away.
        """
        if self._down:
            refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            refused.set_exception(LedgerUnavailable("the database is away"))
            refused.exception()  # it is not an error that nobody waits for it
            return refused
        return self._submit(booking, settles=False)

    def settle(self, event: UsageEvent) -> asyncio.Future[None]:
        """Turn a booking into its event; done once that is durable."""
        self._checkpoints.pop(event.booking.id, None)
        return self._submit(event, settles=True)

    def checkpoint(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Write running counts; of one booking only the latest."""
        self._checkpoints |= {checkpoint.booking_id: checkpoint for checkpoint in checkpoints}
        self._wake.set()

    def _submit(self, item: Booking | UsageEvent, *, settles: bool) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Nobody may be waiting any more when it fails: that is not an error to be reported twice.
        done.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._waiting.append(_Op(item, settles, done))
        self._wake.set()
        return done

    # --- the writer ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Write until closed and all is written."""
        failures = 0
        while not (self._closing and not self._waiting):
            await self._wake.wait()
            self._wake.clear()
            while self._waiting or self._checkpoints or self._down:
                if await self._write_group():
                    failures = 0
                    continue
                failures += 1
                if self._closing and (failures > len(_RETRY_SECONDS) or not self._waiting):
                    self._give_up()
                    return
                await asyncio.sleep(_RETRY_SECONDS[min(failures, len(_RETRY_SECONDS)) - 1])

    async def close(self) -> None:
        """No more will come: `run` returns when all is written, or after two seconds without a database."""
        self._closing = True
        self._wake.set()

    def _give_up(self) -> None:
        log.error("the database is away: %d settlements are not written", len(self._waiting))
        for op in self._waiting:
            _fail(op, LedgerUnavailable("shut down while the database was away"))
        self._waiting.clear()

    async def _write_group(self) -> bool:
        """Write what waits. False if the database is away; settlements and checkpoints then wait on."""
        group, self._waiting = self._waiting[:_MAX_GROUP], self._waiting[_MAX_GROUP:]
        checkpoints, self._checkpoints = self._checkpoints, {}
        try:
            await self._commit(group, checkpoints)
        except Exception as error:  # noqa: BLE001 - sorted by what is at fault
            self._checkpoints = checkpoints | self._checkpoints
            if _rows_fault(error):
                return await self._write_singly(group)
            self._put_back(group, error)
            return False
        self._down = False
        for op in group:
            _succeed(op)
        return True

    async def _write_singly(self, group: list[_Op]) -> bool:
        """One row of the group is refused: write the others, and let that one fail alone."""
        for position, op in enumerate(group):
            try:
                await self._commit([op], {})
            except Exception as error:  # noqa: BLE001 - sorted by what is at fault
                if not _rows_fault(error):
                    self._put_back(group[position:], error)
                    return False
                log.error("a row was refused: %s", type(error).__name__)  # noqa: TRY400 - its text may hold data
                _fail(op, error)
            else:
                _succeed(op)
        checkpoints, self._checkpoints = self._checkpoints, {}
        for booking_id, checkpoint in checkpoints.items():
            try:
                await self._commit([], {booking_id: checkpoint})
            except Exception as error:  # noqa: BLE001 - as above
                if not _rows_fault(error):
                    self._checkpoints = checkpoints | self._checkpoints
                    self._put_back([], error)
                    return False
        return True

    def _put_back(self, group: list[_Op], error: Exception) -> None:
        """The database is away: bookings fail, settlements are tried again."""
        self._down = True
        log.warning("the database did not take %d writes: %s", len(group), type(error).__name__)
        for op in group:
            if not op.settles:
                _fail(op, error)
        self._waiting = [op for op in group if op.settles] + self._waiting

    async def _commit(self, group: list[_Op], checkpoints: dict[str, Checkpoint]) -> None:
        bookings = [rows_sql.booking_row(op.item) for op in group if not op.settles]  # type: ignore[arg-type]
        events = {op.item.booking.id: op.item for op in group if op.settles}  # type: ignore[union-attr]
        async with asyncio.timeout(_COMMIT_SECONDS), self._engine.connect() as connection:
            await connection.execution_options(**WRITES)
            async with connection.begin():
                if bookings:
                    await connection.execute(insert(in_flight), bookings)
                if checkpoints:
                    await connection.execute(
                        _UPDATE_CHECKPOINT, [rows_sql.checkpoint_row(c) for c in checkpoints.values()]
                    )
                if events:
                    await _settle_all(connection, events)

    # --- reading ---------------------------------------------------------------------------------

    async def totals(self, tenant_id: str) -> Totals:
        """Sums over a tenant's events."""
        query = select(
            func.count(),
            func.coalesce(func.sum(usage_events.c.input_tokens), 0),
            func.coalesce(func.sum(usage_events.c.output_tokens), 0),
        ).where(usage_events.c.tenant_id == tenant_id)
        async with self._engine.connect() as connection:
            events, inputs, outputs = (await connection.execute(query)).one()
        return Totals(events, int(inputs), int(outputs))

    async def spent(self, tenant_id: str, spending: Spending) -> int:
        """How many tokens, in and out, or nano-dollars a tenant's events say were used."""
        rows = usage_events.c
        used = rows.cost_nano_dollars if spending.money else rows.input_tokens + rows.output_tokens
        query = select(func.coalesce(func.sum(used), 0)).where(rows.tenant_id == tenant_id)
        if spending.of != "tenant":
            query = query.where(rows[_OWNERS[spending.of]] == spending.id)
        if spending.since is not None:
            query = query.where(rows.id >= first_id("bk_", int(spending.since.timestamp() * 1000)))
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

    async def events(self, tenant_id: str, *, after: str | None, limit: int) -> list[UsageEvent]:
        """A tenant's events by id, which is by the time their requests began."""
        query = (
            select(usage_events)
            .where(usage_events.c.tenant_id == tenant_id, usage_events.c.id > (after or ""))
            .order_by(usage_events.c.id)
            .limit(limit)
        )
        async with self._engine.connect() as connection:
            return [rows_sql.usage_event(row) for row in (await connection.execute(query)).mappings()]

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

    async def ping(self) -> None:
        """Raises LedgerUnavailable."""
        if self._down:
            raise LedgerUnavailable("the last write failed")
        try:
            async with asyncio.timeout(2), self._engine.connect() as connection:
                await connection.execute(select(1))
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            raise LedgerUnavailable(type(error).__name__) from error


async def _settle_all(connection: AsyncConnection, events: dict[str, Any]) -> None:
    owned = await connection.execute(
        delete(in_flight).where(in_flight.c.id.in_(list(events))).returning(in_flight.c.id)
    )
    rows = [events[booking_id].flat() for booking_id in owned.scalars()]
    if rows:
        await connection.execute(insert(usage_events), rows)


def _rows_fault(error: Exception) -> bool:
    """Whether a row was refused for what is in it; anything else is taken for the database being away."""
    if isinstance(error, DBAPIError):
        sqlstate = str(getattr(error.orig, "sqlstate", None) or "")
        # 22: data exception, 23: integrity constraint violation
        return isinstance(error, IntegrityError | DataError) or sqlstate.startswith(("22", "23"))
    # Before the driver was asked: a value that no parameter can take.
    return isinstance(error, StatementError | ValueError | TypeError | OverflowError)


def _succeed(op: _Op) -> None:
    if not op.done.done():
        op.done.set_result(None)


def _fail(op: _Op, error: Exception) -> None:
    if not op.done.done():
        failure = LedgerUnavailable(type(error).__name__)
        failure.__cause__ = error
        op.done.set_exception(failure)
