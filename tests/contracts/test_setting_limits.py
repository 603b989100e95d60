"""Limits as they are set, on SQLite and PostgreSQL: what a patch does, and what authentication is told."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from api.adapters.accounts_sql import SqlAccounts
from api.adapters.limits_sql import limits_of, merged
from api.tasks import Tasks
from auth.principal import LIMITS, Limit, StoredTenant, Terms
from tests.contracts.helpers import (
    BY,
    Clock,
    bounded,
    eventually,
    key,
    snapshot,
    tenant,
    waiting_for_locks,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from api.accounts import Accounts, KeyInfo, Tenant

STORED = {"requests_per_minute": 60, "tokens_per_day": 500, "shadow": ["max_streams", "tokens_per_day"]}
MERGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": ({}, STORED),
    "another": ({"tokens_per_minute": 9}, {**STORED, "tokens_per_minute": 9}),
    "the same": ({"tokens_per_day": 500}, STORED),
    "a new amount": ({"tokens_per_day": 2**52}, {**STORED, "tokens_per_day": 2**52}),
    "null": (
        {"tokens_per_day": None},
        {"requests_per_minute": 60, "shadow": ["max_streams", "tokens_per_day"]},
    ),
    "null for what is not there": ({"tokens_per_month": None}, STORED),
    "another shadow": ({"shadow": ["requests_per_minute"]}, {**STORED, "shadow": ["requests_per_minute"]}),
    "no shadow": ({"shadow": []}, {"requests_per_minute": 60, "tokens_per_day": 500}),
    "a null shadow": ({"shadow": None}, {"requests_per_minute": 60, "tokens_per_day": 500}),
    "all at once": (
        {"requests_per_minute": None, "nano_dollars_per_day": 7, "shadow": ("nano_dollars_per_day",)},
        {"tokens_per_day": 500, "nano_dollars_per_day": 7, "shadow": ["nano_dollars_per_day"]},
    ),
    "everything away": (
        {"requests_per_minute": None, "tokens_per_day": None, "shadow": []},
        {},
    ),
}
PLACES = ("a tenant", "its end users", "a key")


async def placed(accounts: Accounts, where: str, limits: Mapping[str, Any]) -> tuple[Tenant, KeyInfo]:
    """A tenant with a key, and limits at one of the three places."""
    fields = {"limits": limits} if where == "a tenant" else {"end_user_limits": limits}
    one = await tenant(accounts, **fields if where != "a key" else {})
    info, _ = await key(accounts, one, **{"limits": limits} if where == "a key" else {})
    return one, info


def changing(accounts: Accounts, where: str, of: tuple[Tenant, KeyInfo]) -> Callable[..., Awaitable[Any]]:
    """What patches the limits at that place."""
    field = "end_user_limits" if where == "its end users" else "limits"

    async def change(patch: Mapping[str, Any]) -> dict[str, Any]:
        if where == "a key":
            changed = await accounts.keys(None).change(of[1].id, {field: patch}, by=BY)
        else:
            changed = await accounts.change_tenant(of[0].id, {field: patch}, by=BY)
        return dict(getattr(changed, field))

    return change


async def read(accounts: Accounts, where: str, of: tuple[Tenant, KeyInfo]) -> dict[str, Any]:
    """The limits at that place, as they stand."""
    if where == "a key":
        return dict((await accounts.keys(None).get(of[1].id)).limits)
    one = await accounts.tenant(of[0].id)
    return dict(one.limits if where == "a tenant" else one.end_user_limits)


# --- patches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", MERGES)
def test_a_patch_is_merged(what) -> None:
    """RFC 7396 on the amounts; `shadow` is one value; neither of the two objects is touched."""
    patch, expected = MERGES[what]
    stored, given = dict(STORED), dict(patch)
    assert merged(stored, given) == expected
    assert (stored, given) == (STORED, patch)
    assert merged(expected, {}) == expected


def test_names_are_kept_in_one_order() -> None:
    """That of LIMITS, the shadow last, whoever said what first; so that two lists can be compared."""
    names = list(LIMITS)
    mixed = {name: n + 1 for n, name in enumerate(["shadow", *reversed(names)])}
    assert list(merged({"shadow": ["max_streams"]}, mixed | {"shadow": ["a"]})) == [*names, "shadow"]


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("what", MERGES)
async def test_a_patch_of_limits_leaves_the_others(accounts, witness, where, what) -> None:
    """At each of the three places, for every worker, in the answer and in the row alike."""
    of = await placed(accounts, where, STORED)
    other = await placed(accounts, where, STORED)
    patch, expected = MERGES[what]
    assert await changing(accounts, where, of)(patch) == expected
    others = SqlAccounts(witness, Clock())
    assert await read(others, where, of) == expected
    assert await read(others, where, other) == STORED
    for place in set(PLACES) - {where}:
        assert await read(others, place, of) == {}


@pytest.mark.parametrize("where", PLACES)
async def test_what_is_null_or_empty_is_not_stored_of_a_new_one_either(accounts, witness, where) -> None:
    """Creating is a patch of nothing: what was created and what is read are the same, in the row as well."""
    given = {"tokens_per_day": None, "shadow": (), "requests_per_minute": 1}
    of = await placed(accounts, where, given)
    assert await read(accounts, where, of) == {"requests_per_minute": 1}
    made = of[1].limits if where == "a key" else of[0].limits or of[0].end_user_limits
    assert made == {"requests_per_minute": 1}
    column = {"a tenant": "tenants.limits", "a key": "api_keys.limits"}.get(where, "tenants.end_user_limits")
    table, _, name = column.partition(".")
    async with witness.connect() as connection:
        raw = (await connection.execute(text(f"SELECT CAST({name} AS TEXT) FROM {table}"))).scalar_one()
    assert json.loads(raw) == {"requests_per_minute": 1}


@pytest.mark.parametrize("where", PLACES)
async def test_the_log_has_what_was_given_and_not_what_came_of_it(accounts, where) -> None:
    """A null stands in it as null: whoever reads it sees which limit was taken away."""
    of = await placed(accounts, where, STORED)
    patch = {"tokens_per_day": None, "shadow": []}
    await changing(accounts, where, of)(patch)
    (entry,) = await accounts.audit(limit=1)
    assert entry.details == {"end_user_limits" if where == "its end users" else "limits": patch}


@pytest.mark.parametrize("where", PLACES)
async def test_patches_at_the_same_moment_are_all_merged(accounts, witness, where) -> None:
    """Two workers that set different limits of one tenant or key: neither takes the other's away."""
    of = await placed(accounts, where, {})
    names = [name for name in LIMITS if name != "max_streams"]
    workers = [accounts, SqlAccounts(witness, Clock())]
    asked = [changing(workers[n % 2], where, of)({name: 7}) for n, name in enumerate(names)]
    await bounded(asyncio.gather(*asked))
    assert await read(accounts, where, of) == dict.fromkeys(names, 7)


@pytest.mark.parametrize("kind", ["postgresql"])
@pytest.mark.parametrize("where", PLACES)
async def test_a_patch_waits_for_whoever_has_the_row(accounts, witness, where) -> None:
    """It is merged into what stands when it is its turn, and not into what stood when it came."""
    of, tasks = await placed(accounts, where, {"tokens_per_day": 5}), Tasks()
    table = "api_keys" if where == "a key" else "tenants"
    column = "end_user_limits" if where == "its end users" else "limits"
    async with witness.connect() as rival:
        await rival.execute(text(f"UPDATE {table} SET {column} = '{{\"requests_per_minute\": 1}}'"))
        mine = tasks.start(changing(accounts, where, of)({"tokens_per_month": 9}), name="mine")

        async def waits() -> bool:
            return await waiting_for_locks(witness) == 1

        await eventually(waits)
        await rival.commit()
    expected = {"requests_per_minute": 1, "tokens_per_month": 9}
    assert await bounded(mine) == await read(accounts, where, of) == expected


# --- what authentication is told --------------------------------------------------------------------


def test_limits_are_told_in_the_order_of_their_names() -> None:
    """Each amount once, with the word on its shadow; a shadow without an amount is no limit."""
    stored = {"shadow": ["tokens_per_day", "tokens_per_month"], "tokens_per_day": 2, "max_streams": 1}
    assert limits_of("user", "", stored) == (
        Limit("user", "", 1),
        Limit("user", "", 2, "tokens_per_day", shadow=True),
    )
    every = {name: n + 1 for n, name in enumerate(reversed(LIMITS))}
    assert [limit.name for limit in limits_of("key", "k", every)] == list(LIMITS)
    assert limits_of("tenant", "t", {}) == ()


async def test_a_tenants_limits_reach_its_keys_and_its_own_tokens(accounts, credentials) -> None:
    """By id, by external id, and with a key: amounts, shadows, zone, queue, weight, and its end users'."""
    one = await tenant(
        accounts,
        max_streams=7,
        external_id="crm",
        time_zone="Asia/Tokyo",
        limits={"tokens_per_day": 2**52, "requests_per_minute": 60, "shadow": ["requests_per_minute"]},
        end_user_limits={"max_streams": 2, "tokens_per_day": 3, "shadow": ["max_streams"]},
        max_waiters=5,
        max_wait_seconds=6,
        weight=8,
    )
    info, _ = await key(accounts, one)
    of_user = (Limit("user", "", 2, shadow=True), Limit("user", "", 3, "tokens_per_day"))
    found = await credentials.find_tenant(one.id)
    assert found.limits == (
        Limit("tenant", one.id, 7),
        Limit("tenant", one.id, 60, "requests_per_minute", shadow=True),
        Limit("tenant", one.id, 2**52, "tokens_per_day"),
    )
    assert found.terms == Terms("Asia/Tokyo", 5, 6, 8, of_user)
    assert await credentials.find_tenant("crm") == found
    assert (await credentials.find_key(info.id)).tenant == found


async def test_a_keys_limits_are_its_own(accounts, credentials) -> None:
    """Neither its tenant's nor another key's; with and without a cap on streams."""
    one = await tenant(accounts, limits={"tokens_per_day": 9, "shadow": ["tokens_per_day"]})
    own = {"tokens_per_day": 5, "nano_dollars_per_month": 6}
    (info, _), (capped, _), (plain, _) = [
        await key(accounts, one, **fields)
        for fields in ({"limits": own}, {"limits": own, "max_streams": 2}, {})
    ]
    found = [await credentials.find_key(each.id) for each in (info, capped, plain)]
    more = [Limit("key", info.id, 5, "tokens_per_day"), Limit("key", info.id, 6, "nano_dollars_per_month")]
    assert found[0].limits == tuple(more)
    assert found[1].limits == (
        Limit("key", capped.id, 2),
        *(limit._replace(id=capped.id) for limit in more),
    )
    assert found[2].limits == ()
    assert {one.tenant.limits for one in found} == {
        (Limit("tenant", one.id, 3), Limit("tenant", one.id, 9, "tokens_per_day", shadow=True))
    }


@pytest.mark.parametrize("whose", ["tenant", "key"])
async def test_streams_can_be_in_shadow(accounts, credentials, whose) -> None:
    """The cap of the tenant or of the key that says so, and not the other's; and back again."""
    one = await tenant(accounts, max_streams=7)
    info, _ = await key(accounts, one, max_streams=2)
    for shadow in (["max_streams"], []):
        patch = {"limits": {"shadow": shadow}}
        if whose == "tenant":
            await accounts.change_tenant(one.id, patch, by=BY)
        else:
            await accounts.keys(None).change(info.id, patch, by=BY)
        found = await credentials.find_key(info.id)
        (of_tenant,), (of_key,) = found.tenant.limits, found.limits
        assert of_tenant == Limit("tenant", one.id, 7, shadow=bool(shadow) and whose == "tenant")
        assert of_key == Limit("key", info.id, 2, shadow=bool(shadow) and whose == "key")


async def test_a_changed_limit_is_told_at_the_next_look(accounts, credentials) -> None:
    """The change stands in the feed under the name that workers remember it by."""
    one = await tenant(accounts)
    last = (await credentials.changes(None))[-1].seq
    await accounts.change_tenant(one.id, {"limits": {"tokens_per_day": 1}}, by=BY)
    assert [change[1:] for change in await credentials.changes(last)] == [("tenant", one.id)]
    assert (await credentials.find_tenant(one.id)).more_limits == (
        Limit("tenant", one.id, 1, "tokens_per_day"),
    )


# --- rows -------------------------------------------------------------------------------------------


async def test_a_refused_change_changes_no_limits(accounts, witness) -> None:
    """An external id that is taken takes back the limits of the same patch."""
    await tenant(accounts, external_id="crm")
    one = await tenant(accounts, limits={"tokens_per_day": 5})
    before = await snapshot(witness)
    with pytest.raises(Exception, match="crm"):
        await accounts.change_tenant(one.id, {"external_id": "crm", "limits": {"tokens_per_day": 6}}, by=BY)
    assert await snapshot(witness) == before
    assert await accounts.tenant(one.id) == replace(one, limits={"tokens_per_day": 5})


async def test_rows_of_a_worker_that_knows_no_limits_have_none(accounts, credentials, witness) -> None:
    """While hosts are upgraded one after the other, an older one inserts without the new columns."""
    rows = (
        (
            "tenants (id, name, max_streams, active, created_at) "
            "VALUES ('tn_old', 'old', 3, true, '2026-01-01 00:00:00')"
        ),
        (
            "api_keys (id, tenant_id, name, secret_sha256, scopes, created_at) "
            "VALUES ('key_old', 'tn_old', 'old', CAST('x' AS BLOB), 'chat', '2026-01-01 00:00:00')"
        ),
    )
    blob = "BYTEA" if witness.name == "postgresql" else "BLOB"
    async with witness.begin() as connection:
        for row in rows:
            await connection.execute(text(f"INSERT INTO {row.replace('BLOB', blob)}"))
    one = await accounts.tenant("tn_old")
    assert (one.limits, one.end_user_limits) == ({}, {})
    assert (one.max_waiters, one.max_wait_seconds, one.weight) == (0, 30, 1)
    found = await credentials.find_key("key_old")
    assert (found.limits, found.tenant) == ((), StoredTenant("tn_old", active=True, max_streams=3))
