"""What authentication is told, on SQLite and PostgreSQL: keys, tenants, admins, and what changed."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta

import pytest
from sqlalchemy import insert

from api.accounts import KeyFields
from api.adapters.accounts_sql import SqlAccounts
from api.adapters.tables_sql import audit_log
from auth import keys
from auth.memory import KINDS, LATEST, REVOKED_SECONDS, Memory, token_name
from auth.principal import Change, Scope, StoredKey, StoredTenant, StoredUser
from tests.contracts.helpers import BY, START, Clock, key, tenant
from tests.contracts.walks import CHANGES, populated

NOBODY = "0" * 12
ENTRY = {
    "at": START,
    "actor": "user:slow",
    "address": "",
    "request_id": "",
    "action": "key.revoke",
    "kind": "key",
    "target": "late",
    "details": {},
}


# --- keys -------------------------------------------------------------------------------------------


async def test_a_key_is_found_with_all_that_authentication_needs(accounts, credentials) -> None:
    """`find_key` knows every field, both hashes, and the tenant: one look decides."""
    one = await tenant(accounts, max_streams=7, default_model="gpt-4o", external_id="crm")
    fields = KeyFields(
        "k",
        (Scope.USAGE_READ, Scope.CHAT),
        models=("gpt-*", "o1"),
        max_streams=2,
        allowed_addresses=("10.0.0.0/8", "2001:db8::/32"),
        expires_at=START + timedelta(days=9),
    )
    info, first = await key(accounts, one, **asdict(fields))
    rotated, second = await accounts.keys(None).rotate(info.id, grace_seconds=60, by=BY)
    revoked = await accounts.keys(None).revoke(info.id, by=BY)
    before, now = keys.parse(first), keys.parse(second)
    assert before is not None
    assert now is not None
    assert await credentials.find_key(info.id) == StoredKey(
        id=info.id,
        tenant=StoredTenant(one.id, active=True, max_streams=7, default_model="gpt-4o"),
        secret_sha256=now.sha256,
        scopes=frozenset(fields.scopes),
        revoked_at=revoked.revoked_at,
        expires_at=fields.expires_at,
        previous_sha256=before.sha256,
        previous_until=rotated.previous_until,
        models=fields.models,
        max_streams=2,
        allowed_addresses=fields.allowed_addresses,
    )


async def test_a_key_of_defaults_is_found_without_restrictions(accounts, credentials) -> None:
    """Nothing that was not decided restricts, and an id that never was is None."""
    one = await tenant(accounts)
    info, said = await key(accounts, one)
    assert await credentials.find_key(info.id) == StoredKey(
        info.id,
        StoredTenant(one.id, active=True, max_streams=3),
        keys.parse(said).sha256,
        frozenset({"chat"}),
    )
    for other in (NOBODY, info.id.swapcase(), info.id[:-1], "", one.id):
        assert await credentials.find_key(other) is None


@pytest.mark.parametrize("step", ["suspend", "delete"])
async def test_the_keys_of_a_tenant_know_its_state(accounts, credentials, step) -> None:
    """P9: while a tenant is suspended, or once it is deleted, each of its keys says that nobody gets in."""
    one, neighbour = await tenant(accounts), await tenant(accounts)
    (info, _), (theirs, _) = await key(accounts, one), await key(accounts, neighbour)
    await getattr(accounts, step)(one.id, by=BY)
    found = await credentials.find_key(info.id)
    assert found.tenant.active is False
    assert (found.revoked_at is not None) == (step == "delete")
    assert (await credentials.find_key(theirs.id)).tenant.active is True
    if step == "suspend":
        await accounts.resume(one.id, by=BY)
        assert (await credentials.find_key(info.id)).tenant.active is True


# --- tenants ----------------------------------------------------------------------------------------


async def test_a_tenant_is_found_by_its_id_and_by_its_external_id(accounts, credentials) -> None:
    """As a company's own token may name it; with its state, its cap and its model."""
    one = await tenant(accounts, max_streams=7, external_id="crm/1 é", default_model="gpt-4o")
    for active in (True, False):
        if not active:
            await accounts.suspend(one.id, by=BY)
        expected = StoredTenant(one.id, active, 7, "gpt-4o")
        assert await credentials.find_tenant(one.id) == expected
        assert await credentials.find_tenant("crm/1 é") == expected
    for other in ("", "crm", one.id[:-1], "None", one.name):
        assert await credentials.find_tenant(other) is None


@pytest.mark.parametrize("first", [True, False])
async def test_an_id_counts_before_an_external_id(accounts, credentials, first) -> None:
    """P10: no tenant takes another's tokens by naming itself after its id, whoever was there first."""
    tenants = [await tenant(accounts) for _ in "12"]
    victim, thief = tenants if first else tenants[::-1]
    await accounts.change_tenant(thief.id, {"external_id": victim.id}, by=BY)
    assert (await credentials.find_tenant(victim.id)).id == victim.id
    assert (await credentials.find_tenant(thief.id)).id == thief.id


async def test_a_deleted_tenant_is_not_found(accounts, credentials) -> None:
    """By neither name; and whoever has its external id after it is found by that."""
    gone = await tenant(accounts, external_id="crm")
    await accounts.delete(gone.id, by=BY)
    assert await credentials.find_tenant(gone.id) is None
    assert await credentials.find_tenant("crm") is None
    heir = await tenant(accounts, external_id="crm")
    assert (await credentials.find_tenant("crm")).id == heir.id
    await accounts.change_tenant(heir.id, {"external_id": gone.id}, by=BY)
    assert (await credentials.find_tenant(gone.id)).id == heir.id


# --- admins and tokens ------------------------------------------------------------------------------


async def test_an_admin_is_found_whatever_the_case_of_the_address(accounts, credentials) -> None:
    """With the hash; others, and pieces of an address, are nobody."""
    await accounts.put_admin("Root@Straße.example", "a hash", by=BY)
    for asked in ("root@strasse.example", "ROOT@STRASSE.EXAMPLE", "rOOt@straße.Example"):
        found = await credentials.find_user(asked)
        assert found == StoredUser("root@strasse.example", "a hash")
    for other in ("", "root", "root@strasse.exampl", "%", "root_strasse.example"):
        assert await credentials.find_user(other) is None


async def test_revoked_tokens_are_named_as_the_feed_names_them(accounts, credentials) -> None:
    """Ids of tokens are told apart by tenant, and an admin's has none; revoking again is no error."""
    revoked = [("tn_a", "jti"), ("tn_b", "jti"), (None, "jti"), ("tn_a", "ü/'\";--")]
    for of, token_id in [*revoked, revoked[0]]:
        await accounts.revoke_token(of, token_id, by=BY)
    names = [token_name(*one) for one in revoked]
    assert sorted(await credentials.revoked_tokens()) == sorted(names)
    assert len(set(names)) == 4
    assert [change.id for change in await credentials.changes(None)] == [*names, names[0]]


async def test_a_revocation_is_told_as_long_as_a_token_can_live(accounts, credentials, clock) -> None:
    """A worker that starts a day later still refuses it; then it is forgotten; revoked again, it is new."""
    await accounts.revoke_token("tn_a", "early", by=BY)
    clock.ahead = timedelta(seconds=REVOKED_SECONDS / 2)
    await accounts.revoke_token("tn_a", "late", by=BY)
    clock.ahead = timedelta(seconds=REVOKED_SECONDS - 20)
    assert sorted(await credentials.revoked_tokens()) == ["tn_a/early", "tn_a/late"]
    clock.ahead = timedelta(seconds=REVOKED_SECONDS + 20)
    assert await credentials.revoked_tokens() == ["tn_a/late"]
    await accounts.revoke_token("tn_a", "early", by=BY)
    assert sorted(await credentials.revoked_tokens()) == ["tn_a/early", "tn_a/late"]


# --- the feed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHANGES)
async def test_every_change_is_in_the_feed_under_the_name_that_is_remembered(
    accounts, credentials, name
) -> None:
    """P9: whatever method changes an account, workers are told of just what they may have in mind."""
    world = await populated(accounts)
    last = (await credentials.changes(None))[-1].seq
    change = CHANGES[name]
    answer = await change.call(world)
    (told,) = await credentials.changes(last)
    assert told[1:] == (change.action.partition(".")[0], change.target(world) or answer)
    assert told.seq > last
    assert (told.kind in KINDS) == (name != "note")


async def test_the_feed_is_told_in_order_and_from_where_one_left_off(accounts, credentials) -> None:
    """Oldest first, nothing twice and nothing left out; an empty feed is empty."""
    assert await credentials.changes(None) == []
    assert await credentials.changes(0) == []
    ids = [(await tenant(accounts)).id for _ in range(5)]
    told = await credentials.changes(None)
    assert [change.id for change in told] == ids
    assert all(type(change) is Change for change in told)
    assert [change.seq for change in told] == sorted({change.seq for change in told})
    for position, change in enumerate(told):
        assert await credentials.changes(change.seq) == told[position + 1 :]
    assert await credentials.changes(told[0].seq - 1) == told


async def test_the_feed_is_told_by_number_however_it_lies_on_the_disk(credentials, witness) -> None:
    """Numbers are given out before rows are written, so rows may lie in any order; they are told in one."""
    numbers = [1_000_030, 1_000_010, 1_000_040, 1_000_020]
    async with witness.begin() as connection:
        for number in numbers:
            await connection.execute(insert(audit_log).values(ENTRY | {"id": number}))
    assert [change.seq for change in await credentials.changes(1_000_000)] == sorted(numbers)
    assert [change.seq for change in await credentials.changes(None)] == sorted(numbers)


async def test_whoever_starts_is_told_the_last_rows_of_the_feed(accounts, credentials) -> None:
    """The newest, oldest first, and no more than LATEST, however long the log is."""
    for n in range(LATEST + 5):
        await accounts.note("start", "session", f"{n}", by=BY)
    told = await credentials.changes(None)
    assert [change.id for change in told] == [f"{n}" for n in range(5, LATEST + 5)]


async def test_what_has_come_to_stand_in_a_gap_is_told_too(credentials, witness) -> None:
    """Those numbers and all behind `after`, each once, by number; a gap that is one still is nothing."""
    numbers = [1_000_001, 1_000_003, 1_000_004, 1_000_007, 1_000_009]
    async with witness.begin() as connection:
        for number in numbers[::-1]:
            await connection.execute(insert(audit_log).values(ENTRY | {"id": number}))
    asked = {
        (): [1_000_009],
        (1_000_003,): [1_000_003, 1_000_009],
        (1_000_004, 1_000_002, 1_000_001): [1_000_001, 1_000_004, 1_000_009],
        (1_000_009, 1_000_007, 1_000_007): [1_000_007, 1_000_009],
        tuple(range(1_000_002, 1_001_002)): numbers[1:],
    }
    for gaps, told in asked.items():
        assert [change.seq for change in await credentials.changes(1_000_007, gaps)] == told
    assert [change.seq for change in await credentials.changes(1_000_009, [1_000_008])] == []


@pytest.mark.parametrize("kind", ["postgresql"])
@pytest.mark.parametrize("ends", ["commit", "rollback"])
async def test_a_change_that_commits_late_is_told_all_the_same(accounts, credentials, witness, ends) -> None:
    """P9: a transaction that got its number first and commits last is told, however many overtook it."""
    await tenant(accounts)
    memory = Memory(credentials, Clock())
    await memory.refresh()
    memory.take_news()
    async with witness.connect() as slow:
        await slow.begin()
        await slow.execute(insert(audit_log).values(ENTRY))
        for _ in range(2):
            early = [(await tenant(accounts)).id for _ in range(LATEST)]
            told = await credentials.changes(None)
            assert [change.id for change in told] == early
            await memory.refresh()
            assert memory.take_news() == {("tenant", one) for one in early}
        await (slow.commit() if ends == "commit" else slow.rollback())
    late = {("key", "late")} if ends == "commit" else set()
    for news in (late, set()):
        await memory.refresh()
        assert memory.take_news() == news


async def test_what_one_worker_changes_another_is_told(accounts, credentials, witness) -> None:
    """The feed is in the database: a worker's memory forgets what another worker has changed."""
    other = SqlAccounts(witness, Clock())
    info, _ = await key(accounts, await tenant(accounts))
    memory = Memory(credentials, Clock(), trust_seconds=1e6, max_age_seconds=1e6)
    assert (await memory.key(info.id)).revoked_at is None
    await other.keys(None).revoke(info.id, by=BY)
    await memory.refresh()
    assert ("key", info.id) in memory.take_news()
    assert (await memory.key(info.id)).revoked_at is not None
