"""Who is next: places of this worker, and waiting for a limit to have room again.

Two things are waited for. A worker may have a cap on its streams; its places are given out fairly between
tenants. A tenant's own limits are kept in Redis, and so is the order of those who wait for them, over all
workers; here the first of each counter asks again, when a stream of the tenant ends here, and now and then
because one may have ended elsewhere.
"""

from __future__ import annotations

import asyncio
from bisect import insort
from contextlib import suppress
from typing import TYPE_CHECKING

from api.core.fair import FairQueue
from api.ports import GateFull

if TYPE_CHECKING:
    from api.flow.stream import Stream

_POLL_SECONDS, _MAX_POLL_SECONDS = 0.1, 1.0
_GAP_SECONDS = 1.0


class Places:
    """A worker's places; `limit` 0 means that there is no end of them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._queue: FairQueue[asyncio.Future[None]] = FairQueue()

    async def take(self, stream: Stream) -> None:
        """A place, perhaps after waiting for it. Raises GateFull."""
        if not self._limit or (self._taken < self._limit and not self._queue):
            self._taken += 1
            return
        terms, tenant_id = stream.caller.terms, stream.caller.tenant_id or ""
        if self._queue.waiting(tenant_id) >= terms.max_waiters:
            raise self._full()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.push(tenant_id, terms.weight, turn)
        try:
            await stream.patient(turn)
        except BaseException as error:
            self._queue.remove(tenant_id, turn)
            if turn.done() and not turn.cancelled():  # it was given one in the same moment
                self.give_back()
            if isinstance(error, TimeoutError) and stream.cut_by is None:
                raise self._full() from None
            raise

    def _full(self) -> GateFull:
        return GateFull(_GAP_SECONDS * (1 + len(self._queue) / self._limit))

    def give_back(self) -> None:
        """Whoever's turn it is gets the place."""
        while self._queue:
            turn = self._queue.pop()
            if not turn.done():
                turn.set_result(None)
                return
        self._taken -= 1


class Lines:
    """Those of this worker who wait for a tenant's limits, one line for each counter."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, str], list[Place]] = {}

    def join(self, tenant_id: str, counter: str, ticket: int, place: Place | None) -> Place:
        """The place that one has, or one in the line for another counter: by tickets, as the limiter goes."""
        if place is not None and (place.counter, place.ticket) == (counter, ticket):
            return place
        if place is not None:
            place.leave()
        line = self._lines.setdefault((tenant_id, counter), [])
        place = Place(counter, ticket, line)
        insort(line, place, key=lambda one: one.ticket)
        return place

    def freed(self, tenant_id: str) -> None:
        """A stream of the tenant ended here."""
        for key, line in list(self._lines.items()):
            if not line:
                del self._lines[key]
            elif key[0] == tenant_id:
                line[0].called.set()


class Place:
    """Somebody's place in a line, kept until it is left."""

    def __init__(self, counter: str, ticket: int, line: list[Place]) -> None:
        self.counter = counter
        self.ticket = ticket
        self._patience_seconds = _POLL_SECONDS
        self.called = asyncio.Event()
        self._line = line

    async def turn(self, stream: Stream) -> None:
        """Return when it is worth asking again: only the first of a line asks, at the latest after a moment.

        Raises TimeoutError where the stream waits no longer.
        """
        while self._line[0] is not self:
            await stream.patient(self.called.wait())
            self.called.clear()
        await stream.patient(_soon(self.called, self._patience_seconds))
        self._patience_seconds = min(2 * self._patience_seconds, _MAX_POLL_SECONDS)
        self.called.clear()

    def leave(self) -> None:
        """Whoever is behind moves up."""
        first = self._line[0] is self
        self._line.remove(self)
        if first and self._line:
            self._line[0].called.set()


async def _soon(called: asyncio.Event, seconds: float) -> None:
    """Until called, or it is time to ask anyway."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await called.wait()
