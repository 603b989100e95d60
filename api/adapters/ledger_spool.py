"""The ledger's side of the spool: what goes there while the database is away, and to the ledger after."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from api.adapters.spool_file import SpoolFull, orphans
from api.core import spool as records
from api.core.record import Booking

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from api.adapters.spool_file import Spool
    from api.core.record import Checkpoint, UsageEvent
    from api.core.spool import Records

    Commit = Callable[[Records], Awaitable[None]]

log = logging.getLogger("sluicegate.spool")

_PIECE_BYTES = 256 * 1024
_CHECKPOINTS_UP_TO = 0.5
"""Above this part of its bytes it takes no more running counts: what is left is for settlements."""
_ALARM_AT = 0.8


class LedgerSpool:
    """One worker's. A thread writes; two things are never under way at once."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._turn = asyncio.Lock()
        self._replayed = 0
        self._alarmed = False
        self.full = False

    @property
    def size_bytes(self) -> int:
        """What waits in it."""
        return self._spool.size

    async def put(self, items: Sequence[Booking | UsageEvent]) -> bool:
        """Bookings and settlements, in order. True once they are on the disk; False where it took none."""
        taken = await self._append(lambda: [_line_of(item) for item in items])
        self.full = not taken
        return taken

    async def put_checkpoints(self, checkpoints: Sequence[Checkpoint]) -> bool:
        """Running counts, as long as there is room for what matters more. False where it took none."""
        if self._spool.size >= self._spool.max_bytes * _CHECKPOINTS_UP_TO:
            return False
        return await self._append(lambda: [records.of_checkpoints(checkpoints)])

    async def _append(self, lines: Callable[[], list[bytes]]) -> bool:
        async with self._turn:
            try:
                await asyncio.to_thread(lambda: self._spool.append(lines()))
            except (SpoolFull, OSError) as error:
                self._alarm(f"takes no more ({type(error).__name__})")
                return False
        if self._spool.size > self._spool.max_bytes * _ALARM_AT:
            self._alarm("is nearly full")
        return True

    def _alarm(self, what: str) -> None:
        if not self._alarmed:
            name, size, most = self._spool.path.name, self._spool.size, self._spool.max_bytes
            mend = "Get the database back, or give it more with SPOOL_MAX_BYTES."
            log.error("the spool %s %s: %d of %d bytes. %s", name, what, size, most, mend)
        self._alarmed = True

    async def replay(self, commit: Commit) -> None:
        """Put all of it on the ledger, in order, and empty it. Raises what `commit` raises; again goes on.

        Meanwhile it goes on taking more.
        """
        if self._spool.size:
            log.info("replaying %d bytes of the spool %s", self._spool.size, self._spool.path.name)
        while (piece := await self._next_piece()) is not None:
            found, end = piece
            if found.broken:
                log.error("%d lines of the spool %s cannot be read", found.broken, self._spool.path.name)
            await commit(found)
            self._replayed = end

    async def _next_piece(self) -> tuple[Records, int] | None:
        """What to commit next, and where it ends; None where that was all, and it is empty now."""
        async with self._turn:
            if self._replayed < self._spool.size:
                return await asyncio.to_thread(self._read)
            await asyncio.to_thread(self._spool.clear)
            self._replayed = 0
            self._alarmed = self.full = False
            return None

    def _read(self) -> tuple[Records, int]:
        lines, end = self._spool.read(self._replayed, _PIECE_BYTES)
        return records.read(lines), end

    async def close(self) -> None:
        """Let go of the file; what is in it waits for whoever takes it over."""
        async with self._turn:
            await asyncio.to_thread(self._spool.close)


def _line_of(item: Booking | UsageEvent) -> bytes:
    return records.of_booking(item) if isinstance(item, Booking) else records.of_event(item)


async def replay_orphans(directory: Path, commit: Commit, *, max_bytes: int) -> int:
    """Put on the ledger what dead workers left in this host's spools; returns how many spools that were.

    Raises what `commit` raises; what is not replayed stays.
    """
    found = orphans(directory, max_bytes=max_bytes)
    count = 0
    while (spool := await asyncio.to_thread(next, found, None)) is not None:
        orphan = LedgerSpool(spool)
        try:
            count += spool.size > 0
            await orphan.replay(commit)
        finally:
            await orphan.close()
    return count
