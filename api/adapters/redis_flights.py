"""Scripts for Redis, all on one connection: what is asked while a round trip is under way goes in the next.

A lone call flies at once; at load a round trip carries many, and costs little more than one would. It is
redis-py's connection, packed and read without its bookkeeping for each command (141 us for an admission by
itself, 72 here; 27 in company of four).
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

import hiredis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from api.tasks import Tasks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from redis.asyncio.connection import AbstractConnection, ConnectionPool

    Call = tuple[str, Sequence[Any]]

_AT_ONCE = 24
"""So many of our scripts take Redis a few milliseconds, which others wait for."""


class Direct:
    """One connection of a pool, kept, for `EVALSHA`s in one round trip."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._kept: AbstractConnection | None = None

    async def each(self, sha: str, calls: Sequence[Call]) -> list[Any]:
        """The replies, errors of Redis' own among them. Raises what redis-py raises where it is away.

        Not to be called while a call is under way.
        """
        packed = b"".join(hiredis.pack_command(("EVALSHA", sha, 1, key, *args)) for key, args in calls)
        try:
            return await self._round_trip(packed, len(calls))
        except RedisConnectionError:  # closed while it was idle, perhaps: a new one is tried
            return await self._round_trip(packed, len(calls))

    async def _round_trip(self, packed: bytes, count: int) -> list[Any]:
        connection = await self._connection()
        try:
            await connection.send_packed_command(packed)
            return [await _reply(connection) for _ in range(count)]
        except BaseException:  # what it would read next is anybody's answer
            await connection.disconnect(nowait=True)
            raise

    async def _connection(self) -> AbstractConnection:
        if self._kept is None:
            self._kept = await self._pool.get_connection()  # type: ignore[no-untyped-call]
            self._kept.socket_timeout = None  # whoever asks bounds it, at a lower price
        else:
            await self._pool.ensure_connection(self._kept)
        return self._kept


async def _reply(connection: AbstractConnection) -> Any:
    try:
        return await connection.read_response(disable_decoding=True, timeout=math.inf)
    except ResponseError as error:
        return error


class Flights:
    """Calls of many, together. `fly` makes some of them in one round trip, bounded in time."""

    def __init__(self, fly: Callable[[Sequence[Call]], Awaitable[list[Any]]]) -> None:
        self._fly = fly
        self._waiting: list[tuple[Call, asyncio.Future[Any]]] = []
        self._flying = False
        self._tasks = Tasks()

    def call(self, call: Call) -> asyncio.Future[Any]:
        """Its reply, once it is there. Who gives up on it before it flies has asked nothing."""
        asked: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((call, asked))
        if not self._flying:
            self._flying = True
            self._tasks.start(self._fly_all(), name="calls of the limiter")
        return asked

    async def _fly_all(self) -> None:
        try:
            while self._waiting:
                flight = [(call, asked) for call, asked in self._waiting[:_AT_ONCE] if not asked.done()]
                del self._waiting[:_AT_ONCE]
                if flight:
                    await self._one(flight)
        finally:
            self._flying = False

    async def _one(self, flight: list[tuple[Call, asyncio.Future[Any]]]) -> None:
        try:
            replies = await self._fly([call for call, _ in flight])
        except BaseException as error:
            # Where Redis fails some it will fail those who wait for the next flight, too.
            failed, self._waiting = [*flight, *self._waiting], []
            for _, asked in failed:
                if not asked.done():
                    asked.set_exception(error) if isinstance(error, Exception) else asked.cancel()
            if not isinstance(error, Exception):
                raise
            return
        for (_, asked), reply in zip(flight, replies, strict=True):
            if not asked.done():
                asked.set_result(reply)
