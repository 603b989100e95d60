"""Models, upstreams and tenants' keys, on SQLite and PostgreSQL: what is said holds, audited and sealed."""

from __future__ import annotations

import pytest
from sqlalchemy import select, update

from api.accounts import NoSuchTenant
from api.adapters.catalog_sql import SqlCatalog
from api.adapters.credentials_sql import SqlCredentials
from api.adapters.sealer_aesgcm import CannotOpen, Sealer
from api.adapters.tables_sql import audit_log, provider_keys, upstreams
from api.cataloging import CatalogFile, NoSuchEntry, NoSuchUpstream, UpstreamInUse
from api.core.catalog import ModelSpec, Target, UpstreamSpec
from tests.contracts.helpers import BY, snapshot, tenant

KEY = "sk-THE-PROVIDERS-SECRET-KEY"
ONE = UpstreamSpec("one", "openai", base_url="http://one/v1", dialects=("openai_chat",))
FAST = ModelSpec("fast", (Target("one", "small", weight=3), Target("env", order=1)), first_token_seconds=2.5)
NOBODY = frozenset({"env"})


@pytest.fixture
def sealer() -> Sealer:
    """As of today."""
    return Sealer("secret of today")


@pytest.fixture
def book(engine, clock, sealer) -> SqlCatalog:
    """The adapter under test."""
    return SqlCatalog(engine, clock, sealer)


async def test_what_is_said_is_what_workers_load(book) -> None:
    """Upstreams with their keys, models with all their fields; again is the same, and a change replaces."""
    await book.put_upstream(ONE, KEY, by=BY)
    await book.put_model(FAST, by=BY, known=NOBODY)
    for _ in range(2):
        loaded = await book.load()
        assert loaded.upstreams == {"one": ONE}
        assert loaded.secrets == {"one": KEY}
        assert loaded.of("fast", "tn_1") == FAST
        await book.put_model(FAST, by=BY, known=NOBODY)
    slow = ModelSpec("fast", (Target("env"),))
    await book.put_model(slow, by=BY, known=NOBODY)
    assert (await book.load()).of("fast", "") == slow
    assert len(await book.models()) == 1


async def test_a_key_stays_until_another_one_is_said(book) -> None:
    """A change of the address does not lose it; and only its end is ever shown."""
    await book.put_upstream(ONE, KEY, by=BY)
    kept = await book.put_upstream(UpstreamSpec("one", "openai", base_url="http://two/v1"), None, by=BY)
    assert kept.key_hint == "-KEY"
    assert (await book.load()).secrets == {"one": KEY}
    await book.put_upstream(ONE, "sk-short", by=BY)
    assert [one.key_hint for one in await book.upstreams()] == [""]


async def test_no_key_stands_anywhere_in_the_database(book, engine, accounts) -> None:
    """Neither in its row, nor in the audit log, nor in part."""
    owner = await tenant(accounts)
    await book.put_upstream(ONE, KEY, by=BY)
    await book.put_key(owner.id, "one", KEY, by=BY)
    everything = str(await snapshot(engine))
    assert "put_key" in everything
    assert "SECRET" not in everything


async def test_a_key_that_is_moved_to_another_row_is_worth_nothing(book, engine, accounts, caplog) -> None:
    """Who can write to the database cannot give one tenant's key to another."""
    one, two = await tenant(accounts, "a"), await tenant(accounts, "b")
    await book.put_key(one.id, "one", KEY, by=BY)
    await book.put_key(two.id, "one", "sk-of-another-tenant", by=BY)
    async with engine.begin() as connection:
        mine = select(provider_keys.c.secret).where(provider_keys.c.tenant_id == one.id)
        stolen = await connection.scalar(mine)
        theirs = update(provider_keys).where(provider_keys.c.tenant_id == two.id)
        await connection.execute(theirs.values(secret=stolen))
    loaded = await book.load()
    assert loaded.key_of(one.id, "one") == KEY
    assert loaded.key_of(two.id, "one") is None
    assert "cannot be used" in caplog.text
    assert KEY not in caplog.text


async def test_a_new_secret_key_opens_old_keys_and_reseals_them(book, engine, clock) -> None:
    """Rotation: the old one retires, all are sealed anew, and then it can be forgotten."""
    await book.put_upstream(ONE, KEY, by=BY)
    rotated = SqlCatalog(engine, clock, Sealer("secret of tomorrow", ["secret of today"]))
    assert (await rotated.load()).secrets == {"one": KEY}
    assert await rotated.reseal(by=BY) == 1
    assert await rotated.reseal(by=BY) == 0
    later = SqlCatalog(engine, clock, Sealer("secret of tomorrow"))
    assert (await later.load()).secrets == {"one": KEY}
    assert (await book.load()).secrets == {}  # who has the old secret alone


async def test_resealing_without_the_old_secret_changes_nothing(book, engine, clock) -> None:
    """Half a rotation is none."""
    await book.put_upstream(ONE, KEY, by=BY)
    with pytest.raises(CannotOpen):
        await SqlCatalog(engine, clock, Sealer("another one")).reseal(by=BY)
    assert (await book.load()).secrets == {"one": KEY}


async def test_a_model_names_upstreams_that_are_there(book, accounts) -> None:
    """Stored or of the environment; an upstream that is named stays; a tenant must exist."""
    with pytest.raises(NoSuchUpstream):
        await book.put_model(FAST, by=BY, known=NOBODY)
    await book.put_upstream(ONE, None, by=BY)
    await book.put_model(FAST, by=BY, known=NOBODY)
    with pytest.raises(UpstreamInUse, match="fast"):
        await book.remove_upstream("one", by=BY)
    with pytest.raises(NoSuchTenant):
        await book.put_model(ModelSpec("own", (Target("one"),), tenant_id="tn_none"), by=BY, known=NOBODY)
    await book.remove_model("fast", "", by=BY)
    await book.remove_upstream("one", by=BY)
    with pytest.raises(NoSuchUpstream):
        await book.remove_upstream("one", by=BY)
    with pytest.raises(NoSuchEntry):
        await book.remove_model("fast", "", by=BY)
    with pytest.raises(NoSuchTenant):
        await book.put_key("tn_none", "one", KEY, by=BY)


async def test_a_tenants_entries_are_its_own(book, accounts) -> None:
    """Its models, its keys; removed they are gone."""
    owner = await tenant(accounts)
    own = ModelSpec("fast", (Target("env"),), tenant_id=owner.id)
    await book.put_model(own, by=BY, known=NOBODY)
    await book.put_key(owner.id, "env", KEY, by=BY)
    loaded = await book.load()
    assert loaded.of("fast", owner.id) == own
    assert loaded.of("fast", "tn_other") is None
    assert [one.key_hint for one in await book.provider_keys(owner.id)] == ["-KEY"]
    await book.remove_key(owner.id, "env", by=BY)
    with pytest.raises(NoSuchEntry):
        await book.remove_key(owner.id, "env", by=BY)
    assert await book.provider_keys(owner.id) == []


async def test_a_file_holds_as_a_whole_or_not_at_all(book) -> None:
    """What differs is written; `prune` removes the rest; a fault in one entry leaves all as it was."""
    await book.put_upstream(UpstreamSpec("old", "openai"), KEY, by=BY)
    await book.put_model(ModelSpec("gone", (Target("old"),)), by=BY, known=NOBODY)
    file = CatalogFile([ONE], {"one": KEY}, [FAST])
    dry = await book.import_file(file, by=BY, known=NOBODY, prune=True, dry_run=True)
    assert [tuple(one) for one in dry] == [
        ("add", "upstream", "one"),
        ("add", "model", "fast"),
        ("remove", "model", "gone"),
        ("remove", "upstream", "old"),
    ]
    broken = file._replace(models=[FAST, ModelSpec("bad", (Target("nowhere"),))])
    with pytest.raises(NoSuchUpstream):
        await book.import_file(broken, by=BY, known=NOBODY)
    assert [one.spec.name for one in await book.upstreams()] == ["old"]
    assert await book.import_file(file, by=BY, known=NOBODY, prune=True) == dry
    assert await book.import_file(file._replace(secrets={}), by=BY, known=NOBODY, prune=True) == []
    loaded = await book.load()
    assert (loaded.upstreams, loaded.names("")) == ({"one": ONE}, ["fast"])
    assert loaded.secrets == {"one": KEY}


async def test_every_change_is_news_to_the_workers(book, engine, clock, accounts) -> None:
    """Each stands in the feed that workers read, as an entry of a kind that they go by."""
    credentials = SqlCredentials(engine, clock)
    owner = await tenant(accounts)
    before = max([change.seq for change in await credentials.changes(None)], default=0)
    await book.put_upstream(ONE, KEY, by=BY)
    await book.put_model(FAST, by=BY, known=NOBODY)
    await book.put_key(owner.id, "one", KEY, by=BY)
    await book.remove_key(owner.id, "one", by=BY)
    await book.remove_model("fast", "", by=BY)
    await book.remove_upstream("one", by=BY)
    assert [change.kind for change in await credentials.changes(before)] == ["catalog"] * 6
    async with engine.connect() as connection:
        rows = (await connection.execute(select(audit_log.c.action).order_by(audit_log.c.id))).scalars().all()
    assert rows[-6:] == [
        f"catalog.{verb}"
        for verb in ("put_upstream", "put_model", "put_key", "remove_key", "remove_model", "remove_upstream")
    ]


async def test_a_changed_byte_is_noticed(book, engine, caplog) -> None:
    """A sealed key that was tampered with is no key."""
    await book.put_upstream(ONE, KEY, by=BY)
    async with engine.begin() as connection:
        sealed = bytearray(await connection.scalar(select(upstreams.c.secret)))
        sealed[-1] ^= 1
        await connection.execute(update(upstreams).values(secret=bytes(sealed)))
    assert (await book.load()).secrets == {}
