"""Clients for every kind of REDIS_URL: one Redis, a Redis Cluster, a master that sentinels name, memory.

All are bounded: so many connections, and whoever finds them taken waits. The caller bounds the time of a
call. The client's own time-outs are there for the callers that do not, and longer, except for connecting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import redis.asyncio as aioredis
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from api.adapters.redis_cluster import Cluster
from api.adapters.redis_sentinel import MasterPool, Sentinels
from api.redis_url import parse_redis_url

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.asyncio.connection import ConnectionPool

    from api.redis_url import RedisUrl

_SOCKETS = {Connection, SSLConnection, UnixDomainSocketConnection}
_SOCKETS |= {SentinelManagedConnection, SentinelManagedSSLConnection}

CONNECTIONS = 32
"""The most that one client opens, to each node of a cluster."""

_BACKSTOP = 4
"""How much longer than the caller a client waits by itself. Only the caller can tell a Redis that is silent
from an event loop of its own that was busy; a time-out of the client's would put both down to Redis."""


def connect(url: str, *, timeout_seconds: float = 0.25) -> Redis:
    """A client for `memory://` (this process only) or any other REDIS_URL. Connects when first used.

    Raises ValueError for a URL that cannot be one. A Cluster is not a `Redis`, but is used like one.
    """
    parsed = parse_redis_url(url)
    if parsed.kind == "memory":
        return _in_memory(timeout_seconds)
    if parsed.kind == "cluster":
        return cast("Redis", _cluster(parsed, timeout_seconds))
    if parsed.kind == "sentinel":
        return _sentinel(parsed, timeout_seconds)
    pool = aioredis.BlockingConnectionPool.from_url(
        url, max_connections=CONNECTIONS, timeout=_BACKSTOP * timeout_seconds, **_options(timeout_seconds)
    )
    return aioredis.Redis.from_pool(pool)


def direct_pool(client: Redis) -> ConnectionPool | None:
    """The connections to one Redis; None of a Cluster, which is many, and of `memory://`, which has none."""
    pool = getattr(client, "connection_pool", None)
    return pool if getattr(pool, "connection_class", None) in _SOCKETS else None


def _in_memory(timeout_seconds: float) -> Redis:
    from fakeredis import FakeAsyncRedis, FakeServer  # noqa: PLC0415 - only where it is asked for

    client: Redis = FakeAsyncRedis(
        server=FakeServer(),
        connection_pool_class=aioredis.BlockingConnectionPool,
        max_connections=CONNECTIONS,
        timeout=_BACKSTOP * timeout_seconds,
    )
    return client


def _cluster(url: RedisUrl, timeout_seconds: float) -> Cluster:
    return Cluster(url.hosts, CONNECTIONS, ssl=url.tls, **_options(timeout_seconds), **url.login, **url.ssl)


def _sentinel(url: RedisUrl, timeout_seconds: float) -> Redis:
    options: dict[str, Any] = {**_options(timeout_seconds), **url.ssl}
    if url.tls:
        options["ssl"] = True
    sentinels = Sentinels(url.hosts, sentinel_kwargs={**options, **url.sentinel_login})
    options |= {"max_connections": CONNECTIONS, "timeout": _BACKSTOP * timeout_seconds, "db": url.database}
    client: Redis = sentinels.master_for(
        url.master,
        connection_pool_class=MasterPool,
        **options,
        **url.login,  # type: ignore[arg-type]
    )
    return client


def _options(timeout_seconds: float) -> dict[str, Any]:
    return {
        "socket_timeout": _BACKSTOP * timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "health_check_interval": 30,
        # A connection that Redis closed while it was idle is no reason to refuse anybody: a new one is tried.
        "retry": Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
    }
