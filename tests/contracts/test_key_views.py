"""P10: a tenant's view of keys holds its own alone. And: when keys were last used."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import text

from api.accounts import KeyFields, Keys, NoSuchKey, NoSuchTenant
from api.adapters.accounts_sql import SqlAccounts
from api.tasks import Tasks
from auth.principal import Scope
from tests.contracts.helpers import (
    BY,
    START,
    Clock,
    bounded,
    eventually,
    key,
    snapshot,
    tenant,
    waiting_for_locks,
)
from tests.contracts.walks import CALLS, World, methods

BY_KEY = {"get", "change", "rotate", "revoke"}
"""Methods that are given a key's id."""

BY_TENANT = {"issue", "all_of"}
"""Methods that are given a tenant's id."""

NOBODY = "0" * 12


def test_every_method_of_keys_is_tried_on_others_keys() -> None:
    """A method that is added is tried by the tests below, or this one fails."""
    assert methods(Keys) == BY_KEY | BY_TENANT
    assert set() == BY_KEY & BY_TENANT


@pytest.mark.parametrize("whose", ["another's", "a gateway admin's", "a deleted tenant's"])
@pytest.mark.parametrize("name", sorted(BY_KEY))
async def test_a_key_that_is_not_ones_own_is_not_there(accounts, witness, name, whose) -> None:
    """Nothing is seen, nothing changed, nothing logged; the answer is that of an id that never was."""
    mine, other = await tenant(accounts), await tenant(accounts)
    await key(accounts, mine)
    owner = mine if whose == "a gateway admin's" else other
    scopes = (Scope.CHAT, Scope.ADMIN) if owner is mine else (Scope.CHAT,)
    theirs, _ = await key(accounts, owner, scopes=scopes)
    if whose == "a deleted tenant's":
        await accounts.delete(other.id, by=BY)
    before, answers = await snapshot(witness), []
    for key_id in (theirs.id, NOBODY):
        with pytest.raises(NoSuchKey) as refused:
            await CALLS[name](World(accounts, mine.id, key_id, view=mine.id))
        answers.append((type(refused.value), str(refused.value).replace(key_id, "?")))
    assert answers[0] == answers[1] == (NoSuchKey, "No key has the id `?`.")
    assert await snapshot(witness) == before


@pytest.mark.parametrize("name", sorted(BY_KEY))
async def test_ones_own_key_is_there(accounts, name) -> None:
    """The same calls on a key of one's own do their work: what refuses above is whose it is."""
    mine = await tenant(accounts)
    own, _ = await key(accounts, mine, scopes=(Scope.TENANT_ADMIN, Scope.CHAT))
    answer = await CALLS[name](World(accounts, mine.id, own.id, view=mine.id))
    info = answer[0] if isinstance(answer, tuple) else answer
    assert (info.id, info.tenant_id) == (own.id, mine.id)
    assert await accounts.keys(None).get(own.id) == info


async def test_a_list_holds_ones_own_keys_alone(accounts) -> None:
    """Neither another tenant's nor the gateway's own; through a tenant's view another's list is empty."""
    mine, other = await tenant(accounts), await tenant(accounts)
    scopes = [(Scope.CHAT,), (Scope.TENANT_ADMIN,), (Scope.ADMIN, Scope.CHAT), (Scope.ADMIN,)]
    issued = [(await key(accounts, mine, scopes=each))[0] for each in scopes]
    await key(accounts, other)
    assert await accounts.keys(mine.id).all_of(mine.id) == issued[:2]
    assert await accounts.keys(None).all_of(mine.id) == issued
    assert await accounts.keys(mine.id).all_of(other.id) == []


@pytest.mark.parametrize("scope", [Scope.CHAT, Scope.ADMIN])
async def test_no_key_is_issued_to_another_tenant(accounts, witness, scope) -> None:
    """Through a tenant's view; whatever the scope, nothing is written."""
    mine, other = await tenant(accounts), await tenant(accounts)
    before = await snapshot(witness)
    with pytest.raises((NoSuchKey, NoSuchTenant)):
        await accounts.keys(mine.id).issue(other.id, KeyFields("k", (scope,)), by=BY)
    assert await snapshot(witness) == before


@pytest.mark.parametrize("how", ["issue", "change"])
async def test_no_tenant_gives_itself_the_gateway(accounts, witness, how) -> None:
    """Neither a new key nor a changed one gets the scope `admin` through a tenant's view."""
    mine = await tenant(accounts)
    own, _ = await key(accounts, mine)
    before, view = await snapshot(witness), accounts.keys(mine.id)
    both = (Scope.CHAT, Scope.ADMIN)
    with pytest.raises(NoSuchKey):
        if how == "issue":
            await view.issue(mine.id, KeyFields("k", both), by=BY)
        else:
            await view.change(own.id, {"scopes": both}, by=BY)
    assert await snapshot(witness) == before


async def test_an_admins_view_holds_everybodys_keys(accounts) -> None:
    """Every method works on a key of any tenant, whatever its scopes."""
    for scopes in ((Scope.CHAT,), (Scope.ADMIN,)):
        info, _ = await key(accounts, await tenant(accounts), scopes=scopes)
        for name in sorted(BY_KEY | BY_TENANT, key=lambda name: name == "revoke"):
            await CALLS[name](World(accounts, info.tenant_id, info.id))
        assert (await accounts.keys(None).get(info.id)).revoked_at is not None


# --- when keys were last used -----------------------------------------------------------------------


async def test_last_used_only_moves_forward(accounts) -> None:
    """Workers write late and out of order: the latest moment stands, for each key by itself."""
    one = await tenant(accounts)
    (used, _), (idle, _) = [await key(accounts, one) for _ in "12"]
    times = [START + timedelta(seconds=n) for n in (20, 10, 20, 30)]
    for at, stands in zip(times, (20, 20, 20, 30), strict=True):
        await accounts.used({used.id: at})
        expected = replace(used, last_used_at=START + timedelta(seconds=stands))
        assert await accounts.keys(None).all_of(one.id) == [expected, idle]
    await accounts.used({NOBODY: START, used.id: START + timedelta(hours=1)})
    assert (await accounts.keys(None).get(used.id)).last_used_at == START + timedelta(hours=1)
    await accounts.used({})


async def test_two_workers_that_write_the_same_keys_both_succeed(accounts, witness) -> None:
    """Overlapping sets in opposite orders, many times over: every write is done, and the latest stands."""
    one = await tenant(accounts)
    ids = [(await key(accounts, one))[0].id for _ in range(12)]
    other, rounds = SqlAccounts(witness, Clock()), range(10)

    async def write(worker: SqlAccounts, order: list[str], odd: int) -> None:
        for n in rounds:
            await worker.used(dict.fromkeys(order, START + timedelta(seconds=2 * n + odd)))

    await bounded(asyncio.gather(write(accounts, ids, 0), write(other, ids[::-1], 1)))
    stands = {info.last_used_at for info in await accounts.keys(None).all_of(one.id)}
    assert stands == {START + timedelta(seconds=2 * rounds[-1] + 1)}


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_writers_in_opposite_orders_do_not_lock_up(accounts, witness) -> None:
    """Both are stopped at their second key, and let go at once: neither has to be killed."""
    one = await tenant(accounts)
    low, middle, high = sorted([(await key(accounts, one))[0].id for _ in range(3)])
    at, tasks = START, Tasks()
    async with witness.connect() as holder:
        await holder.begin()
        await holder.execute(text("SELECT id FROM api_keys WHERE id = :id FOR UPDATE"), {"id": middle})
        orders = ((low, middle, high), (high, middle, low))
        both = [tasks.start(accounts.used(dict.fromkeys(order, at)), name="used") for order in orders]

        async def both_wait() -> bool:
            return await waiting_for_locks(witness) == 2

        await eventually(both_wait)
        await holder.rollback()
    await bounded(asyncio.gather(*both))
    assert {info.last_used_at for info in await accounts.keys(None).all_of(one.id)} == {at}
