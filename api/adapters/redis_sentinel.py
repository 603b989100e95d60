"""A Redis master by the word of its sentinels, asked for whenever a connection is made."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from redis.asyncio import BlockingConnectionPool
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool
from redis.exceptions import RedisError

from api.tasks import Tasks

if TYPE_CHECKING:
    from redis.asyncio import Redis

    Address = tuple[str, int]


class Sentinels(Sentinel):
    """Asks all sentinels at once, and once for all who wait.

    redis-py asks one after another: a first one that is silent, perhaps because it shared a machine with
    the dead master, would use up the time of every caller for ever.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._tasks = Tasks()
        self._asking: asyncio.Task[Address | None] | None = None

    async def discover_master(self, service_name: str) -> Address:
        """Where the master is. Raises MasterNotFoundError."""
        if self._asking is None or self._asking.done():
            self._asking = self._tasks.start(self._ask_all(service_name), name="ask the sentinels")
        asking = self._asking
        await asyncio.wait({asking})
        if (address := asking.result()) is None:
            raise MasterNotFoundError(f"no sentinel names a master {service_name!r}")
        return address

    async def _ask_all(self, service_name: str) -> Address | None:
        asks = Tasks()
        asked = [asks.start(self._ask(one, service_name), name="ask a sentinel") for one in self.sentinels]
        try:
            for answer in asyncio.as_completed(asked):
                if address := await answer:
                    return address
            return None
        finally:
            await asks.cancel()

    async def _ask(self, sentinel: Redis, service_name: str) -> Address | None:
        try:
            masters: Any = await sentinel.sentinel_masters()
        except (RedisError, OSError):
            return None
        state = masters.get(service_name)
        if not state or not self.check_master_state(state, service_name):
            return None
        return str(state["ip"]), int(state["port"])

    async def aclose(self) -> None:
        """Close the connections to the sentinels."""
        await self._tasks.cancel()
        await super().aclose()


class MasterPool(SentinelConnectionPool, BlockingConnectionPool):
    """Connections to the master, so many and no more; closes those to the sentinels with its own."""

    async def aclose(self) -> None:
        """Close everything."""
        await super().aclose()
        await self.sentinel_manager.aclose()
