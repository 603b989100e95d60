"""Values to write, clocks to turn, and bounded waiting: nothing here sleeps in place of a condition."""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from redis.exceptions import RedisError
from sqlalchemy import select, text

from api.accounts import Actor, KeyFields, TenantFields
from api.adapters.ledger_sql import SqlLedger
from api.adapters.tables_sql import metadata
from api.core.booking import Ended, Happening
from api.core.demand import Terms
from api.core.record import Booking, Spending, UsageEvent
from api.core.usage import Certainty, Source, Usage
from api.tasks import Tasks
from auth.principal import Scope

if TYPE_CHECKING:
    from asyncio import Future, Task
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
    from typing import Self

    from sqlalchemy.ext.asyncio import AsyncEngine

    from api.accounts import Accounts, KeyInfo, Tenant

T = TypeVar("T")

BOUND_SECONDS = 10.0
"""How long anything may take before it counts as never; generous, for a machine under load."""

TERMS = Terms(lease_us=60_000_000, waiter_us=60_000_000, settle_us=60_000_000)
"""Leases that outlast any test."""

START = datetime(2026, 3, 4, 5, 6, 7, 890123, tzinfo=UTC)
_numbers = itertools.count(1)

BY = Actor("user:root@example.com", "192.0.2.7", "req_of_root")
"""Who changes things where it does not matter who."""


class Clock:
    """A clock that moves on by a second each time it is looked at; `ahead` turns it."""

    def __init__(self) -> None:
        self.looked = 0
        self.ahead = timedelta()

    def now(self) -> datetime:
        self.looked += 1
        return START + self.ahead + timedelta(seconds=self.looked)

    def unix(self) -> float:
        return self.now().timestamp()

    def monotonic(self) -> float:
        return self.unix()


def of_token(token_id: str) -> Spending:
    """All that was ever spent with a bought token."""
    return Spending("token", token_id, money=False, since=None)


async def tenant(accounts: Accounts, name: str = "a", max_streams: int = 3, **fields: Any) -> Tenant:
    """A new tenant."""
    return await accounts.create_tenant(TenantFields(name, max_streams, **fields), by=BY)


async def key(
    accounts: Accounts, of: Tenant, name: str = "k", scopes: tuple[Scope, ...] = (Scope.CHAT,), **fields: Any
) -> tuple[KeyInfo, str]:
    """A new key, and its text."""
    return await accounts.keys(None).issue(of.id, KeyFields(name, scopes, **fields), by=BY)


async def snapshot(engine: AsyncEngine) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table, as committed."""
    rows = {}
    async with engine.connect() as connection:
        for table in metadata.sorted_tables:
            query = select(table).order_by(*table.primary_key)
            rows[table.name] = [tuple(row) for row in await connection.execute(query)]
    return rows


async def waiting_for_locks(engine: AsyncEngine) -> int:
    """How many sessions of this database wait for a lock; PostgreSQL only."""
    here = "datname = current_database() AND wait_event_type = 'Lock'"
    query = f"SELECT count(*) FROM pg_stat_activity WHERE {here}"
    async with engine.connect() as connection:
        return int((await connection.execute(text(query))).scalar_one())


def booking(**changes: Any) -> Booking:
    """A booking of its own; no two of its fields are alike. Ids ascend."""
    number = next(_numbers)
    values: dict[str, Any] = {
        "id": f"bk_{number:032x}",
        "request_id": f"req_{number}",
        "tenant_id": "tn_a",
        "key_id": f"k{number:011d}",
        "token_id": f"jti {number}",
        "end_user": f"user {number}",
        "dialect": "openai_chat",
        "model": f"asked-{number}",
        "upstream": f"upstream-{number}",
        "worker": f"host:{number}",
        "started_at": START + timedelta(microseconds=number),
    }
    return Booking(**values | changes)


def event(of: Booking, **changes: Any) -> UsageEvent:
    """The event of a booking; no two of its numbers are alike."""
    values: dict[str, Any] = {
        "booking": of,
        "answered_model": f"answered-{of.model}"[:256],
        "usage": Usage(11, 13, 3, 5, Source.COUNTED, Certainty.AT_LEAST, "o200k_base:assumed"),
        "ended": Ended.LEFT,
        "cause": Happening.CLIENT_LEFT,
        "first_token_ms": 17,
        "duration_ms": 1900,
        "ended_at": of.started_at + timedelta(milliseconds=1900),
    }
    return UsageEvent(**values | changes)


async def bounded(work: Awaitable[T]) -> T:
    """Its result; TimeoutError where there is none."""
    async with asyncio.timeout(BOUND_SECONDS):
        return await work


async def outcomes(futures: Iterable[Future[None]]) -> list[BaseException | None]:
    """What became of each; all of them are done."""
    futures = list(futures)
    _, pending = await asyncio.wait(futures, timeout=BOUND_SECONDS)
    assert not pending, f"{len(pending)} of {len(futures)} never ended"
    return [future.exception() for future in futures]


async def turns(count: int = 20) -> None:
    """Let the event loop handle what has already happened."""
    for _ in range(count):
        await asyncio.sleep(0)


async def at_once(start: Callable[[], Future[None]]) -> None:
    """The result of what needs nobody: it is there within a few turns of the event loop."""
    future = start()
    await turns(10)
    assert future.done(), "it waited for somebody"
    future.result()


async def eventually(holds: Callable[[], Awaitable[T]]) -> T:
    """Ask until the answer is true; TimeoutError if it never is."""
    async with asyncio.timeout(BOUND_SECONDS):
        while not (answer := await holds()):
            await asyncio.sleep(0.005)
    return answer


def until(holds: Callable[[], object], what: str) -> None:
    """The same for servers that a test starts, outside an event loop; their refusals are a no."""
    end = time.monotonic() + 3 * BOUND_SECONDS
    while time.monotonic() < end:
        with suppress(RedisError):
            if holds():
                return
        time.sleep(0.01)
    raise TimeoutError(f"never: {what}")


class LoopTurns:
    """Counts the turns of the event loop while it is entered. `most_ms` is the longest of them."""

    def __init__(self) -> None:
        self.count = 0
        self.most_ms = 0.0
        self._tasks = Tasks()

    async def __aenter__(self) -> Self:
        self._tasks.start(self._turn(), name="turns")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._tasks.cancel()

    async def _turn(self) -> None:
        clock = asyncio.get_running_loop().time
        before = clock()
        while True:
            await asyncio.sleep(0)
            now = clock()
            self.most_ms = max(self.most_ms, (now - before) * 1000)
            self.count, before = self.count + 1, now


@asynccontextmanager
async def writing(engine: AsyncEngine) -> AsyncIterator[tuple[SqlLedger, Task[None]]]:
    """A ledger whose writer runs; at the end it is closed, and its writer must not have broken."""
    ledger, tasks = SqlLedger(engine), Tasks()
    writer = tasks.start(ledger.run(), name="ledger")
    try:
        yield ledger, writer
        await ledger.close()
        await bounded(writer)
    finally:
        await tasks.cancel()
