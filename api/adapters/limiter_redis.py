"""Concurrent streams as leases in Redis: a slot is a member of a sorted set, scored by its expiry.

The same Lua runs on Redis and on fakeredis (`memory://`). Redis' own TIME is the clock, so workers need
not agree on theirs. Keys of one tenant share a hash tag. A dead worker's slots are free again when their
lease runs out (15 s by default). Fails closed: LimiterUnavailable after `timeout_seconds` (250 ms).
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis.asyncio as aioredis
from redis.exceptions import NoScriptError, RedisError

from api.ports import LimiterUnavailable, Permit, StreamsExhausted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from redis.asyncio import Redis

log = logging.getLogger("sluicegate.limiter")

_LUA = Path(__file__).parent / "lua"


class RedisLimiter:
    """Slots of tenants. `client` is a redis.asyncio client, or fakeredis' twin of one."""

    def __init__(self, client: Redis, *, lease_seconds: float, timeout_seconds: float = 0.25) -> None:
        self._client = client
        self._lease_ms = int(lease_seconds * 1000)
        self._timeout_seconds = timeout_seconds
        self._acquire = client.register_script((_LUA / "acquire.lua").read_text())
        self._renew = client.register_script((_LUA / "renew.lua").read_text())

    async def acquire(self, tenant_id: str, permit_id: str, max_streams: int) -> Permit:
        """Take a slot. Raises StreamsExhausted or LimiterUnavailable."""
        work = self._acquire(keys=[_key(tenant_id)], args=[permit_id, max_streams, self._lease_ms])
        granted, _ = await self._bounded(work)
        if not granted:
            raise StreamsExhausted(max_streams, retry_after_seconds=1)
        return Permit(permit_id, tenant_id)

    async def renew(self, permits: Mapping[str, Permit], caps: Mapping[str, int]) -> set[str]:
        """Renew all leases of a worker in one round trip; returns the permits that are lost."""
        by_tenant: dict[str, list[str]] = {}
        for permit in permits.values():
            by_tenant.setdefault(permit.tenant_id, []).append(permit.id)
        try:
            replies = await self._bounded(self._renew_all(by_tenant, caps))
        except NoScriptError:  # Redis was restarted: it has forgotten the script
            await self._bounded(self._client.script_load(self._renew.script))
            replies = await self._bounded(self._renew_all(by_tenant, caps))
        return {member.decode() for lost in replies for member in lost}

    def _renew_all(self, by_tenant: Mapping[str, list[str]], caps: Mapping[str, int]) -> Awaitable[list[Any]]:
        pipe = self._client.pipeline(transaction=False)
        for tenant_id, ids in by_tenant.items():
            pipe.evalsha(self._renew.sha, 1, _key(tenant_id), caps[tenant_id], self._lease_ms, *ids)
        return pipe.execute()

    async def release(self, permit: Permit) -> None:
        """Give a slot back; if Redis is away, its lease runs out by itself."""
        try:
            await self._bounded(self._client.zrem(_key(permit.tenant_id), permit.id))
        except LimiterUnavailable:
            log.warning("slot %s was not given back and waits for its lease to run out", permit.id)

    async def live(self, tenant_id: str) -> int:
        """How many slots of a tenant are taken, expired ones left out."""
        seconds, micros = await self._bounded(self._client.time())
        now = seconds * 1000 + micros // 1000
        return int(await self._bounded(self._client.zcount(_key(tenant_id), f"({now}", "+inf")))

    async def ping(self) -> None:
        """Raises LimiterUnavailable."""
        await self._bounded(self._client.ping())

    async def _bounded(self, work: Awaitable[Any]) -> Any:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await work
        except NoScriptError:
            raise
        except (RedisError, OSError, TimeoutError) as error:
            raise LimiterUnavailable(f"Redis: {type(error).__name__}") from error


def _key(tenant_id: str) -> str:
    return f"sg:{{{tenant_id}}}:streams"


def connect(url: str, *, timeout_seconds: float = 0.25) -> Redis:
    """A client for `memory://` (this process only) or a Redis URL. Connects when first used."""
    if url.startswith("memory://"):
        from fakeredis import FakeAsyncRedis, FakeServer  # noqa: PLC0415 - only where it is asked for

        client: Redis = FakeAsyncRedis(
            server=FakeServer(),
            connection_pool_class=aioredis.BlockingConnectionPool,
            max_connections=32,
            timeout=timeout_seconds,
        )
        return client
    pool = aioredis.BlockingConnectionPool.from_url(
        url,
        max_connections=32,
        timeout=timeout_seconds,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        health_check_interval=30,
    )
    return aioredis.Redis.from_pool(pool)
