"""Answers about usage equal the sum of events: for any question, at any moment, on either database."""

from __future__ import annotations

import asyncio
import itertools
import random
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from api.adapters import rollups_sql, usage_sql
from api.adapters.cubes_sql import Bounds, grouped
from api.adapters.database_sql import migrate, open_engine
from api.adapters.ledger_sql import SqlLedger
from api.adapters.usage_sql import SqlUsage
from api.core.record import Spending
from api.core.usage_query import QUARTER, UsageQuery
from api.tasks import Tasks
from tests.contracts.helpers import bounded, turns
from tests.contracts.usages import (
    DST,
    added,
    append_all,
    leading,
    naive,
    random_events,
    random_query,
    usage_event,
)

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from api.core.record import UsageEvent
    from api.core.usage_query import UsageRow


async def all_rows(usage: SqlUsage, query: UsageQuery, limit: int) -> list[UsageRow]:
    """Page by page; every page has the same totals, and no more rows than were asked for."""
    rows: list[UsageRow] = []
    after, totals = None, set()
    while True:
        page = await bounded(usage.page(query, after=after, limit=limit))
        assert len(page.rows) <= limit
        rows += page.rows
        totals.add(page.totals)
        if page.after is None:
            break
        after = page.after
    assert len(totals) == 1
    return rows


async def check(engine: AsyncEngine, events: list[UsageEvent], chance: random.Random, questions: int) -> None:
    """Random questions, in pages of random length."""
    usage = SqlUsage(engine)
    for _ in range(questions):
        query = random_query(chance)
        rows = await all_rows(usage, query, chance.choice((1, 7, 100, 1000)) if query.tenant_id else 1000)
        found = {(row.span, *row.groups.values()): row.sums for row in rows}
        assert len(found) == len(rows), query
        assert found == naive(events, query), query
        assert [row.span for row in rows] == sorted(row.span for row in rows)
        [total] = naive(events, UsageQuery(query.tenant_id, *query.whole, filters=query.filters)).values()
        assert (await usage.page(query, limit=1)).totals == total, query


@pytest.mark.parametrize("seed", [1, 2])
async def test_answers_are_the_sum_of_events_however_far_the_writer_is(
    engine, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While all events wait, when some are rolled up, when all are, and when more come; corrections too."""
    monkeypatch.setattr(rollups_sql, "_BATCH", 90)
    monkeypatch.setattr(usage_sql, "_MAX_SPANS", 40)
    chance, events, later = random.Random(seed), random_events(seed), random_events(seed + 100, 50)
    await append_all(engine, events)
    await check(engine, events, chance, 9)
    rollups = await leading(engine)
    assert await rollups.round()
    await check(engine, events, chance, 14)
    while await rollups.round():
        pass
    await check(engine, events, chance, 14)
    later = [one for one in later if one.id not in {known.id for known in events}]
    await append_all(engine, later)
    await check(engine, events + later, chance, 6)


async def test_a_page_holds_still_while_events_come(engine, witness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows add up to its totals, though an event is written, and rolled up, between the two questions."""
    events = random_events(5, 40)
    await append_all(witness, events)
    rollups, grouped = await leading(witness), usage_sql.grouped
    new = usage_event(DST, 999, tenant_id="tn_a")
    before = usage_sql._rows

    async def meanwhile(*args):
        await append_all(witness, [new])
        await rollups.round()
        return await before(*args)

    monkeypatch.setattr(usage_sql, "_rows", meanwhile)
    assert grouped is usage_sql.grouped
    page = await bounded(SqlUsage(engine).page(UsageQuery(None, group_by=("tenant", "model")), limit=100))
    assert page.totals == added(events)
    assert sum(row.sums.cost_nano_dollars for row in page.rows) == page.totals.cost_nano_dollars
    assert sum(row.sums.events for row in page.rows) == page.totals.events
    monkeypatch.setattr(usage_sql, "_rows", before)
    assert (await SqlUsage(engine).page(UsageQuery(None), limit=1)).totals == added([*events, new])


async def test_in_sqlite_an_interval_is_found_by_its_times(new_database) -> None:
    """One by one, by an index: its own guess would look at each row for each interval, for many seconds."""
    engine = open_engine(new_database("sqlite"))
    await asyncio.to_thread(migrate, str(engine.url))
    by_hour = UsageQuery("tn_a", DST, DST + timedelta(days=9), "UTC", "hour", ("model",))
    statement = grouped(by_hour, list(by_hour.spans()), Bounds(), 9, "sqlite")
    async with engine.connect() as connection:
        plan = await connection.execute(text(f"EXPLAIN QUERY PLAN {literal_sql(statement, engine)}"))
        steps = [str(step[-1]) for step in plan]
    await engine.dispose()
    for table in ("usage_rollups", "rollup_queue"):
        [step] = [step for step in steps if f" {table} " in step]
        assert "tenant_id=?" in step
        assert "starts_at<?" in step or "started_at<?" in step
    assert next(step for step in steps if " usage_events " in step).startswith("SEARCH")


def literal_sql(statement: Any, engine: AsyncEngine) -> str:
    return str(statement.compile(engine.sync_engine, compile_kwargs={"literal_binds": True}))


async def test_a_tenants_answers_are_its_own(engine) -> None:
    """P10: another's keys, users and cursors give nothing of another's; names differ by case alone."""
    mine = usage_event(DST, 1, tenant_id="tn_b", key_id="k1", end_user="ann", model="m")
    theirs = usage_event(DST, 2, tenant_id="tn_B", key_id="k2", end_user="ann", model="m")
    for rolled in (False, True):
        await append_all(engine, [] if rolled else [mine, theirs])
        if rolled:
            await (await leading(engine)).round()
        usage = SqlUsage(engine)
        for filters in ({}, {"end_user": "ann"}, {"key": "k1"}, {"model": "m"}):
            page = await usage.page(UsageQuery("tn_b", group_by=("tenant", "key"), filters=filters), limit=9)
            assert [row.groups for row in page.rows] == [{"tenant": "tn_b", "key": "k1"}]
            assert page.totals == added([mine])
        foreign = UsageQuery("tn_b", group_by=("key",), filters={"key": "k2"})
        assert (await usage.page(foreign, limit=9)).rows == ()
        assert [one.id for one in await usage.events("tn_b", limit=9)] == [mine.id]


async def test_a_tenant_that_asks_for_much_holds_up_no_other(engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """P10: however many questions it has at one time, there is a connection for another's."""
    await append_all(engine, random_events(6, 20))
    usage, rows, go_on = SqlUsage(engine), usage_sql._rows, asyncio.Event()

    async def slow(connection: Any, query: UsageQuery, *rest: Any) -> Any:
        if query.tenant_id == "tn_a":
            await go_on.wait()
        return await rows(connection, query, *rest)

    monkeypatch.setattr(usage_sql, "_rows", slow)
    asking = Tasks()
    loud = [
        asking.start(usage.page(UsageQuery("tn_a", group_by=("model",)), limit=9), name="loud")
        for _ in range(40)
    ]
    await turns()
    quiet = await bounded(usage.page(UsageQuery("tn_b", group_by=("model",)), limit=9))
    assert quiet.totals is not None
    assert not any(one.done() for one in loud)
    go_on.set()
    assert len({(await bounded(one)).totals for one in loud}) == 1


async def test_what_is_spent_is_the_sum_of_events(engine) -> None:
    """Budgets are read from the roll-ups and the queue: of a tenant, a key, an end user."""
    events = random_events(9, 200)
    await append_all(engine, events[:150])
    rollups, ledger = await leading(engine), SqlLedger(engine)
    await rollups.round()
    await append_all(engine, events[150:])
    owners = [("tenant", "tn_a", {}), ("key", "k1", {"key": "k1"}), ("user", "ann", {"end_user": "ann"})]
    for (of, owner, filters), since, money in itertools.product(
        owners, (None, DST, DST + 7 * QUARTER, DST + timedelta(days=9)), (True, False)
    ):
        [sums] = naive(events, UsageQuery("tn_a", since, filters=filters)).values()
        expected = sums.cost_nano_dollars if money else sums.input_tokens + sums.output_tokens
        assert await ledger.spent("tn_a", Spending(of, owner, money, since)) == expected
    [sums] = naive(events, UsageQuery("tn_a")).values()
    totals = await ledger.totals("tn_a")
    assert (totals.events, totals.input_tokens, totals.output_tokens) == (
        sums.events,
        sums.input_tokens,
        sums.output_tokens,
    )


async def test_events_of_a_time_are_those_whose_requests_came_in_it(engine) -> None:
    """From a moment on, before another; a page behind any of them, corrections too, is the rest."""
    events = sorted((one for one in random_events(4, 120)), key=lambda one: one.id)
    await append_all(engine, events)
    usage, mine = SqlUsage(engine), [one for one in events if one.booking.tenant_id == "tn_a"]
    for since, until in ((None, None), (DST, None), (None, DST), (DST, DST + 5 * QUARTER)):
        expected = [
            one.id
            for one in mine
            if (since is None or one.booking.started_at >= since)
            and (until is None or one.booking.started_at < until)
        ]
        found: list[str] = []
        while page := await usage.events(
            "tn_a", since=since, until=until, after=found[-1] if found else None, limit=3
        ):
            found += [one.id for one in page]
        assert found == expected
    assert any(one.number for one in mine)
