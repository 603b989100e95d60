"""Alembic's environment: one connection, one transaction, one process at a time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from alembic import context
from sqlalchemy import text

from api.adapters.database_sql import WRITES, open_engine
from api.adapters.tables_sql import metadata

if TYPE_CHECKING:
    from sqlalchemy import Connection

_LOCK = 0x51C1CE  # any number that nobody else in the database uses


def run(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
    context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
    context.run_migrations()
    if connection.dialect.name == "sqlite" and connection.execute(text("PRAGMA foreign_key_check")).first():
        raise RuntimeError("the migration leaves rows that point at nothing; nothing was changed")


async def migrate_online() -> None:
    engine = open_engine(context.config.attributes["url"], migrating=True)
    try:
        async with engine.connect() as connection:
            await connection.execution_options(**WRITES)
            async with connection.begin():
                await connection.run_sync(run)
    finally:
        await engine.dispose()


asyncio.run(migrate_online())
