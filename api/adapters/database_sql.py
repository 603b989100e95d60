"""One engine for SQLite and PostgreSQL, and the migrations.

SQLite: WAL, so that readers and the writer do not wait for each other; `synchronous=FULL`, so that a
committed booking survives a power cut (P1); write transactions take the lock at once (BEGIN IMMEDIATE),
because upgrading a read lock can fail without waiting.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event, make_url
from sqlalchemy.ext.asyncio import create_async_engine

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection
    from sqlalchemy.ext.asyncio import AsyncEngine

WRITES = {"sluicegate_writes": True}
"""Execution options of a connection that is going to write."""

_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
}


def database_url(text: str) -> URL:
    """A SQLAlchemy URL with an async driver; plain `sqlite://` and `postgresql://` are understood."""
    url = make_url(text)
    return url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))


def open_engine(
    text: str, *, connections: int = 10, migrating: bool = False, seconds: float = 5
) -> AsyncEngine:
    """An engine; connects when first used, and keeps half of its connections when they are idle.

    For `migrating` SQLite checks no foreign keys: it changes a table by making it anew. On PostgreSQL a
    statement may take so many `seconds`; one of a migration as long as it takes.
    """
    url = database_url(text)
    if url.get_backend_name() == "sqlite":
        if url.database and url.database != ":memory:":
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_async_engine(url, connect_args={"timeout": 5}, hide_parameters=True)
        event.listen(engine.sync_engine, "connect", _sqlite_connected)
        if migrating:
            event.listen(engine.sync_engine, "connect", _sqlite_migrates)
        event.listen(engine.sync_engine, "begin", _sqlite_begins)
        return engine
    return create_async_engine(
        url,
        pool_size=connections // 2,
        max_overflow=connections - connections // 2,
        pool_timeout=5,
        pool_pre_ping=True,
        hide_parameters=True,  # rows hold hashes and tenants' data: not for logs
        connect_args={"timeout": 5, "command_timeout": None if migrating else seconds},
    )


def _sqlite_connected(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver must not begin transactions: `_sqlite_begins` does
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _sqlite_migrates(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA foreign_keys=OFF")


def _sqlite_begins(connection: Connection) -> None:
    writes = connection.get_execution_options().get("sluicegate_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def alembic_config(text: str) -> Config:
    """Alembic's configuration, without an ini file."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["url"] = text
    return config


def revisions(connection: Connection) -> tuple[str | None, str | None]:
    """Where the database is, and the newest there is."""
    at = MigrationContext.configure(connection).get_current_revision()
    return at, ScriptDirectory.from_config(alembic_config("")).get_current_head()


def migrate(text: str, revision: str = "head") -> None:
    """Bring the database to a revision. Blocks; safe to run from several processes at once."""
    command.upgrade(alembic_config(text), revision)
