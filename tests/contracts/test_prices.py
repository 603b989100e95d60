"""The price list and markups, on SQLite and PostgreSQL: versions are added, never changed, all audited."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, insert, text
from sqlalchemy.exc import DBAPIError

from api.accounts import NoSuchTenant
from api.adapters import tables_sql
from api.adapters.database_sql import open_engine
from api.adapters.prices_sql import SqlPrices
from api.core.money import Price
from api.ports import AccountsUnavailable
from tests.contracts.helpers import BY, START, bounded, snapshot, tenant
from tests.support.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncEngine

    from api.accounts import Accounts
    from api.adapters.accounts_sql import SqlAccounts
    from api.pricing import KeptPrice
    from tests.contracts.helpers import Clock

CHEAP, DEAR = Price(1, 2, 3, 4), Price(10**15, 5, 6, 7)
DAY = timedelta(days=1)


@pytest.fixture
def book(engine: AsyncEngine, clock: Clock) -> SqlPrices:
    """A price book; of what the migration put there nobody here speaks."""
    return SqlPrices(engine, clock)


def told(rows: Sequence[KeptPrice]) -> list[tuple[str, int]]:
    """Models and what their input costs."""
    return [(row.model, row.input) for row in rows if row.model != "scripted*"]


async def cost(book: SqlPrices, model: str, at: datetime, tenant_id: str = "tn_a") -> int | None:
    """What a million tokens of input cost, as workers know it."""
    price = (await book.load()).of(model, tenant_id, at)
    return None if price is None else price.of_input(10**6)


async def add(book: SqlPrices, at: datetime | None = START, **prices: Price) -> list[int]:
    """Import; the versions that were added."""
    done = await book.import_prices(prices, at, by=BY)
    return [one.version for one in done.changes if one.version is not None]


# --- importing --------------------------------------------------------------------------------------


async def test_an_import_adds_a_version_of_each_price(book: SqlPrices) -> None:
    """With all four amounts, from its moment on, and by whom; workers and lists are told the same."""
    done = await book.import_prices({"b": DEAR, "a*": CHEAP}, START + DAY, by=BY)
    assert [(one.model, one.before, one.after) for one in done.changes] == [
        ("a*", None, CHEAP),
        ("b", None, DEAR),
    ]
    assert (done.valid_from, done.unchanged) == (START + DAY, 0)
    [a, b] = [row for row in await book.listed(at=START + DAY) if row.model != "scripted*"]
    assert [(row.version, row.model) for row in (a, b)] == [(one.version, one.model) for one in done.changes]
    assert (a.input, a.cached_input, a.output, a.reasoning) == (1, 2, 3, 4)
    assert (b.input, b.valid_from, b.created_by) == (10**15, START + DAY, BY.name)
    assert START < b.created_at < START + timedelta(minutes=1)
    assert await cost(book, "abc", START + DAY) == 1
    assert await cost(book, "abc", START) is None
    assert told(await book.listed(at=START)) == []


async def test_the_same_list_again_adds_nothing(book: SqlPrices, witness: AsyncEngine) -> None:
    """Nor does one that holds already by that moment; not a row, not an entry in the audit log."""
    await add(book, a=CHEAP, b=DEAR)
    before = await snapshot(witness)
    for at in (START, START + DAY, None):
        done = await book.import_prices({"a": CHEAP, "b": DEAR}, at, by=BY)
        assert (done.changes, done.unchanged) == ((), 2)
    assert await snapshot(witness) == before


@pytest.mark.parametrize("field", ["input", "cached_input", "output", "reasoning"])
async def test_what_differs_alone_is_added(book: SqlPrices, field: str) -> None:
    """In whichever of its amounts; of the others no version is wasted, and models not named stay."""
    await add(book, a=CHEAP, b=CHEAP, c=CHEAP)
    changed = Price(**{**dict.fromkeys(("input", "cached_input", "output", "reasoning"), 1), field: 9})
    await add(book, d=Price(1, 1, 1, 1))
    done = await book.import_prices({"a": CHEAP, "d": changed}, START + DAY, by=BY)
    [one] = done.changes
    assert (one.model, done.unchanged, one.before and one.before.input) == ("d", 1, 1)
    assert [row.model for row in await book.listed(at=START + DAY)][:4] == ["a", "b", "c", "d"]


async def test_a_price_for_the_same_moment_takes_over(book: SqlPrices) -> None:
    """Whoever made a mistake imports again: the later version holds, the earlier one stays in the history."""
    [first] = await add(book, a=CHEAP)
    [second] = await add(book, a=DEAR)
    assert second > first
    assert told(await book.listed()) == [("a", DEAR.input)]
    assert await cost(book, "a", START) == DEAR.input
    history = [(row.version, row.input) for row in await book.history(model="a")]
    assert history == [(second, DEAR.input), (first, CHEAP.input)]


async def test_a_price_for_the_past_leaves_the_later_ones(book: SqlPrices) -> None:
    """It is compared with what held then, and holds until the next one's moment."""
    await add(book, START, a=CHEAP)
    await add(book, START + 2 * DAY, a=DEAR)
    assert len(await add(book, START - DAY, a=DEAR)) == 1
    assert len(await add(book, START + DAY, a=CHEAP)) == 0
    asked = [START - 2 * DAY, START - DAY, START, START + DAY, START + 2 * DAY]
    assert [await cost(book, "a", at) for at in asked] == [None, 10**15, 1, 1, 10**15]
    listed = [told(await book.listed(at=at)) for at in asked]
    assert listed == [[], [("a", 10**15)], [("a", 1)], [("a", 1)], [("a", 10**15)]]


async def test_a_pattern_does_not_stand_for_a_name(book: SqlPrices) -> None:
    """A model that costs what its pattern says gets a row of its own all the same: patterns may change."""
    await add(book, **{"a*": CHEAP})
    assert len(await add(book, ab=CHEAP)) == 1


async def test_a_dry_run_says_the_same_and_changes_nothing(book: SqlPrices, witness: AsyncEngine) -> None:
    """But for the versions, which nobody knows before."""
    await add(book, a=CHEAP, b=CHEAP)
    before, wanted = await snapshot(witness), {"a": CHEAP, "b": DEAR, "c": DEAR}
    tried = await book.import_prices(wanted, START + DAY, by=BY, dry_run=True)
    assert await snapshot(witness) == before
    done = await book.import_prices(wanted, START + DAY, by=BY)
    assert tried.changes == tuple(one._replace(version=None) for one in done.changes)
    assert (tried.unchanged, tried.valid_from) == (done.unchanged, done.valid_from)


@pytest.mark.parametrize("seed", range(3))
async def test_after_an_import_its_prices_hold_by_its_moment(book: SqlPrices, seed: int) -> None:
    """Whatever was imported before, in whatever order of moments; and again adds nothing."""
    chance = random.Random(seed)
    for _ in range(12):
        at = START + chance.randrange(4) * DAY
        prices = {
            name: Price(*[chance.randrange(2)] * 4) for name in chance.sample(["a", "ab", "a*", "c"], 2)
        }
        await book.import_prices(prices, at, by=BY)
        known = await book.load()
        for name, price in prices.items():
            found = known.of(name, "tn_a", at)
            assert found is not None
            assert found.input == price.input
        assert (await book.import_prices(prices, at, by=BY)).changes == ()


async def test_of_imports_at_one_time_each_price_is_added_once(book: SqlPrices) -> None:
    """Eight people click at once: one of them adds the prices, the others find them there."""
    wanted = {f"m{n}": CHEAP for n in range(5)}
    done = await bounded(asyncio.gather(*(book.import_prices(wanted, START, by=BY) for _ in range(8))))
    assert sorted(len(one.changes) for one in done) == [0] * 7 + [5]


async def test_a_long_list_is_read_whole(book: SqlPrices) -> None:
    """Also by workers, who read it page by page; and odd names are names, no patterns of SQL."""
    wanted = {f"m{n:04d}": CHEAP for n in range(2001)} | {"a_b": DEAR, "a%": CHEAP, "水 'x'": DEAR}
    added = await add(book, **wanted)
    assert added == list(range(added[0], added[0] + 2004))
    known = await book.load()
    assert all(known.of(name, "tn_a", START) is not None for name in wanted)
    assert known.of("axb", "tn_a", START) is None
    found: list[KeptPrice] = []
    while page := await book.listed(after=found[-1].model if found else "", limit=700):
        found += page
    assert sorted(row.model for row in found if row.model != "scripted*") == sorted(wanted)
    numbers: list[int] = []
    while rows := await book.history(before=numbers[-1] if numbers else None, limit=900):
        numbers += [row.version for row in rows]
    assert [number for number in numbers if number >= added[0]] == added[::-1]


async def test_a_model_falls_under_its_name_and_its_beginnings(book: SqlPrices) -> None:
    """All of them are listed, and the one that holds is the last; others are not."""
    names = ("*", "g*", "g t*", "gpt*", "gpt-4o", "gpt-4o-mini*", "gpt_4o", "GPT-4O", "gp%")
    await add(book, **dict.fromkeys(names, CHEAP))
    fitting = [row.model for row in await book.listed(model="gpt-4o")]
    assert fitting == ["*", "g*", "gpt*", "gpt-4o"]
    assert [row.model for row in await book.listed(model="g tx")] == ["*", "g*", "g t*"]
    assert {row.model for row in await book.history(model="gpt-4o")} == set(fitting)
    assert [row.model for row in await book.listed(model="")] == ["*"]


# --- the audit log ----------------------------------------------------------------------------------


async def test_an_import_is_one_entry_in_its_transaction(
    book: SqlPrices, engine: AsyncEngine, accounts: SqlAccounts
) -> None:
    """Who, when, from when on, which versions, and of a long list the first names."""
    commits: list[Any] = []
    event.listen(engine.sync_engine, "commit", commits.append)
    one = await add(book, a=CHEAP)
    many = await add(book, **{f"m{n:02d}": CHEAP for n in range(30)})
    assert len(commits) == 2
    late, early = await accounts.audit()
    assert {(entry.action, entry.kind, entry.actor, entry.tenant_id) for entry in (late, early)} == {
        ("price.import", "price", BY.name, None)
    }
    assert (early.target, early.details) == (
        "a",
        {"valid_from": START.isoformat(), "versions": [one[0], one[0]], "models": ["a"]},
    )
    assert (late.target, late.details["versions"]) == ("30 models", [many[0], many[-1]])
    assert late.details["models"] == [f"m{n:02d}" for n in range(20)] + ["..."]


@pytest.mark.parametrize("what", ["prices", "a markup"])
async def test_a_change_whose_entry_cannot_be_written_is_not_made(
    book: SqlPrices, engine: AsyncEngine, witness: AsyncEngine, accounts: Accounts, what: str
) -> None:
    """No price and no markup without its entry: workers learn of them from the log."""
    one = await tenant(accounts)
    before = await snapshot(witness)

    def no_log(_connection: Any, _cursor: Any, statement: str, *_: object) -> None:
        if "INTO audit_log" in statement:
            raise OSError("the log is full")

    async def change() -> None:
        if what == "prices":
            await add(book, a=CHEAP)
        else:
            await book.set_markup(one.id, 5, START, by=BY)

    event.listen(engine.sync_engine, "before_cursor_execute", no_log)
    with pytest.raises(AccountsUnavailable):
        await change()
    event.remove(engine.sync_engine, "before_cursor_execute", no_log)
    assert await snapshot(witness) == before
    await change()
    assert await snapshot(witness) != before


# --- markups ----------------------------------------------------------------------------------------


async def test_a_markup_holds_from_its_moment_on(book: SqlPrices, accounts: SqlAccounts) -> None:
    """Of its tenant alone; each change is a version and an entry, and the same again is neither."""
    one, other = await tenant(accounts), await tenant(accounts, "b")
    await add(book, a=Price(1000, 1000, 1000, 1000))
    first = await book.set_markup(one.id, 2000, START + DAY, by=BY)
    assert (first.tenant_id, first.basis_points, first.valid_from) == (one.id, 2000, START + DAY)
    second = await book.set_markup(one.id, -10_000, START + 2 * DAY, by=BY)
    assert await book.set_markup(one.id, 2000, START + DAY, by=BY) == first
    third = await book.set_markup(one.id, 500, START + 2 * DAY, by=BY)
    assert await book.markups(one.id) == [third, second, first]
    assert await book.markups(other.id) == []
    assert await book.markups(before=third.version, limit=1) == [second]
    asked = [START, START + DAY, START + 2 * DAY]
    assert [await cost(book, "a", at, one.id) for at in asked] == [1000, 1200, 1050]
    assert await cost(book, "a", asked[2], other.id) == 1000
    price = (await book.load()).of("a", one.id, asked[1])
    assert price is not None
    assert price.version.endswith(f"+{first.version}")
    entries = await accounts.audit(action="price.markup")
    assert [(entry.target, entry.tenant_id, entry.kind) for entry in entries] == [
        (one.id, one.id, "price")
    ] * 3
    details = {"basis_points": 500, "valid_from": asked[2].isoformat(), "version": third.version}
    assert entries[0].details == details


async def test_a_markup_needs_a_tenant(book: SqlPrices, accounts: Accounts, witness: AsyncEngine) -> None:
    """Of nobody there is none, and nothing is written; a deleted tenant may still owe for last month."""
    one = await tenant(accounts)
    await accounts.delete(one.id, by=BY)
    before = await snapshot(witness)
    with pytest.raises(NoSuchTenant):
        await book.set_markup("tn_nobody", 5, None, by=BY)
    assert await snapshot(witness) == before
    assert (await book.set_markup(one.id, 0, None, by=BY)).basis_points == 0


# --- they cannot be changed -------------------------------------------------------------------------

CHANGES = [
    *(f"UPDATE prices SET {column.name} = {column.name}" for column in tables_sql.prices.columns),
    *(f"UPDATE markups SET {column.name} = {column.name}" for column in tables_sql.markups.columns),
    *(
        f"DELETE FROM {table} WHERE version = (SELECT max(version) FROM {table})"
        for table in ("prices", "markups")
    ),
    "DELETE FROM prices",
    "DELETE FROM markups",
]
ONLY = {
    "sqlite": [
        "INSERT OR REPLACE INTO prices SELECT * FROM prices",
        "INSERT OR REPLACE INTO markups SELECT * FROM markups",
    ],
    "postgresql": ["TRUNCATE prices", "TRUNCATE markups"],
}


async def test_no_version_can_be_changed_or_deleted(
    book: SqlPrices, accounts: Accounts, witness: AsyncEngine, kind: str
) -> None:
    """By nobody who has a connection, in no column; the database itself refuses, and goes on."""
    one = await tenant(accounts)
    await add(book, a=CHEAP)
    await book.set_markup(one.id, 5, START, by=BY)
    before = await snapshot(witness)
    for statement in CHANGES + ONLY[kind]:
        async with witness.connect() as connection:
            with pytest.raises(DBAPIError, match="append-only"):
                await connection.execute(text(statement))
            await connection.rollback()
    assert await snapshot(witness) == before
    await add(book, a=DEAR)


# --- others at the same time, and nobody ------------------------------------------------------------


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_who_reads_does_not_wait_for_who_adds(book: SqlPrices, engine: AsyncEngine) -> None:
    """An import that takes long, or hangs, stops no worker from reading what held before."""
    await add(book, a=CHEAP)
    async with book._adding("prices") as connection:
        row = {"model": "b", "valid_from": START, "created_at": START, "created_by": "x"}
        amounts = dict.fromkeys(("input", "cached_input", "output", "reasoning"), 1)
        await connection.execute(insert(tables_sql.prices).values(row | amounts))
        known = await bounded(book.load())
    assert known.of("a", "tn_a", START) is not None
    assert known.of("b", "tn_a", START) is None


async def test_a_database_that_is_away_is_told_so(clock: Clock) -> None:
    """AccountsUnavailable, from each method, without a word of the database in it."""
    engine = open_engine(f"postgresql://nobody:hush-hush@127.0.0.1:{free_port()}/none")
    away = SqlPrices(engine, clock)
    for ask in (
        away.load(),
        away.listed(),
        away.history(),
        away.markups(),
        away.import_prices({"a": CHEAP}, None, by=BY),
        away.import_prices({"a": CHEAP}, None, by=BY, dry_run=True),
        away.set_markup("tn_a", 5, None, by=BY),
    ):
        with pytest.raises(AccountsUnavailable) as told_so:
            await bounded(ask)
        assert "hush" not in str(told_so.value)
    await engine.dispose()
