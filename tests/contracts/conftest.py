"""Each port's implementations as fixtures: a migrated database of both kinds, and engines on it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from api.adapters.database_sql import migrate, open_engine
from api.adapters.tables_sql import metadata

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

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
