"""API keys, on SQLite and PostgreSQL: issued, changed, rotated, revoked; each tenant sees its own alone."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import asdict, fields, replace
from datetime import timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, text

from api.accounts import KeyFields, KeyInfo, NoSuchKey, NoSuchTenant
from api.adapters.accounts_sql import SqlAccounts
from api.adapters.tables_sql import api_keys
from api.tasks import Tasks
from auth import keys
from auth.principal import TENANT_SCOPES, Scope
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
from tests.contracts.walks import CALLS, World

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

FULL = KeyFields(
    name="Schlüssel 水 '\";--",
    scopes=(Scope.CHAT, Scope.TENANT_ADMIN, Scope.USAGE_READ),
    models=("gpt-4o", "o1*", "*"),
    max_streams=2,
    allowed_addresses=("10.0.0.0/8", "2001:db8::/32"),
    expires_at=START + timedelta(days=30, microseconds=1),
    limits={"requests_per_minute": 60, "shadow": ["requests_per_minute"]},
)
OTHER: dict[str, Any] = {
    "name": "another",
    "scopes": (Scope.EMBEDDINGS,),
    "models": ("scripted",),
    "max_streams": 1_000_000,
    "allowed_addresses": ("192.0.2.0/24",),
    "expires_at": START + timedelta(days=1),
    "limits": {"requests_per_minute": 1, "tokens_per_month": 2**52, "shadow": ["max_streams"]},
}
NULL: dict[str, Any] = {"models": None, "max_streams": None, "allowed_addresses": (), "expires_at": None}

only_postgresql = pytest.mark.parametrize("kind", ["postgresql"])
"""Where the order of row locks is what is tested; SQLite has one writer at a time."""


def sha256(said: str) -> bytes:
    """What is stored of a key's text."""
    return hashlib.sha256(said.rpartition("_")[2].encode()).digest()


# --- issuing ----------------------------------------------------------------------------------------


async def test_a_key_is_issued_with_every_field(accounts, witness) -> None:
    """All that was decided of it comes back, for every worker; its text belongs to its id."""
    one = await tenant(accounts)
    info, said = await key(accounts, one, **asdict(FULL))
    assert info == KeyInfo(
        **asdict(FULL), id=info.id, tenant_id=one.id, created_at=info.created_at, created_by=BY.name
    )
    assert START < info.created_at < START + timedelta(minutes=1)
    shown = keys.parse(said)
    assert shown is not None
    assert shown.id == info.id
    assert await SqlAccounts(witness, Clock()).keys(None).get(info.id) == info


async def test_a_key_of_defaults_may_use_all_from_everywhere_for_ever(accounts) -> None:
    """What is not said does not restrict."""
    info, _ = await key(accounts, await tenant(accounts))
    unsaid = (info.models, info.max_streams, info.allowed_addresses, info.expires_at, info.limits)
    assert unsaid == (None, None, (), None, {})
    assert (info.last_used_at, info.previous_until, info.revoked_at) == (None, None, None)


async def test_keys_are_listed_oldest_first(accounts) -> None:
    """All of them, the revoked ones too, in the order in which they were issued."""
    one = await tenant(accounts)
    issued = [(await key(accounts, one, f"{n}"))[0] for n in range(5)]
    issued[2] = await accounts.keys(None).revoke(issued[2].id, by=BY)
    assert await accounts.keys(None).all_of(one.id) == issued
    assert await accounts.keys(one.id).all_of(one.id) == issued
    assert len({info.id for info in issued}) == 5


async def test_a_key_needs_a_tenant(accounts, witness) -> None:
    """A key for nobody is refused and leaves nothing behind."""
    with pytest.raises(NoSuchTenant, match="tn_nobody"):
        await accounts.keys(None).issue("tn_nobody", FULL, by=BY)
    assert (await snapshot(witness))["api_keys"] == []


async def test_only_hashes_of_secrets_are_stored(accounts, witness) -> None:
    """Whoever reads the whole database can sign in with nothing that stands in it, of before or now."""
    info, first = await key(accounts, await tenant(accounts), scopes=tuple(TENANT_SCOPES))
    said = [first]
    said += [(await accounts.keys(None).rotate(info.id, grace_seconds=60, by=BY))[1] for _ in "12"]
    cells = [cell for rows in (await snapshot(witness)).values() for row in rows for cell in row]
    raw = b"\0".join(cell if isinstance(cell, bytes) else repr(cell).encode() for cell in cells)
    assert [sha256(one) in raw for one in said] == [False, True, True]
    for one in said:
        secret = one.rpartition("_")[2]
        assert not any(secret[start : start + 8].encode() in raw for start in range(len(secret) - 7))


# --- changing ---------------------------------------------------------------------------------------


def test_every_field_of_a_key_is_tried() -> None:
    """A field that is added to KeyFields is a field of these tests, or they say so."""
    assert {field.name for field in fields(KeyFields)} == set(OTHER) == set(asdict(FULL))
    assert all(OTHER[name] != value for name, value in asdict(FULL).items())


@pytest.mark.parametrize("name", OTHER)
async def test_a_field_is_changed_and_the_others_stay(accounts, name) -> None:
    """A patch changes one field of one key, also to nothing, and its secret least of all."""
    one = await tenant(accounts)
    info, said = await key(accounts, one, **asdict(FULL))
    neighbour, _ = await key(accounts, one)
    view = accounts.keys(None)
    for value in [OTHER[name], *([NULL[name]] if name in NULL else [])]:
        expected = replace(info, **{name: value})
        assert await view.change(info.id, {name: value}, by=BY) == expected
        assert await view.all_of(one.id) == [expected, neighbour]
    async with accounts._book.reading() as connection:
        stored = select(api_keys.c.secret_sha256).where(api_keys.c.id == info.id)
        assert (await connection.execute(stored)).scalar_one() == sha256(said)


async def test_all_fields_can_be_changed_at_once_and_none_too(accounts) -> None:
    """Lists do as well as tuples, times in any zone; what comes out is as if it had been issued so."""
    info, _ = await key(accounts, await tenant(accounts), **asdict(FULL))
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in OTHER.items()}
    local = START.astimezone(timezone(timedelta(hours=-9, minutes=-30)))
    changed = await accounts.keys(None).change(info.id, {**lists, "expires_at": local}, by=BY)
    assert changed == replace(info, **{**OTHER, "expires_at": START})
    assert changed.expires_at.utcoffset() == timedelta(0)
    assert await accounts.keys(None).change(info.id, {}, by=BY) == changed


# --- rotating ---------------------------------------------------------------------------------------


async def test_a_rotated_key_has_two_secrets_until_the_grace_is_over(accounts, credentials) -> None:
    """The new secret is the key's own; the one before it holds until `grace_seconds` from now."""
    one = await tenant(accounts)
    info, first = await key(accounts, one, **asdict(FULL))
    neighbour, _ = await key(accounts, one)
    said = [first]
    for grace in (3600, 60):
        rotated, new = await accounts.keys(None).rotate(info.id, grace_seconds=grace, by=BY)
        said.append(new)
        at = (await accounts.audit(action="key.rotate"))[0].at
        assert rotated == replace(info, previous_until=rotated.previous_until)
        assert at - timedelta(seconds=5) <= rotated.previous_until - timedelta(seconds=grace) <= at
        assert keys.parse(new).id == info.id
        stored = await credentials.find_key(info.id)
        assert [stored.previous_sha256, stored.secret_sha256] == [sha256(one) for one in said[-2:]]
        assert stored.previous_until == rotated.previous_until
    assert await accounts.keys(None).get(neighbour.id) == neighbour


async def test_a_secret_that_leaked_has_no_grace(accounts, credentials) -> None:
    """Without a grace the one before is gone at once, whatever any worker's clock says."""
    info, _ = await key(accounts, await tenant(accounts))
    rotated, new = await accounts.keys(None).rotate(info.id, grace_seconds=0, by=BY)
    stored = await credentials.find_key(info.id)
    assert (stored.secret_sha256, stored.previous_sha256) == (sha256(new), None)
    assert rotated.previous_until is stored.previous_until is None


async def test_a_second_rotation_drops_the_oldest_secret(accounts, credentials) -> None:
    """At most two secrets hold: three rotations leave the last two, and no trace of the others."""
    info, first = await key(accounts, await tenant(accounts))
    said = [first]
    for _ in range(3):
        said.append((await accounts.keys(None).rotate(info.id, grace_seconds=3600, by=BY))[1])
        stored = await credentials.find_key(info.id)
        assert [stored.previous_sha256, stored.secret_sha256] == [sha256(one) for one in said[-2:]]
    assert len(set(said)) == 4


async def test_a_revoked_key_cannot_be_rotated(accounts, witness) -> None:
    """P9: nobody brings a key back, neither one that was revoked nor one of a deleted tenant."""
    one, other = await tenant(accounts), await tenant(accounts)
    infos = [(await key(accounts, of))[0] for of in (one, other)]
    await accounts.keys(None).revoke(infos[0].id, by=BY)
    await accounts.delete(other.id, by=BY)
    before = await snapshot(witness)
    for info in infos:
        with pytest.raises(NoSuchKey, match=info.id):
            await accounts.keys(None).rotate(info.id, grace_seconds=60, by=BY)
    assert await snapshot(witness) == before


async def test_rotations_at_the_same_moment_follow_each_other(accounts, witness, credentials) -> None:
    """Of two, the later one's previous secret is the earlier one's: both texts that were handed out hold."""
    info, _ = await key(accounts, await tenant(accounts))
    workers = (accounts, SqlAccounts(witness, Clock()))
    asked = (worker.keys(None).rotate(info.id, grace_seconds=60, by=BY) for worker in workers)
    said = [said for _, said in await bounded(asyncio.gather(*asked))]
    stored = await credentials.find_key(info.id)
    assert {stored.secret_sha256, stored.previous_sha256} == {sha256(one) for one in said}


@only_postgresql
@pytest.mark.parametrize("rival", ["rotate", "revoke"])
async def test_a_rotation_waits_for_whoever_has_the_key(accounts, witness, credentials, rival) -> None:
    """It goes by the key as it is when it is its turn: no secret is lost, no revoked key lives on."""
    info, _ = await key(accounts, await tenant(accounts))
    tasks, view = Tasks(), accounts.keys(None)
    async with witness.connect() as holder:
        await holder.begin()
        row = text("SELECT id FROM api_keys WHERE id = :id FOR UPDATE")
        await holder.execute(row, {"id": info.id})
        work = CALLS[rival](World(accounts, info.tenant_id, info.id))
        first = tasks.start(work, name="first")
        await eventually(lambda: _all_wait(witness, 1))
        second = tasks.start(view.rotate(info.id, grace_seconds=60, by=BY), name="second")
        await eventually(lambda: _all_wait(witness, 2))
        await holder.rollback()
    if rival == "revoke":
        await bounded(first)
        with pytest.raises(NoSuchKey):
            await bounded(second)
        assert (await credentials.find_key(info.id)).previous_sha256 is None
        return
    said = [(await bounded(task))[1] for task in (first, second)]
    stored = await credentials.find_key(info.id)
    assert {stored.secret_sha256, stored.previous_sha256} == {sha256(one) for one in said}


async def _all_wait(engine: AsyncEngine, count: int) -> bool:
    return await waiting_for_locks(engine) == count


# --- revoking ---------------------------------------------------------------------------------------


async def test_revoking_again_keeps_the_first_time(accounts, credentials) -> None:
    """P9: a revoked key is known as such, since its first revocation; its neighbours are not touched."""
    one = await tenant(accounts)
    (gone, _), (kept, _) = [await key(accounts, one, name) for name in "ab"]
    first = await accounts.keys(None).revoke(gone.id, by=BY)
    assert first == replace(gone, revoked_at=first.revoked_at)
    assert first.revoked_at > gone.created_at
    for view in (accounts.keys(None), accounts.keys(one.id)):
        assert await view.revoke(gone.id, by=BY) == first
    await accounts.delete(one.id, by=BY)
    assert await accounts.keys(None).get(gone.id) == first
    assert (await credentials.find_key(gone.id)).revoked_at == first.revoked_at
    assert (await credentials.find_key(kept.id)).revoked_at > first.revoked_at
