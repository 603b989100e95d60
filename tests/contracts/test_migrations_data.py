"""Migrations on databases in use, SQLite and PostgreSQL: every row is kept, old keys still open."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from alembic import command
from sqlalchemy import (
    BigInteger,
    Boolean,
    LargeBinary,
    String,
    bindparam,
    inspect,
    select,
    text,
)

from api.accounts import TenantFields
from api.adapters.accounts_sql import SqlAccounts
from api.adapters.credentials_sql import SqlCredentials
from api.adapters.database_sql import alembic_config, migrate, open_engine
from api.adapters.ledger_sql import SqlLedger
from api.adapters.tables_sql import UtcTime, metadata
from api.core.record import Spending, Totals
from auth import keys
from auth.principal import Scope, StoredTenant, StoredUser
from tests.contracts.helpers import BY, START, Clock, booking, event, outcomes, writing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

KEYS = [keys.mint(), keys.mint(), keys.mint()]
TYPES = {str: String(), int: BigInteger(), bool: Boolean(), bytes: LargeBinary(), datetime: UtcTime()}

TENANTS = [
    {"id": f"tn_{n}", "name": f"Tenant {n} 水", "max_streams": n + 1, "active": n != 1, "created_at": START}
    for n in range(3)
]
OLD_KEYS = [
    {
        "id": key.id,
        "tenant_id": f"tn_{n}",
        "name": f"key {n}",
        "secret_sha256": key.sha256,
        "scopes": "chat usage:read",
        "created_at": START + timedelta(microseconds=n),
        "revoked_at": START if n == 2 else None,
    }
    for n, key in enumerate(KEYS)
]
USERS = [{"email": f"root{n}@example.com", "password_hash": f"hash {n}"} for n in range(2)]
LABELS = {
    "tenant_id": "tn_0",
    "key_id": KEYS[0].id,
    "end_user": "ü",
    "dialect": "openai_chat",
    "model": "gpt-4o",
    "upstream": "u",
    "worker": "host:1",
    "started_at": START,
    "input_tokens": 2**40,
    "output_tokens": 7,
}
IN_FLIGHT = [{**LABELS, "id": f"bk_{n}", "request_id": f"r{n}", "checkpoint_at": START} for n in range(2)]
EVENTS = [
    {
        **LABELS,
        "id": f"bk_9{n}",
        "request_id": f"q{n}",
        "end_user": None,
        "answered_model": "gpt-4o-2024",
        "cached_tokens": 3,
        "reasoning_tokens": 5,
        "source": "counted",
        "certainty": "at_least",
        "tokenizer": "o200k_base",
        "ended": "left",
        "cause": "client_left",
        "first_token_ms": 17,
        "duration_ms": 1900,
        "ended_at": START,
    }
    for n in range(3)
]
FILLED = {
    "tenants": TENANTS,
    "api_keys": OLD_KEYS,
    "users": USERS,
    "in_flight": IN_FLIGHT,
    "usage_events": EVENTS,
}


async def fill(connection: AsyncConnection, table: str, rows: list[dict[str, Any]]) -> None:
    """Insert rows into a table as it was, not as the code knows it now."""
    for row in rows:
        given = [bindparam(name, value, TYPES.get(type(value))) for name, value in row.items()]
        columns, values = ", ".join(row), ", ".join(f":{name}" for name in row)
        statement = text(f"INSERT INTO {table} ({columns}) VALUES ({values})")
        await connection.execute(statement.bindparams(*given))


async def read(engine: AsyncEngine, table: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those columns of a table that the rows have, as the code reads them."""
    of = metadata.tables[table]
    query = select(*(of.c[name] for name in rows[0])).order_by(*of.primary_key)
    async with engine.connect() as connection:
        return [dict(row) for row in (await connection.execute(query)).mappings()]


@pytest.fixture
async def old(kind: str, new_database: Callable[[str], str]) -> str:
    """The URL of a database of the first release, filled."""
    url = new_database(kind)
    await asyncio.to_thread(migrate, url, "0001")
    opened = open_engine(url)
    async with opened.begin() as connection:
        for table, rows in FILLED.items():
            await fill(connection, table, rows)
    await opened.dispose()
    return url


@pytest.fixture
async def engine(old: str) -> AsyncIterator[AsyncEngine]:
    """That database, migrated to the head."""
    await asyncio.to_thread(migrate, old)
    opened = open_engine(old)
    yield opened
    await opened.dispose()


@pytest.mark.parametrize("table", FILLED)
async def test_an_upgrade_keeps_every_row(engine, table) -> None:
    """All rows of the first release, with all that they said."""
    key = metadata.tables[table].primary_key.columns.keys()[0]
    assert await read(engine, table, FILLED[table]) == sorted(FILLED[table], key=lambda row: row[key])


async def test_old_keys_still_open(engine) -> None:
    """Whoever had a key before the upgrade has it after it, without limits that nobody decided."""
    store = SqlCredentials(engine, Clock())
    for n, key in enumerate(KEYS):
        found = await store.find_key(key.id)
        assert keys.same(key.sha256, found.secret_sha256)
        assert found.tenant == StoredTenant(f"tn_{n}", n != 1, n + 1, None)
        assert found.scopes == {Scope.CHAT, Scope.USAGE_READ}
        assert (found.revoked_at is None) == (n != 2)
        unsaid = (found.expires_at, found.previous_sha256, found.previous_until, found.models)
        assert unsaid == (None, None, None, None)
        assert (found.max_streams, found.allowed_addresses, found.limits) == (None, (), ())


async def test_old_tenants_can_be_worked_with(engine) -> None:
    """They are listed with the defaults of what is new, and every change that is new can be made on them."""
    accounts = SqlAccounts(engine, Clock())
    old = await accounts.tenants()
    states = [(one.id, one.state, one.time_zone, one.metadata) for one in old]
    assert states == [(f"tn_{n}", "suspended" if n == 1 else "active", "UTC", {}) for n in range(3)]
    queues = {(one.max_waiters, one.max_wait_seconds, one.weight) for one in old}
    assert (queues, [(one.limits, one.end_user_limits) for one in old]) == ({(0, 30, 1)}, [({}, {})] * 3)
    for n in range(2):
        await accounts.change_tenant(f"tn_{n}", {"external_id": f"crm-{n}"}, by=BY)
    infos = [(await accounts.keys(None).get(key.id)) for key in KEYS]
    assert [(info.created_by, info.last_used_at) for info in infos] == [("", None)] * 3
    assert (await accounts.delete("tn_0", by=BY)).state == "deleted"
    await accounts.create_tenant(TenantFields("heir", 1, "crm-0"), by=BY)
    assert (await accounts.keys(None).get(KEYS[0].id)).revoked_at is not None


async def test_old_admins_still_sign_in(engine) -> None:
    """With their passwords."""
    store = SqlCredentials(engine, Clock())
    for user in USERS:
        assert await store.find_user(user["email"]) == StoredUser(user["email"], user["password_hash"])


async def test_old_bookings_settle_and_old_events_count(engine) -> None:
    """A stream that was in flight at the upgrade ends as one event; the record reads on."""
    async with writing(engine) as (ledger, _):
        old = await ledger.events("tn_0", after=None, limit=9)
        assert [one.booking.id for one in old] == [row["id"] for row in EVENTS]
        assert {(one.booking.key_id, one.booking.token_id) for one in old} == {(KEYS[0].id, None)}
        assert await ledger.totals("tn_0") == Totals(3, 3 * 2**40, 21)
        assert await ledger.in_flight_count() == 2
        await outcomes([ledger.settle(event(old[0].booking.__class__(**_booked(n)))) for n in range(2)])
        assert await ledger.in_flight_count() == 0
        assert (await ledger.totals("tn_0")).events == 5
    ledger = SqlLedger(engine)
    assert await ledger.spent("tn_0", Spending("token", "jti", money=False, since=None)) == 0
    assert await ledger.spent("tn_0", Spending("tenant", "tn_0", money=True, since=None)) == 0


async def use(engine: AsyncEngine) -> None:
    """Leave rows behind that the first release has no place for."""
    accounts = SqlAccounts(engine, Clock())
    some = {"limits": {"tokens_per_day": 5}, "end_user_limits": {"max_streams": 1}, "weight": 7}
    await accounts.change_tenant("tn_0", {"external_id": "crm", "metadata": {"a": "b"}, **some}, by=BY)
    await accounts.revoke_token("tn_0", "jti", by=BY)
    narrow = {"models": ("gpt-*",), "max_streams": 2, "limits": {"tokens_per_day": 5}}
    await accounts.keys(None).change(KEYS[0].id, narrow, by=BY)
    foreign = event(booking(key_id=None, token_id="jti"))
    async with writing(engine) as (ledger, _):
        await outcomes([ledger.book(foreign.booking), ledger.settle(foreign)])
        await outcomes([ledger.book(booking(key_id=None))])


async def test_a_downgrade_keeps_what_the_older_release_knows(engine, old) -> None:
    """Taken back on a database in use, and made again: rows, secrets, events without a key."""
    await use(engine)
    await engine.dispose()
    await asyncio.to_thread(command.downgrade, alembic_config(old), "0001")
    async with engine.connect() as connection:
        tables = set(await connection.run_sync(lambda sync: inspect(sync).get_table_names()))
        keyless = text("SELECT count(*) FROM usage_events WHERE key_id = ''")
        assert (await connection.execute(keyless)).scalar_one() == 1
    assert tables == {*FILLED, "alembic_version"}
    for table in ("tenants", "api_keys", "users"):
        key = metadata.tables[table].primary_key.columns.keys()[0]
        assert await read(engine, table, FILLED[table]) == sorted(FILLED[table], key=lambda row: row[key])
    assert len(await read(engine, "in_flight", [{"id": ""}])) == len(IN_FLIGHT) + 1
    await engine.dispose()
    await asyncio.to_thread(migrate, old)
    assert keys.same(
        KEYS[0].sha256, (await SqlCredentials(engine, Clock()).find_key(KEYS[0].id)).secret_sha256
    )
    assert (await SqlLedger(engine).totals("tn_a")).events == 1


def _booked(number: int) -> dict[str, Any]:
    counts = ("input_tokens", "output_tokens", "checkpoint_at")
    row = {name: value for name, value in IN_FLIGHT[number].items() if name not in counts}
    return {**row, "token_id": None}
