"""Ledgers with a spool, for tests of what happens while the database is away."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from api.adapters.ledger_spool import LedgerSpool, replay_orphans
from api.adapters.ledger_sql import SqlLedger
from api.adapters.spool_file import Spool, path_of
from api.adapters.tables_sql import rollup_queue, usage_events
from api.core import spool as records
from api.core.usage import Certainty, Source, Usage
from api.tasks import Tasks
from tests.contracts.helpers import booking, bounded, event

if TYPE_CHECKING:
    from asyncio import Task
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

    from api.core.record import InFlight, UsageEvent
    from api.core.spool import Records

MOST = 1 << 22


class Worker:
    """A ledger whose writer runs, and its spool's file."""

    def __init__(self, engine: AsyncEngine, path: Path, max_bytes: int, **options: Any) -> None:
        self.path = path
        self._file = Spool(path, max_bytes=max_bytes).make()
        self.spool = LedgerSpool(self._file)
        self.ledger = SqlLedger(engine, spool=self.spool, **options)
        self._tasks = Tasks()
        self.writer: Task[None] = self._tasks.start(self.ledger.run(), name="ledger")

    @property
    def spooled(self) -> Records:
        """What its file holds, all of it readable."""
        found = records.read(self.path.read_bytes().splitlines(keepends=True))
        assert found.broken == 0
        return found

    async def close(self) -> None:
        """As at shutdown."""
        await self.ledger.close()
        await bounded(self.writer)
        await self.spool.close()

    async def kill(self) -> None:
        """As SIGKILL leaves it: nothing is said any more, and the system closes its file."""
        await self._tasks.cancel()
        if self._file._file >= 0:
            os.close(self._file._file)
            self._file._file = -1


@asynccontextmanager
async def working(
    engine: AsyncEngine, directory: Path, name: str = "host:1", max_bytes: int = MOST, **options: Any
) -> AsyncIterator[Worker]:
    """A worker; its writer must not have broken."""
    worker = Worker(engine, path_of(directory, name), max_bytes, **options)
    try:
        yield worker
        if not worker.writer.cancelled():
            await worker.close()
    finally:
        await worker.kill()


async def ledger_of(engine: AsyncEngine) -> tuple[list[UsageEvent], list[InFlight]]:
    """What stands on the ledger, and what is open; each event waits once for the roll-ups."""
    ledger = SqlLedger(engine)
    events = await ledger.events("tn_a", after=None, limit=1000)
    async with engine.connect() as connection:
        queued = (await connection.execute(select(rollup_queue.c.event_id))).scalars().all()
        count = (await connection.execute(select(func.count()).select_from(usage_events))).scalar_one()
    assert sorted(queued) == sorted(one.id for one in events)
    assert count == len(events)
    return events, list(await ledger.in_flight())


async def take_over(engine: AsyncEngine, directory: Path) -> int:
    """Another worker puts dead ones' spools on the ledger; returns how many those were."""
    return await replay_orphans(directory, SqlLedger(engine).commit_again, max_bytes=MOST)


def refused_ones() -> list[UsageEvent]:
    """Events that no database takes, each of them from a provider that one would not believe."""
    half = event(booking(), answered_model="half a \ud800 character")
    count = Usage(2**70, 1, 0, 0, Source.PROVIDER, Certainty.EXACT)
    return [half, event(booking(), usage=count)]
