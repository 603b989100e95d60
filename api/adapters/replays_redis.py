"""Streams that are kept in Redis for a while, so that whoever asks for one again gets the same one.

A list for each, under its tenant's hash tag. While it runs its owner renews it as a lease; once it has ended
it is kept for the tenant's minutes. An owner that has died leaves nothing behind but the end of its lease.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from api.adapters.limiter_redis import Script
from api.ports import LimiterUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from redis.asyncio import Redis

_AT_ONCE = 500  # elements in one reply


class RedisReplays:
    """`client` is a redis.asyncio client of any kind, or fakeredis' twin of one."""

    def __init__(self, client: Redis, *, timeout_seconds: float = 0.25) -> None:
        self._client, self._timeout_seconds = client, timeout_seconds
        self._script = Script(client, "replays.lua")

    async def claim(self, tenant_id: str, name: str, head: bytes, keep_seconds: float) -> bytes | None:
        """None where it is ours now, else the head that stands there. Raises LimiterUnavailable."""
        found = await self._run(tenant_id, name, "claim", head, keep_seconds)
        return found if isinstance(found, bytes) else None

    async def append(
        self,
        tenant_id: str,
        name: str,
        head: bytes,
        parts: Sequence[bytes],
        *,
        after: int,
        keep_seconds: float,
    ) -> bool:
        """Add to the first `after` elements, once; False where it is not ours any more."""
        return bool(await self._run(tenant_id, name, "append", head, keep_seconds, after, *parts))

    async def replace(self, tenant_id: str, name: str, head: bytes, part: bytes, keep_seconds: float) -> None:
        """Put this in the place of all that was there."""
        await self._run(tenant_id, name, "replace", head, keep_seconds, part)

    async def drop(self, tenant_id: str, name: str, head: bytes) -> None:
        """Forget it."""
        await self._run(tenant_id, name, "drop", head, 0)

    async def read(self, tenant_id: str, name: str, after: int) -> list[bytes] | None:
        """What stands behind the first `after` elements; None where there is nothing of that name."""
        key = _key(tenant_id, name)
        pipe = self._client.pipeline(transaction=False)
        pipe.exists(key)
        pipe.lrange(key, after, after + _AT_ONCE - 1)
        there, found = await self._bounded(pipe.execute())
        return list(found) if there else None

    async def _run(
        self, tenant_id: str, name: str, what: str, head: bytes, keep_seconds: float, *more: bytes | int
    ) -> Any:
        arguments = [what, head, int(keep_seconds * 1000), *more]
        return await self._bounded(self._script(_key(tenant_id, name), arguments))

    async def _bounded(self, call: Awaitable[Any]) -> Any:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await call
        except (RedisError, OSError, TimeoutError) as error:
            raise LimiterUnavailable(f"Redis: {type(error).__name__}") from error


def _key(tenant_id: str, name: str) -> str:
    return f"sg:{{{tenant_id}}}:replay:{name}"
