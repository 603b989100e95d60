"""The accounts' contract, on SQLite and PostgreSQL: tenants, keys, admins."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from api.adapters.accounts_sql import SqlAccounts
from api.adapters.tables_sql import metadata
from api.ports import AccountsUnavailable, NoSuchTenant
from auth import keys
from auth.principal import TENANT_SCOPES, Scope, StoredKey

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

START = datetime(2026, 3, 4, 5, 6, 7, 890123, tzinfo=UTC)


class Clock:
    """A clock that moves on by a second each time it is looked at."""

    def __init__(self) -> None:
        self.looked = 0

    def now(self) -> datetime:
        self.looked += 1
        return START + timedelta(seconds=self.looked)

    def unix(self) -> float:
        return self.now().timestamp()

    def monotonic(self) -> float:
        return self.unix()


@pytest.fixture
def accounts(engine: AsyncEngine) -> SqlAccounts:
    """Accounts on an empty database."""
    return SqlAccounts(engine, Clock())


async def test_tenants_are_found_as_they_were_made(accounts, witness) -> None:
    """A tenant comes back with every field, for everybody; the list is oldest first."""
    made = [await accounts.create_tenant(f"Ünïted {n}", n + 1) for n in range(3)]
    others = SqlAccounts(witness, Clock())
    assert await others.tenants() == made
    assert [await others.tenant(tenant.id) for tenant in made] == made
    assert [(t.name, t.max_streams, t.active) for t in made] == [
        (f"Ünïted {n}", n + 1, True) for n in range(3)
    ]
    assert [tenant.created_at for tenant in made] == [START + timedelta(seconds=n) for n in (1, 2, 3)]
    assert await others.tenant("tn_nobody") is None


async def test_a_key_is_found_with_all_that_authentication_needs(accounts) -> None:
    """`find_key` knows the tenant, its cap, the scopes, and the hash that the issued text has."""
    tenant = await accounts.create_tenant("a", 7)
    scopes = frozenset({Scope.USAGE_READ, Scope.CHAT})
    info, secret = await accounts.issue_key(tenant.id, "first", scopes)
    key = keys.parse(secret)
    assert key is not None
    assert await accounts.find_key(info.id) == StoredKey(
        id=key.id,
        tenant_id=tenant.id,
        secret_sha256=key.sha256,
        scopes=scopes,
        revoked_at=None,
        tenant_active=True,
        max_streams=7,
    )
    assert await accounts.find_key("0" * 12) is None


async def test_only_the_hash_of_a_secret_is_stored(accounts, witness) -> None:
    """Whoever reads the whole database can sign in with nothing that stands in it."""
    tenant = await accounts.create_tenant("a", 1)
    _, text = await accounts.issue_key(tenant.id, "first", TENANT_SCOPES)
    secret = text.rpartition("_")[2]
    cells = []
    async with witness.connect() as connection:
        for table in metadata.sorted_tables:
            cells += [cell for row in await connection.execute(select(table)) for cell in row]
    raw = b"\0".join(cell if isinstance(cell, bytes) else str(cell).encode() for cell in cells)
    assert hashlib.sha256(secret.encode()).digest() in raw
    assert secret.encode() not in raw
    assert not any(secret[start : start + 8].encode() in raw for start in range(len(secret) - 7))


async def test_a_key_needs_a_tenant(accounts) -> None:
    """A key for nobody is refused and leaves nothing behind."""
    with pytest.raises(NoSuchTenant, match="tn_nobody"):
        await accounts.issue_key("tn_nobody", "x", TENANT_SCOPES)
    assert await accounts.keys("tn_nobody") == []


async def test_a_tenants_keys_are_its_own(accounts) -> None:
    """P10: the list holds the tenant's keys, oldest first, and no other tenant's."""
    mine, other = [await accounts.create_tenant(name, 1) for name in "ab"]
    issued = [(await accounts.issue_key(mine.id, f"key {n}", TENANT_SCOPES))[0] for n in range(4)]
    (theirs, _) = await accounts.issue_key(other.id, "theirs", frozenset({Scope.CHAT}))
    assert await accounts.keys(mine.id) == issued
    assert await accounts.keys(other.id) == [theirs]
    assert theirs.scopes == (Scope.CHAT,)
    assert len({info.id for info in issued}) == 4


async def test_revoking_again_keeps_the_first_time(accounts) -> None:
    """P9: a revoked key is known as such, since its first revocation; its neighbours are not touched."""
    tenant = await accounts.create_tenant("a", 1)
    (gone, _), (kept, _) = [await accounts.issue_key(tenant.id, name, TENANT_SCOPES) for name in "ab"]
    first = await accounts.revoke_key(gone.id)
    again = await accounts.revoke_key(gone.id)
    stored = await accounts.find_key(gone.id)
    assert first.revoked_at == again.revoked_at == stored.revoked_at
    assert first.revoked_at > gone.created_at
    assert (await accounts.find_key(kept.id)).revoked_at is None
    assert [info.revoked_at for info in await accounts.keys(tenant.id)] == [first.revoked_at, None]
    assert await accounts.revoke_key("0" * 12) is None


async def test_an_admin_put_twice_has_the_second_password(accounts, witness) -> None:
    """Putting an admin again changes the password, and is seen by everybody."""
    await accounts.put_admin("root@example.com", "hash 1")
    await accounts.put_admin("other@example.com", "hash 2")
    await accounts.put_admin("root@example.com", "hash 3")
    others = SqlAccounts(witness, Clock())
    assert await others.password_hash("root@example.com") == "hash 3"
    assert await others.password_hash("other@example.com") == "hash 2"
    assert await others.password_hash("nobody@example.com") is None


async def test_an_admins_email_has_no_case(accounts) -> None:
    """The same address in other letters is the same admin, when it is put and when it is asked for."""
    await accounts.put_admin("Root@Example.COM", "hash 1")
    await accounts.put_admin("rOOT@example.com", "hash 2")
    assert await accounts.password_hash("ROOT@EXAMPLE.com") == "hash 2"


async def test_a_database_that_is_away_lets_nobody_in_and_says_so() -> None:
    """Fails closed, with one exception that the callers of the port know; nothing of the driver gets out."""
    from api.adapters.database_sql import open_engine
    from tests.support.servers import free_port

    engine = open_engine(f"postgresql://nobody:secret@127.0.0.1:{free_port()}/none")
    away = SqlAccounts(engine, Clock())
    for asked in (away.find_key("k"), away.tenants(), away.create_tenant("x", 1), away.password_hash("x")):
        with pytest.raises(AccountsUnavailable) as failed:
            await asked
        assert "secret" not in str(failed.value)
    await engine.dispose()
