"""The audit log, on SQLite and PostgreSQL: each change stands in it once, with the change or not at all."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from dataclasses import asdict
from datetime import timedelta
from itertools import pairwise

import pytest
from sqlalchemy import event, func, select, text
from sqlalchemy.exc import DBAPIError

from api.accounts import (
    Accounts,
    Actor,
    ExternalIdTaken,
    KeyFields,
    Keys,
    NoSuchKey,
    NoSuchTenant,
    TenantFields,
)
from api.adapters.tables_sql import audit_log, metadata
from auth import keys
from auth.principal import Scope
from tests.contracts.helpers import BY, START, bounded, key, snapshot, tenant
from tests.contracts.walks import (
    CALLS,
    CHANGES,
    PASSWORD_HASH,
    READS,
    SILENT,
    VIEWS,
    methods,
    populated,
)

ENTRY = {
    "actor": BY.name,
    "address": BY.address,
    "request_id": BY.request_id,
}


async def newest(accounts: Accounts) -> int:
    """The number of the newest entry."""
    return (await accounts.audit(limit=1))[0].id


def test_every_method_is_in_exactly_one_table() -> None:
    """A method that nobody sorted into those that are audited, and those that need not be, fails here."""
    tables = [set(CHANGES), set(READS), set(SILENT), VIEWS]
    assert set.union(*tables) == methods(Accounts) | methods(Keys)
    assert sum(map(len, tables)) == len(set.union(*tables))
    assert methods(Accounts) & methods(Keys) == set()


# --- with the change, or not at all -----------------------------------------------------------------


@pytest.mark.parametrize("name", CHANGES)
async def test_a_change_is_one_entry_in_one_transaction(accounts, engine, name) -> None:
    """Who, from where, by which request, when, what and to whom; committed together with the change."""
    world = await populated(accounts)
    last, commits = await newest(accounts), []
    event.listen(engine.sync_engine, "commit", commits.append)
    change = CHANGES[name]
    answer = await change.call(world)
    assert len(commits) == 1
    (entry, before) = await accounts.audit(limit=2)
    assert before.id == last < entry.id
    target = change.target(world) or answer
    assert {field: getattr(entry, field) for field in ENTRY} == ENTRY
    assert (entry.action, entry.kind, entry.target) == (change.action, change.action.split(".")[0], target)
    of_nobody = entry.kind in {"user", "session"}
    own = target if name == "create_tenant" else world.tenant_id
    assert entry.tenant_id == (None if of_nobody else own)
    assert before.at < entry.at < START + timedelta(minutes=1)


@pytest.mark.parametrize("name", [*READS, *SILENT])
async def test_what_changes_no_account_leaves_no_entry(accounts, name) -> None:
    """Reading is not audited, and the use of a key is no change of it: the feed would drown in them."""
    world = await populated(accounts)
    before = await accounts.audit()
    await CALLS[name](world)
    assert await accounts.audit() == before


@pytest.mark.parametrize("name", CHANGES)
async def test_a_change_whose_entry_cannot_be_written_is_not_made(accounts, engine, witness, name) -> None:
    """Whatever breaks while the log is written takes the change back: no change without its entry."""
    world = await populated(accounts)
    before = await snapshot(witness)

    def no_log(_connection, _cursor, statement, *_: object) -> None:
        if "INTO audit_log" in statement:
            raise OSError("the log is full")

    event.listen(engine.sync_engine, "before_cursor_execute", no_log)
    with pytest.raises(Exception, match="OSError"):
        await CALLS[name](world)
    event.remove(engine.sync_engine, "before_cursor_execute", no_log)
    assert await snapshot(witness) == before
    await CALLS[name](world)
    assert await snapshot(witness) != before


FAILURES = {
    "create_tenant": lambda w: w.accounts.create_tenant(TenantFields("x", 1, "crm-1"), by=BY),
    "change_tenant": lambda w: w.accounts.change_tenant("tn_nobody", {"name": "x"}, by=BY),
    "take an external id": lambda w: w.accounts.change_tenant(w.tenant_id, {"external_id": "crm-2"}, by=BY),
    "suspend": lambda w: w.accounts.suspend("tn_nobody", by=BY),
    "resume": lambda w: w.accounts.resume("tn_nobody", by=BY),
    "delete": lambda w: w.accounts.delete("tn_nobody", by=BY),
    "issue": lambda w: w.keys.issue("tn_nobody", KeyFields("x", (Scope.CHAT,)), by=BY),
    "change": lambda w: w.keys.change("0" * 12, {"name": "x"}, by=BY),
    "rotate": lambda w: w.keys.rotate("0" * 12, grace_seconds=0, by=BY),
    "revoke": lambda w: w.keys.revoke("0" * 12, by=BY),
}
CANNOT_FAIL = {"revoke_token", "put_admin", "remove_admin", "note"}
"""They need nothing that could be missing."""


@pytest.mark.parametrize("name", FAILURES)
async def test_a_change_that_is_refused_leaves_no_entry(accounts, witness, name) -> None:
    """The log says what happened, and not what somebody tried; every method that can refuse is tried."""
    assert set(CHANGES) - CANNOT_FAIL <= set(FAILURES)
    world = await populated(accounts)
    await tenant(accounts, external_id="crm-2")
    before = await snapshot(witness)
    with pytest.raises((NoSuchTenant, NoSuchKey, ExternalIdTaken)):
        await FAILURES[name](world)
    assert await snapshot(witness) == before


async def test_what_changes_nothing_the_second_time_leaves_no_second_entry(accounts, witness) -> None:
    """A key that was revoked, an admin who is gone, a key's patch of nothing: no entry says otherwise."""
    world = await populated(accounts)
    await world.keys.revoke(world.key_id, by=BY)
    before = await snapshot(witness)
    await world.keys.revoke(world.key_id, by=BY)
    await world.keys.change(world.key_id, {}, by=BY)
    await world.accounts.remove_admin("nobody@example.com", by=BY)
    assert await snapshot(witness) == before


# --- what stands in it ------------------------------------------------------------------------------


async def test_an_entry_tells_what_was_decided(accounts) -> None:
    """All fields of a new tenant or key, and of a patch those that it sets, as JSON."""
    fields = {"external_id": "crm", "default_model": "m", "time_zone": "Asia/Tokyo", "metadata": {"é": "水"}}
    fields |= {"limits": {"tokens_per_day": 5}, "end_user_limits": {"max_streams": 1}}
    fields |= {"max_waiters": 4, "max_wait_seconds": 3, "weight": 2, "resume_minutes": 6}
    given = {"limits": {"tokens_per_day": None, "tokens_per_minute": 7, "shadow": []}}
    one = await tenant(accounts, "ü", **fields)
    await accounts.change_tenant(one.id, {"default_model": None, "metadata": {}, **given}, by=BY)
    info, _ = await key(accounts, one, models=("gpt-*",), max_streams=2, allowed_addresses=("10.0.0.0/8",))
    view = accounts.keys(None)
    patch = {"expires_at": START, "models": None, "scopes": (Scope.USAGE_READ,), **given}
    await view.change(info.id, patch, by=BY)
    await view.rotate(info.id, grace_seconds=17, by=BY)
    details = [entry.details for entry in reversed(await accounts.audit())]
    assert details == [
        {"name": "ü", "max_streams": 3, **fields},
        {"default_model": None, "metadata": {}, **given},
        {
            "name": "k",
            "scopes": "chat",
            "models": ["gpt-*"],
            "max_streams": 2,
            "allowed_addresses": ["10.0.0.0/8"],
            "expires_at": None,
            "limits": {},
        },
        {"expires_at": START.isoformat(), "models": None, "scopes": "usage:read", **given},
        {"grace_seconds": 17},
    ]


async def test_no_secret_and_no_hash_stands_in_the_log(accounts, witness) -> None:
    """Whoever may read the log learns nothing to sign in with, and nothing to guess at."""
    world = await populated(accounts)
    issued, secrets = [(await world.keys.issue(world.tenant_id, KeyFields("x", (Scope.CHAT,)), by=BY))], []
    issued += [await world.keys.rotate(issued[0][0].id, grace_seconds=60, by=BY) for _ in range(2)]
    for change in CHANGES.values():
        await change.call(world)
    for _, said in issued:
        shown = keys.parse(said)
        assert shown is not None
        secrets += [shown.secret.encode(), shown.sha256, shown.sha256.hex().encode()]
        secrets += [base64.b64encode(shown.sha256), hashlib.sha256(said.encode()).digest()]
    secrets += [PASSWORD_HASH.encode(), PASSWORD_HASH.rpartition("$")[2].encode()]
    rows = (await snapshot(witness))["audit_log"]
    raw = b"\0".join(cell if isinstance(cell, bytes) else repr(cell).encode() for row in rows for cell in row)
    assert issued[0][0].id.encode() in raw
    assert [secret for secret in secrets if secret in raw or secret[:12] in raw] == []


async def test_long_names_are_cut_and_odd_ones_kept(accounts) -> None:
    """What comes from outside (a header, an identity provider) fits, and does not stop the change."""
    odd = Actor("user:ü\u2028'\";--\\水" + "x" * 500, "a" * 100, "r" * 300)
    await accounts.note("start", "session", "t" * 500, by=odd)
    (entry,) = await accounts.audit()
    assert (entry.actor, entry.address) == (odd.name[:400], "a" * 64)
    assert (entry.request_id, entry.target) == ("r" * 128, "t" * 400)


# --- it cannot be changed ---------------------------------------------------------------------------


@pytest.mark.parametrize("column", [column.name for column in audit_log.columns])
async def test_no_entry_can_be_updated(accounts, witness, column) -> None:
    """Not one column of it, by nobody who has a connection; the database itself refuses."""
    await populated(accounts)
    before = await snapshot(witness)
    async with witness.connect() as connection:
        with pytest.raises(DBAPIError, match="append-only"):
            await connection.execute(text(f"UPDATE audit_log SET {column} = {column}"))
        await connection.rollback()
    assert await snapshot(witness) == before


@pytest.mark.parametrize("which", ["", " WHERE id = (SELECT max(id) FROM audit_log)"])
async def test_no_entry_can_be_deleted(accounts, witness, which) -> None:
    """Neither all nor one; and after the attempt the log goes on."""
    await populated(accounts)
    before = await snapshot(witness)
    async with witness.connect() as connection:
        with pytest.raises(DBAPIError, match="append-only"):
            await connection.execute(text(f"DELETE FROM audit_log{which}"))
        await connection.rollback()
    assert await snapshot(witness) == before
    await accounts.note("start", "session", "x", by=BY)
    assert len(await accounts.audit()) == len(before["audit_log"]) + 1


# --- reading it -------------------------------------------------------------------------------------


async def test_pages_show_each_entry_once_newest_first(accounts) -> None:
    """Paging by `before` to the end shows everything, in order, also when entries come in meanwhile."""
    for n in range(7):
        await accounts.note("start", "session", f"{n}", by=BY)
    pages, before = [], None
    while page := await accounts.audit(before=before, limit=3):
        pages.append([entry.target for entry in page])
        before = page[-1].id
        await accounts.note("start", "session", "meanwhile", by=BY)
    assert pages == [["6", "5", "4"], ["3", "2", "1"], ["0"]]
    entries = await accounts.audit()
    assert all(newer.id > older.id and newer.at > older.at for newer, older in pairwise(entries))
    assert len(entries) == 10


async def test_filters_narrow_the_log_and_combine(accounts) -> None:
    """By tenant, by who it was, by what was done, each exactly, and together, on every page."""
    her, him = Actor("user:her", "192.0.2.1", "r1"), Actor("user:h", "192.0.2.2", "r2")
    mine, other = [await accounts.create_tenant(TenantFields(name, 1), by=her) for name in "ab"]
    for actor in (her, him):
        for one in (mine, other):
            await accounts.suspend(one.id, by=actor)
            await accounts.resume(one.id, by=actor)
    everything = await accounts.audit()
    assert len(everything) == 10
    for tenant_id in (None, mine.id, "tn_nobody"):
        for actor in (None, "user:her", "user:h", "user"):
            for action in (None, "tenant.suspend", "tenant", "tenant.s%"):
                asked = {"tenant_id": tenant_id, "actor": actor, "action": action}
                wanted = {name: value for name, value in asked.items() if value}
                fitting = [e for e in everything if wanted.items() <= asdict(e).items()]
                assert await accounts.audit(**asked) == fitting
                if fitting:
                    rest = await accounts.audit(**asked, before=fitting[0].id, limit=1)
                    assert rest == fitting[1:2]


async def test_writers_at_the_same_time_all_get_their_entry(accounts, witness) -> None:
    """Thirty changes at once are thirty entries; nobody overwrites and nobody is left out."""
    await bounded(asyncio.gather(*(tenant(accounts, f"{n}") for n in range(30))))
    assert {entry.details["name"] for entry in await accounts.audit()} == {f"{n}" for n in range(30)}
    async with witness.connect() as connection:
        count = select(func.count()).select_from(metadata.tables["audit_log"])
        assert (await connection.execute(count)).scalar_one() == 30
