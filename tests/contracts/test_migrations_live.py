"""Migrations of a PostgreSQL that is being written to: nobody waits, nothing is lost, a kill is no harm."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import insert, select, text

from api.adapters.database_sql import migrate, open_engine
from api.adapters.tables_sql import rollup_queue, usage_events
from api.tasks import Tasks
from tests.contracts.helpers import bounded, eventually
from tests.contracts.ledgers import ended, put
from tests.contracts.months import partitions
from tests.support.servers import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

ROWS = 2000
NEW = ("price_version", "corrects")
OLD = insert(usage_events).values(
    {column.name: None for column in usage_events.c if column.name not in NEW}  # as the former release does
)
REPORT = text("LOCK TABLE usage_events IN ACCESS SHARE MODE")
"""What reading takes. A real report would hold up the index too, which holds up nobody."""
FIRST = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.fixture
async def old(new_database: Callable[[str], str]) -> str:
    """The URL of a database of the former release, with half a year's events."""
    url = new_database("postgresql")
    await asyncio.to_thread(migrate, url, "0003")
    opened = open_engine(url)
    async with opened.begin() as connection:
        rows = [row(FIRST + timedelta(hours=2 * number)) for number in range(ROWS)]
        await connection.execute(OLD, rows)
    await opened.dispose()
    return url


@pytest.fixture
async def engine(old: str) -> AsyncIterator[AsyncEngine]:
    """An old worker's: it has statements prepared, and goes on with them."""
    opened = open_engine(old)
    yield opened
    await opened.dispose()


def row(at: datetime) -> dict[str, Any]:
    """An event as the former release writes it."""
    return {name: value for name, value in ended(at).flat().items() if name not in NEW}


async def write(engine: AsyncEngine, at: datetime | None = None) -> str:
    """An event of an old worker; returns its id. It takes no longer than a second or so."""
    values = row(at or datetime.now(UTC))
    async with engine.begin() as connection:
        await bounded(connection.execute(OLD, [values]))
    return str(values["id"])


async def ids(engine: AsyncEngine, column: Any = usage_events.c.id) -> list[str]:
    """Of all events, or of what waits for the roll-ups."""
    async with engine.connect() as connection:
        return list((await connection.execute(select(column).order_by(column))).scalars())


async def revision(engine: AsyncEngine) -> str:
    """Where the database is."""
    async with engine.connect() as connection:
        return str((await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar_one())


async def lock_asked_for(engine: AsyncEngine) -> bool:
    """Whether somebody waits for the events to be used by nobody else."""
    waits = text(
        "SELECT count(*) FROM pg_locks"
        " WHERE NOT granted AND mode = 'AccessExclusiveLock' AND relation = 'usage_events'::regclass"
    )
    async with engine.connect() as connection:
        return bool((await connection.execute(waits)).scalar_one())


async def test_every_event_is_there_and_none_is_written_again(old, engine) -> None:
    """The old table is the first partition, file and all; what comes later has months; all is queued once."""
    before = await ids(engine)
    file = text("SELECT pg_relation_filenode(:table)")
    async with engine.connect() as connection:
        was = (await connection.execute(file, {"table": "usage_events"})).scalar_one()
    await asyncio.to_thread(migrate, old)
    assert await ids(engine) == before
    assert await ids(engine, rollup_queue.c.event_id) == before
    [(first, count)] = [one for one in (await partitions(engine)).items() if one[0].startswith("until")]
    assert count == ROWS
    async with engine.connect() as connection:
        now = await connection.execute(file, {"table": f"usage_events_{first}"})
        assert now.scalar_one() == was
    late = [await write(engine), await write(engine, datetime.now(UTC) + timedelta(days=100))]
    assert await ids(engine) == sorted([*before, *late])
    assert (await partitions(engine))["default"] == 1


@pytest.mark.parametrize("step", ["0004", "0005"])
async def test_old_workers_go_on_while_it_waits_for_a_report(old, engine, step) -> None:
    """Whoever waits for a table keeps all others waiting: so it gives way, and asks again.

    What they write is on the ledger and in the queue of the roll-ups, of which they do not know.
    """
    await asyncio.to_thread(migrate, old, f"{int(step) - 1:04}")
    before, tasks = await ids(engine), Tasks()
    written = [await write(engine)]
    async with engine.connect() as report:
        await report.execute(REPORT)
        migrating = tasks.start(asyncio.to_thread(migrate, old, step), name="migrate")
        for _ in range(3):
            await eventually(lambda: lock_asked_for(engine))
            written += [await write(engine) for _ in range(5)]
        assert not migrating.done()
    while not migrating.done():
        written.append(await write(engine))
    await bounded(migrating)
    written.append(await write(engine))
    everything = sorted([*before, *written])
    assert await ids(engine) == everything
    assert await ids(engine, rollup_queue.c.event_id) == everything


async def test_a_transaction_that_began_before_it_is_waited_for(old, engine) -> None:
    """An event that is written and not yet committed is neither lost nor left out of the roll-ups."""
    tasks = Tasks()
    async with engine.begin() as connection:
        values = row(datetime.now(UTC))
        await connection.execute(OLD, [values])
        migrating = tasks.start(asyncio.to_thread(migrate, old), name="migrate")
        await eventually(lambda: lock_asked_for(engine))
    await bounded(migrating)
    assert values["id"] in await ids(engine)
    assert values["id"] in await ids(engine, rollup_queue.c.event_id)


async def test_newer_workers_queue_their_events_themselves(old, engine) -> None:
    """The trigger that does it for older ones finds nothing to do."""
    await asyncio.to_thread(migrate, old)
    events = [ended(datetime.now(UTC)) for _ in range(3)]
    await put(engine, *events)
    queue = await ids(engine, rollup_queue.c.event_id)
    assert [queue.count(event.id) for event in events] == [1, 1, 1]


# --- killed in the middle -----------------------------------------------------------------------------

_MIGRATE = "import sys; from api.adapters.database_sql import migrate; migrate(sys.argv[1])"


@asynccontextmanager
async def process(url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """One that migrates, and is killed without warning at the end."""
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _MIGRATE, url, stderr=PIPE, stdout=PIPE, cwd=ROOT
    )
    try:
        yield started
    finally:
        started.kill()
        await started.wait()


async def state_of_index(connection: AsyncConnection) -> bool | None:
    """Whether the new index is valid; None: there is none."""
    valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('uq_usage_events_id_started_at')"
    return (await connection.execute(text(valid))).scalar()


@pytest.mark.parametrize("left", ["", "NOT VALID"])
async def test_killed_before_the_last_step_it_is_done_again(old, engine, left) -> None:
    """The index is there, perhaps the check; the table is not turned: it takes events, the rest is done."""
    await asyncio.to_thread(migrate, old, "0004")
    before = await ids(engine)
    async with engine.connect() as report:
        await report.execute(REPORT)
        async with process(old):
            await eventually(lambda: lock_asked_for(engine))
        assert await revision(engine) == "0004"
        assert await state_of_index(report)
    async with engine.begin() as connection:
        check = f"CONSTRAINT usage_events_until CHECK (started_at < '2027-08-01') {left}"
        await connection.execute(text(f"ALTER TABLE usage_events ADD {check}"))
    written = [await write(engine)]
    await asyncio.to_thread(migrate, old)
    assert await ids(engine) == sorted([*before, *written])
    assert (await partitions(engine))["default"] == 0


async def test_killed_while_it_builds_an_index_it_builds_it_anew(old, engine) -> None:
    """What was left is not valid, and would be taken for an index that is there."""
    await asyncio.to_thread(migrate, old, "0004")
    building = text("SELECT pid FROM pg_stat_activity WHERE query LIKE 'CREATE UNIQUE INDEX CONCURRENTLY%'")
    async with engine.begin() as writer:
        await writer.execute(OLD, [row(datetime.now(UTC))])  # not yet committed: the index waits for it
        async with process(old), engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            await eventually(lambda: _left_over(connection))
        async with engine.connect() as connection:
            [pid] = (await connection.execute(building)).scalars()
            await connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        assert await state_of_index(connection) is False
    await asyncio.to_thread(migrate, old)
    assert len(await ids(engine)) == ROWS + 1
    async with engine.connect() as connection:
        invalid = text("SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid")
        assert list((await connection.execute(invalid)).scalars()) == []


async def _left_over(connection: AsyncConnection) -> bool:
    return await state_of_index(connection) is False


async def test_events_of_the_future_have_their_place(old, engine) -> None:
    """A clock was wrong once: the old table takes what it has, and months begin after it."""
    wrong = await write(engine, datetime.now(UTC) + timedelta(days=700))
    await asyncio.to_thread(migrate, old)
    assert wrong in await ids(engine)
    assert [rows for name, rows in (await partitions(engine)).items() if name.startswith("until")] == [
        ROWS + 1
    ]


async def test_whoever_may_read_the_events_may_read_on(old, engine) -> None:
    """What was granted on the old table is granted on the new one."""
    role = f"finance_{old[-8:]}"
    async with engine.begin() as connection:
        for statement in (f'CREATE ROLE "{role}"', f'GRANT SELECT ON usage_events TO "{role}"'):
            await connection.execute(text(statement))
    await asyncio.to_thread(migrate, old)
    may = "SELECT has_table_privilege(:role, 'usage_events', :what)"
    async with engine.connect() as connection:
        answers = [
            (await connection.execute(text(may), {"role": role, "what": what})).scalar_one()
            for what in ("SELECT", "INSERT")
        ]
        assert answers == [True, False]
        await connection.execute(text(f'DROP OWNED BY "{role}"'))
        await connection.execute(text(f'DROP ROLE "{role}"'))
        await connection.commit()
