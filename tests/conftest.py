"""Fixtures of the whole suite. Servers start once, when the first test asks for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import redis as sync_redis

from tests.support.redis_servers import RedisCluster, RedisSentinel
from tests.support.servers import PostgresServer, RedisServer, ScriptedProcess, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A real Redis, shared by the suite."""
    with running(RedisServer()) as server:
        server.start()
        yield server


@pytest.fixture(scope="session")
def cluster_server() -> Iterator[RedisCluster]:
    """A real Redis Cluster, shared by the suite."""
    with running(RedisCluster()) as server:
        server.start()
        yield server


@pytest.fixture(scope="session")
def sentinel_server() -> Iterator[RedisSentinel]:
    """A real Redis behind a sentinel, shared by the suite."""
    with running(RedisSentinel()) as server:
        server.start()
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A real PostgreSQL, shared by the suite."""
    with running(PostgresServer()) as server:
        yield server


@pytest.fixture(scope="session")
def scripted() -> Iterator[ScriptedProcess]:
    """The scripted upstream in a process of its own."""
    with running(ScriptedProcess()) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The real Redis, emptied."""
    with sync_redis.Redis(port=redis_server.port) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture
def redis_cluster(cluster_server: RedisCluster) -> RedisCluster:
    """The real Redis Cluster, emptied."""
    cluster_server.empty()
    return cluster_server


@pytest.fixture
def redis_sentinel(sentinel_server: RedisSentinel) -> RedisSentinel:
    """The real Redis behind a sentinel, emptied. Its master stays what it is: start one to take away."""
    sentinel_server.empty()
    return sentinel_server


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A Redis of this test's own, which it may pause and kill."""
    with running(RedisServer()) as server:
        server.start()
        yield server


@pytest.fixture
def new_database(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Makes an empty database of a kind, `sqlite` or `postgresql`; returns its URL."""

    def make(kind: str) -> str:
        if kind == "sqlite":
            return f"sqlite+aiosqlite:///{tmp_path / 'ledger.db'}"
        return str(request.getfixturevalue("postgres_server").new_database())

    return make
