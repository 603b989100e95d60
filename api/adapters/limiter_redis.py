"""Concurrent streams as leases in Redis: a slot is a member of a sorted set, scored by its expiry.

One set for the tenant, one for a key or a bought token with a cap of its own; one call takes them all.

The same Lua runs on Redis and on fakeredis (`memory://`). Redis' own TIME is the clock, so workers need
not agree on theirs. Keys of one tenant share a hash tag. A dead worker's slots are free again when their
lease runs out (15 s by default). Fails closed: LimiterUnavailable after `timeout_seconds` (250 ms).
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis.asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError

from api.ports import AllowanceSpent, LimiterUnavailable, Permit, StreamsExhausted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from redis.asyncio import Redis

    from api.ports import Allowance
    from auth.principal import Cap

log = logging.getLogger("sluicegate.limiter")

_LUA = Path(__file__).parent / "lua"

_FULL, _UNKNOWN = 0, 2  # replies of acquire.lua

_ALLOWANCE_SECONDS = 2 * 3600
"""How long an allowance's count is kept after its last use: longer than a bought token lives."""


class RedisLimiter:
    """Slots of tenants. `client` is a redis.asyncio client, or fakeredis' twin of one."""

    def __init__(self, client: Redis, *, lease_seconds: float, timeout_seconds: float = 0.25) -> None:
        self._client = client
        self._lease_ms = int(lease_seconds * 1000)
        self._timeout_seconds = timeout_seconds
        self._acquire = client.register_script((_LUA / "acquire.lua").read_text())
        self._release = client.register_script((_LUA / "release.lua").read_text())
        self._renew = client.register_script((_LUA / "renew.lua").read_text())

    async def acquire(
        self, tenant_id: str, permit_id: str, caps: tuple[Cap, ...], allowance: Allowance | None = None
    ) -> Permit | None:
        """Take a slot under each cap, and tokens of the allowance: all or nothing.

        Raises StreamsExhausted, AllowanceSpent, LimiterUnavailable. None: say what is spent of the allowance.
        """
        permit = Permit(permit_id, tenant_id, caps, allowance.token_id if allowance else None)
        args: list[Any] = [permit_id, self._lease_ms, len(caps), *(cap.limit for cap in caps)]
        if allowance is not None:
            spent = -1 if allowance.spent is None else allowance.spent
            args += [allowance.total, allowance.least, allowance.most, spent, _ALLOWANCE_SECONDS]
        reply = await self._bounded(self._acquire(keys=_keys(permit), args=args))
        if reply[0] == _UNKNOWN:
            return None
        if reply[0] == _FULL and reply[1] == 0:
            raise AllowanceSpent
        if reply[0] == _FULL:
            raise StreamsExhausted(caps[reply[1] - 1], retry_after_seconds=1)
        return replace(permit, granted_tokens=reply[1])

    async def renew(self, permits: Mapping[str, Permit]) -> set[str]:
        """Renew all leases of a worker in one round trip; returns the permits that are lost."""
        sets: dict[str, tuple[int, list[str]]] = {}
        for permit in permits.values():
            for cap in permit.caps:
                sets.setdefault(_slots(permit.tenant_id, cap), (cap.limit, []))[1].append(permit.id)
        reserved = [permit for permit in permits.values() if permit.allowance_of]
        try:
            replies = await self._bounded(self._renew_all(sets, reserved))
        except NoScriptError:  # Redis was restarted: it has forgotten the script
            await self._bounded(self._client.script_load(self._renew.script))
            replies = await self._bounded(self._renew_all(sets, reserved))
        return {member.decode() for lost in replies[: len(sets)] for member in lost}

    def _renew_all(
        self, sets: Mapping[str, tuple[int, list[str]]], reserved: list[Permit]
    ) -> Awaitable[list[Any]]:
        pipe = self._client.pipeline(transaction=False)
        for key, (limit, ids) in sets.items():
            pipe.evalsha(self._renew.sha, 1, key, limit, self._lease_ms, *ids)
        for permit in reserved:  # which changes nothing, unless Redis was emptied
            pipe.hsetnx(_allowance(permit), permit.id, str(permit.granted_tokens))
            pipe.expire(_allowance(permit), _ALLOWANCE_SECONDS)
        return pipe.execute()

    async def release(self, permit: Permit, used_tokens: int = 0) -> None:
        """Give the slots back; if Redis is away, their leases run out by themselves."""
        work = self._release(keys=_keys(permit), args=[permit.id, len(permit.caps), used_tokens])
        try:
            await self._bounded(work)
        except LimiterUnavailable:
            log.warning("slot %s was not given back and waits for its lease to run out", permit.id)

    async def live(self, tenant_id: str) -> int:
        """How many slots of a tenant are taken, expired ones left out."""
        seconds, micros = await self._bounded(self._client.time())
        now = seconds * 1000 + micros // 1000
        return int(await self._bounded(self._client.zcount(_streams(tenant_id), f"({now}", "+inf")))

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


def _streams(tenant_id: str) -> str:
    return f"sg:{{{tenant_id}}}:streams"


def _slots(tenant_id: str, cap: Cap) -> str:
    """The set of a cap; the tenant in braces keeps all of its keys in one slot of a Redis Cluster."""
    streams = _streams(tenant_id)
    return streams if cap.kind == "tenant" else f"{streams}:{cap.kind}:{cap.id}"


def _keys(permit: Permit) -> list[str]:
    slots = [_slots(permit.tenant_id, cap) for cap in permit.caps]
    return [*slots, _allowance(permit)] if permit.allowance_of else slots


def _allowance(permit: Permit) -> str:
    return f"sg:{{{permit.tenant_id}}}:allowance:{permit.allowance_of}"


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
        # A connection that Redis closed while it was idle is no reason to refuse anybody: a new one is tried.
        retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
    )
    return aioredis.Redis.from_pool(pool)
