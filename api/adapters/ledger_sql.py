"""The ledger on SQL: bookings, checkpoints and settlements, committed in groups.

One writer task for each worker takes all that waits, in the order it came, and commits it as one
transaction; while a commit is under way the next group gathers. So a lone request waits for nobody, and
the cost of a stream falls as load grows.

If a group fails because of one of its rows, its members are committed one by one, and only the culprit
fails. If the database is away, or takes longer than a second, settlements and checkpoints go to the spool, on
this host's disk, and from there to the ledger when it is back, in order; again is the same. Bookings fail
(nothing was delivered yet: P1), unless they are to go to the spool too.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError, StatementError

from api.adapters import ledger_writes_sql as writes
from api.adapters.database_sql import WRITES
from api.adapters.ledger_postgres import PostgresWrites
from api.adapters.ledger_reads_sql import SqlReads
from api.core.record import Booking, UsageEvent
from api.core.spool import Records
from api.ports import LedgerUnavailable
from api.tasks import Tasks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Sequence

    from sqlalchemy.ext.asyncio import AsyncEngine

    from api.adapters.ledger_spool import LedgerSpool
    from api.core.record import Checkpoint

log = logging.getLogger("sluicegate.ledger")

_MAX_GROUP = 500
_COMMIT_SECONDS = 10.0
_SLOW_SECONDS = 1.0
_RETRY_SECONDS = (0.05, 0.2, 0.5, 1.0)


class _Op:
    """One thing to write, and who waits for it. `put_by`: it lies in the spool."""

    __slots__ = ("done", "item", "put_by", "settles")

    def __init__(self, item: Booking | UsageEvent, done: asyncio.Future[None]) -> None:
        self.item = item
        self.done = done
        self.settles = isinstance(item, UsageEvent)
        self.put_by = False


class SqlLedger(SqlReads):
    """Start `run` as a task; `close` ends it once all is written, or lies in the spool.

    `spools_bookings`: while the database is away new bookings are durable once they are in the spool.
    `exports`: events are queued for the export too.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        spool: LedgerSpool | None = None,
        spools_bookings: bool = False,
        exports: bool = False,
    ) -> None:
        super().__init__(engine)
        self._spool = spool
        self._spools_bookings = spools_bookings
        self._exports = exports
        self._waiting: list[_Op] = []
        self._checkpoints: dict[str, Checkpoint] = {}
        self._wake = asyncio.Event()
        self._closing = False
        self._down = False
        self._commits = Tasks()
        self._direct: PostgresWrites | None = None
        if engine.dialect.name == "postgresql":
            self._direct = PostgresWrites(engine, exports=exports)

    # --- what the flow calls: none of these waits -----------------------------------------------

    def book(self, booking: Booking) -> asyncio.Future[None]:
        """Write a booking; done once it is durable, LedgerUnavailable if it could not be.

        Fails at once while the database is known to be away.
        """
        if self._down and not self._may_spool_bookings:
            refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            refused.set_exception(LedgerUnavailable("the database is away"))
            refused.exception()  # it is not an error that nobody waits for it
            return refused
        return self._submit(booking)

    def settle(self, event: UsageEvent) -> asyncio.Future[None]:
        """Turn a booking into its event; done once that is durable."""
        self._checkpoints.pop(event.booking.id, None)
        return self._submit(event)

    def checkpoint(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Write running counts; of one booking only the latest."""
        self._checkpoints |= {checkpoint.booking_id: checkpoint for checkpoint in checkpoints}
        self._wake.set()

    def _submit(self, item: Booking | UsageEvent) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Nobody may be waiting any more when it fails: that is not an error to be reported twice.
        done.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._waiting.append(_Op(item, done))
        self._wake.set()
        return done

    # --- the writer ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Write until closed and all is written."""
        failures = 0
        try:
            while not (self._closing and not self._waiting):
                await self._wake.wait()
                self._wake.clear()
                while self._waiting or self._checkpoints or self._down or self.spooled_bytes:
                    if await self._replay() and await self._write_group():
                        failures = 0
                        continue
                    failures += 1
                    await self._put_by()
                    if self._closing and (failures > len(_RETRY_SECONDS) or not self._waiting):
                        self._give_up()
                        return
                    await self._pause(_RETRY_SECONDS[min(failures, len(_RETRY_SECONDS)) - 1])
        finally:
            await self._commits.cancel()
            if self._direct is not None:
                await self._direct.close()

    async def close(self) -> None:
        """No more will come: `run` returns when all is written, or after two seconds without a database."""
        self._closing = True
        self._wake.set()

    @property
    def _may_spool_bookings(self) -> bool:
        return self._spools_bookings and self._spool is not None and not self._spool.full

    @property
    def away(self) -> bool:
        """Whether the last write failed."""
        return self._down

    @property
    def spooled_bytes(self) -> int:
        """What waits in the spool."""
        return self._spool.size_bytes if self._spool is not None else 0

    def _give_up(self) -> None:
        if self._waiting:
            log.error("the database is away: %d settlements are not written", len(self._waiting))
        for op in self._waiting:
            _fail(op, LedgerUnavailable("shut down while the database was away"))
        self._waiting.clear()

    async def _pause(self, seconds: float) -> None:
        """Wait before the next attempt; what comes meanwhile is put by at once."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while self._spool is not None and (left := end - loop.time()) > 0:
            try:
                async with asyncio.timeout(left):
                    await self._wake.wait()
            except TimeoutError:
                return
            self._wake.clear()
            await self._put_by()
            if self._waiting or self._closing:
                break  # the spool takes no more
        await asyncio.sleep(max(0.0, end - loop.time()))

    async def _put_by(self, under_way: Sequence[_Op] = ()) -> None:
        """What waits goes to the spool, as far as it may and the spool takes it; and what is under way."""
        if self._spool is None:
            return
        ops = self._for_the_spool([*under_way, *self._waiting])
        if ops and await self._spool.put([op.item for op in ops]):
            for op in ops:
                op.put_by = True
                _succeed(op)
        self._waiting = self._kept(self._waiting)
        checkpoints, self._checkpoints = self._checkpoints, {}
        if checkpoints and not await self._spool.put_checkpoints(list(checkpoints.values())):
            self._checkpoints = checkpoints | self._checkpoints

    def _for_the_spool(self, ops: Sequence[_Op]) -> list[_Op]:
        """Settlements and their bookings, which none overtakes; other bookings where they may wait there."""
        settled = {op.item.booking.id for op in ops if isinstance(op.item, UsageEvent)}
        return [
            op
            for op in ops
            if not op.put_by and (op.settles or self._spools_bookings or op.item.id in settled)
        ]

    def _kept(self, ops: Iterable[_Op]) -> list[_Op]:
        """Those that must be tried again. Bookings that may not wait are refused."""
        refused = self._down and not self._may_spool_bookings
        kept = []
        for op in ops:
            if refused and not op.settles:
                _fail(op, LedgerUnavailable("the database is away"))
            elif not op.put_by:
                kept.append(op)
        return kept

    async def _attempt(self, work: Awaitable[None], ops: Sequence[_Op] = ()) -> Exception | None:
        """What the work raised. Where it takes long, or the database is away, nobody waits for it.

        Then what comes lies in the spool, and what the work is about, `ops`, as well.
        """
        task = self._commits.start(_outcome(work), name="commit")
        if self._spool is None or not self._down:
            await asyncio.wait([task], timeout=None if self._spool is None else _SLOW_SECONDS)
        if not task.done():
            task.add_done_callback(lambda _: self._wake.set())
        while not task.done():
            self._wake.clear()
            await self._put_by(ops)
            if self._spool is None or self._spool.full:
                await asyncio.wait([task])
            elif not task.done():
                await self._wake.wait()
        return task.result()

    async def _replay(self) -> bool:
        """Put what is spooled on the ledger. False if the database is away."""
        if self._spool is None or not self.spooled_bytes:
            return True
        error = await self._attempt(self._spool.replay(self.commit_again))
        if error is not None:
            self._is_down(error, "what is spooled")
            return False
        self._down = False
        return True

    async def _write_group(self) -> bool:
        """Write what waits. False if the database is away."""
        group, self._waiting = self._waiting[:_MAX_GROUP], self._waiting[_MAX_GROUP:]
        checkpoints, self._checkpoints = self._checkpoints, {}
        error = await self._attempt(self._commit(_records(group, checkpoints)), group)
        if error is None:
            self._down = False
            for op in group:
                _succeed(op)
            return True
        if rows_fault(error):
            return await self._write_singly(group, checkpoints)
        self._put_back(group, error)
        self._checkpoints = checkpoints | self._checkpoints
        return False

    async def _write_singly(self, group: list[_Op], checkpoints: dict[str, Checkpoint]) -> bool:
        """One row of the group is refused: write the others, and let that one fail alone."""
        for position, op in enumerate(group):
            error = await self._attempt(self._commit(_records([op], {})), group[position:])
            if error is None:
                _succeed(op)
            elif rows_fault(error):
                log.error("a row was refused: %s", type(error).__name__)  # its text may hold data
                _fail(op, error)
            else:
                self._put_back(group[position:], error)
                self._checkpoints = checkpoints | self._checkpoints
                return False
        for booking_id, checkpoint in checkpoints.items():
            error = await _outcome(self._commit(_records([], {booking_id: checkpoint})))
            if error is not None and not rows_fault(error):
                self._checkpoints = checkpoints | self._checkpoints
                self._put_back([], error)
                return False
        return True

    def _put_back(self, group: list[_Op], error: Exception) -> None:
        """The database is away: bookings fail, settlements are tried again."""
        self._is_down(error, f"{len(group)} writes")
        self._waiting = self._kept(group) + self._waiting

    def _is_down(self, error: Exception, what: str) -> None:
        if not self._down:
            log.warning("the database did not take %s: %s", what, type(error).__name__)
        self._down = True

    async def _commit(self, records: Records, *, again: bool = False) -> None:
        async with asyncio.timeout(_COMMIT_SECONDS):
            if self._direct is not None and not again and await self._direct.write(records):
                return
            await self._commit_generally(records, again=again)

    async def _commit_generally(self, records: Records, *, again: bool) -> None:
        kept = None if again else self._direct
        async with kept.connection() if kept is not None else self._engine.connect() as connection:
            await connection.execution_options(**WRITES)
            async with connection.begin():
                bookings = records.bookings
                if again and bookings:
                    bookings = await writes.unknown(connection, bookings)
                await writes.book(connection, bookings)
                if records.checkpoints and records.events:
                    await writes.hold(connection, {*records.checkpoints, *_ids(records.events)})
                await writes.checkpoint(connection, records.checkpoints.values())
                await writes.settle(connection, records.events, exports=self._exports)

    async def commit_again(self, records: Records) -> None:
        """Write what may have been written already. Raises what the database raises when it is away."""
        error = await _outcome(self._commit(records, again=True))
        if error is None:
            return
        if not rows_fault(error):
            raise error
        ones = [Records([booking], {}, []) for booking in records.bookings]
        ones += [Records([], {one.booking_id: one}, []) for one in records.checkpoints.values()]
        ones += [Records([], {}, [event]) for event in records.events]
        for one in ones:
            error = await _outcome(self._commit(one, again=True))
            if error is not None and not rows_fault(error):
                raise error
            if error is not None:
                log.error("a spooled row was refused: %s", type(error).__name__)

    # --- reading ---------------------------------------------------------------------------------

    async def ping(self) -> None:
        """Raises LedgerUnavailable."""
        if self._down and self._may_spool_bookings:
            return
        if self._down:
            raise LedgerUnavailable("the last write failed")
        try:
            async with asyncio.timeout(2), self._engine.connect() as connection:
                await connection.execute(select(1))
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            raise LedgerUnavailable(type(error).__name__) from error


def _records(group: Sequence[_Op], checkpoints: dict[str, Checkpoint]) -> Records:
    items = [op.item for op in group]
    bookings = [item for item in items if isinstance(item, Booking)]
    return Records(bookings, checkpoints, [item for item in items if isinstance(item, UsageEvent)])


def _ids(events: Iterable[UsageEvent]) -> list[str]:
    return [event.booking.id for event in events]


async def _outcome(work: Awaitable[None]) -> Exception | None:
    """What it raised."""
    try:
        await work
    except Exception as error:  # noqa: BLE001 - sorted by what is at fault
        return error
    return None


def rows_fault(error: Exception) -> bool:
    """Whether a row was refused for what is in it; anything else is taken for the database being away."""
    driver = error.orig if isinstance(error, DBAPIError) else error
    if str(getattr(driver, "sqlstate", None) or "").startswith(("22", "23")):
        return True  # data exception, integrity constraint violation
    if isinstance(error, DBAPIError):
        return isinstance(error, IntegrityError | DataError)
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
