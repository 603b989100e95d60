"""Each port's implementations as fixtures: databases of both kinds, an empty Redis of both, and outages."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from api.adapters import redis_connect
from api.adapters.accounts_sql import SqlAccounts
from api.adapters.credentials_sql import SqlCredentials
from api.adapters.database_sql import migrate, open_engine
from api.adapters.limiter_redis import RedisLimiter
from api.adapters.tables_sql import metadata
from tests.contracts.helpers import BOUND_SECONDS, TERMS, Clock
from tests.contracts.outages import Locked, Refusing, Unreachable, through_a_proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from redis.asyncio import Redis
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.contracts.outages import Outage
    from tests.contracts.wires import Proxy
    from tests.support.servers import PostgresServer


@pytest.fixture(params=["sqlite", "postgresql"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which database; every test that uses it, even indirectly, runs on both."""
    return str(request.param)


@pytest.fixture(scope="session")
def shared_postgres(postgres_server: PostgresServer) -> str:
    """One migrated database for tests that only write rows: a new one each costs 12 MB and 100 ms."""
    url = postgres_server.new_database()
    with ThreadPoolExecutor(1) as thread:  # a loop may be running in this one
        thread.submit(migrate, url).result()
    return url


@pytest.fixture
async def database(kind: str, new_database: Callable[[str], str], request: pytest.FixtureRequest) -> str:
    """The URL of a database that is migrated and empty."""
    if kind == "sqlite":
        url = new_database(kind)
        await asyncio.to_thread(migrate, url)
        return url
    url = str(request.getfixturevalue("shared_postgres"))
    opened = open_engine(url)
    async with opened.begin() as connection:
        await connection.execute(text("SET lock_timeout = '5s'"))
        await connection.execute(text("SET LOCAL session_replication_role = replica"))  # no triggers
        await connection.execute(text(f"TRUNCATE {', '.join(metadata.tables)}"))
    await opened.dispose()
    return url


@pytest.fixture
async def engine(database: str) -> AsyncIterator[AsyncEngine]:
    """The engine that the code under test uses."""
    opened = open_engine(database)
    yield opened
    await opened.dispose()


@pytest.fixture
async def witness(database: str) -> AsyncIterator[AsyncEngine]:
    """Another engine on the same database: sees only what is committed."""
    opened = open_engine(database)
    yield opened
    await opened.dispose()


@pytest.fixture
def clock() -> Clock:
    """The time, as accounts and credentials of a test see it."""
    return Clock()


@pytest.fixture
def accounts(engine: AsyncEngine, clock: Clock) -> SqlAccounts:
    """Accounts on an empty database."""
    return SqlAccounts(engine, clock)


@pytest.fixture
def credentials(engine: AsyncEngine, clock: Clock) -> SqlCredentials:
    """What authentication asks, of the same database."""
    return SqlCredentials(engine, clock)


# --- Redis ------------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "redis"])
async def client(request: pytest.FixtureRequest) -> AsyncIterator[Redis]:
    """A client of an empty Redis."""
    url = "memory://" if request.param == "memory" else request.getfixturevalue("redis_url")
    opened = redis_connect.connect(url, timeout_seconds=BOUND_SECONDS)
    yield opened
    await opened.aclose()


@pytest.fixture
def limiter(client: Redis) -> RedisLimiter:
    """A limiter whose leases outlast any test, and which waits however loaded the machine is."""
    return RedisLimiter(client, TERMS, timeout_seconds=BOUND_SECONDS)


# --- outages ----------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite locked", "postgresql refusing", "postgresql unreachable"])
async def outage(request, new_database: Callable[[str], str]) -> AsyncIterator[Outage]:
    """One way for a database to be away."""
    url = new_database(request.param.split()[0])
    await asyncio.to_thread(migrate, url)
    if request.param == "sqlite locked":
        yield Locked(url)
        return
    if request.param == "postgresql refusing":
        yield Refusing(url, request.getfixturevalue("postgres_server"))
        return
    async with through_a_proxy(url) as (proxy, detour):
        yield Unreachable(detour, proxy)


@pytest.fixture
async def proxied(
    new_database: Callable[[str], str], postgres_server: PostgresServer
) -> AsyncIterator[tuple[str, str, Proxy]]:
    """A migrated PostgreSQL: its URL, its URL through a proxy, and the proxy."""
    url = new_database("postgresql")
    await asyncio.to_thread(migrate, url)
    async with through_a_proxy(url) as (proxy, detour):
        yield url, detour, proxy
