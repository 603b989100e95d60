"""Tenants and admins, on SQLite and PostgreSQL: what an admin decides is what stands."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, fields, replace
from datetime import timedelta
from typing import Any

import pytest

from api.accounts import ExternalIdTaken, KeyFields, NoSuchTenant, Tenant, TenantFields
from api.adapters.accounts_sql import SqlAccounts
from auth.principal import Scope
from tests.contracts.helpers import (
    BY,
    START,
    Clock,
    booking,
    bounded,
    event,
    key,
    outcomes,
    snapshot,
    tenant,
    writing,
)

FULL = TenantFields(
    name="Ünïted 水 🌊 '\";--\\",
    max_streams=7,
    external_id="crm/00-42 é",
    default_model="gpt-4o",
    time_zone="Pacific/Chatham",
    metadata={"plan": "gold", "näme 水": "ü\u2028\n'\"", "empty": ""},
    limits={"tokens_per_day": 2**52, "shadow": ["max_streams", "tokens_per_day"]},
    end_user_limits={"max_streams": 2, "requests_per_minute": 60},
    max_waiters=5,
    max_wait_seconds=7,
    weight=3,
    resume_minutes=7,
)
OTHER: dict[str, Any] = {
    "name": "another",
    "max_streams": 1_000_000,
    "external_id": "crm/43",
    "default_model": "scripted",
    "time_zone": "America/Argentina/ComodRivadavia",
    "metadata": {"other": "things"},
    "limits": {"tokens_per_minute": 9, "tokens_per_day": 1, "shadow": ["tokens_per_minute"]},
    "end_user_limits": {"max_streams": 1, "requests_per_minute": 61},
    "max_waiters": 10_000,
    "max_wait_seconds": 300,
    "weight": 1000,
    "resume_minutes": 1440,
}
NULL = {"external_id": None, "default_model": None, "metadata": {}}


@pytest.fixture
async def others(witness) -> SqlAccounts:
    """The accounts as another worker sees them."""
    return SqlAccounts(witness, Clock())


# --- tenants ----------------------------------------------------------------------------------------


async def test_tenants_are_found_as_they_were_made(accounts, others) -> None:
    """A tenant comes back with every field, for everybody; the list is oldest first."""
    made = [await accounts.create_tenant(one, by=BY) for one in (FULL, TenantFields("plain", 1))]
    assert [asdict(one) for one in made] == [
        {**asdict(FULL), "id": made[0].id, "state": "active", "created_at": START + timedelta(seconds=1)},
        {
            "name": "plain",
            "max_streams": 1,
            "external_id": None,
            "default_model": None,
            "time_zone": "UTC",
            "metadata": {},
            "limits": {},
            "end_user_limits": {},
            "max_waiters": 0,
            "max_wait_seconds": 30,
            "weight": 1,
            "resume_minutes": 0,
            "id": made[1].id,
            "state": "active",
            "created_at": made[1].created_at,
        },
    ]
    assert made[0].id != made[1].id
    assert await others.tenants() == made
    assert [await others.tenant(one.id) for one in made] == made


def test_every_field_of_a_tenant_is_tried() -> None:
    """A field that is added to TenantFields is a field of these tests, or they say so."""
    names = {field.name for field in fields(TenantFields)}
    assert names == set(OTHER) == set(asdict(FULL))
    assert all(OTHER[name] != value for name, value in asdict(FULL).items())


@pytest.mark.parametrize("name", OTHER)
async def test_a_field_is_changed_and_the_others_stay(accounts, others, name) -> None:
    """A patch of one field changes that field of that tenant, and nothing else."""
    one, neighbour = await accounts.create_tenant(FULL, by=BY), await tenant(accounts)
    for value in [OTHER[name], *([NULL[name]] if name in NULL else [])]:
        expected = replace(one, **{name: value})
        assert await accounts.change_tenant(one.id, {name: value}, by=BY) == expected
        assert await others.tenants() == [expected, neighbour]


async def test_all_fields_can_be_changed_at_once_and_none_too(accounts, others) -> None:
    """One call, one tenant as it is now; a patch of nothing leaves it as it was."""
    one = await accounts.create_tenant(FULL, by=BY)
    changed = await accounts.change_tenant(one.id, OTHER, by=BY)
    assert changed == replace(one, **OTHER)
    assert await accounts.change_tenant(one.id, {}, by=BY) == changed
    assert await others.tenant(one.id) == changed


async def test_a_tenants_state_follows_what_was_done_last(accounts, others) -> None:
    """Active, suspended, and back; again is the same; a change does not touch the state."""
    one, neighbour = await tenant(accounts), await tenant(accounts)
    steps = ("suspend", "suspend", "resume", "resume", "suspend")
    for step in steps:
        state = "suspended" if step == "suspend" else "active"
        assert await getattr(accounts, step)(one.id, by=BY) == replace(one, state=state)
        assert await others.tenants() == [replace(one, state=state), neighbour]
        changed = await accounts.change_tenant(one.id, {"name": one.name}, by=BY)
        assert changed.state == state


async def test_a_deleted_tenant_can_be_shown_and_is_listed_on_request(accounts, others) -> None:
    """It keeps every field, says that it is deleted, and is out of the list that is not asked for it."""
    one, kept = await accounts.create_tenant(FULL, by=BY), await tenant(accounts)
    gone = replace(one, state="deleted")
    assert await accounts.delete(one.id, by=BY) == gone
    assert await others.tenant(one.id) == gone
    assert await others.tenants() == [kept]
    assert await others.tenants(deleted=True) == [gone, kept]


GONE = {
    "change": lambda accounts, gone: accounts.change_tenant(gone, {"name": "back"}, by=BY),
    "change nothing": lambda accounts, gone: accounts.change_tenant(gone, {}, by=BY),
    "take a name back": lambda accounts, gone: accounts.change_tenant(gone, {"external_id": "x"}, by=BY),
    "suspend": lambda accounts, gone: accounts.suspend(gone, by=BY),
    "resume": lambda accounts, gone: accounts.resume(gone, by=BY),
    "issue": lambda accounts, gone: accounts.keys(None).issue(gone, KeyFields("k", (Scope.CHAT,)), by=BY),
    "issue its own": lambda accounts, gone: accounts.keys(gone).issue(
        gone, KeyFields("k", (Scope.CHAT,)), by=BY
    ),
}


@pytest.mark.parametrize("what", GONE)
async def test_nothing_can_be_changed_on_a_deleted_tenant(accounts, witness, what) -> None:
    """It is as if it were not there, NoSuchTenant, and nothing is written, in the audit log neither."""
    one = await tenant(accounts)
    await key(accounts, one)
    await accounts.delete(one.id, by=BY)
    before = await snapshot(witness)
    with pytest.raises(NoSuchTenant, match=one.id):
        await GONE[what](accounts, one.id)
    assert await snapshot(witness) == before


@pytest.mark.parametrize("what", [*GONE, "delete", "show", "list keys"])
async def test_a_tenant_that_never_was_is_no_such_tenant(accounts, witness, what) -> None:
    """Every call that needs a tenant says that there is none, and leaves nothing behind."""
    more = {
        "delete": lambda accounts, gone: accounts.delete(gone, by=BY),
        "show": lambda accounts, gone: accounts.tenant(gone),
        "list keys": lambda accounts, gone: accounts.keys(None).all_of(gone),
    }
    before = await snapshot(witness)
    with pytest.raises(NoSuchTenant, match="`tn_nobody`"):
        await (GONE | more)[what](accounts, "tn_nobody")
    assert await snapshot(witness) == before


async def test_deleting_a_tenant_revokes_all_its_keys_and_no_others(accounts, others) -> None:
    """P9: keys end with their tenant; one that was revoked before keeps its time; neighbours keep theirs."""
    one, neighbour = await tenant(accounts), await tenant(accounts)
    (early, _), (live, _), (admins, _) = [
        await key(accounts, one, scopes=scopes) for scopes in ((Scope.CHAT,), (Scope.CHAT,), (Scope.ADMIN,))
    ]
    theirs, _ = await key(accounts, neighbour)
    revoked = await accounts.keys(None).revoke(early.id, by=BY)
    await accounts.delete(one.id, by=BY)
    left = await others.keys(None).all_of(one.id)
    assert left[0] == revoked
    assert [info.id for info in left] == [early.id, live.id, admins.id]
    assert left[1].revoked_at == left[2].revoked_at > revoked.revoked_at
    assert await others.keys(None).all_of(neighbour.id) == [theirs]


async def test_usage_outlives_its_tenant(accounts, engine) -> None:
    """The record is a record: what a deleted tenant used can be read, paged and summed as before."""
    one = await tenant(accounts)
    used = event(booking(tenant_id=one.id))
    async with writing(engine) as (ledger, _):
        await outcomes([ledger.book(used.booking), ledger.settle(used)])
        totals = await ledger.totals(one.id)
        await accounts.delete(one.id, by=BY)
        assert await ledger.events(one.id, after=None, limit=9) == [used]
        assert await ledger.totals(one.id) == totals
        assert totals.events == 1


# --- external ids -----------------------------------------------------------------------------------


async def test_an_external_id_is_one_tenants(accounts, witness) -> None:
    """Nobody else gets it, when made or when changed, also of a suspended tenant; none at all is no name."""
    first = await tenant(accounts, external_id="crm-1")
    await accounts.suspend(first.id, by=BY)
    plain, _ = await tenant(accounts), await tenant(accounts)
    before = await snapshot(witness)
    with pytest.raises(ExternalIdTaken, match="crm-1"):
        await tenant(accounts, external_id="crm-1")
    with pytest.raises(ExternalIdTaken, match="crm-1"):
        await accounts.change_tenant(plain.id, {"name": "x", "external_id": "crm-1"}, by=BY)
    assert await snapshot(witness) == before
    assert (await accounts.change_tenant(first.id, {"external_id": "crm-1"}, by=BY)).external_id == "crm-1"
    assert (await tenant(accounts, external_id="CRM-1")).external_id == "CRM-1"


@pytest.mark.parametrize("how", ["delete", "change"])
async def test_an_external_id_is_free_again(accounts, how) -> None:
    """A tenant that was deleted, or renamed, holds no name back; a deleted one still shows it."""
    first, second = await tenant(accounts, external_id="crm-1"), await tenant(accounts)
    if how == "delete":
        await accounts.delete(first.id, by=BY)
    else:
        await accounts.change_tenant(first.id, {"external_id": None}, by=BY)
    await accounts.change_tenant(second.id, {"external_id": "crm-1"}, by=BY)
    await accounts.delete(second.id, by=BY)
    third = await tenant(accounts, external_id="crm-1")
    found = await accounts.tenants(deleted=True)
    assert [one.external_id for one in found] == ["crm-1" if how == "delete" else None, "crm-1", "crm-1"]
    with pytest.raises(ExternalIdTaken):
        await tenant(accounts, external_id="crm-1")
    assert third.state == "active"


async def test_of_many_who_want_one_external_id_one_gets_it(accounts, others) -> None:
    """The database decides, not a look before the leap: two workers at the same moment make one tenant."""
    asked = [tenant(worker, external_id="crm-1") for worker in (accounts, others) for _ in range(4)]
    answers = await bounded(asyncio.gather(*asked, return_exceptions=True))
    kinds = sorted(type(answer).__name__ for answer in answers)
    assert kinds == [ExternalIdTaken.__name__] * 7 + [Tenant.__name__]
    assert len(await accounts.tenants()) == 1


# --- admins -----------------------------------------------------------------------------------------


async def test_an_admin_put_twice_has_the_second_password(accounts, credentials, others) -> None:
    """Putting an admin again changes the password; of it alone."""
    await accounts.put_admin("root@example.com", "hash 1", by=BY)
    await accounts.put_admin("other@example.com", "hash 2", by=BY)
    first, other = [await credentials.find_user(f"{name}@example.com") for name in ("root", "other")]
    await accounts.put_admin("root@example.com", "hash 3", by=BY)
    second = await credentials.find_user("root@example.com")
    assert (first.password_hash, second.password_hash, other.password_hash) == ("hash 1", "hash 3", "hash 2")
    assert await credentials.find_user("other@example.com") == other
    assert await others.admins() == ["other@example.com", "root@example.com"]


async def test_an_admins_email_has_no_case(accounts, credentials) -> None:
    """The same address in other letters is the same admin: when it is put, asked for, and removed."""
    await accounts.put_admin("Root@Straße.COM", "hash 1", by=BY)
    await accounts.put_admin("rOOT@STRASSE.com", "hash 2", by=BY)
    assert await accounts.admins() == ["root@strasse.com"]
    assert (await credentials.find_user("ROOT@straße.com")).password_hash == "hash 2"
    assert await accounts.remove_admin("ROOT@strasse.COM", by=BY) is True
    assert await accounts.admins() == []


async def test_a_removed_admin_is_gone_and_can_come_back(accounts, credentials) -> None:
    """Removing says whether there was one; the others stay; whoever is put again has the new password."""
    for name in "ab":
        await accounts.put_admin(f"{name}@example.com", f"hash {name}", by=BY)
    assert await accounts.remove_admin("a@example.com", by=BY) is True
    assert await accounts.remove_admin("a@example.com", by=BY) is False
    assert await credentials.find_user("a@example.com") is None
    assert await accounts.admins() == ["b@example.com"]
    await accounts.put_admin("a@example.com", "hash 2", by=BY)
    assert (await credentials.find_user("a@example.com")).password_hash == "hash 2"
