"""Migrations and tables are one thing, on SQLite and PostgreSQL; and times keep their moment."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, literal, select, text
from sqlalchemy.exc import StatementError

from api.adapters.database_sql import alembic_config, migrate, open_engine
from api.adapters.tables_sql import UtcTime, metadata
from api.tasks import Tasks
from tests.contracts.helpers import bounded, eventually
from tests.support.servers import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncEngine


@pytest.fixture
async def database(kind: str, new_database: Callable[[str], str]) -> str:
    """A database of the test's own, migrated: these tests change more than rows."""
    url = new_database(kind)
    await asyncio.to_thread(migrate, url)
    return url


def differences(connection: Connection) -> list[object]:
    """What a migration would still have to do."""
    known = tables(connection) | set(metadata.tables)

    def matters(name: str | None, kind: str, _parents: object) -> bool:
        return kind != "table" or name in known

    return list(
        compare_metadata(MigrationContext.configure(connection, opts={"include_name": matters}), metadata)
    )


def tables(connection: Connection) -> set[str]:
    """The names of all tables. A partition is none of its own."""
    names = set(inspect(connection).get_table_names())
    if connection.dialect.name == "postgresql":
        names -= set(connection.execute(text("SELECT relname FROM pg_class WHERE relispartition")).scalars())
    return names


async def ask(url: str, question: Callable[[Connection], object]) -> object:
    """The answer, from an engine of its own."""
    engine = open_engine(url)
    async with engine.connect() as connection:
        answer = await connection.run_sync(question)
    await engine.dispose()
    return answer


async def test_upgrading_from_nothing_gives_exactly_the_tables(engine: AsyncEngine) -> None:
    """Code and database agree: Alembic finds no column, type, index or key that differs."""
    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []
        assert await connection.run_sync(tables) == {*metadata.tables, "alembic_version"}


async def test_downgrading_leaves_nothing_behind(database: str) -> None:
    """A migration can be taken back, wholly, and made again."""
    await asyncio.to_thread(command.downgrade, alembic_config(database), "base")
    assert await ask(database, tables) == {"alembic_version"}
    await asyncio.to_thread(migrate, database)
    assert await ask(database, differences) == []


def structure(connection: Connection) -> dict[str, object]:
    """What can be told of every table: columns, indexes with their conditions, keys; and all triggers."""
    seen = inspect(connection)
    found: dict[str, object] = {
        table: (
            [(c["name"], str(c["type"]), c["nullable"], c["default"]) for c in seen.get_columns(table)],
            sorted(
                (
                    str(index["name"]),
                    bool(index["unique"]),
                    index["column_names"],
                    sorted((name, str(value)) for name, value in index.get("dialect_options", {}).items()),
                )
                for index in seen.get_indexes(table)
            ),
            seen.get_pk_constraint(table)["constrained_columns"],
            [key["referred_table"] for key in seen.get_foreign_keys(table)],
        )
        for table in sorted(tables(connection))
    }
    names = "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal AND tgparentid = 0"
    if connection.dialect.name == "sqlite":
        names = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
    return found | {"triggers": sorted(connection.execute(text(names)).scalars())}


@pytest.mark.parametrize("revision", ["0001", "0002", "0003", "0004", "0005"])
async def test_a_step_back_is_where_one_was(kind, database, new_database, revision) -> None:
    """A downgrade leaves just the tables of that release: no index lost, no column too many; and up again."""
    before = new_database(kind)
    await asyncio.to_thread(migrate, before, revision)
    head = await ask(database, structure)
    await asyncio.to_thread(command.downgrade, alembic_config(database), revision)
    assert await ask(database, structure) == await ask(before, structure)
    await asyncio.to_thread(migrate, database)
    assert await ask(database, structure) == head


def test_every_release_but_the_last_is_stepped_back_to() -> None:
    """Whoever adds a migration adds the one before it above."""
    script = ScriptDirectory.from_config(alembic_config("sqlite://"))
    all_of_them = sorted(one.revision for one in script.walk_revisions())
    assert all_of_them[:-1] == ["0001", "0002", "0003", "0004", "0005"]


async def test_migrating_again_keeps_the_data(database: str, engine: AsyncEngine) -> None:
    """Every start migrates: on a database that is at the head this changes nothing."""
    async with engine.begin() as connection:
        await connection.execute(text("INSERT INTO users (email, password_hash) VALUES ('a@b', 'x')"))
    await asyncio.to_thread(migrate, database)
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT email FROM users"))).scalars().all() == ["a@b"]


_MIGRATE = """
import sys
from api.adapters.database_sql import migrate
print("ready", flush=True)
sys.stdin.read()
migrate(sys.argv[1])
"""
_PIPES = {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE, "cwd": ROOT}


@asynccontextmanager
async def hurdle(url: str) -> AsyncIterator[Callable[[], Awaitable[bool]]]:
    """On PostgreSQL, hold migrations up until so many wait that none of them can be early."""
    engine = open_engine(url)
    async with engine.connect() as connection:
        if engine.name == "postgresql":
            await connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
        asks = "query LIKE 'SELECT pg_try_advisory_lock%' AND state = 'idle'"  # again and again
        waiting = text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            f" AND pid <> pg_backend_pid() AND (wait_event_type = 'Lock' OR {asks})"
        )

        async def all_wait() -> bool:
            if engine.name == "sqlite":
                return True
            await connection.execute(text("SELECT pg_stat_clear_snapshot()"))  # else it never changes
            return bool((await connection.execute(waiting)).scalar_one() == 4)

        yield all_wait
    await engine.dispose()


async def test_processes_that_migrate_at_the_same_time_all_succeed(
    kind: str, new_database: Callable[[str], str]
) -> None:
    """Several hosts may start at once on an empty database: one migrates, the others wait, none fails."""
    url = new_database(kind)
    starting = [asyncio.create_subprocess_exec(sys.executable, "-c", _MIGRATE, url, **_PIPES) for _ in "1234"]
    processes = await asyncio.gather(*starting)
    try:
        for process in processes:
            assert await bounded(process.stdout.readline()) == b"ready\n"
        async with hurdle(url) as all_wait:
            for process in processes:
                process.stdin.close()
            await eventually(all_wait)
        said = await bounded(asyncio.gather(*(process.stderr.read() for process in processes)))
        ends = await bounded(asyncio.gather(*(process.wait() for process in processes)))
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    assert (said, ends) == ([b""] * 4, [0] * 4)
    assert await ask(url, differences) == []


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_limits_come_while_an_older_worker_reads_keys(kind, new_database, engine) -> None:
    """It has looked at a key and goes on to its tenant: neither of the two is killed, both end."""
    url, tasks = new_database(kind), Tasks()
    await asyncio.to_thread(migrate, url, "0002")
    reader = open_engine(url)
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'")

    async def waits() -> bool:
        async with engine.connect() as connection:
            return bool((await connection.execute(waiting)).scalar_one())

    async with reader.connect() as connection:
        await connection.execute(text("SELECT id FROM api_keys"))
        migrating = tasks.start(asyncio.to_thread(migrate, url, "0003"), name="migrate")
        await eventually(waits)
        assert (await connection.execute(text("SELECT id FROM tenants"))).all() == []
    await bounded(migrating)
    await reader.dispose()
    assert "limits" in {column for column, *_ in (await ask(url, structure))["tenants"][0]}


def test_the_history_is_one_line() -> None:
    """Two heads would leave it to chance which one a database gets."""
    script = ScriptDirectory.from_config(alembic_config("sqlite://"))
    assert (len(script.get_heads()), len(script.get_bases())) == (1, 1)


# --- times ------------------------------------------------------------------------------------------

MOMENT = datetime(2026, 7, 8, 9, 10, 11, 121314, tzinfo=UTC)


@pytest.mark.parametrize("hours", [0, -11, 14])
async def test_a_time_keeps_its_moment_and_comes_back_as_utc(engine: AsyncEngine, hours: int) -> None:
    """A moment is stored to the microsecond, whatever zone it was written in and the session is in."""
    async with engine.connect() as connection:
        if engine.name == "postgresql":
            await connection.execute(text("SET TIME ZONE 'Asia/Tokyo'"))
        local = MOMENT.astimezone(timezone(timedelta(hours=hours)))
        back = (await connection.execute(select(literal(local, UtcTime)))).scalar_one()
        none = (await connection.execute(select(literal(None, UtcTime)))).scalar_one()
    assert (back, back.utcoffset(), none) == (MOMENT, timedelta(0), None)


async def test_a_time_without_a_zone_is_refused(engine: AsyncEngine) -> None:
    """Nobody can tell which moment it means, so it does not get in."""
    naive = literal(MOMENT.replace(tzinfo=None), UtcTime)
    async with engine.connect() as connection:
        with pytest.raises(StatementError, match="without a zone"):
            await connection.execute(select(naive))
