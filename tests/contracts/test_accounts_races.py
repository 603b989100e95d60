"""Changes of accounts at the same moment, on PostgreSQL: the test holds the locks, so the order is sure."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import insert, text

from api.accounts import KeyFields, NoSuchTenant
from api.adapters.tables_sql import api_keys, revoked_tokens, users
from api.tasks import Tasks
from auth.principal import Scope
from tests.contracts.helpers import BY, START, bounded, eventually, tenant, waiting_for_locks

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

pytestmark = pytest.mark.parametrize("kind", ["postgresql"])


async def until_waiting(witness: AsyncEngine, count: int) -> None:
    async def waiting() -> bool:
        return await waiting_for_locks(witness) == count

    await eventually(waiting)


async def test_a_token_revoked_twice_at_one_time_is_revoked(accounts, witness, credentials) -> None:
    """Two admins click at once: neither is told of an error, and it is revoked."""
    tasks = Tasks()
    async with witness.connect() as rival:
        await rival.execute(insert(revoked_tokens).values(tenant_id="tn_a", token_id="j", revoked_at=START))
        mine = tasks.start(accounts.revoke_token("tn_a", "j", by=BY), name="revoke")
        await until_waiting(witness, 1)
        await rival.commit()
    await bounded(mine)
    assert await credentials.revoked_tokens() == ["tn_a/j"]


async def test_an_admin_made_twice_at_one_time_has_the_later_password(accounts, witness, credentials) -> None:
    """Two workers start with the same ADMIN_EMAIL: neither fails."""
    tasks = Tasks()
    async with witness.connect() as rival:
        await rival.execute(insert(users).values(email="a@b", password_hash="x"))
        mine = tasks.start(accounts.put_admin("a@b", "y", by=BY), name="put")
        await until_waiting(witness, 1)
        await rival.commit()
    await bounded(mine)
    found = await credentials.find_user("a@b")
    assert found is not None
    assert found.password_hash == "y"


async def test_a_key_is_not_issued_to_a_tenant_that_is_being_deleted(accounts, witness) -> None:
    """Issuing waits for the deletion, and then there is no such tenant: no key is left behind unrevoked."""
    one = await tenant(accounts)
    tasks = Tasks()
    async with witness.connect() as rival:
        await rival.execute(text("UPDATE tenants SET active = false, deleted_at = now()"))
        fields = KeyFields("k", (Scope.CHAT,))
        issuing = tasks.start(accounts.keys(None).issue(one.id, fields, by=BY), name="issue")
        await until_waiting(witness, 1)
        await rival.commit()
    with pytest.raises(NoSuchTenant):
        await bounded(issuing)


async def test_deleting_a_tenant_and_noting_the_use_of_its_keys_do_not_lock_up(accounts, witness) -> None:
    """Both lock keys in the order of their ids, whatever the order in which they were issued."""
    one = await tenant(accounts)
    ids = ["zzzzzzzzzzzz", "mmmmmmmmmmmm", "aaaaaaaaaaaa"]
    row = {
        "tenant_id": one.id,
        "name": "k",
        "secret_sha256": b"x" * 32,
        "scopes": "chat",
        "created_at": START,
    }
    async with witness.begin() as connection:
        for key_id in ids:
            await connection.execute(insert(api_keys).values(id=key_id, allowed_addresses=[], **row))
    tasks = Tasks()
    async with witness.connect() as holder:
        await holder.execute(text("SELECT id FROM api_keys WHERE id = 'mmmmmmmmmmmm' FOR UPDATE"))
        deleting = tasks.start(accounts.delete(one.id, by=BY), name="delete")
        using = tasks.start(accounts.used(dict.fromkeys(ids, START)), name="used")
        await until_waiting(witness, 2)
        await holder.rollback()
    await bounded(asyncio.gather(deleting, using))
    assert all(key.revoked_at for key in await accounts.keys(None).all_of(one.id))


async def test_a_tenant_is_deleted_once(accounts) -> None:
    """Again there is nothing to delete, and the log does not say that there was."""
    one = await tenant(accounts)
    await accounts.delete(one.id, by=BY)
    with pytest.raises(NoSuchTenant):
        await accounts.delete(one.id, by=BY)
    assert [entry.action for entry in await accounts.audit()] == ["tenant.delete", "tenant.create"]
