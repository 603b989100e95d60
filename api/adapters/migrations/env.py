"""Alembic's environment: one connection, and one process at a time.

SQLite: one transaction for all migrations. PostgreSQL: one for each, and a migration may end it to do what
keeps nobody out; a kill leaves part of it done, and the next process does the rest. A lock of the session
keeps other processes away. They ask for it again and again: waiting in a statement, they would hold up an
index that is built beside all writing, because that waits for the end of every statement.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from alembic import context
from sqlalchemy import text

from api.adapters.database_sql import WRITES, open_engine
from api.adapters.partitions_sql import ensure_partitions
from api.adapters.tables_sql import metadata

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection

_LOCK = 0x51C1CE  # any number that nobody else in the database uses
_ASK_SECONDS = 0.1


def run(connection: Connection) -> None:
    steps = connection.dialect.name == "postgresql"
    context.configure(
        connection=connection,
        target_metadata=metadata,
        transactional_ddl=True,
        transaction_per_migration=steps,
    )
    with context.begin_transaction():
        context.run_migrations()
    if not steps and connection.execute(text("PRAGMA foreign_key_check")).first():
        raise RuntimeError("the migration leaves rows that point at nothing; nothing was changed")


async def only_one(connection: AsyncConnection) -> None:
    ask = text(f"SELECT pg_try_advisory_lock({_LOCK})")
    await connection.execution_options(isolation_level="AUTOCOMMIT")
    while not (await connection.execute(ask)).scalar_one():  # noqa: ASYNC110 - nobody here could set an event
        await asyncio.sleep(_ASK_SECONDS)
    await connection.commit()
    await connection.execution_options(isolation_level="READ COMMITTED")


async def migrate_online() -> None:
    engine = open_engine(context.config.attributes["url"], migrating=True)
    try:
        async with engine.connect() as connection:
            await connection.execution_options(**WRITES)
            if engine.name == "postgresql":
                await only_one(connection)
                await connection.run_sync(run)
                await ensure_partitions(connection)
            else:
                async with connection.begin():
                    await connection.run_sync(run)
    finally:
        await engine.dispose()


asyncio.run(migrate_online())
