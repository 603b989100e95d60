"""Databases that can be taken away and brought back: SQLite locked, PostgreSQL refusing or unreachable."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sqlalchemy import event, make_url

from api.adapters.database_sql import open_engine
from tests.contracts.wires import Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.support.servers import PostgresServer


class Outage(Protocol):
    """A database, by its URL, that can be taken away and brought back."""

    url: str
    makes_reads_fail: bool

    async def begin(self) -> None: ...

    async def end(self) -> None: ...


@dataclass
class Locked:
    """Another process holds SQLite's write lock for longer than we are ready to wait."""

    url: str
    makes_reads_fail = False

    async def begin(self) -> None:
        self.holder = sqlite3.connect(str(make_url(self.url).database), isolation_level=None)
        self.holder.execute("BEGIN EXCLUSIVE")

    async def end(self) -> None:
        self.holder.close()


@dataclass
class Refusing:
    """PostgreSQL ends all sessions, and answers new ones with an error of its own, as at start and stop."""

    url: str
    server: PostgresServer
    makes_reads_fail = True

    async def _allow(self, answer: str) -> None:
        name = make_url(self.url).database
        ending = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        command = f"ALTER DATABASE {name} ALLOW_CONNECTIONS {answer}; {ending};"
        await asyncio.to_thread(self.server.server.psql, command)

    async def begin(self) -> None:
        await self._allow("false")

    async def end(self) -> None:
        await self._allow("true")


@dataclass
class Unreachable:
    """The network to PostgreSQL is cut: sessions are reset, and nobody listens."""

    url: str
    proxy: Proxy
    makes_reads_fail = True

    async def begin(self) -> None:
        await self.proxy.cut()

    async def end(self) -> None:
        await self.proxy.mend()


@asynccontextmanager
async def through_a_proxy(url: str) -> AsyncIterator[tuple[Proxy, str]]:
    """A proxy in front of PostgreSQL, and the URL that goes through it."""
    socket = f"{make_url(url).query['host']}/.s.PGSQL.5432"
    async with Proxy(lambda: asyncio.open_unix_connection(socket)) as proxy:
        detour = make_url(url).set(host="127.0.0.1", port=proxy.port, query={})
        yield proxy, detour.render_as_string(hide_password=False)


def open_impatient(outage: Outage) -> AsyncEngine:
    """An engine on it; on SQLite it gives up on a lock after 20 ms."""
    opened = open_engine(outage.url)
    if isinstance(outage, Locked):

        def impatient(connection: sqlite3.Connection, _record: object) -> None:
            connection.execute("PRAGMA busy_timeout = 20").close()

        event.listen(opened.sync_engine, "connect", impatient)
    return opened
