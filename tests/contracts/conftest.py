"""Each port's implementations as fixtures: a migrated database of both kinds, and engines on it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from api.adapters.database_sql import migrate, open_engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

DATABASES = ("sqlite", "postgresql")


@pytest.fixture(params=DATABASES)
def kind(request: pytest.FixtureRequest) -> str:
    """Which database; every test that uses it, even indirectly, runs on both."""
    return str(request.param)


@pytest.fixture
async def database(kind: str, new_database: Callable[[str], str]) -> str:
    """The URL of a database that is migrated and empty."""
    url = new_database(kind)
    await asyncio.to_thread(migrate, url)
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
